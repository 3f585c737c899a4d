//! Where a group's replicas should go: a pure function of the members, what they hold already, and a wish.

use super::state::{GroupInfo, MemberInfo, Standing, Target};
use crate::ids::{GroupId, MemberId, ReplicaId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// How much a member should hold, over all groups but group 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Replicas, voting or not.
    pub replicas: u64,
    /// Groups that it should lead.
    pub leaders: u64,
}

/// What is wanted for one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// How many voters; fewer are chosen when there are fewer members.
    pub voters: usize,
    /// How many replicas without a vote beside them.
    pub learners: usize,
    /// Only these members may be chosen; none: all of them.
    pub among: Option<BTreeSet<MemberId>>,
    /// Members that have a replica already. Among equally good choices for the spread over zones they are preferred, and
    /// being down does not count against them.
    pub keep: Vec<MemberId>,
    /// The member that should lead, if it can be chosen.
    pub leader: Option<MemberId>,
}

/// What was chosen: members in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those that vote.
    pub voters: Vec<MemberId>,
    /// Those that only follow.
    pub learners: Vec<MemberId>,
    /// The voter that should lead.
    pub leader: MemberId,
}

impl Chosen {
    /// What was chosen before.
    pub(super) fn of(target: &Target) -> Chosen {
        let members = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.member).collect();
        let (voters, learners) = (members(&target.voters), members(&target.learners));
        Chosen { voters, learners, leader: target.preferred_leader }
    }
}

/// Counts replicas and preferred leaderships per member as they should be, group 0 left out.
pub(super) fn loads(groups: &BTreeMap<GroupId, GroupInfo>) -> BTreeMap<MemberId, Load> {
    let mut loads = BTreeMap::new();
    for (_, group) in groups.iter().filter(|(id, _)| **id != GroupId::META) {
        count(&mut loads, group);
    }
    loads
}

/// Adds a group to the counts.
pub(super) fn count(loads: &mut BTreeMap<MemberId, Load>, group: &GroupInfo) {
    for replica in group.target.replicas() {
        loads.entry(replica.member).or_default().replicas += 1;
    }
    loads.entry(group.target.preferred_leader).or_default().leaders += 1;
}

/// Takes a group out of the counts.
pub(super) fn discount(loads: &mut BTreeMap<MemberId, Load>, group: &GroupInfo) {
    for replica in group.target.replicas() {
        if let Some(load) = loads.get_mut(&replica.member) {
            load.replicas = load.replicas.saturating_sub(1);
        }
    }
    if let Some(load) = loads.get_mut(&group.target.preferred_leader) {
        load.leaders = load.leaders.saturating_sub(1);
    }
}

/// Chooses members for a group; none if there is nobody to choose from. Equal arguments give equal answers.
///
/// Members that leave or were replaced are never chosen. The wished leader, if it runs, is the first pick; without it, a
/// group that has no replicas yet begins with the member that leads least. Each further pick is, in this order of weight:
/// one that runs or is kept, in the zone with the fewest picks so far, one that is kept, with the fewest replicas, with
/// the lowest id. Members that do not run come last but are not left out: the group has its full number once they are
/// back.
pub fn place(
    members: &BTreeMap<MemberId, MemberInfo>,
    loads: &BTreeMap<MemberId, Load>,
    wish: &Wish,
) -> Option<Chosen> {
    let allowed = |id: &MemberId| wish.among.as_ref().is_none_or(|among| among.contains(id));
    let stays = |member: &MemberInfo| member.standing == Standing::Present;
    let free: Vec<MemberId> =
        members.iter().filter(|(id, member)| stays(member) && allowed(id)).map(|(id, _)| *id).collect();
    let kept = |id: &MemberId| wish.keep.contains(id);
    let up = |id: &MemberId| kept(id) || members.get(id).is_some_and(|member| member.boot.is_some());
    let load = |id: &MemberId| loads.get(id).copied().unwrap_or_default();
    let leads_least = |id: &MemberId| (Reverse(up(id)), load(id).leaders, load(id).replicas, *id);

    let mut first = wish.leader.filter(|leader| free.contains(leader) && up(leader));
    if first.is_none() && !free.iter().any(kept) {
        first = Some(free.iter().copied().min_by_key(leads_least)?);
    }
    let mut picks: Vec<MemberId> = first.into_iter().collect();
    while picks.len() < wish.voters.max(1) + wish.learners {
        let zone = |id: &MemberId| members.get(id).map(|member| member.zone.as_str());
        let crowd = |id: &MemberId| picks.iter().filter(|pick| zone(pick) == zone(id)).count();
        let candidates = free.iter().copied().filter(|id| !picks.contains(id));
        let rank = |id: &MemberId| (Reverse(up(id)), crowd(id), Reverse(kept(id)), load(id).replicas, *id);
        let Some(next) = candidates.min_by_key(rank) else { break };
        picks.push(next);
    }
    let mut learners = picks.split_off(wish.voters.max(1).min(picks.len()));
    let leader = first.or_else(|| picks.iter().copied().min_by_key(leads_least))?;
    picks.sort_unstable();
    learners.sort_unstable();
    Some(Chosen { voters: picks, learners, leader })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BootId;

    /// Members 1, 2, … in the zones given; those of `down` do not run.
    fn members(zones: &str, down: &[u64]) -> BTreeMap<MemberId, MemberInfo> {
        let member = |(index, zone): (usize, char)| {
            let id = index as u64 + 1;
            let boot = (!down.contains(&id)).then_some(BootId(id));
            (MemberId(id), MemberInfo { zone: zone.to_string(), boot, ..MemberInfo::default() })
        };
        zones.chars().enumerate().map(member).collect()
    }

    fn ids(numbers: &[u64]) -> Vec<MemberId> {
        numbers.iter().copied().map(MemberId).collect()
    }

    struct Case {
        what: &'static str,
        zones: &'static str,
        down: &'static [u64],
        wish: Wish,
        voters: &'static [u64],
        learners: &'static [u64],
        leader: u64,
    }

    fn wish(voters: usize) -> Wish {
        Wish { voters, ..Wish::default() }
    }

    fn keeping(voters: usize, keep: &[u64]) -> Wish {
        Wish { keep: ids(keep), ..wish(voters) }
    }

    #[rustfmt::skip]
    fn cases() -> Vec<Case> {
        let led = |leader: u64, wish: Wish| Wish { leader: Some(MemberId(leader)), ..wish };
        let among = |set: &[u64], wish: Wish| Wish { among: Some(ids(set).into_iter().collect()), ..wish };
        let learning = |learners: usize, wish: Wish| Wish { learners, ..wish };
        vec![
            Case { what: "one in each zone", zones: "aabbcc", down: &[], wish: wish(3), voters: &[1, 3, 5], learners: &[], leader: 1 },
            Case { what: "the wished leader first", zones: "aabbcc", down: &[], wish: led(4, wish(3)), voters: &[1, 4, 5], learners: &[], leader: 4 },
            Case { what: "a wished leader that is down does not lead", zones: "abc", down: &[2], wish: led(2, wish(3)), voters: &[1, 2, 3], learners: &[], leader: 1 },
            Case { what: "all there are when there are too few", zones: "ab", down: &[], wish: wish(5), voters: &[1, 2], learners: &[], leader: 1 },
            Case { what: "what runs comes first", zones: "aabb", down: &[3], wish: wish(2), voters: &[1, 4], learners: &[], leader: 1 },
            Case { what: "what is down fills up", zones: "abc", down: &[3], wish: wish(3), voters: &[1, 2, 3], learners: &[], leader: 1 },
            Case { what: "what is in place stays", zones: "aabbcc", down: &[], wish: keeping(3, &[2, 4, 6]), voters: &[2, 4, 6], learners: &[], leader: 2 },
            Case { what: "what is in place stays although it is down", zones: "aabbcc", down: &[4], wish: keeping(3, &[2, 4, 6]), voters: &[2, 4, 6], learners: &[], leader: 2 },
            Case { what: "two in one zone are torn apart", zones: "aabc", down: &[], wish: keeping(3, &[1, 2, 3]), voters: &[1, 3, 4], learners: &[], leader: 1 },
            Case { what: "two in one zone stay where there is no other zone", zones: "aaa", down: &[], wish: keeping(2, &[2, 3]), voters: &[2, 3], learners: &[], leader: 2 },
            Case { what: "the leader is kept", zones: "abcd", down: &[], wish: led(3, keeping(2, &[2, 3, 4])), voters: &[2, 3], learners: &[], leader: 3 },
            Case { what: "a gap is filled in the empty zone", zones: "abcab", down: &[], wish: keeping(3, &[1, 2]), voters: &[1, 2, 3], learners: &[], leader: 1 },
            Case { what: "only those allowed", zones: "abcabc", down: &[], wish: among(&[4, 5, 6], wish(3)), voters: &[4, 5, 6], learners: &[], leader: 4 },
            Case { what: "learners beside voters", zones: "abcab", down: &[], wish: learning(2, wish(3)), voters: &[1, 2, 3], learners: &[4, 5], leader: 1 },
        ]
    }

    #[test]
    fn placement_follows_the_table() {
        for case in cases() {
            let chosen = place(&members(case.zones, case.down), &BTreeMap::new(), &case.wish).expect(case.what);
            let (voters, learners) = (ids(case.voters), ids(case.learners));
            assert_eq!(chosen, Chosen { voters, learners, leader: MemberId(case.leader) }, "{}", case.what);
        }
    }

    #[test]
    fn of_equal_choices_the_least_loaded_member_is_taken_and_the_one_that_leads_least_leads() {
        let loaded = |replicas, leaders| Load { replicas, leaders };
        let loads = BTreeMap::from([
            (MemberId(1), loaded(9, 3)),
            (MemberId(2), loaded(2, 2)),
            (MemberId(3), loaded(1, 4)),
            (MemberId(4), loaded(5, 1)),
        ]);
        let chosen = place(&members("aaaa", &[]), &loads, &wish(3)).expect("a choice");
        assert_eq!((chosen.voters, chosen.leader), (ids(&[2, 3, 4]), MemberId(4)));
    }

    #[test]
    fn members_that_leave_or_were_replaced_are_never_chosen() {
        let mut members = members("abcd", &[]);
        members.get_mut(&MemberId(1)).expect("a member").standing = Standing::Leaving;
        members.get_mut(&MemberId(2)).expect("a member").standing = Standing::Replaced { by: MemberId(4) };
        let chosen = place(&members, &BTreeMap::new(), &keeping(3, &[1, 2, 3])).expect("a choice");
        assert_eq!(chosen.voters, ids(&[3, 4]));
        let nobody = Wish { among: Some(BTreeSet::from([MemberId(1)])), ..wish(1) };
        assert_eq!(place(&members, &BTreeMap::new(), &nobody), None);
    }
}
