//! Restores in place: the steps that a reader of a backup sends, each answered once it is durable on a majority.
//!
//! Exactly once comes from the target itself: the group takes a message only as the one that follows those it has, and
//! nobody can take any out before all of them are there. So whoever repeats a step, at whichever member, after whatever was
//! lost of the answer, changes nothing.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, QueueId};
use holdfast_queue::in_place::{RestoreStep, RestoreTarget, RestoredMessage};
use holdfast_queue::meta::MetaCommand;
use holdfast_queue::queue::{QueueCommand, QueueReply};

use crate::admin::{AdminError, AdminErrorKind, AdminReply};
use crate::admin_requests::refused;
use crate::member::Member;
use crate::publishing::{OVERHEAD_BYTES, group_of};
use crate::requests::Waiter;
use crate::seam::AdminRequestId;

/// What an answer of the queue's group means to the step that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is told how many messages there are.
    Count,
    /// The queue is whole if it says so; then the metadata lets everybody use it.
    Complete { target: RestoreTarget, messages: u64 },
}

type Stepped = Result<Option<AdminReply>, AdminError>;

impl<R: EntryReader> Member<R> {
    /// The answer, or none if it comes later.
    pub(crate) fn restore_step(&mut self, request: AdminRequestId, step: RestoreStep) -> Stepped {
        self.need_metadata()?;
        let command = match step {
            RestoreStep::BeginVhost { target: RestoreTarget { vhost, id, .. }, content } => {
                MetaCommand::BeginVhostRestore { vhost, id, content }
            }
            RestoreStep::BeginQueue { target: RestoreTarget { vhost, name, id }, auto_delete, arguments } => {
                MetaCommand::BeginQueueRestore { vhost, name, id, auto_delete, arguments }
            }
            RestoreStep::CompleteVhost { target: RestoreTarget { vhost, id, .. }, content } => {
                MetaCommand::CompleteVhostRestore { vhost, id, content }
            }
            RestoreStep::Abandon { target: RestoreTarget { vhost, name, id } } => {
                MetaCommand::AbandonRestore { vhost, name, id }
            }
            RestoreStep::Progress { target } => return self.fill(request, &target, 0, Vec::new()),
            RestoreStep::Messages { target, first, messages } => return self.fill(request, &target, first, messages),
            RestoreStep::CompleteQueue { target, messages } => {
                let Some((group, queue)) = self.target_of(&target)? else { return Ok(Some(COMPLETE)) };
                let then = Then::Complete { target, messages };
                self.expect_answer(request);
                self.ask(group, QueueCommand::EndRestore { queue, messages }, Waiter::InPlace { request, then });
                return Ok(None);
            }
        };
        self.ask_for_admin(request, Some(request), command)?;
        Ok(None)
    }

    /// Where the target is; none if it is complete.
    fn target_of(&self, target: &RestoreTarget) -> Result<Option<(GroupId, QueueId)>, AdminError> {
        let RestoreTarget { vhost, name, id } = target;
        let meta = self.metadata();
        let mark = meta.and_then(|meta| meta.restoring(vhost, name));
        let what = format!("queue '{name}' in vhost '{vhost}'");
        let absent = || {
            let hint = "begin with it, or wait until this member has heard of it";
            refused(AdminErrorKind::NotFound, format!("no restore of {what} has begun"), hint)
        };
        let (Some(meta), Some(mark)) = (meta, mark) else { return Err(absent()) };
        if mark.id != *id {
            let error = format!("{what} exists already, and not by this restore");
            return Err(refused(AdminErrorKind::Conflict, error, "choose another name"));
        }
        if mark.complete {
            return Ok(None);
        }
        let queue = meta.vhost(vhost).and_then(|vhost| vhost.queues.get(name)).copied();
        let place = queue.and_then(|queue| Some((group_of(meta, queue)?, queue)));
        place.map(Some).ok_or_else(absent)
    }

    /// Stores messages, if there are any, and asks how many are there then.
    fn fill(
        &mut self,
        request: AdminRequestId,
        target: &RestoreTarget,
        first: u64,
        messages: Vec<RestoredMessage>,
    ) -> Stepped {
        let Some((group, queue)) = self.target_of(target)? else { return Ok(Some(COMPLETE)) };
        // It gives way to an alarm as any publisher does.
        if !messages.is_empty() && !self.alarmed_members().is_empty() {
            let hint = "GET /v1/health names it; go on when it is over";
            return Err(refused(AdminErrorKind::Unavailable, "a member is short of memory or disk", hint));
        }
        for (position, RestoredMessage { returns, message }) in (first..).zip(messages) {
            let size = message.body.len() + message.properties.len() + OVERHEAD_BYTES;
            self.tell_sized(group, QueueCommand::Restore { queue, position, returns, message }, size);
        }
        self.expect_answer(request);
        // What was told before is applied before.
        self.ask(group, QueueCommand::Stat { queue }, Waiter::InPlace { request, then: Then::Count });
        Ok(None)
    }

    /// The queue's group has answered.
    pub(crate) fn restore_answered(&mut self, request: AdminRequestId, then: Then, reply: QueueReply) {
        if !self.is_expected(request) {
            return; // It was told already that it took too long.
        }
        let gone = || refused(AdminErrorKind::NotFound, "the queue is not there any more", "begin again");
        let reply = match (then, reply) {
            (Then::Count, QueueReply::Stats { stats }) => {
                Ok(AdminReply::InPlace { messages: stats.ready, complete: false })
            }
            (Then::Complete { target: RestoreTarget { vhost, name, id }, .. }, QueueReply::RestoreEnded) => {
                let command = MetaCommand::CompleteQueueRestore { vhost, name, id };
                return self.ask_metadata(command, Waiter::Admin(request));
            }
            (Then::Complete { messages, .. }, QueueReply::Stats { stats }) => {
                let error = format!("the queue holds {} messages, and should hold {messages}", stats.ready);
                Err(refused(AdminErrorKind::Conflict, error, "send those that lack"))
            }
            _ => Err(gone()),
        };
        self.admin_reply(request, reply);
    }
}

/// Nothing is left to do, however often it is asked for.
const COMPLETE: AdminReply = AdminReply::InPlace { messages: 0, complete: true };
