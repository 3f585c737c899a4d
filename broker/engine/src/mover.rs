//! The mover: brings a group from the replicas that it has to those that it should have, one change at a time.
//!
//! The leader of the group acts, since only it knows how far each replica has come, and its steps are entries of the
//! group's own log; the leader of group 0 says when (see [`crate::rebalance`]). Nothing of a move is kept in memory: the
//! next step follows from the group's membership and the target alone, so whoever leads next goes on where it stands.
//! Between two steps the metadata has recorded the first one: what is in neither the record nor the target is gone for
//! good, and a member may drop it.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::meta::{GroupInfo, MetaCommand};
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::{CAUGHT_UP_LAG, GroupStatus, MembershipChange, ProposeError};

use crate::member::Member;
use crate::peer_message::MoveNote;
use crate::requests::Waiter;

/// How long a permit is good: a few rounds of the care for members.
const PERMIT_FOR: Duration = Duration::from_secs(1);
/// A record that was asked for is asked for again after this.
const RECORD_EVERY: Duration = Duration::from_secs(2);

/// What to do next for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The group has the replicas that it should have.
    Settled,
    /// The metadata does not show yet what the group has come to have.
    Record,
    Change(MembershipChange),
    /// This member leads, and must not in the end: it hands over first.
    Transfer(MemberId),
    /// It goes on by itself.
    Wait(String),
    /// Nothing can be done before something else happens.
    Held(String),
}

/// The next step of the group that `me` leads. `live`: whether a member can be talked to.
///
/// Learners come first, are promoted once they have caught up, and what should go goes last, each new voter with one old
/// one in a joint change, so that the group never has fewer voters than before. Only one at a time is exchanged: a majority
/// of the voters of both halves together is then a majority of either half's quorums, which leases rely on.
pub(crate) fn next_step(me: MemberId, info: &GroupInfo, status: &GroupStatus, live: &dyn Fn(MemberId) -> bool) -> Step {
    if status.changed_at > info.changed_at {
        return match status.change_durable {
            true => Step::Record,
            false => Step::Wait("too few disks know yet that the last change is committed".into()),
        };
    }
    if status.changed_at < info.changed_at {
        return Step::Wait("this member has not caught up with the group's last change".into());
    }
    if status.joint {
        return Step::Change(MembershipChange::LeaveJoint);
    }
    let target = &info.target;
    let wanted = |replica: &ReplicaId| target.replicas().any(|it| it == *replica);
    if let Some(stale) = status.learners.iter().find(|learner| !wanted(learner)) {
        return Step::Change(MembershipChange::Remove(*stale));
    }
    // A member has one replica of a group at most: there the old one goes before the new one comes.
    let is_succeeded = |voter: &&ReplicaId| target.replica_on(voter.member).is_some_and(|it| it != **voter);
    let succeeded: Vec<ReplicaId> = status.voters.iter().filter(is_succeeded).copied().collect();
    let here = |replica: &ReplicaId| status.voters.contains(replica) || status.learners.contains(replica);
    let missing: Vec<ReplicaId> = target.replicas().filter(|replica| !here(replica)).collect();
    let has_room = |replica: &&ReplicaId| succeeded.iter().all(|old| old.member != replica.member);
    if let Some(new) = missing.iter().filter(has_room).find(|replica| live(replica.member)) {
        return Step::Change(MembershipChange::AddLearner(*new));
    }
    exchange_voters(me, info, status, live, &missing, &succeeded)
}

fn remove(replica: ReplicaId) -> Step {
    Step::Change(MembershipChange::Remove(replica))
}

/// All replicas that can be added are there: the voters become those of the target. `missing` cannot be added yet,
/// `succeeded` are in the way of some of these.
fn exchange_voters(
    me: MemberId,
    info: &GroupInfo,
    status: &GroupStatus,
    live: &dyn Fn(MemberId) -> bool,
    missing: &[ReplicaId],
    succeeded: &[ReplicaId],
) -> Step {
    let target = &info.target;
    let joining: Vec<ReplicaId> =
        target.voters.iter().filter(|voter| status.learners.contains(voter)).copied().collect();
    let mut leaving: Vec<ReplicaId> =
        status.voters.iter().filter(|voter| !target.voters.contains(voter) && voter.member != me).copied().collect();
    leaving.sort_by_key(|voter| (live(voter.member), *voter));
    let leave = |voter: ReplicaId| match target.learners.contains(&voter) {
        true => (vec![voter], Vec::new()),
        false => (Vec::new(), vec![voter]),
    };
    if let Some(ready) = joining.iter().find(|replica| lag(status, **replica).is_some_and(|lag| lag <= CAUGHT_UP_LAG)) {
        let Some(voter) = leaving.first() else { return Step::Change(MembershipChange::Promote(*ready)) };
        let (demote, remove) = leave(*voter);
        return Step::Change(MembershipChange::Swap { promote: vec![*ready], demote, remove });
    }
    if let Some(learner) = joining.iter().find(|learner| live(learner.member)) {
        return Step::Wait(match lag(status, *learner) {
            Some(lag) => format!("replica {learner} is catching up: {lag} entries to go"),
            None => format!("replica {learner} is catching up: it has nothing yet"),
        });
    }
    // One after the other: the successor of the last one votes before the next one goes.
    if let Some(old) = succeeded.iter().find(|old| old.member != me) {
        return remove(*old);
    }
    if !succeeded.is_empty() {
        return hand_over(me, info, status, live);
    }
    if let Some(learner) = joining.first() {
        return Step::Held(format!("replica {learner} does not answer"));
    }
    if let Some(absent) = missing.first() {
        return Step::Held(format!("member {} does not answer", absent.member));
    }
    if let Some(voter) = leaving.first() {
        let (demote, remove) = leave(*voter);
        return Step::Change(match remove.first() {
            Some(voter) => MembershipChange::Remove(*voter),
            None => MembershipChange::Swap { promote: Vec::new(), demote, remove },
        });
    }
    if target.voters.iter().all(|voter| voter.member != me) {
        return hand_over(me, info, status, live);
    }
    Step::Settled
}

/// Entries that a live replica lacks; none if it does not answer or has nothing at all yet.
fn lag(status: &GroupStatus, replica: ReplicaId) -> Option<u64> {
    let peer = status.peers.iter().find(|peer| peer.replica == replica)?;
    (peer.live && peer.matched > 0).then_some(peer.lag)
}

/// To the member that should lead, or else to any voter that stays.
fn hand_over(me: MemberId, info: &GroupInfo, status: &GroupStatus, live: &dyn Fn(MemberId) -> bool) -> Step {
    let stays = |voter: &&ReplicaId| info.target.voters.contains(voter) && voter.member != me && live(voter.member);
    let heirs = status.voters.iter().filter(stays).map(|voter| voter.member);
    match heirs.min_by_key(|member| (*member != info.target.preferred_leader, *member)) {
        Some(heir) => Step::Transfer(heir),
        None => Step::Held("the leader is to go, and no voter that stays answers".into()),
    }
}

/// Permits to move groups, and records that were asked for.
#[derive(Default)]
pub(crate) struct Mover {
    permits: std::collections::BTreeMap<GroupId, Instant>,
    recorded: std::collections::BTreeMap<GroupId, (u64, Instant)>,
}

impl<R: EntryReader> Member<R> {
    /// Group 0's leader lets this member move a group that it leads.
    pub(crate) fn permitted(&mut self, group: GroupId) -> MoveNote {
        self.mover.permits.insert(group, self.now + PERMIT_FOR);
        self.advance(group)
    }

    /// Goes on with the moves that are permitted, and sees to it that what groups have come to have is recorded.
    pub(crate) fn tick_mover(&mut self) {
        let now = self.now;
        self.mover.permits.retain(|_, until| now < *until);
        let groups: Vec<GroupId> = self.mover.permits.keys().copied().collect();
        for group in groups {
            self.advance(group);
        }
        if self.leaderships.led.contains_key(&GroupId::META) {
            // Group 0 needs nobody's permit: it is one group, and everything else depends on it.
            self.advance(GroupId::META);
        }
    }

    /// Takes the next step for a group, if this member leads it and knows what is wanted.
    fn advance(&mut self, group: GroupId) -> MoveNote {
        let held = |text: &str| MoveNote { held: true, text: text.to_owned() };
        let Some(status) = self.host.as_ref().and_then(|host| host.status(group)) else {
            return held("the member that was asked has no replica of the group");
        };
        if !status.me_leading {
            return held("the member that was asked does not lead the group");
        }
        if !self.lease_fresh() {
            return held("the leader's metadata is not known to be fresh");
        }
        let Some(info) = self.metadata().and_then(|meta| meta.group(group)).cloned() else {
            return held("the metadata does not know the group");
        };
        let me = self.me();
        let live = |member: MemberId| {
            member == me || self.peers.is_linked(member) && self.peers.get(member).is_some_and(|peer| !peer.suspected)
        };
        let step = next_step(me, &info, &status, &live);
        self.take_step(group, &status, step)
    }

    fn take_step(&mut self, group: GroupId, status: &GroupStatus, step: Step) -> MoveNote {
        let note = |held, text: String| MoveNote { held, text };
        match step {
            Step::Settled => note(false, "the group has the replicas that it should have".into()),
            Step::Wait(why) => note(false, why),
            Step::Held(why) => note(true, why),
            Step::Record => {
                self.record_replicas(group, status);
                note(false, "recording what the group has come to have".into())
            }
            Step::Transfer(to) => {
                let Some(host) = self.host.as_mut() else { return note(true, String::new()) };
                match host.transfer_leader(group, to) {
                    Ok(()) => note(false, format!("handing leadership to member {to}")),
                    Err(error) => note(true, format!("leadership cannot go to member {to}: {error}")),
                }
            }
            Step::Change(change) => {
                let Some(host) = self.host.as_mut() else { return note(true, String::new()) };
                match host.change_membership(group, &change) {
                    Ok(_) => note(false, describe(&change)),
                    Err(ProposeError::ChangePending | ProposeError::Busy) => {
                        note(false, "waiting for the last change to take effect".into())
                    }
                    Err(error) => note(true, format!("{} is refused: {error}", describe(&change))),
                }
            }
        }
    }

    /// Asks the metadata to record the membership of a group that is led here.
    fn record_replicas(&mut self, group: GroupId, status: &GroupStatus) {
        if !status.change_durable {
            return; // It is told when that is so.
        }
        let (now, changed_at) = (self.now, status.changed_at);
        let asked = self.mover.recorded.get(&group);
        if asked.is_some_and(|(index, at)| *index == changed_at && now.since(*at) < RECORD_EVERY) {
            return;
        }
        self.mover.recorded.insert(group, (changed_at, now));
        let (voters, learners) = (status.voters.clone(), status.learners.clone());
        self.ask_metadata(MetaCommand::SetReplicas { group, voters, learners, changed_at }, Waiter::Nobody);
    }

    /// A group's membership changed, or this member has come to lead a group whose last change its predecessor may not
    /// have recorded: the leader has the metadata record it.
    pub(crate) fn membership_changed(&mut self, group: GroupId) {
        if self.leaderships.led.contains_key(&group) {
            self.record_if_news(group);
        }
    }

    /// Has the metadata record the membership of a group that is led here, unless it knows it.
    pub(crate) fn record_if_news(&mut self, group: GroupId) {
        let Some(status) = self.host.as_ref().and_then(|host| host.status(group)) else { return };
        let recorded = self.metadata().and_then(|meta| meta.group(group)).map(|info| info.changed_at);
        if recorded.is_some_and(|recorded| status.changed_at > recorded) {
            self.record_replicas(group, &status);
        }
    }

    /// Forgets what was asked about a group that is led here no more.
    pub(crate) fn stop_moving(&mut self, group: GroupId) {
        self.mover.permits.remove(&group);
        self.mover.recorded.remove(&group);
    }
}

fn describe(change: &MembershipChange) -> String {
    let list = |replicas: &[ReplicaId]| replicas.iter().map(ReplicaId::to_string).collect::<Vec<_>>().join(", ");
    match change {
        MembershipChange::AddLearner(replica) => format!("adding replica {replica}"),
        MembershipChange::Promote(replica) => format!("giving replica {replica} a vote"),
        MembershipChange::Remove(replica) => format!("removing replica {replica}"),
        MembershipChange::Swap { promote, demote, remove } if promote.is_empty() => {
            format!("taking the vote of replica {} away", list(&[demote.as_slice(), remove].concat()))
        }
        MembershipChange::Swap { promote, demote, remove } => {
            format!("exchanging replica {} for {}", list(&[demote.as_slice(), remove].concat()), list(promote))
        }
        MembershipChange::LeaveJoint => "leaving the joint membership".to_owned(),
    }
}

#[cfg(test)]
#[path = "mover_tests.rs"]
mod tests;
