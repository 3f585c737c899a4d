//! How many replicas and copies of its messages a queue wants, and on which members: arguments, policies and the cluster's
//! defaults, and what they come to for one queue.

use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::placement::{self, Chosen, Wish};
use super::policy_keys::{HaMode, LeaderLocator};
use super::replicas::META_VOTERS;
use super::state::{GroupInfo, MemberInfo, Placement, QueueInfo, Standing};
use crate::arguments::Value;
use crate::ids::{GroupId, MemberId, QueueId};
use std::collections::{BTreeMap, BTreeSet};

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
    /// for nothing more. A policy's number counts as it stands. The cluster's default asks for no more copies than the
    /// queue is meant to have replicas: a queue that is declared with one replica is not unusable because others have
    /// three. It counts what the queue is *meant* to have, not what it has at the moment.
    pub fn min_in_sync_replicas(&self, queue: QueueId) -> u32 {
        let default = self.cluster.as_ref().map_or(0, |cluster| cluster.default_min_in_sync_replicas);
        if default == 0 && self.effective.is_empty() {
            return 0;
        }
        let Some(info) = self.queue(queue) else { return 0 };
        if matches!(info.placement, Placement::Transient { .. }) {
            return 0; // One member, memory: there is nothing to wait for.
        }
        let of_policy = self.policy_of(queue).and_then(|policy| policy.replication.min_in_sync);
        of_policy.unwrap_or_else(|| default.min(u32::try_from(self.replicas_wanted(queue)).unwrap_or(u32::MAX)))
    }

    /// The largest [`MetaMachine::min_in_sync_replicas`] of the queues in a group.
    pub fn group_min_in_sync_replicas(&self, group: GroupId) -> u32 {
        let Some(group) = self.group(group) else { return 0 };
        group.queues.iter().map(|queue| self.min_in_sync_replicas(*queue)).max().unwrap_or(0)
    }

    /// How many voters a replicated queue is meant to have, whether or not there are as many members.
    pub fn replicas_wanted(&self, queue: QueueId) -> usize {
        let Some(info) = self.queue(queue) else { return 0 };
        match self.policy_of(queue).and_then(|policy| policy.replication.mode.as_ref()) {
            Some(HaMode::All) => count_present(&self.members).min(MAX_REPLICAS as usize),
            Some(HaMode::Exactly(count)) => *count,
            Some(HaMode::Nodes(names)) => names.len(),
            None => self.declared_replicas(info),
        }
    }

    /// How many voters a group should have once all members are there that are expected: fewer than its queues are meant
    /// to have where that is more than there will be members, or where some wait to be synchronised.
    pub fn voters_expected(&self, group: GroupId) -> usize {
        let expected = self.cluster.as_ref().map_or(0, |cluster| cluster.expected.len());
        let most = expected.max(count_present(&self.members));
        if group == GroupId::META {
            return most.min(META_VOTERS);
        }
        let named = |names: &[String]| {
            let expected = self.cluster.iter().flat_map(|cluster| &cluster.expected).map(|member| &member.name);
            let there = self.members.values().map(|member| &member.name);
            let known: BTreeSet<&String> = expected.chain(there).collect();
            names.iter().filter(|name| known.contains(name)).count()
        };
        let wanted = |queue: &QueueId| match self.policy_of(*queue).and_then(|it| it.replication.mode.as_ref()) {
            Some(HaMode::Nodes(names)) => named(names),
            _ => self.replicas_wanted(*queue),
        };
        let queues = self.group(group).into_iter().flat_map(|info| &info.queues);
        let waiting = self.group(group).map_or(0, |info| info.target.unsynchronised.len());
        queues.map(wanted).max().unwrap_or(0).min(most).saturating_sub(waiting)
    }

    /// Without a policy: what the declaration asks for, else the cluster's factor.
    fn declared_replicas(&self, queue: &QueueInfo) -> usize {
        let asked = queue.arguments.get("x-quorum-initial-group-size").and_then(Value::as_integer);
        let asked = asked.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
        asked.unwrap_or_else(|| self.factor()).min(MAX_REPLICAS) as usize
    }

    /// Where a new queue should be, by its arguments and the policies that match it. Its leader is on the declaring member
    /// unless it is to be where fewest are led.
    pub(super) fn wish_for_new(&self, queue: &QueueInfo, near: Option<MemberId>) -> Wish {
        let policy = self.match_policies(queue).map(|policy| policy.replication).unwrap_or_default();
        let argument =
            queue.arguments.get("x-queue-leader-locator").or_else(|| queue.arguments.get("x-queue-master-locator"));
        // As in RabbitMQ, an argument outweighs a policy.
        let locator = argument.and_then(LeaderLocator::of).or(policy.leader_locator);
        let leader = near.filter(|_| locator != Some(LeaderLocator::Balanced));
        wish(&self.members, policy.mode.as_ref(), self.declared_replicas(queue), leader)
    }

    /// Where an existing group should be if these were the members.
    pub(super) fn wish_for_group(&self, members: &BTreeMap<MemberId, MemberInfo>, group: &GroupInfo) -> Wish {
        let queue = group.queues.first();
        let mode = queue.and_then(|queue| self.policy_of(*queue)).and_then(|policy| policy.replication.mode.as_ref());
        let declared = queue.and_then(|queue| self.queue(*queue)).map(|info| self.declared_replicas(info));
        let declared = declared.unwrap_or(group.target.voters.len());
        let wish = wish(members, mode, declared, Some(group.target.preferred_leader));
        let waiting = group.target.unsynchronised.iter().map(|it| it.member);
        let keep = group.target.replicas().map(|replica| replica.member).chain(waiting).collect();
        Wish { keep, learners: group.target.learners.len(), ..wish }
    }

    /// The policies of a queue changed: its group should be elsewhere, perhaps.
    pub(super) fn retarget_queue(&mut self, queue: QueueId, changes: &mut Vec<Change>) {
        if let Some(Placement::Replicated { group }) = self.queue(queue).map(|info| info.placement) {
            self.retarget(group, changes);
        }
    }

    /// A member has come: groups that wait for one, or want them all, are to spread to it. Those that a forced recovery had
    /// to leave on a member that is to go wait for one too.
    pub(super) fn retarget_hungry(&mut self, changes: &mut Vec<Change>) {
        let hungry = |(id, group): (&GroupId, &GroupInfo)| {
            if *id == GroupId::META {
                return None;
            }
            let wish = self.wish_for_group(&self.members, group);
            let named = |among: BTreeSet<MemberId>| group.target.voters.iter().any(|it| !among.contains(&it.member));
            let misplaced = wish.among.as_ref().is_some_and(|among| named(among.clone()));
            let stays = |id: &MemberId| self.members.get(id).is_some_and(|it| it.standing == Standing::Present);
            let misplaced = misplaced || group.target.replicas().any(|replica| !stays(&replica.member));
            let wanted = group.target.voters.len() + group.target.unsynchronised.len();
            (misplaced || wanted < wish.voters.min(count_present(&self.members))).then_some(*id)
        };
        let groups: Vec<GroupId> = self.groups.iter().filter_map(hungry).collect();
        for group in groups {
            self.retarget(group, changes);
            self.share_leaderships(group, changes);
        }
    }

    /// A group that was on few members spreads to one that has come: it may be led by any of its voters, and goes to the one
    /// that is to lead least if its own is to lead more than its share. After a restore one member leads everything.
    fn share_leaderships(&mut self, id: GroupId, changes: &mut Vec<Change>) {
        let Some(target) = self.groups.get(&id).map(|group| &group.target) else { return };
        let leads = |member: &MemberId| self.loads.get(member).map_or(0, |load| load.leaders);
        let share =
            self.loads.values().map(|load| load.leaders).sum::<u64>().div_ceil(count_present(&self.members) as u64);
        if leads(&target.preferred_leader) <= share {
            return;
        }
        let voters = target.voters.iter().map(|replica| replica.member);
        let Some(leader) = voters.min_by_key(|member| (leads(member), *member)) else { return };
        let chosen = Chosen { leader, ..Chosen::of(target) };
        let _ = self.set_target(id, chosen, changes);
    }

    pub(super) fn retarget(&mut self, id: GroupId, changes: &mut Vec<Change>) {
        let Some(group) = self.groups.get(&id) else { return };
        let wish = self.wish_for_group(&self.members, group);
        // Nobody to choose from: all that may hold it are leaving. It stays where it is.
        let Some(mut chosen) = placement::place(&self.members, &self.loads, &wish) else { return };
        let have = group.voters.iter().chain(&group.target.voters).map(|replica| replica.member).collect();
        let unsynchronised = self.hold_growth_back(group, &have, &mut chosen);
        // What it is not meant to have any more is not restored either.
        let meant = self.replicas_meant(group);
        if let Some(group) = self.groups.get_mut(&id) {
            group.copies = group.copies.min(meant);
        }
        let _ = self.set_whole_target(id, chosen, unsynchronised, changes);
    }

    /// How many voters a group is meant to have, whoever is here at the moment.
    fn replicas_meant(&self, group: &GroupInfo) -> u32 {
        let expected = self.cluster.as_ref().map_or(0, |cluster| cluster.expected.len());
        let everywhere = expected.max(count_present(&self.members)).min(MAX_REPLICAS as usize);
        let meant = |queue: &QueueId| match self.policy_of(*queue).and_then(|it| it.replication.mode.as_ref()) {
            Some(HaMode::All) => everywhere,
            _ => self.replicas_wanted(*queue),
        };
        group.queues.iter().map(meant).max().map_or(u32::MAX, |count| u32::try_from(count).unwrap_or(u32::MAX))
    }
}

fn count_present(members: &BTreeMap<MemberId, MemberInfo>) -> usize {
    members.values().filter(|member| member.standing == Standing::Present).count()
}

/// What a policy comes to with these members. Names that no member has are passed over; if that leaves nobody, the queue
/// has the replicas that it would have without the policy.
fn wish(
    members: &BTreeMap<MemberId, MemberInfo>,
    mode: Option<&HaMode>,
    declared: usize,
    leader: Option<MemberId>,
) -> Wish {
    let most = MAX_REPLICAS as usize;
    let (voters, among) = match mode {
        Some(HaMode::All) => (count_present(members).clamp(1, most), None),
        Some(HaMode::Exactly(count)) => (*count, None),
        Some(HaMode::Nodes(names)) => {
            let named = |member: &MemberInfo| member.standing == Standing::Present && names.contains(&member.name);
            let among: BTreeSet<MemberId> =
                members.iter().filter(|(_, member)| named(member)).map(|(id, _)| *id).collect();
            if among.is_empty() { (declared, None) } else { (among.len().min(most), Some(among)) }
        }
        None => (declared, None),
    };
    Wish { voters, among, leader, ..Wish::default() }
}

pub(super) fn check_min_in_sync(replicas: u32) -> Result<(), Refusal> {
    if replicas <= MAX_REPLICAS {
        return Ok(());
    }
    let text = format!("min-in-sync-replicas is {replicas}, but a queue has at most {MAX_REPLICAS} replicas");
    Err(Refusal { code: 406, text })
}
