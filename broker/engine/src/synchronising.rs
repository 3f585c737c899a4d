//! Replicas that wait to be synchronised (`ha-sync-mode: manual`; what they are stands with the metadata): the leader of
//! their group marks where its log stood when it first heard of them, and asks for them once nothing older is left. The
//! admin API's `sync` and `cancel_sync` are here too.

use std::collections::BTreeMap;

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::meta::{MetaCommand, Placement, Unsynchronised};
use holdfast_queue::time::{Duration, Instant};

use crate::admin::{AdminError, AdminErrorKind, QueueAction};
use crate::member::Member;
use crate::requests::Waiter;
use crate::seam::AdminRequestId;

/// Waiting replicas are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What was asked of the metadata is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What this member has asked the metadata for, as leader of groups with waiting replicas.
#[derive(Default)]
pub(crate) struct Synchronising {
    next: Instant,
    asked: BTreeMap<(GroupId, MemberId), Instant>,
}

/// What to do for a waiting replica of a group that is led here and has applied up to `applied`; `oldest` is the oldest
/// entry that is still needed.
fn next_command(group: GroupId, waiting: Unsynchronised, applied: u64, oldest: Option<u64>) -> Option<MetaCommand> {
    let member = waiting.member;
    match waiting.marker {
        None => Some(MetaCommand::MarkUnsynchronised { group, member, marker: applied }),
        Some(marker) if applied >= marker && oldest.is_none_or(|oldest| oldest > marker) => {
            Some(MetaCommand::Synchronise { group, member: Some(member) })
        }
        Some(_) => None,
    }
}

impl<R: EntryReader> Member<R> {
    /// Looks at the waiting replicas of the groups that are led here.
    pub(crate) fn tick_synchronising(&mut self) {
        let now = self.now;
        if now < self.synchronising.next || !self.lease_fresh() {
            return;
        }
        self.synchronising.next = now + LOOK_EVERY;
        self.synchronising.asked.retain(|_, at| now.since(*at) < ASK_AGAIN);
        let mut commands = Vec::new();
        let (Some(meta), Some(host)) = (self.metadata(), self.host.as_ref()) else { return };
        for group in meta.unsynchronised().filter(|group| host.is_leading(*group)) {
            let Some(info) = meta.group(group) else { continue };
            let Some(machine) = host.machine(group).and_then(|machine| machine.queue()) else { continue };
            let (applied, oldest) = (host.applied(group), machine.oldest_live());
            let due = info.target.unsynchronised.iter().filter_map(|waiting| {
                let command = next_command(group, *waiting, applied, oldest)?;
                let asked = self.synchronising.asked.contains_key(&(group, waiting.member));
                (!asked).then_some(((group, waiting.member), command))
            });
            commands.extend(due);
        }
        for (key, command) in commands {
            self.synchronising.asked.insert(key, now);
            self.ask_metadata(command, Waiter::Nobody);
        }
    }

    /// `POST /v1/queues/{vhost}/{name}/actions`.
    pub(crate) fn queue_action(
        &mut self,
        request: AdminRequestId,
        (vhost, name): (&str, &str),
        action: QueueAction,
    ) -> Result<(), AdminError> {
        self.need_metadata()?;
        let refused = |kind, error: String, hint: &str| Err(AdminError { kind, error, hint: hint.to_owned() });
        let placement = self.metadata().and_then(|meta| {
            let queue = meta.vhost(vhost)?.queues.get(name)?;
            Some(meta.queue(*queue)?.placement)
        });
        let group = match placement {
            Some(Placement::Replicated { group }) => group,
            Some(Placement::Transient { .. }) => {
                let error = format!("queue '{name}' in vhost '{vhost}' is transient: it has one replica, in memory");
                return refused(AdminErrorKind::Conflict, error, "declare it durable to have it replicated");
            }
            None => {
                let error = format!("there is no queue '{name}' in vhost '{vhost}'");
                return refused(AdminErrorKind::NotFound, error, "GET /v1/queues lists them");
            }
        };
        let command = match action {
            QueueAction::Sync => MetaCommand::Synchronise { group, member: None },
            QueueAction::CancelSync => MetaCommand::CancelSynchronise { group },
        };
        self.ask_for_admin(request, Some(request), command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_replica_is_marked_once_and_asked_for_when_nothing_older_is_left() {
        let group = GroupId(3);
        let waiting = |marker| Unsynchronised { member: MemberId(2), marker };
        let mark = MetaCommand::MarkUnsynchronised { group, member: MemberId(2), marker: 7 };
        assert_eq!(next_command(group, waiting(None), 7, Some(5)), Some(mark));
        let sync = Some(MetaCommand::Synchronise { group, member: Some(MemberId(2)) });
        assert_eq!(next_command(group, waiting(Some(7)), 9, Some(7)), None, "one of the old messages is there");
        assert_eq!(next_command(group, waiting(Some(7)), 9, Some(8)), sync, "only newer ones are");
        assert_eq!(next_command(group, waiting(Some(7)), 9, None), sync, "none is");
        assert_eq!(next_command(group, waiting(Some(7)), 6, None), None, "it does not know yet what there was");
    }
}
