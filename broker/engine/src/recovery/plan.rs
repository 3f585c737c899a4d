//! From the surveys of all disks that are left: which copy each group goes on from, and what would be lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::ids::{GroupId, Incarnation, MemberId, QueueId};
use holdfast_queue::meta::{Reborn, Recovery};
use serde::{Deserialize, Serialize};

use super::survey::{CopySurvey, Life, MetadataSurvey, PlacedGroup, QueueSurvey, Replica, Survey};

/// What a recovery would do. The same surveys give the same plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub cluster_id: String,
    /// The highest epoch that a disk is of.
    pub epoch: u64,
    /// False while a majority of every group is here: the members only have to be started.
    pub is_needed: bool,
    /// The disks that are here, ascending by member.
    pub disks: Vec<DiskPart>,
    /// Members of the cluster whose disks are not here, by name: they must be gone for good.
    pub absent: Vec<String>,
    /// All members that the metadata know, by Raft id.
    pub names: BTreeMap<u64, String>,
    /// Group 0 first.
    pub groups: Vec<GroupPlan>,
    last_member: u64,
    last_group: u64,
    last_queue: u64,
}

/// What becomes of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskPart {
    pub member: u64,
    /// None where the metadata does not know the member.
    pub name: Option<String>,
    pub uuid: String,
    pub epoch: u64,
    pub role: Role,
}

/// Whether a disk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Its member goes on in the new epoch, with the groups that it is the source of, and seeds the rest anew.
    GoesOn,
    /// Of an earlier epoch: an earlier recovery went on without it. It is left as it is, and refused.
    Stale,
    /// The metadata does not know its member. It is left as it is, and refused.
    Unknown,
}

/// How far a copy goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    pub term: u64,
    pub index: u64,
    /// When its last entry was stamped, in milliseconds since the Unix epoch; 0 if nothing was ever stamped.
    pub stamped_ms: u64,
}

/// What can be said of what a group has confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Outcome {
    /// Nothing confirmed can be missing.
    Whole,
    /// Nothing was ever confirmed in it: it never came to be.
    Unborn,
    /// The voters that are not here may have confirmed more among themselves, after the position of the best copy.
    Unknown,
    /// A disk that is here knows that entries up to this index were committed, and no usable copy has them.
    Behind { committed: u64 },
    /// No usable copy is here: all messages are lost. The queues begin anew, empty.
    NoCopy,
    /// The metadata know that it was deleted.
    Deleted,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupPlan {
    pub group: u64,
    pub life: Life,
    /// With the messages in the copy that it goes on from.
    pub queues: Vec<QueueSurvey>,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// A majority of its voters is here.
    pub has_majority: bool,
    /// The member whose copy it goes on from, or that begins it anew.
    pub source: u64,
    /// Where that copy ends; none without a copy.
    pub position: Option<Position>,
    /// Voters that are not here, or whose copies cannot be used.
    pub absent: Vec<Replica>,
    /// Copies that cannot be used: member and why.
    pub damaged: Vec<(u64, String)>,
    /// The metadata do not know it, or not all of its queues: they are taken in, without arguments and bindings.
    pub adopted: Vec<QueueSurvey>,
    next_counter: u32,
}

impl GroupPlan {
    /// Confirmed messages are lost, or may be.
    pub fn may_lose(&self) -> bool {
        matches!(self.outcome, Outcome::Unknown | Outcome::Behind { .. } | Outcome::NoCopy)
    }

    /// Why a person has to decide about it, in words; none if nothing of it can be lost, or if the policies of all of its
    /// queues say `ha-promote-on-failure: always` (`ha-promote-on-shutdown`, if the members that are missing were stopped on
    /// purpose) and a copy is there to go on from. The metadata have no policy: what the queues' say counts for them too.
    pub fn needs_a_person(&self, were_stopped: bool) -> Option<String> {
        if !self.may_lose() || self.group == GroupId::META.0 {
            return None;
        }
        let key = if were_stopped { "ha-promote-on-shutdown" } else { "ha-promote-on-failure" };
        let named = |queue: &QueueSurvey| format!("queue '{}' in vhost '{}'", queue.name, queue.vhost);
        let says =
            |queue: &&QueueSurvey| if were_stopped { queue.promote_on_shutdown } else { queue.promote_on_failure };
        if let Some(queue) = self.queues.iter().chain(&self.adopted).find(|queue| !says(queue)) {
            return Some(format!("{} has no policy that says {key}: always", named(queue)));
        }
        let first = self.queues.first().map_or_else(|| format!("group {}", self.group), named);
        self.position.is_none().then(|| format!("of {first} no copy is left, and its disk may still be found"))
    }

    /// The life that it goes on under.
    pub fn next_life(&self, nonce: u64) -> Incarnation {
        Incarnation { counter: self.next_counter, nonce }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("no disk was given")]
    NoDisk,
    #[error("the disks belong to two clusters, {0} and {1}: give those of one")]
    OtherCluster(String, String),
    /// Equal epochs with different nonces.
    #[error(
        "the disks of members {0} and {1} come from two recoveries that did not know of each other: decide which one is to go on, and leave the disks of the other out"
    )]
    TwoRecoveries(u64, u64),
    #[error(
        "two of the disks are of member {0}, so one is a copy of the other: leave one of them out, and never start both"
    )]
    SameMember(u64),
    #[error(
        "no disk has a copy of the metadata (group 0) that can be used{0}: without it nobody knows users, queues and bindings"
    )]
    NoMetadata(String),
}

/// Makes the plan.
///
/// # Errors
/// When the disks do not belong together, or none of them has the metadata.
pub fn plan(surveys: &[Survey]) -> Result<Plan, PlanError> {
    let newest = check_together(surveys)?;
    let current: Vec<&Survey> = surveys.iter().filter(|survey| survey.epoch == newest.epoch).collect();
    let meta_copies = copies_of(&current, GroupId::META.0, newest.life);
    let Some(best) = best_copy(&meta_copies, None) else { return Err(PlanError::NoMetadata(damages(&meta_copies))) };
    let metadata = current.iter().find(|survey| survey.member == best.0).and_then(|survey| survey.metadata.as_ref());
    let metadata = metadata.ok_or_else(|| PlanError::NoMetadata(damages(&meta_copies)))?;
    let known = |survey: &&&Survey| metadata.members.get(&survey.member).is_some_and(|(_, uuid)| *uuid == survey.uuid);
    let usable: Vec<&Survey> = current.iter().filter(known).copied().collect();
    if !usable.iter().any(|survey| survey.member == best.0) {
        return Err(PlanError::NoMetadata(damages(&meta_copies)));
    }
    let planner = Planner { surveys: &usable, metadata };
    let groups = planner.groups(newest.life);
    let disk = |survey: &Survey| DiskPart {
        member: survey.member,
        name: metadata.members.get(&survey.member).map(|(name, _)| name.clone()),
        uuid: survey.uuid.clone(),
        epoch: survey.epoch,
        role: match survey {
            _ if survey.epoch < newest.epoch => Role::Stale,
            _ if usable.iter().any(|other| other.member == survey.member) => Role::GoesOn,
            _ => Role::Unknown,
        },
    };
    let mut disks: Vec<DiskPart> = surveys.iter().map(disk).collect();
    disks.sort_by_key(|disk| (disk.member, disk.epoch));
    let absent = metadata.members.iter().filter(|(id, _)| usable.iter().all(|survey| survey.member != **id));
    let copies = || current.iter().flat_map(|survey| &survey.copies);
    let highest = |of: u64, seen: Option<u64>| of.max(seen.unwrap_or(0));
    let queues = copies().flat_map(|copy| &copy.queues).map(|queue| queue.id).max();
    Ok(Plan {
        cluster_id: newest.cluster_id.clone(),
        epoch: newest.epoch,
        is_needed: groups.iter().any(|group| !group.has_majority && group.outcome != Outcome::Deleted),
        disks,
        absent: absent.map(|(_, (name, _))| name.clone()).collect(),
        names: metadata.members.iter().map(|(id, (name, _))| (*id, name.clone())).collect(),
        groups,
        last_member: highest(metadata.last_member, current.iter().map(|survey| survey.member).max()),
        last_group: highest(metadata.last_group, copies().map(|copy| copy.group).max()),
        last_queue: highest(metadata.last_queue, queues),
    })
}

impl Plan {
    /// What the metadata become, under the nonce that was drawn for this recovery.
    pub fn recovery(&self, nonce: u64) -> Recovery {
        let goes_on = self.disks.iter().filter(|disk| disk.role == Role::GoesOn);
        let reborn = |group: &GroupPlan| {
            let adopted = group.adopted.iter();
            let reborn = Reborn {
                incarnation: group.next_life(nonce),
                member: MemberId(group.source),
                index: group.position.map_or(0, |position| position.index),
                adopted: adopted.map(|it| (QueueId(it.id), it.vhost.clone(), it.name.clone())).collect(),
            };
            (GroupId(group.group), reborn)
        };
        Recovery {
            epoch: self.next_epoch(),
            members: goes_on.map(|disk| MemberId(disk.member)).collect(),
            groups: self.groups.iter().filter(|group| group.outcome != Outcome::Deleted).map(reborn).collect(),
            last_group: GroupId(self.last_group),
            last_queue: QueueId(self.last_queue),
            last_member: MemberId(self.last_member),
        }
    }

    /// The epoch that the recovery begins.
    pub fn next_epoch(&self) -> u64 {
        self.epoch + 1
    }

    /// Why a person has to decide about this recovery; none if the policies of all queues that may lose something let it go
    /// ahead, see [`GroupPlan::needs_a_person`].
    pub fn needs_a_person(&self, were_stopped: bool) -> Option<String> {
        if self.groups.iter().all(|group| group.queues.is_empty() && group.adopted.is_empty()) {
            return Some("there is no queue whose policy could let it go ahead".to_owned());
        }
        self.groups.iter().find_map(|group| group.needs_a_person(were_stopped))
    }

    /// UUIDs of the members that go on.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().filter(|disk| disk.role == Role::GoesOn).map(|disk| disk.uuid.as_str())
    }

    /// Group 0.
    pub fn metadata(&self) -> &GroupPlan {
        &self.groups[0]
    }
}

/// Whether the surveys can be of one cluster and one course of events; one of the newest epoch.
fn check_together(surveys: &[Survey]) -> Result<&Survey, PlanError> {
    let newest = surveys.iter().max_by_key(|survey| (survey.epoch, Reverse(survey.member))).ok_or(PlanError::NoDisk)?;
    let mut members = BTreeSet::new();
    for survey in surveys {
        if survey.cluster_id != newest.cluster_id {
            return Err(PlanError::OtherCluster(newest.cluster_id.clone(), survey.cluster_id.clone()));
        }
        if survey.epoch == newest.epoch && survey.life != newest.life {
            return Err(PlanError::TwoRecoveries(newest.member, survey.member));
        }
        if !members.insert(&survey.uuid) {
            return Err(PlanError::SameMember(survey.member));
        }
    }
    Ok(newest)
}

type Copies<'a> = BTreeMap<u64, &'a CopySurvey>;

fn copies_of<'a>(surveys: &[&'a Survey], group: u64, life: Life) -> Copies<'a> {
    let of = |survey: &&'a Survey| {
        let copy = survey.copies.iter().find(|copy| copy.group == group && copy.life == life)?;
        Some((survey.member, copy))
    };
    surveys.iter().filter_map(of).collect()
}

/// The copy that an election among these would prefer; of equal ones that of `preferred`, then of the lowest member.
fn best_copy<'a>(copies: &Copies<'a>, preferred: Option<u64>) -> Option<(u64, &'a CopySurvey)> {
    let usable = copies.iter().filter(|(_, copy)| copy.damage.is_none() && copy.last_index > 0);
    let rank = |(member, copy): &(&u64, &&CopySurvey)| {
        (copy.last_term, copy.last_index, preferred == Some(**member), Reverse(**member))
    };
    usable.max_by_key(rank).map(|(member, copy)| (*member, *copy))
}

fn damages(copies: &Copies) -> String {
    let damage = |(member, copy): (&u64, &&CopySurvey)| Some(format!("member {member}: {}", copy.damage.as_ref()?));
    let found: Vec<String> = copies.iter().filter_map(damage).collect();
    if found.is_empty() { String::new() } else { format!(" ({})", found.join("; ")) }
}

/// Enough of the voters are here that no decision can have been made without one of them.
fn is_party_to_all(memberships: &[Vec<Vec<Replica>>], here: &BTreeSet<Replica>) -> bool {
    let party = |half: &Vec<Replica>| {
        let away = half.iter().filter(|replica| !here.contains(replica)).count();
        away < half.len() / 2 + 1
    };
    memberships.iter().all(|halves| halves.iter().any(party))
}

/// Enough of the voters are here to go on.
fn is_majority(memberships: &[Vec<Vec<Replica>>], here: &BTreeSet<Replica>) -> bool {
    let majority = |half: &Vec<Replica>| half.iter().filter(|replica| here.contains(replica)).count() > half.len() / 2;
    !memberships.is_empty() && memberships.iter().all(|halves| !halves.is_empty() && halves.iter().all(majority))
}

struct Planner<'a> {
    surveys: &'a [&'a Survey],
    metadata: &'a MetadataSurvey,
}

impl Planner<'_> {
    fn groups(&self, meta_life: Life) -> Vec<GroupPlan> {
        let unplaced = PlacedGroup { life: meta_life, ..PlacedGroup::default() };
        let placed = self.metadata.groups.get(&GroupId::META.0).unwrap_or(&unplaced);
        let placed = PlacedGroup { life: meta_life, ..placed.clone() };
        let metadata = self.group(GroupId::META.0, &placed, true);
        let whole = metadata.outcome == Outcome::Whole;
        let mut groups = vec![metadata];
        let queue_groups = self.metadata.groups.iter().filter(|(id, _)| **id != GroupId::META.0);
        groups.extend(queue_groups.map(|(id, placed)| self.group(*id, placed, whole)));
        groups.extend(self.unplaced());
        groups
    }

    fn group(&self, id: u64, placed: &PlacedGroup, metadata_is_whole: bool) -> GroupPlan {
        let copies = copies_of(self.surveys, id, placed.life);
        let best = best_copy(&copies, Some(placed.preferred_leader));
        let mut memberships = best.map_or(Vec::new(), |(_, copy)| copy.memberships.clone());
        if best.is_none_or(|(_, copy)| copy.last_index < placed.changed_at) {
            memberships.push(vec![placed.voters.clone()]);
        }
        let mut here: BTreeSet<Replica> = copies
            .iter()
            .filter(|(_, copy)| copy.damage.is_none())
            .map(|(member, copy)| Replica { member: *member, generation: copy.generation })
            .collect();
        let never_made = copies.is_empty() && placed.changed_at == 0 && metadata_is_whole;
        if never_made {
            // A founder that is here and has made no replica yet has acknowledged nothing.
            let surveyed =
                |replica: &&Replica| self.surveys.iter().any(|it| it.member == replica.member && !it.forgetful);
            here.extend(placed.voters.iter().filter(surveyed));
        }
        let known = copies.values().map(|copy| copy.commit).max().unwrap_or(0);
        let party = is_party_to_all(&memberships, &here);
        let outcome = match best {
            None if never_made && party => Outcome::Unborn,
            None => Outcome::NoCopy,
            Some((_, copy)) if known > copy.last_index => Outcome::Behind { committed: known },
            Some(_) if party => Outcome::Whole,
            Some(_) => Outcome::Unknown,
        };
        let voters: BTreeSet<Replica> = memberships.iter().flatten().flatten().copied().collect();
        let nothing = CopySurvey::default();
        let copy = best.map_or(&nothing, |(_, copy)| copy);
        let (queues, adopted) = self.queues(placed, copy);
        GroupPlan {
            group: id,
            life: placed.life,
            queues,
            has_majority: is_majority(&memberships, &here) && !matches!(outcome, Outcome::Behind { .. }),
            outcome,
            source: best.map_or_else(|| self.beginner(placed), |(member, _)| member),
            position: best.map(|(_, copy)| position_of(copy)),
            absent: voters.difference(&here).copied().collect(),
            damaged: copies.iter().filter_map(|(member, copy)| Some((*member, copy.damage.clone()?))).collect(),
            adopted,
            next_counter: self.highest_counter(id).max(placed.life.counter) + 1,
        }
    }

    /// A member to begin a group with that has no copy.
    fn beginner(&self, placed: &PlacedGroup) -> u64 {
        let here = |member: u64| self.surveys.iter().any(|survey| survey.member == member);
        let voters = placed.voters.iter().map(|replica| replica.member);
        let mut first = std::iter::once(placed.preferred_leader).chain(voters).filter(|member| here(*member));
        first.next().or_else(|| self.surveys.iter().map(|survey| survey.member).min()).unwrap_or_default()
    }

    /// The queues as the metadata knows them, with what the copy holds; and those that it does not know.
    fn queues(&self, placed: &PlacedGroup, copy: &CopySurvey) -> (Vec<QueueSurvey>, Vec<QueueSurvey>) {
        let held = |id: u64| copy.queues.iter().find(|queue| queue.id == id).map_or(0, |queue| queue.messages);
        let known = placed.queues.iter().map(|queue| QueueSurvey { messages: held(queue.id), ..queue.clone() });
        let newer = copy.queues.iter().filter(|queue| queue.id > self.metadata.last_queue).cloned();
        (known.collect(), newer.collect())
    }

    fn highest_counter(&self, group: u64) -> u32 {
        let copies = self.surveys.iter().flat_map(|survey| &survey.copies);
        copies.filter(|copy| copy.group == group).map(|copy| copy.life.counter).max().unwrap_or(0)
    }

    /// Groups that the metadata do not know: newer than them, or deleted.
    fn unplaced(&self) -> Vec<GroupPlan> {
        let copies = self.surveys.iter().flat_map(|survey| &survey.copies);
        let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
        for copy in copies.filter(|copy| !self.metadata.groups.contains_key(&copy.group)) {
            let life = lives.entry(copy.group).or_insert(copy.life);
            *life = copy.life.max(*life);
        }
        lives.remove(&GroupId::META.0);
        let plan = |(group, life): (u64, Life)| {
            let mut plan =
                self.group(group, &PlacedGroup { life, changed_at: u64::MAX, ..PlacedGroup::default() }, false);
            let is_newer = group > self.metadata.last_group && !plan.adopted.is_empty();
            if !is_newer {
                (plan.outcome, plan.has_majority) = (Outcome::Deleted, true);
            } else if plan.outcome == Outcome::Whole {
                // The metadata are older than the group, so its membership may have changed since too.
                plan.outcome = Outcome::Unknown;
            }
            plan
        };
        lives.into_iter().map(plan).collect()
    }
}

fn position_of(copy: &CopySurvey) -> Position {
    Position { term: copy.last_term, index: copy.last_index, stamped_ms: copy.stamped_ms }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
