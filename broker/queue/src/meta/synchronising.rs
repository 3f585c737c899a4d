//! `ha-sync-mode: manual`: a replica that a queue gets beyond those that it has had does not fetch the messages that are
//! there.
//!
//! Such a replica is *unsynchronised*: the metadata names its member, and nothing else of it exists. It is no part of the
//! group, so it cannot be counted for a confirm or for `min-in-sync-replicas`, cannot vote, cannot lead, and no recovery
//! can take it for a copy. It comes to be like any other new replica (a learner that catches up, then a voter) once it is
//! synchronised: when somebody asks for it, when the policy is automatic, or when every message is gone that was there
//! when it was thought of, so that what it must fetch is only what it would have been sent by then.
//!
//! What a group has had (`GroupInfo::copies`) is given back without being asked: a replica that is lost, damaged or moved
//! is replaced at once whatever the policy says. Only growth waits.

use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::placement::Chosen;
use super::state::{GroupInfo, Standing, Unsynchronised};
use crate::ids::{GroupId, MemberId, QueueId};
use std::collections::BTreeSet;

impl MetaMachine {
    /// Groups with replicas that are not synchronised and wait for it, ascending.
    pub fn unsynchronised(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.unsynchronised.iter().copied()
    }

    /// Whether new replicas of a queue wait for `sync` while it holds messages.
    pub fn is_synchronised_by_hand(&self, queue: QueueId) -> bool {
        self.policy_of(queue).is_some_and(|policy| policy.replication.manual_sync)
    }

    /// Takes those out of what was chosen that would be growth of a group that is synchronised by hand. Members in `have`
    /// hold the messages already. Of the others as many are taken at once as the group has lost.
    pub(super) fn hold_growth_back(
        &self,
        group: &GroupInfo,
        have: &BTreeSet<MemberId>,
        chosen: &mut Chosen,
    ) -> Vec<Unsynchronised> {
        let by_hand = group.queues.iter().any(|queue| self.is_synchronised_by_hand(*queue));
        if !by_hand || group.copies == 0 {
            return Vec::new();
        }
        let known = |member: &MemberId| group.target.unsynchronised.iter().find(|it| it.member == *member).copied();
        let (kept, mut fresh): (Vec<MemberId>, Vec<MemberId>) =
            chosen.voters.iter().partition(|member| have.contains(member));
        // Who has waited goes on waiting: in the place of what is lost comes who is new.
        fresh.sort_by_key(|member| (known(member).is_some(), *member));
        let restored = (group.copies as usize).saturating_sub(kept.len()).min(fresh.len());
        let waiting = fresh.split_off(restored);
        chosen.voters.retain(|member| !waiting.contains(member));
        if !chosen.voters.contains(&chosen.leader) {
            let before = Some(group.target.preferred_leader).filter(|leader| chosen.voters.contains(leader));
            chosen.leader = before.or(chosen.voters.first().copied()).unwrap_or(chosen.leader);
        }
        let entry = |member| known(&member).unwrap_or(Unsynchronised { member, marker: None });
        let mut waiting: Vec<Unsynchronised> = waiting.into_iter().map(entry).collect();
        waiting.sort_unstable_by_key(|it| it.member);
        waiting
    }

    /// Those of a group's unsynchronised replicas that still make sense beside these voters.
    pub(super) fn still_unsynchronised(&self, group: &GroupInfo, chosen: &Chosen) -> Vec<Unsynchronised> {
        let stays = |it: &&Unsynchronised| {
            let present = self.members.get(&it.member).is_some_and(|info| info.standing == Standing::Present);
            present && !chosen.voters.contains(&it.member) && !chosen.learners.contains(&it.member)
        };
        group.target.unsynchronised.iter().filter(stays).copied().collect()
    }

    /// The leader of a group says where its log ended when it first heard of an unsynchronised replica.
    pub(super) fn mark_unsynchronised(
        &mut self,
        id: GroupId,
        member: MemberId,
        marker: u64,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let before = self.known_group(id)?;
        let mut group = before.clone();
        for waiting in group.target.unsynchronised.iter_mut().filter(|it| it.member == member) {
            waiting.marker = waiting.marker.or(Some(marker));
        }
        self.replace_group(id, &before, group, changes);
        Ok(MetaReply::Done)
    }

    /// Has unsynchronised replicas of a group come to be: that of one member, or all of them. One that does not wait is no
    /// error: it is synchronised, or about to be.
    pub(super) fn synchronise(&mut self, id: GroupId, member: Option<MemberId>, changes: &mut Vec<Change>) -> Outcome {
        let group = self.known_group(id)?;
        let asked = |it: &&Unsynchronised| member.is_none_or(|member| it.member == member);
        let mut chosen = Chosen::of(&group.target);
        chosen.voters.extend(group.target.unsynchronised.iter().filter(asked).map(|it| it.member));
        chosen.voters.sort_unstable();
        self.set_target(id, chosen, changes)?;
        Ok(MetaReply::Done)
    }

    /// Takes back what [`MetaMachine::synchronise`] began and is not done: what catches up is let go, and waits again. What
    /// replaces a lost replica goes on.
    pub(super) fn cancel_synchronise(&mut self, id: GroupId, changes: &mut Vec<Change>) -> Outcome {
        let before = self.known_group(id)?;
        if !before.queues.iter().any(|queue| self.is_synchronised_by_hand(*queue)) {
            let text = "no policy says ha-sync-mode: manual, so its replicas are synchronised in any case";
            return Err(Refusal { code: 406, text: text.to_owned() });
        }
        let mut group = before.clone();
        let catching_up = before.target.voters.iter().filter(|replica| !before.voters.contains(replica));
        let beyond = before.target.voters.len().saturating_sub(before.copies.max(1) as usize);
        let mut cancelled: Vec<MemberId> = catching_up.map(|replica| replica.member).collect();
        cancelled.reverse();
        cancelled.truncate(beyond);
        group.target.voters.retain(|replica| !cancelled.contains(&replica.member));
        let waiting = cancelled.iter().map(|member| Unsynchronised { member: *member, marker: None });
        group.target.unsynchronised.extend(waiting);
        group.target.unsynchronised.sort_unstable_by_key(|it| it.member);
        let votes = |member: MemberId| group.target.voters.iter().any(|voter| voter.member == member);
        if !votes(group.target.preferred_leader) {
            let first = group.target.voters.first().map(|voter| voter.member);
            group.target.preferred_leader = first.unwrap_or(group.target.preferred_leader);
        }
        self.replace_group(id, &before, group, changes);
        Ok(MetaReply::Done)
    }

    /// A member leaves or is replaced: what waits for a replica on it waits for one on `successor`, or on none; groups that
    /// want another in its place are looked at again.
    pub(super) fn move_unsynchronised(
        &mut self,
        from: MemberId,
        successor: Option<MemberId>,
        changes: &mut Vec<Change>,
    ) {
        let waits = |id: &GroupId| {
            let info = self.groups.get(id)?;
            info.target.unsynchronised.iter().any(|it| it.member == from).then(|| (*id, info.clone()))
        };
        let concerned: Vec<(GroupId, GroupInfo)> = self.unsynchronised.iter().filter_map(waits).collect();
        for (id, before) in concerned {
            let mut group = before.clone();
            let list = &mut group.target.unsynchronised;
            match successor.filter(|member| before.target.replica_on(*member).is_none()) {
                Some(member) => list.iter_mut().filter(|it| it.member == from).for_each(|it| it.member = member),
                None => list.retain(|it| it.member != from),
            }
            list.sort_unstable_by_key(|it| it.member);
            self.replace_group(id, &before, group, changes);
            if successor.is_none() {
                self.retarget(id, changes);
            }
        }
    }

    fn known_group(&self, id: GroupId) -> Result<GroupInfo, Refusal> {
        self.groups.get(&id).cloned().ok_or_else(|| Refusal { code: 404, text: format!("no group {id}") })
    }
}
