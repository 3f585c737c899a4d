//! Where the replicas of groups are and should be, and members that leave.

use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::placement::{self, Chosen, Wish};
use super::state::{GroupInfo, Standing, Target, Unsynchronised};
use crate::ids::{GroupId, MemberId, ReplicaId};
use std::collections::BTreeSet;

/// Group 0 has at most this many voters; every other member follows it (design §3.1).
pub(super) const META_VOTERS: usize = 5;

fn refused(code: u16, text: String) -> Refusal {
    Refusal { code, text }
}

impl MetaMachine {
    /// Groups whose replicas are not where they should be, ascending.
    pub fn unsettled(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.unsettled.iter().copied()
    }

    /// Chooses members for a group by the present members and what they should hold. What a group that exists already
    /// should hold counts too, but `keep` outweighs it.
    pub fn place(&self, wish: &Wish) -> Option<Chosen> {
        placement::place(&self.members, &self.loads, wish)
    }

    /// Sets where a group's replicas should be. A member that is in the group, or should be, keeps its replica; any other
    /// one gets a replica of a new generation. The same target again changes nothing.
    pub(super) fn set_target(&mut self, id: GroupId, chosen: Chosen, changes: &mut Vec<Change>) -> Result<(), Refusal> {
        let Some(group) = self.groups.get(&id) else { return Err(refused(404, format!("no group {id}"))) };
        let unsynchronised = self.still_unsynchronised(group, &chosen);
        self.set_whole_target(id, chosen, unsynchronised, changes)
    }

    /// The same, and which replicas wait to be synchronised.
    pub(super) fn set_whole_target(
        &mut self,
        id: GroupId,
        chosen: Chosen,
        unsynchronised: Vec<Unsynchronised>,
        changes: &mut Vec<Change>,
    ) -> Result<(), Refusal> {
        if !self.groups.contains_key(&id) {
            return Err(refused(404, format!("no group {id}")));
        }
        self.check_target(id, &chosen)?;
        self.put_target(id, &chosen, unsynchronised, changes);
        Ok(())
    }

    fn put_target(
        &mut self,
        id: GroupId,
        chosen: &Chosen,
        unsynchronised: Vec<Unsynchronised>,
        changes: &mut Vec<Change>,
    ) {
        let Some(before) = self.groups.get(&id).cloned() else { return };
        let mut group = before.clone();
        let mut replica = |member: &MemberId| {
            let known = before.target.replica_on(*member);
            known.or_else(|| before.replicas().find(|replica| replica.member == *member)).unwrap_or_else(|| {
                group.last_generation += 1;
                ReplicaId { member: *member, generation: group.last_generation }
            })
        };
        let mut voters: Vec<ReplicaId> = chosen.voters.iter().map(&mut replica).collect();
        let mut learners: Vec<ReplicaId> = chosen.learners.iter().map(&mut replica).collect();
        voters.sort_unstable();
        learners.sort_unstable();
        group.target = Target { voters, learners, preferred_leader: chosen.leader, unsynchronised };
        self.replace_group(id, &before, group, changes);
    }

    fn check_target(&self, id: GroupId, chosen: &Chosen) -> Result<(), Refusal> {
        let all = || chosen.voters.iter().chain(&chosen.learners);
        if chosen.voters.is_empty() {
            return Err(refused(406, format!("group {id} needs a voter")));
        }
        if all().collect::<BTreeSet<_>>().len() != all().count() {
            return Err(refused(406, format!("a member is named twice for group {id}")));
        }
        if !chosen.voters.contains(&chosen.leader) {
            let text = format!("member {} cannot lead group {id}: it is not to vote in it", chosen.leader);
            return Err(refused(406, text));
        }
        for member in all() {
            match self.members.get(member).map(|info| info.standing) {
                Some(Standing::Present) => {}
                // It follows group 0 to the end.
                Some(Standing::Leaving) if id == GroupId::META && chosen.learners.contains(member) => {}
                Some(_) => return Err(refused(406, format!("member {member} leaves, group {id} cannot go there"))),
                None => return Err(refused(404, format!("no member {member}"))),
            }
        }
        Ok(())
    }

    /// Puts a changed group in its place, and what is derived from it.
    pub(super) fn replace_group(
        &mut self,
        id: GroupId,
        before: &GroupInfo,
        after: GroupInfo,
        changes: &mut Vec<Change>,
    ) {
        if *before == after {
            return;
        }
        if id != GroupId::META {
            placement::discount(&mut self.loads, before);
            placement::count(&mut self.loads, &after);
        }
        if after.is_settled() {
            self.unsettled.remove(&id);
        } else {
            self.unsettled.insert(id);
        }
        if after.target.unsynchronised.is_empty() {
            self.unsynchronised.remove(&id);
        } else {
            self.unsynchronised.insert(id);
        }
        self.groups.insert(id, after);
        changes.push(Change::GroupChanged { group: id });
    }

    /// Records what a group has come to have. A record of an earlier membership than the one known changes nothing.
    pub(super) fn set_replicas(
        &mut self,
        id: GroupId,
        mut voters: Vec<ReplicaId>,
        mut learners: Vec<ReplicaId>,
        changed_at: u64,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let Some(before) = self.groups.get(&id).cloned() else {
            return Err(refused(404, format!("no group {id}")));
        };
        if changed_at <= before.changed_at {
            return Ok(MetaReply::Done);
        }
        voters.sort_unstable();
        learners.sort_unstable();
        let mut group = GroupInfo { voters, learners, changed_at, ..before.clone() };
        // What has left never comes back: a target that still wants it wants another one on that member.
        let left: BTreeSet<ReplicaId> =
            before.replicas().filter(|replica| group.replicas().all(|there| there != *replica)).collect();
        let last = &mut group.last_generation;
        for list in [&mut group.target.voters, &mut group.target.learners] {
            for replica in list.iter_mut().filter(|replica| left.contains(replica)) {
                *last += 1;
                replica.generation = *last;
            }
            list.sort_unstable();
        }
        if group.is_settled() {
            group.copies = group.copies.max(u32::try_from(group.voters.len()).unwrap_or(u32::MAX));
        }
        self.replace_group(id, &before, group, changes);
        Ok(MetaReply::Done)
    }

    /// A replica is damaged beyond repair: its member is to get another one.
    pub(super) fn renew_replica(&mut self, id: GroupId, damaged: ReplicaId, changes: &mut Vec<Change>) -> Outcome {
        let Some(before) = self.groups.get(&id).cloned() else {
            return Err(refused(404, format!("no group {id}")));
        };
        let mut group = before.clone();
        for list in [&mut group.target.voters, &mut group.target.learners] {
            for replica in list.iter_mut().filter(|replica| **replica == damaged) {
                group.last_generation += 1;
                replica.generation = group.last_generation;
            }
            list.sort_unstable();
        }
        self.replace_group(id, &before, group, changes);
        Ok(MetaReply::Done)
    }

    /// Group 0 is on every member that stays; some of them vote. One that leaves follows it as long as it holds anything
    /// else: without the metadata it could not bring to an end what it leads.
    pub(super) fn spread_metadata(&mut self, changes: &mut Vec<Change>) {
        let Some(group) = self.groups.get(&GroupId::META) else { return };
        let wish = Wish {
            voters: META_VOTERS,
            learners: self.members.len().saturating_sub(META_VOTERS),
            keep: group.target.voters.iter().map(|replica| replica.member).collect(),
            leader: Some(group.target.preferred_leader),
            ..Wish::default()
        };
        let leaving = |(id, member): (&MemberId, &super::state::MemberInfo)| {
            let holds = |(group, info): (&GroupId, &GroupInfo)| *group != GroupId::META && info.concerns(*id);
            (member.standing == Standing::Leaving && group.concerns(*id) && self.groups.iter().any(holds))
                .then_some(*id)
        };
        let leaving: Vec<MemberId> = self.members.iter().filter_map(leaving).collect();
        if let Some(mut chosen) = placement::place(&self.members, &self.loads, &wish) {
            chosen.learners.extend(leaving);
            let _ = self.set_target(GroupId::META, chosen, changes);
        }
    }

    /// Asks a member to leave: all that it should hold is to go elsewhere. Once nothing is left there it can be removed.
    pub(super) fn retire_member(&mut self, id: MemberId, changes: &mut Vec<Change>) -> Outcome {
        let Some(member) = self.members.get(&id) else { return Err(refused(404, format!("no member {id}"))) };
        if member.standing != Standing::Present {
            self.spread_metadata(changes);
            return Ok(MetaReply::Done);
        }
        let name = member.name.clone();
        let mut without = self.members.clone();
        if let Some(member) = without.get_mut(&id) {
            member.standing = Standing::Leaving;
        }
        if without.values().all(|member| member.standing != Standing::Present) {
            return Err(refused(406, format!("member '{name}' is the last one: remove the cluster instead")));
        }
        let mut moves = Vec::new();
        let mut loads = self.loads.clone();
        let concerned =
            |(group, info): &(&GroupId, &GroupInfo)| **group != GroupId::META && info.target.replica_on(id).is_some();
        for (group, info) in self.groups.iter().filter(concerned) {
            let mut wish = self.wish_for_group(&without, info);
            // It may have fewer than it should: then it is not worse off with as many elsewhere.
            let voters = wish.voters.min(info.target.voters.len());
            wish.voters = voters;
            wish.keep.retain(|member| *member != id);
            wish.leader = wish.leader.filter(|leader| *leader != id);
            let chosen = placement::place(&without, &loads, &wish).unwrap_or_default();
            if chosen.voters.len() < voters {
                let text = format!(
                    "without member '{name}' group {group} would have {} of the {voters} voters it should have: add a \
                     member first, or ask for fewer replicas",
                    chosen.voters.len()
                );
                return Err(refused(406, text));
            }
            for member in chosen.voters.iter().filter(|member| info.target.replica_on(**member).is_none()) {
                loads.entry(*member).or_default().replicas += 1;
            }
            if chosen.leader != info.target.preferred_leader {
                loads.entry(chosen.leader).or_default().leaders += 1;
            }
            moves.push((*group, chosen));
        }
        self.members = without;
        if let Some(cluster) = &mut self.cluster {
            cluster.expected.retain(|expected| expected.name != name);
        }
        changes.push(Change::Cluster);
        changes.push(Change::Member { member: id });
        for (group, chosen) in moves {
            let waits = self.unsynchronised.contains(&group);
            self.set_target(group, chosen, changes)?;
            if waits {
                // What waited may have taken the place of what goes.
                self.retarget(group, changes);
            }
        }
        self.move_unsynchronised(id, None, changes);
        self.spread_metadata(changes);
        Ok(MetaReply::Done)
    }

    /// A blank disk has come under the name of another member: what that one holds is to go to the new one.
    pub(super) fn replace_members_named(&mut self, new: MemberId, changes: &mut Vec<Change>) -> Result<(), Refusal> {
        let Some(name) = self.members.get(&new).map(|member| member.name.clone()) else { return Ok(()) };
        let same = |(id, member): (&MemberId, &super::state::MemberInfo)| {
            (*id != new && member.name == name && member.standing == Standing::Present).then_some(*id)
        };
        let replaced: Vec<MemberId> = self.members.iter().filter_map(same).collect();
        for old in replaced {
            if let Some(boot) = self.members.get(&old).and_then(|member| member.boot) {
                self.boot_ended(boot, changes)?;
            }
            if let Some(member) = self.members.get_mut(&old) {
                member.standing = Standing::Replaced { by: new };
            }
            changes.push(Change::Member { member: old });
            self.move_replicas(old, new, changes);
        }
        Ok(())
    }

    /// One present member takes the places of another. Whatever else the targets name stays as it is: it is no reason to
    /// refuse the new disk, which is in the cluster already.
    fn move_replicas(&mut self, from: MemberId, to: MemberId, changes: &mut Vec<Change>) {
        let concerned = |(id, group): (&GroupId, &GroupInfo)| {
            (*id != GroupId::META && group.target.replica_on(from).is_some()).then_some(*id)
        };
        let groups: Vec<GroupId> = self.groups.iter().filter_map(concerned).collect();
        for id in groups {
            let Some(target) = self.groups.get(&id).map(|group| group.target.clone()) else { continue };
            let moved = |replica: &ReplicaId| if replica.member == from { to } else { replica.member };
            let mut chosen = Chosen {
                voters: target.voters.iter().map(moved).collect(),
                learners: target.learners.iter().map(moved).collect(),
                leader: if target.preferred_leader == from { to } else { target.preferred_leader },
            };
            chosen.voters.sort_unstable();
            chosen.learners.sort_unstable();
            chosen.learners.dedup();
            chosen.voters.dedup();
            let unsynchronised = self.groups.get(&id).map(|group| self.still_unsynchronised(group, &chosen));
            self.put_target(id, &chosen, unsynchronised.unwrap_or_default(), changes);
        }
        self.move_unsynchronised(from, Some(to), changes);
    }
}
