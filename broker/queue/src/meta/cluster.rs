//! The cluster and its members.

use super::access::Grant;
use super::command::{ExpectedMember, NewMember, NewUser};
use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::state::{ClusterInfo, GroupInfo, MemberInfo, Placement};
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, SessionId};

fn run_is_over() -> Refusal {
    Refusal { code: 406, text: "this run of the member was declared over".to_owned() }
}

impl MetaMachine {
    /// The cluster, once it was made.
    pub fn cluster(&self) -> Option<&ClusterInfo> {
        self.cluster.as_ref()
    }

    /// All members by id.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &MemberInfo)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// A member.
    pub fn member(&self, id: MemberId) -> Option<&MemberInfo> {
        self.members.get(&id)
    }

    /// True for a member that was in the cluster once and is no more.
    pub fn was_removed(&self, id: MemberId) -> bool {
        (1..=self.last_member).contains(&id.0) && !self.members.contains_key(&id)
    }

    /// The member with an identity.
    pub fn member_by_uuid(&self, uuid: &str) -> Option<MemberId> {
        self.members.iter().find(|(_, member)| member.uuid == uuid).map(|(id, _)| *id)
    }

    /// The member whose present run this is.
    pub fn member_of_boot(&self, boot: BootId) -> Option<MemberId> {
        self.members.iter().find(|(_, member)| member.boot == Some(boot)).map(|(id, _)| *id)
    }

    /// All groups, group 0 included once the cluster was made.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &GroupInfo)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    /// A group.
    pub fn group(&self, id: GroupId) -> Option<&GroupInfo> {
        self.groups.get(&id)
    }

    pub(super) fn init(
        &mut self,
        cluster: ClusterInfo,
        user: Option<NewUser>,
        first: NewMember,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if let Some(present) = &self.cluster {
            if present.cluster_id != cluster.cluster_id {
                let text = format!("this is cluster '{}' already, not '{}'", present.cluster_id, cluster.cluster_id);
                return Err(Refusal { code: 406, text });
            }
            let member = self.member_by_uuid(&first.uuid).unwrap_or(MemberId(1));
            return Ok(MetaReply::MemberAdded { member });
        }
        self.cluster = Some(cluster);
        changes.push(Change::Cluster);
        let added = self.add_member(first, changes)?;
        let first = self.members.keys().next().copied().unwrap_or(MemberId(1));
        self.groups.insert(GroupId::META, GroupInfo::founded(Incarnation::default(), &[first], first));
        self.put_vhost("/", changes)?;
        if let Some(user) = user {
            let name = user.name.clone();
            self.put_user(user, changes)?;
            self.grant("/", &name, Grant::full(), changes)?;
        }
        Ok(added)
    }

    /// The whole list of members that should be there. Where a member runs is the caller's to know, also of one that has
    /// joined: nodes get their zone labels late, and a pod may move with its volume.
    pub(super) fn set_expected(&mut self, expected: Vec<ExpectedMember>, changes: &mut Vec<Change>) -> Outcome {
        let Some(cluster) = &mut self.cluster else {
            return Err(Refusal { code: 406, text: "the cluster was not made yet".to_owned() });
        };
        for (id, member) in &mut self.members {
            let Some(wanted) = expected.iter().find(|wanted| wanted.name == member.name) else { continue };
            if member.zone != wanted.zone || member.address != wanted.address {
                member.zone.clone_from(&wanted.zone);
                member.address.clone_from(&wanted.address);
                changes.push(Change::Member { member: *id });
            }
        }
        cluster.expected = expected;
        changes.push(Change::Cluster);
        Ok(MetaReply::Done)
    }

    pub(super) fn add_member(&mut self, new: NewMember, changes: &mut Vec<Change>) -> Outcome {
        // A refusal takes nothing back, so what can be refused is looked at first.
        if new.boot.is_some_and(|boot| self.streams.has_ended(boot)) {
            return Err(run_is_over());
        }
        let known = self.member_by_uuid(&new.uuid);
        let id = known.unwrap_or_else(|| {
            self.last_member += 1;
            MemberId(self.last_member)
        });
        let member = self.members.entry(id).or_default();
        member.uuid = new.uuid;
        member.name = new.name;
        member.zone = new.zone;
        member.address = new.address;
        changes.push(Change::Member { member: id });
        if let Some(boot) = new.boot {
            self.boot_started(id, boot, changes)?;
        }
        if known.is_none() {
            self.replace_members_named(id, changes)?;
            self.spread_metadata(changes);
            self.retarget_hungry(changes);
        }
        Ok(MetaReply::MemberAdded { member: id })
    }

    pub(super) fn remove_member(&mut self, id: MemberId, changes: &mut Vec<Change>) -> Outcome {
        let Some(member) = self.members.get(&id) else { return Ok(MetaReply::Done) };
        if let Some((group, _)) = self.groups.iter().find(|(_, group)| group.concerns(id)) {
            let text = format!("member '{}' still holds a replica of group {group}", member.name);
            return Err(Refusal { code: 406, text });
        }
        if let Some(boot) = member.boot {
            self.boot_ended(boot, changes)?;
        }
        self.members.remove(&id);
        changes.push(Change::MemberRemoved { member: id });
        Ok(MetaReply::Done)
    }

    /// A run that was declared over stays over, so a late notice of its start is refused.
    pub(super) fn boot_started(&mut self, id: MemberId, boot: BootId, changes: &mut Vec<Change>) -> Outcome {
        let Some(member) = self.members.get(&id) else {
            return Err(Refusal { code: 404, text: format!("no member {id}") });
        };
        let before = member.boot;
        if before == Some(boot) {
            return Ok(MetaReply::Done);
        }
        if self.streams.has_ended(boot) {
            return Err(run_is_over());
        }
        if let Some(before) = before {
            self.boot_ended(before, changes)?;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.boot = Some(boot);
        }
        changes.push(Change::Member { member: id });
        Ok(MetaReply::Done)
    }

    pub(super) fn boot_ended(&mut self, boot: BootId, changes: &mut Vec<Change>) -> Outcome {
        self.streams.end(boot);
        self.delete_transients(changes, |session, owner| {
            owner == Some(boot) || session.is_some_and(|it| it.boot == boot)
        });
        if let Some(id) = self.member_of_boot(boot) {
            if let Some(member) = self.members.get_mut(&id) {
                member.boot = None;
            }
            changes.push(Change::BootEnded { member: id, boot });
        }
        Ok(MetaReply::Done)
    }

    pub(super) fn session_ended(&mut self, session: SessionId, changes: &mut Vec<Change>) -> Outcome {
        self.delete_transients(changes, |owner, _| owner == Some(session));
        Ok(MetaReply::Done)
    }

    fn delete_transients(
        &mut self,
        changes: &mut Vec<Change>,
        gone: impl Fn(Option<SessionId>, Option<BootId>) -> bool,
    ) {
        let matching = |(id, queue): (&QueueId, &super::state::QueueInfo)| match &queue.placement {
            Placement::Transient { owner } => gone(queue.exclusive, Some(owner.boot)).then_some(*id),
            Placement::Replicated { .. } => None,
        };
        let ids: Vec<QueueId> = self.queues.iter().filter_map(matching).collect();
        for id in ids {
            self.drop_queue(id, changes);
        }
    }
}
