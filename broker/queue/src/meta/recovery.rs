//! The metadata after a forced recovery (design §3.5): the members and replicas that are left, every group in a new life.

use super::Wish;
use super::machine::MetaMachine;
use super::placement::{self, Chosen};
use super::replicas::META_VOTERS;
use super::state::{GroupInfo, Placement, QueueInfo, Standing, Target};
use crate::arguments::Arguments;
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// The generation of the replica that holds a recovered group's copy. Not the founders': nobody may take it for a group
/// that is just being born.
pub const SOURCE_GENERATION: u32 = 1;
/// The generation of the replicas that are seeded from it.
pub const SEEDED_GENERATION: u32 = 2;

/// What is left, and where each group goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The cluster's epoch from now on.
    pub epoch: u64,
    /// Members whose disks are there. All others are taken out for good.
    pub members: BTreeSet<MemberId>,
    /// Group 0, and every other group that goes on.
    pub groups: BTreeMap<GroupId, Reborn>,
    /// Groups and queues up to these numbers were seen: they are not given again.
    pub last_group: GroupId,
    pub last_queue: QueueId,
    pub last_member: MemberId,
}

/// A group's new life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reborn {
    pub incarnation: Incarnation,
    /// The member that holds its copy, or is to begin it with nothing.
    pub member: MemberId,
    /// Where that copy ends; 0 if there is none, and the group is born anew.
    pub index: u64,
    /// Queues in it that the metadata does not know: number, virtual host, name.
    pub adopted: Vec<(QueueId, String, String)>,
}

impl MetaMachine {
    /// The highest numbers of a member, a group and a queue that were given.
    pub fn last_numbers(&self) -> (MemberId, GroupId, QueueId) {
        (MemberId(self.last_member), GroupId(self.last_group), QueueId(self.last_queue))
    }

    /// Makes the metadata speak of what was recovered. Every run of a member is over, with its transient queues; every
    /// group has one voter, from which it is to spread over the members that are left. Groups that are not named are
    /// gone, and their queues with them.
    pub fn recover(&mut self, recovery: &Recovery) {
        if let Some(cluster) = &mut self.cluster {
            cluster.epoch = recovery.epoch;
        }
        self.last_member = self.last_member.max(recovery.last_member.0);
        self.last_group = self.last_group.max(recovery.last_group.0);
        self.last_queue = self.last_queue.max(recovery.last_queue.0);
        let mut changes = Vec::new();
        let boots: Vec<BootId> = self.members.values().filter_map(|member| member.boot).collect();
        for boot in boots {
            let _ = self.boot_ended(boot, &mut changes);
        }
        self.members.retain(|id, _| recovery.members.contains(id));
        for member in self.members.values_mut() {
            // Its successor may be among those that are gone, and what it holds among what is needed.
            if matches!(member.standing, Standing::Replaced { by } if !recovery.members.contains(&by)) {
                member.standing = Standing::Present;
            } else if member.standing != Standing::Present {
                member.standing = Standing::Leaving;
            }
        }
        for (group, reborn) in &recovery.groups {
            for (queue, vhost, name) in &reborn.adopted {
                self.adopt(*group, *queue, vhost, name);
            }
        }
        let gone: Vec<QueueId> = self.queues_outside(&recovery.groups);
        for queue in gone {
            self.drop_queue(queue, &mut changes);
        }
        for (group, reborn) in &recovery.groups {
            self.rebear(*group, reborn);
        }
        self.derive();
    }

    /// Queues that do not go on when only these groups do.
    pub(super) fn queues_outside<T>(&self, groups: &BTreeMap<GroupId, T>) -> Vec<QueueId> {
        let outside = |(id, queue): (&QueueId, &QueueInfo)| match queue.placement {
            Placement::Replicated { group } => (!groups.contains_key(&group)).then_some(*id),
            Placement::Transient { .. } => Some(*id),
        };
        self.queues.iter().filter_map(outside).collect()
    }

    /// A queue that is newer than the metadata. Whatever has its name in the metadata was deleted before it was declared.
    fn adopt(&mut self, group: GroupId, queue: QueueId, vhost: &str, name: &str) {
        let mut changes = Vec::new();
        let _ = self.put_vhost(vhost, &mut changes);
        if let Some(older) = self.vhosts.get(vhost).and_then(|vhost| vhost.queues.get(name)).copied() {
            self.drop_queue(older, &mut changes);
        }
        let info = QueueInfo {
            vhost: vhost.to_owned(),
            name: name.to_owned(),
            durable: true,
            exclusive: None,
            auto_delete: false,
            arguments: Arguments::default(),
            placement: Placement::Replicated { group },
        };
        if let Some(vhost) = self.vhosts.get_mut(vhost) {
            vhost.queues.insert(name.to_owned(), queue);
        }
        self.queues.insert(queue, info);
        self.groups.entry(group).or_default().queues.insert(queue);
    }

    pub(super) fn rebear(&mut self, id: GroupId, reborn: &Reborn) {
        let Some(before) = self.groups.get(&id).cloned() else { return };
        let mut chosen = self.chosen_for(id, &before, reborn.member);
        let unsynchronised = self.hold_growth_back(&before, &BTreeSet::from([reborn.member]), &mut chosen);
        let (own, others) = match reborn.index {
            0 => (0, SOURCE_GENERATION),
            _ => (SOURCE_GENERATION, SEEDED_GENERATION),
        };
        let replica = |member: &MemberId| ReplicaId {
            member: *member,
            generation: if *member == reborn.member { own } else { others },
        };
        let mut target = Target {
            voters: chosen.voters.iter().map(replica).collect(),
            learners: chosen.learners.iter().map(replica).collect(),
            preferred_leader: chosen.leader,
            unsynchronised,
        };
        target.voters.sort_unstable();
        target.learners.sort_unstable();
        let group = GroupInfo {
            incarnation: reborn.incarnation,
            first_leader: reborn.member,
            voters: vec![ReplicaId { member: reborn.member, generation: own }],
            learners: Vec::new(),
            changed_at: reborn.index,
            target,
            last_generation: others,
            queues: before.queues.clone(),
            copies: before.copies,
        };
        if id != GroupId::META {
            placement::discount(&mut self.loads, &before);
            placement::count(&mut self.loads, &group);
        }
        self.groups.insert(id, group);
    }

    /// Where the group is to be among the members that are left: its copy stays where it is, unless its member is to leave,
    /// or the queue's policy wants it elsewhere. Then it hands it over, as ever.
    fn chosen_for(&self, id: GroupId, before: &GroupInfo, source: MemberId) -> Chosen {
        let mut wish = match id {
            GroupId::META => Wish { voters: META_VOTERS, learners: self.members.len(), ..Wish::default() },
            _ => self.wish_for_group(&self.members, before),
        };
        wish.keep.retain(|member| *member != source);
        wish.keep.insert(0, source);
        wish.leader = Some(source);
        let mut chosen = placement::place(&self.members, &self.loads, &wish).unwrap_or_default();
        if chosen.voters.is_empty() {
            // Nobody stays who could take it: it waits where it is for a member that comes.
            chosen = Chosen { voters: vec![source], learners: Vec::new(), leader: source };
        }
        if id == GroupId::META {
            // It is on every member, also on those that are to leave.
            let rest: Vec<MemberId> = self.members.keys().copied().filter(|id| !chosen.voters.contains(id)).collect();
            chosen.learners = rest;
        }
        chosen
    }
}
