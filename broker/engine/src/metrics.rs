//! Counters, as a plain snapshot.

/// What a member counted since it started, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Messages that clients published here.
    pub published: u64,
    /// Publisher confirms sent to clients here.
    pub confirmed: u64,
    /// Publishes refused here because too few replicas were in sync, or had the message in time.
    pub refused: u64,
    /// Unroutable mandatory messages returned to clients here.
    pub returned: u64,
    /// Messages delivered to clients here, by consumers and by get.
    pub delivered: u64,
    /// Deliveries that clients here acknowledged.
    pub acknowledged: u64,
    /// Commands sent again because no answer came.
    pub resent: u64,
    /// Raft entries proposed here.
    pub proposals: u64,
    /// Commands in those entries.
    pub commands: u64,
    /// Failovers that replicas here won.
    pub failovers: u64,
    /// Replicas of which records were found to be damaged while they ran.
    pub journal_damages: u64,
    /// Entries that the disk had lost and peers gave back.
    pub journal_mended: u64,
    /// Replicas that had lost something and have it again, from peers.
    pub replicas_mended: u64,
    /// Replicas that were put into quarantine: such a one is copied anew as a whole.
    pub replicas_quarantined: u64,
    /// Client connections now.
    pub connections: u64,
    /// Open channels now.
    pub channels: u64,
    /// Consumers of sessions here, now.
    pub consumers: u64,
    /// Queues in the cluster now.
    pub queues: u64,
    /// Groups led here now.
    pub groups_leading: u64,
    /// Replicas here now.
    pub groups: u64,
    /// Bytes of commands of sessions here that groups have not taken in yet.
    pub unconfirmed_bytes: u64,
    /// Channels that clients here opened.
    pub channels_opened: u64,
    /// Client connections that an alarm has blocked, now.
    pub blocked_connections: u64,
    /// The memory above which publishers wait, bytes; 0 for no limit.
    pub memory_high_watermark_bytes: u64,
    /// This member uses more memory than that.
    pub memory_alarm: bool,
    /// This member's disk is nearly full.
    pub disk_alarm: bool,
    /// Some member has an alarm, so publishers wait here too.
    pub cluster_alarm: bool,
    /// Bytes of messages of which only a part has come from clients here.
    pub assembling_bytes: u64,
    /// Bytes of deliveries that clients here have not taken yet.
    pub backlog_bytes: u64,
    /// Bytes that the transient queues here hold.
    pub transient_bytes: u64,
}
