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
}
