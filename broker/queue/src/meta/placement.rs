//! Where a new group's replicas go.

use super::state::{GroupInfo, MemberInfo};
use crate::ids::{GroupId, MemberId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How much a member holds already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) replicas: u64,
    pub(super) leaders: u64,
}

/// Counts replicas and preferred leaderships per member, group 0 left out.
pub(super) fn loads(groups: &BTreeMap<GroupId, GroupInfo>) -> BTreeMap<MemberId, Load> {
    let mut loads = BTreeMap::new();
    for (_, group) in groups.iter().filter(|(id, _)| **id != GroupId::META) {
        count(&mut loads, group);
    }
    loads
}

/// Adds a group to the counts.
pub(super) fn count(loads: &mut BTreeMap<MemberId, Load>, group: &GroupInfo) {
    for member in group.voters.iter().chain(&group.learners) {
        loads.entry(*member).or_default().replicas += 1;
    }
    loads.entry(group.preferred_leader).or_default().leaders += 1;
}

/// Takes a group out of the counts.
pub(super) fn discount(loads: &mut BTreeMap<MemberId, Load>, group: &GroupInfo) {
    for member in group.voters.iter().chain(&group.learners) {
        if let Some(load) = loads.get_mut(member) {
            load.replicas = load.replicas.saturating_sub(1);
        }
    }
    if let Some(load) = loads.get_mut(&group.preferred_leader) {
        load.leaders = load.leaders.saturating_sub(1);
    }
}

/// Picks `factor` voters (fewer if there are fewer members) and who leads them first. The first pick is the leader:
/// `near`, the declaring member, if it runs. After it each pick is, in this order of weight: a running member, in the
/// zone with the fewest picks so far, with the fewest replicas, with the lowest id. Members that do not run come last
/// but are not left out: the group has its full factor once they are back.
pub(super) fn place(
    members: &BTreeMap<MemberId, MemberInfo>,
    loads: &BTreeMap<MemberId, Load>,
    factor: u32,
    near: Option<MemberId>,
) -> Option<(Vec<MemberId>, MemberId)> {
    let runs = |id: &MemberId| members.get(id).is_some_and(|member| member.boot.is_some());
    let load = |id: &MemberId| loads.get(id).copied().unwrap_or_default();
    let leader = near.filter(runs).or_else(|| {
        members.keys().copied().min_by_key(|id| (Reverse(runs(id)), load(id).leaders, load(id).replicas, *id))
    })?;
    let mut voters = vec![leader];
    while voters.len() < factor as usize {
        let zone = |id: &MemberId| members.get(id).map(|member| member.zone.as_str());
        let crowd = |id: &MemberId| voters.iter().filter(|voter| zone(voter) == zone(id)).count();
        let free = members.keys().copied().filter(|id| !voters.contains(id));
        let Some(next) = free.min_by_key(|id| (Reverse(runs(id)), crowd(id), load(id).replicas, *id)) else { break };
        voters.push(next);
    }
    voters.sort();
    Some((voters, leader))
}
