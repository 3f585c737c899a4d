//! The metadata of a cluster that is founded from a backup (design §3.6): what the cluster was, under a new identity.
//!
//! Users, virtual hosts, permissions, exchanges, bindings, policies and replicated queues stay. What belongs to members,
//! runs and sessions goes. Every group begins another life with the founder as its only voter, and spreads from there to
//! the members that join, as a group does that has too few of them. Numbers of members, groups and queues go on above those
//! that were given, so that none ever means two things.

use super::access::Grant;
use super::command::{ExpectedMember, NewMember, NewUser};
use super::effect::Refusal;
use super::machine::MetaMachine;
use super::recovery::Reborn;
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId};
use crate::streams::Streams;
use std::collections::BTreeMap;

/// A cluster that is founded from a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restoration {
    /// The new cluster's id, never the old one's.
    pub cluster_id: String,
    /// Its only member at first. It does not run yet.
    pub founder: NewMember,
    /// Who should be in it.
    pub expected: Vec<ExpectedMember>,
    /// Replicas of a queue without a policy, and copies that a confirm waits for at least; as in the backup if not given.
    pub defaults: Option<(u32, u32)>,
    /// May do everything in the virtual host `/`; one of this name that is there gets this password and keeps the rest.
    pub user: Option<NewUser>,
    /// In the incarnation of every group; drawn for this restore.
    pub nonce: u64,
    /// Group 0, and every other group that goes on, with the index where its copy ends; 0 for one whose queues begin anew,
    /// empty. All others are gone, with their queues.
    pub groups: BTreeMap<GroupId, u64>,
}

/// What came of the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refounded {
    /// The founder's number.
    pub founder: MemberId,
    /// Queues that are not there any more, as virtual host and name: those of sessions and runs, and those that were being
    /// deleted.
    pub dropped: Vec<(String, String)>,
}

/// The life that a group begins in a restore.
#[must_use]
pub fn restored_life(before: Incarnation, nonce: u64) -> Incarnation {
    Incarnation { counter: before.counter + 1, nonce }
}

impl MetaMachine {
    /// Makes the metadata at a backup's cut those of a new cluster.
    ///
    /// # Errors
    /// They cannot be: there was no cluster, or the user is refused.
    pub fn refound(&mut self, wanted: &Restoration) -> Result<Refounded, Refusal> {
        let refused = |text: &str| Refusal { code: 406, text: text.to_owned() };
        let cluster = self.cluster.as_mut().ok_or_else(|| refused("the backup is of no cluster"))?;
        if cluster.cluster_id == wanted.cluster_id {
            return Err(refused("the new cluster has the id of the one in the backup"));
        }
        cluster.cluster_id.clone_from(&wanted.cluster_id);
        cluster.epoch = 1;
        cluster.expected.clone_from(&wanted.expected);
        if let Some((factor, min_in_sync)) = wanted.defaults {
            super::replication::check_min_in_sync(min_in_sync)?;
            (cluster.replication_factor, cluster.default_min_in_sync_replicas) = (factor, min_in_sync);
        }
        let dropped = self.end_all_runs(&wanted.groups);
        let founder = self.begin_with(&wanted.founder);
        let lives: Vec<(GroupId, Reborn)> = wanted
            .groups
            .iter()
            .filter_map(|(id, index)| {
                let incarnation = restored_life(self.groups.get(id)?.incarnation, wanted.nonce);
                Some((*id, Reborn { incarnation, member: founder, index: *index, adopted: Vec::new() }))
            })
            .collect();
        for (id, reborn) in &lives {
            self.rebear(*id, reborn);
        }
        self.derive();
        if let Some(user) = &wanted.user {
            self.set_anew(user)?;
        }
        Ok(Refounded { founder, dropped })
    }

    /// Ends every run, with what belongs to runs and sessions, and drops the queues of groups that do not go on.
    fn end_all_runs(&mut self, groups: &BTreeMap<GroupId, u64>) -> Vec<(String, String)> {
        let mut changes = Vec::new();
        let before: BTreeMap<QueueId, (String, String)> =
            self.queues.iter().map(|(id, queue)| (*id, (queue.vhost.clone(), queue.name.clone()))).collect();
        let boots: Vec<BootId> = self.members.values().filter_map(|member| member.boot).collect();
        for boot in boots {
            let _ = self.boot_ended(boot, &mut changes);
        }
        for id in self.queues_outside(groups) {
            self.drop_queue(id, &mut changes);
        }
        self.groups.retain(|id, _| groups.contains_key(id));
        // No run of the old cluster can ever speak here.
        self.streams = Streams::default();
        before.into_iter().filter(|(id, _)| !self.queues.contains_key(id)).map(|(_, name)| name).collect()
    }

    fn begin_with(&mut self, founder: &NewMember) -> MemberId {
        self.last_member += 1;
        let id = MemberId(self.last_member);
        self.members.clear();
        self.loads.clear();
        let member = self.members.entry(id).or_default();
        member.uuid.clone_from(&founder.uuid);
        member.name.clone_from(&founder.name);
        member.zone.clone_from(&founder.zone);
        member.address.clone_from(&founder.address);
        id
    }

    fn set_anew(&mut self, user: &NewUser) -> Result<(), Refusal> {
        let mut changes = Vec::new();
        let tags = self.users.get(&user.name).map_or_else(|| user.tags.clone(), |known| known.tags.clone());
        self.put_user(NewUser { tags, ..user.clone() }, &mut changes)?;
        if self.vhosts_of(&user.name).next().is_none() {
            self.put_vhost("/", &mut changes)?;
            self.grant("/", &user.name, Grant::full(), &mut changes)?;
        }
        Ok(())
    }
}
