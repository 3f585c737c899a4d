//! Barriers and holds, as the brokers' admin API has them (`/v1/backup/barriers`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// `POST /v1/backup/barriers`: a consistent cut through every queue, whose files are held on all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BarrierRequest {
    pub id: String,
    /// Members keep the files so long, unless they are told again.
    pub hold_seconds: u64,
    /// Queues without a majority are left out, instead of failing the barrier.
    pub allow_partial: bool,
}

/// The cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Barrier {
    /// Milliseconds since 1970.
    pub taken_at_ms: u64,
    /// For how long nothing was confirmed or delivered.
    pub pause_ms: u64,
    /// Of the manifest, which is the same file on the disk of every member that holds files; hexadecimal.
    pub manifest_sha256: String,
    pub totals: BarrierTotals,
    /// What was left out.
    pub missing: Vec<MissingGroup>,
    /// Members that hold files.
    pub members: BTreeSet<String>,
    /// The distinct sets of members that hold a queue, or the metadata, complete.
    pub holders: Vec<BTreeSet<String>>,
}

/// Sums over the whole backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BarrierTotals {
    pub queues: u64,
    pub messages: u64,
    pub message_bytes: u64,
}

/// A group without a majority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MissingGroup {
    /// As `vhost/name`.
    pub queues: Vec<String>,
}
