//! How far a blank member is in receiving a backup, as its admin API has it (`/v1/restore`).

use serde::{Deserialize, Serialize};

/// `GET /v1/restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreProgress {
    /// The barrier whose files are received, if any are.
    pub backup: Option<String>,
    pub manifest_sha256: Option<String>,
    pub state: RestoreState,
    pub bytes_present: u64,
    pub bytes_needed: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestoreState {
    /// Nothing was sent yet.
    #[default]
    None,
    Receiving,
    /// Every queue is there whole.
    Complete,
    /// The member makes its own files of them.
    Building,
    /// What was received cannot be used.
    Failed,
    /// The member belongs to the cluster, or will after its restart.
    Done,
}
