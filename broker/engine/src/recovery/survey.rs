//! What one stopped member's disk has of each group.

use std::collections::BTreeMap;

use holdfast_journal::{EntryReader, GroupKey, Inspection, RecoveredGroup};
use holdfast_queue::AnyMachine;
use holdfast_queue::ids::{GroupId, Incarnation, ReplicaId};
use holdfast_queue::meta::{MetaMachine, Placement};
use holdfast_replica::GroupCopy;
use serde::{Deserialize, Serialize};

use crate::identity::{Identity, IdentityError};

/// A group's life: its incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Life {
    pub counter: u32,
    pub nonce: u64,
}

impl From<Incarnation> for Life {
    fn from(from: Incarnation) -> Self {
        Self { counter: from.counter, nonce: from.nonce }
    }
}

impl From<Life> for Incarnation {
    fn from(from: Life) -> Self {
        Self { counter: from.counter, nonce: from.nonce }
    }
}

impl From<GroupKey> for Life {
    fn from(key: GroupKey) -> Self {
        Self { counter: key.incarnation.counter, nonce: key.incarnation.nonce }
    }
}

/// A replica by its member's Raft id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Replica {
    pub member: u64,
    pub generation: u32,
}

impl From<ReplicaId> for Replica {
    fn from(from: ReplicaId) -> Self {
        Self { member: from.member.0, generation: from.generation }
    }
}

/// One disk. Equal disks give equal surveys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    pub uuid: String,
    pub cluster_id: String,
    pub epoch: u64,
    /// Group 0's life in that epoch.
    pub life: Life,
    pub member: u64,
    /// The disk has lost records that nobody can name: what is not here may have been.
    pub forgetful: bool,
    /// Ascending by group and life.
    pub copies: Vec<CopySurvey>,
    /// As this disk's copy of group 0 has it.
    pub metadata: Option<MetadataSurvey>,
}

/// One disk's copy of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopySurvey {
    pub group: u64,
    pub life: Life,
    pub generation: u32,
    pub last_term: u64,
    pub last_index: u64,
    /// Known to be committed.
    pub commit: u64,
    /// Group time of the last entry, in milliseconds since the Unix epoch; 0 if it has none.
    pub stamped_ms: u64,
    /// Memberships that may count, each with the voters of one half or two.
    pub memberships: Vec<Vec<Vec<Replica>>>,
    /// After the last entry.
    pub queues: Vec<QueueSurvey>,
    /// Why the copy cannot be used; then only group, life and perhaps commit are known.
    pub damage: Option<String>,
}

/// A queue in a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueSurvey {
    pub id: u64,
    pub vhost: String,
    pub name: String,
    /// Ready and unacknowledged.
    pub messages: u64,
    /// Its policies let the operator go ahead without a person when members have failed (`ha-promote-on-failure: always`).
    /// Known of queues in the metadata only.
    #[serde(default)]
    pub promote_on_failure: bool,
    /// The same when members were stopped on purpose (`ha-promote-on-shutdown: always`).
    #[serde(default)]
    pub promote_on_shutdown: bool,
}

/// What the plan must know of the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataSurvey {
    /// By Raft id: name and UUID.
    pub members: BTreeMap<u64, (String, String)>,
    pub groups: BTreeMap<u64, PlacedGroup>,
    pub last_member: u64,
    pub last_group: u64,
    pub last_queue: u64,
}

/// A group as the metadata places it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacedGroup {
    pub life: Life,
    pub voters: Vec<Replica>,
    /// 0 for the founders.
    pub changed_at: u64,
    pub preferred_leader: u64,
    pub queues: Vec<QueueSurvey>,
}

/// A disk that cannot be surveyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SurveyError {
    /// Nothing was ever stored, or no cluster was joined.
    #[error("it belongs to no cluster yet: there is nothing on it to recover")]
    Blank,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Looks at all that a disk holds. Every entry above a checkpoint is read.
///
/// # Errors
/// When the disk does not say whose it is.
pub fn survey<R: EntryReader>(found: &Inspection, reader: &R) -> Result<Survey, SurveyError> {
    let identity = Identity::decode(found.identity.as_ref().ok_or(SurveyError::Blank)?)?;
    let own = identity.membership.ok_or(SurveyError::Blank)?;
    let mut survey = Survey {
        uuid: identity.uuid.to_string(),
        cluster_id: own.cluster_id,
        epoch: own.cluster_epoch,
        life: own.meta_incarnation.into(),
        member: own.member.0,
        forgetful: identity.forgetful || found.forgetful,
        ..Survey::default()
    };
    for group in &found.groups {
        let (copy, metadata) = survey_copy(group, reader);
        let of_this_epoch = copy.group == GroupId::META.0 && copy.life == survey.life;
        survey.metadata = if of_this_epoch { metadata } else { survey.metadata };
        survey.copies.push(copy);
    }
    Ok(survey)
}

fn survey_copy<R: EntryReader>(group: &RecoveredGroup, reader: &R) -> (CopySurvey, Option<MetadataSurvey>) {
    let (number, life) = (group.key.group, Life::from(group.key));
    let read = GroupCopy::<AnyMachine>::read(group.clone(), reader).and_then(|copy| {
        copy.live_payloads()?;
        Ok(copy)
    });
    let copy = match read {
        Ok(copy) => copy,
        Err(why) => {
            let commit = group.hard_state.map_or(0, |state| state.commit);
            let damaged = CopySurvey { group: number, life, commit, damage: Some(why), ..CopySurvey::default() };
            return (damaged, None);
        }
    };
    let halves = |halves: &Vec<Vec<ReplicaId>>| -> Vec<Vec<Replica>> {
        halves.iter().map(|half| half.iter().map(|replica| Replica::from(*replica)).collect()).collect()
    };
    let surveyed = CopySurvey {
        group: number,
        life,
        generation: copy.generation,
        last_term: copy.last_term,
        last_index: copy.last_index,
        commit: copy.commit,
        stamped_ms: match &copy.machine {
            AnyMachine::Meta(machine) => machine.time_ms(),
            AnyMachine::Queue(machine) => machine.time_ms(),
        },
        memberships: copy.memberships.iter().map(halves).collect(),
        queues: queues_in(&copy.machine),
        damage: None,
    };
    (surveyed, copy.machine.meta().map(survey_metadata))
}

fn queues_in(machine: &AnyMachine) -> Vec<QueueSurvey> {
    let Some(machine) = machine.queue() else { return Vec::new() };
    let queue = |(id, stats): (holdfast_queue::ids::QueueId, holdfast_queue::queue::QueueStats)| {
        let (vhost, name) = machine.queue_name(id).unwrap_or_default();
        let messages = stats.ready + stats.unacked;
        QueueSurvey { id: id.0, vhost: vhost.into(), name: name.into(), messages, ..QueueSurvey::default() }
    };
    machine.queues().map(queue).collect()
}

fn survey_metadata(meta: &MetaMachine) -> MetadataSurvey {
    let (last_member, last_group, last_queue) = meta.last_numbers();
    let mut groups = BTreeMap::new();
    for (id, info) in meta.groups() {
        let placed = PlacedGroup {
            life: info.incarnation.into(),
            voters: info.voters.iter().map(|replica| Replica::from(*replica)).collect(),
            changed_at: info.changed_at,
            preferred_leader: info.target.preferred_leader.0,
            queues: Vec::new(),
        };
        groups.insert(id.0, placed);
    }
    for (id, queue) in meta.queues() {
        let Placement::Replicated { group } = queue.placement else { continue };
        let promote = meta.promote(id);
        let queue = QueueSurvey {
            id: id.0,
            vhost: queue.vhost.clone(),
            name: queue.name.clone(),
            messages: 0,
            promote_on_failure: promote.on_failure,
            promote_on_shutdown: promote.on_shutdown,
        };
        groups.entry(group.0).or_insert_with(PlacedGroup::default).queues.push(queue);
    }
    MetadataSurvey {
        members: meta.members().map(|(id, info)| (id.0, (info.name.clone(), info.uuid.clone()))).collect(),
        groups,
        last_member: last_member.0,
        last_group: last_group.0,
        last_queue: last_queue.0,
    }
}
