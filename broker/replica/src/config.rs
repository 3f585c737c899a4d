//! What a host is told at its start.

use std::time::Duration;

/// Limits and times of a [`crate::Host`]. The defaults are those of the design.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// A hash of the cluster's id. Envelopes of another cluster are dropped.
    pub cluster: u64,
    /// One Raft tick.
    pub tick: Duration,
    /// Ticks between heartbeats of an active group.
    pub heartbeat_ticks: u64,
    /// The shortest election timeout in ticks; the longest is one tick under twice that. It is also the leader's lease
    /// and the time after which the next voter in rank campaigns.
    pub election_ticks: u64,
    /// Ticks without work after which a leader quiesces its group.
    pub quiesce_ticks: u64,
    /// Entry bytes in one append message; a larger entry goes alone.
    pub max_append_bytes: u64,
    /// Append messages on the way to one follower.
    pub max_inflight_appends: usize,
    /// Bytes proposed in one group and not yet committed; more is refused as [`crate::ProposeError::Busy`].
    pub max_uncommitted_bytes: u64,
    /// Bytes of committed entries that are read and applied in one go.
    pub max_apply_bytes: u64,
    /// A checkpoint is taken after so many applied entries…
    pub checkpoint_entries: u64,
    /// …or after so many applied bytes.
    pub checkpoint_bytes: u64,
    /// A log larger than this is compacted although a live voter still needs it; that voter gets a Raft snapshot.
    pub max_log_bytes: u64,
    /// Payloads kept in memory, all groups together. Payloads that are not durable yet are kept on top of this.
    pub cache_bytes: usize,
    /// They are dropped when nothing was written for this long: an idle member is small, and the disk has them.
    pub cache_idle: Duration,
    /// Messages kept for a group that this member does not know yet.
    pub parked_messages: usize,
    /// Unknown groups for which messages are kept.
    pub parked_groups: usize,
    /// How long they are kept.
    pub park_for: Duration,
    /// Bytes of one snapshot chunk; a larger payload travels alone.
    pub snapshot_chunk_bytes: usize,
    /// Snapshot chunks on the way to one follower.
    pub snapshot_window: usize,
    /// A snapshot sender that hears nothing asks again after this.
    pub snapshot_resend: Duration,
    /// A snapshot transfer without progress ends after this.
    pub snapshot_give_up: Duration,
    /// The largest machine state that a snapshot may bring, in bytes.
    pub max_machine_bytes: u64,
    /// Groups that campaign in one tick after a member was suspected.
    pub campaigns_per_tick: usize,
    /// A campaign for a suspected leader's group that found no majority is repeated after this.
    pub campaign_retry: Duration,
    /// A leader whose oldest write is unfinished for longer hands its leaderships over (design §3.1).
    pub slow_disk: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            cluster: 0,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 3,
            election_ticks: 12,
            quiesce_ticks: 20,
            max_append_bytes: 256 << 10,
            max_inflight_appends: 64,
            max_uncommitted_bytes: 64 << 20,
            max_apply_bytes: 4 << 20,
            checkpoint_entries: 20_000,
            checkpoint_bytes: 64 << 20,
            max_log_bytes: 512 << 20,
            cache_bytes: 64 << 20,
            cache_idle: Duration::from_secs(10),
            parked_messages: 64,
            parked_groups: 1024,
            park_for: Duration::from_secs(1),
            snapshot_chunk_bytes: 256 << 10,
            snapshot_window: 4,
            snapshot_resend: Duration::from_millis(500),
            snapshot_give_up: Duration::from_secs(60),
            max_machine_bytes: 4 << 30,
            campaigns_per_tick: 64,
            campaign_retry: Duration::from_millis(150),
            slow_disk: Duration::from_secs(1),
        }
    }
}

impl HostConfig {
    /// The shortest election timeout. A leader that heard no majority for this long lets nothing out.
    pub fn election_timeout(&self) -> Duration {
        self.tick * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }
}
