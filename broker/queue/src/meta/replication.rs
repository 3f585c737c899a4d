//! How many copies of a message a queue wants: the cluster's defaults, and what they come to for one queue.

use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::state::Placement;
use crate::ids::{GroupId, QueueId};

/// The most voters that a queue may have (`ha-mode: all` means "every node, up to 7"), and so the most copies that a
/// confirm can wait for.
pub const MAX_REPLICAS: u32 = 7;

impl MetaMachine {
    pub(super) fn set_default_min_in_sync(&mut self, min_in_sync_replicas: u32, changes: &mut Vec<Change>) -> Outcome {
        check_min_in_sync(min_in_sync_replicas)?;
        let Some(cluster) = &mut self.cluster else {
            return Err(Refusal { code: 406, text: "the cluster was not made yet".to_owned() });
        };
        cluster.default_min_in_sync_replicas = min_in_sync_replicas;
        changes.push(Change::Replication);
        Ok(MetaReply::Done)
    }

    /// Durable copies, on voters, that a confirm of this queue waits for; a majority is always waited for, so 0 and 1 ask
    /// for nothing more. The cluster's default asks for no more copies than the queue is meant to have replicas: a queue
    /// that is declared with one replica is not unusable because others have three. It counts what the queue is *meant*
    /// to have, not what it has at the moment.
    pub fn min_in_sync_replicas(&self, queue: QueueId) -> u32 {
        match self.queue(queue).map(|info| info.placement) {
            Some(Placement::Replicated { .. }) => {
                let default = self.cluster.as_ref().map_or(0, |cluster| cluster.default_min_in_sync_replicas);
                default.min(self.factor())
            }
            // One member, memory: there is nothing to wait for.
            Some(Placement::Transient { .. }) | None => 0,
        }
    }

    /// The largest [`MetaMachine::min_in_sync_replicas`] of the queues in a group.
    pub fn group_min_in_sync_replicas(&self, group: GroupId) -> u32 {
        let Some(group) = self.group(group) else { return 0 };
        group.queues.iter().map(|queue| self.min_in_sync_replicas(*queue)).max().unwrap_or(0)
    }
}

pub(super) fn check_min_in_sync(replicas: u32) -> Result<(), Refusal> {
    if replicas <= MAX_REPLICAS {
        return Ok(());
    }
    let text = format!("min-in-sync-replicas is {replicas}, but a queue has at most {MAX_REPLICAS} replicas");
    Err(Refusal { code: 406, text })
}
