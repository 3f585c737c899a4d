//! A new cluster out of a backup (design §3.6): the journal of its founder, from the copies of the old members' holds.
//!
//! | module | holds |
//! |---|---|
//! | `cover` | which members' copies have which groups, and what is wrong with a copy |
//! | `build` | the founder's journal: each group at its place, from a copy that is what the manifest says |
//! | `in_place` | what a restore into a running cluster reads: metadata, and one queue at a time |
//! | `check` | the new journal is read again, and must hold what the manifest counts, and nothing else |
//!
//! # How the copy could be taken for the original, and what prevents it
//!
//! 1. *Its members link with the old ones.* The cluster id is another one; the hello says it, and either side refuses the
//!    other, whatever its member numbers are. The founder's UUID was never in a cluster.
//! 2. *An envelope of the old cluster arrives.* It names the old cluster, and the old life of its group: every group,
//!    group 0 included, has another incarnation, whose nonce is drawn for this restore. So two restores of one backup refuse
//!    each other too, even if somebody gives them the same cluster id.
//! 3. *A disk of the old cluster comes back under a name of the new one.* It belongs to another cluster, and is refused.
//! 4. *Sessions of the old cluster go on.* Nothing of a run, a session, a consumer or a numbered row of commands is kept.
//!
//! Nothing is restored in part: either each group that the manifest lists is there with every message that it counts, or the
//! restore fails and names the files and queues that lack. The one exception is what the manifest itself calls missing,
//! since the backup was allowed to leave it out; those queues are there, and empty.

mod build;
mod check;
mod cover;
mod in_place;

use holdfast_queue::meta::{ExpectedMember, NewUser};

pub use build::{Restored, build};
pub use check::check;
pub use cover::{Coverage, HoldCopy};
pub use in_place::{OpenCopy, OpenQueue, some_queues};

use crate::backup::Manifest;
use crate::identity::MemberUuid;

/// The cluster that is to be.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Its id, which no other cluster has.
    pub cluster_id: String,
    /// The founder.
    pub name: String,
    pub zone: String,
    /// Where its peers reach it, host and port; empty if it has none.
    pub address: String,
    /// Drawn for the founder.
    pub uuid: MemberUuid,
    /// The highest `X-Holdfast-Token` that it has seen.
    pub admin_token: u64,
    /// Who should be in the cluster; the founder is added if it is not among them.
    pub expected: Vec<ExpectedMember>,
    /// Replicas of a queue without a policy, and copies that a confirm waits for at least; as in the backup if not given.
    pub defaults: Option<(u32, u32)>,
    /// A user to set anew.
    pub user: Option<NewUser>,
    /// Drawn for this restore.
    pub nonce: u64,
}

/// Why there is no new cluster. What was written of it is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The manifest, or what the files hold, is not what it must be: another copy is needed.
    #[error("{0}")]
    Backup(String),
    /// The new journal.
    #[error(transparent)]
    Journal(#[from] holdfast_journal::JournalError),
    /// A defect: what was written is not what was to be written.
    #[error("the restored journal is not what the manifest says, and is not used: {0}")]
    Differs(String),
}

/// Queues or files in a sentence; the rest is a number.
const NAMED: usize = 20;

/// Joins some of them.
fn listed(all: &[String]) -> String {
    let mut text = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.len() > NAMED {
        text.push_str(&format!(" and {} more", all.len() - NAMED));
    }
    text
}

/// The groups by their queues.
fn queues_of(groups: &[&crate::backup::GroupEntry]) -> String {
    let names = |group: &&crate::backup::GroupEntry| match group.state.queues.as_slice() {
        _ if group.place.group == 0 => vec!["the metadata (group 0)".to_owned()],
        [] => vec![format!("group {}, which has no queue", group.place.group)],
        queues => {
            let name = |queue: &crate::backup::QueueEntry| format!("queue '{}' in vhost '{}'", queue.name, queue.vhost);
            queues.iter().map(name).collect()
        }
    };
    listed(&groups.iter().flat_map(names).collect::<Vec<_>>())
}

/// A manifest that a restore can begin with.
///
/// # Errors
/// Why not.
pub fn usable(manifest: &Manifest) -> Result<(), RestoreError> {
    let refused = |why: &str| Err(RestoreError::Backup(format!("the manifest cannot be restored: {why}")));
    match manifest.groups.first() {
        None => return refused("it has no group"),
        Some(first) if first.place.group != 0 => return refused("it does not have the metadata (group 0)"),
        Some(_) => {}
    }
    let mut groups: Vec<u64> = manifest.groups.iter().map(|group| group.place.group).collect();
    groups.extend(manifest.missing.iter().map(|missing| missing.group));
    let count = groups.len();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() != count {
        return refused("it lists a group twice");
    }
    match manifest.groups.iter().find_map(|group| group.place.place().err()) {
        Some(why) => refused(&why),
        None => Ok(()),
    }
}
