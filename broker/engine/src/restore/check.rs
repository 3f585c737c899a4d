//! The new journal is read again, as its founder's start will read it.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_journal::{FileSystem, RecoveredGroup, Scrutiny, inspect_with_reader};
use holdfast_queue::AnyMachine;
use holdfast_queue::ids::{GroupId, MemberId, QueueId, ReplicaId};
use holdfast_queue::meta::{MetaMachine, Placement, SOURCE_GENERATION, restored_life};
use holdfast_replica::{GroupCopy, group_key};

use super::{NewCluster, RestoreError};
use crate::backup::files::{differs, state_of};
use crate::backup::{GroupEntry, Manifest};
use crate::identity::Identity;

/// Reads the journal in `files` and compares it with the manifest: the identity, each group's life and voter, each queue's
/// messages with their places, and that there is nothing else.
///
/// # Errors
/// What differs: the journal must not be used.
pub fn check<T: FileSystem>(files: &T, manifest: &Manifest, new: &NewCluster) -> Result<(), RestoreError> {
    let (found, reader) = inspect_with_reader(files, Scrutiny::AsAtStart)?;
    differing(|| {
        let founder = founder_of(found.identity.as_ref().map(AsRef::as_ref), new)?;
        let mut groups: BTreeMap<_, RecoveredGroup> =
            found.groups.into_iter().map(|group| (group.key, group)).collect();
        let mut metadata = None;
        for group in &manifest.groups {
            let place = group.place.place()?;
            let name = format!("group {}", place.group);
            let key = group_key(place.group, restored_life(place.incarnation, new.nonce));
            let recovered = groups.remove(&key).ok_or_else(|| format!("{name} is not there"))?;
            let copy = GroupCopy::<AnyMachine>::read(recovered, &reader).map_err(|why| format!("{name}: {why}"))?;
            let voter = ReplicaId { member: founder, generation: SOURCE_GENERATION };
            if copy.memberships != [vec![vec![voter]]] || copy.generation != SOURCE_GENERATION {
                return Err(format!("{name} has other voters than the founder: {:?}", copy.memberships));
            }
            if copy.last_index != place.index {
                return Err(format!("{name} ends at {}, and should at {}", copy.last_index, place.index));
            }
            let state = state_of(&copy, &reader, &mut |_, _| {}).map_err(|why| format!("{name}: {why}"))?;
            check_queues(group, &state.queues)?;
            match copy.machine {
                AnyMachine::Meta(machine) => metadata = Some(machine),
                AnyMachine::Queue(machine) if !machine.boots().is_empty() => {
                    return Err(format!("{name} remembers runs of the old cluster"));
                }
                AnyMachine::Queue(_) => {}
            }
        }
        if let Some(other) = groups.keys().next() {
            return Err(format!("group {} is in it, and not in the backup", other.group));
        }
        check_metadata(&metadata.ok_or("there are no metadata")?, manifest, new, founder)
    })
}

fn differing(found: impl FnOnce() -> Result<(), String>) -> Result<(), RestoreError> {
    found().map_err(RestoreError::Differs)
}

fn founder_of(identity: Option<&[u8]>, new: &NewCluster) -> Result<MemberId, String> {
    let identity = Identity::decode(identity.ok_or("there is no identity")?).map_err(|error| error.to_string())?;
    let own = identity.membership.ok_or("the identity belongs to no cluster")?;
    match own.cluster_id == new.cluster_id && identity.uuid == new.uuid && !own.joining {
        true => Ok(own.member),
        false => Err(format!("the identity is member {} of cluster {}", identity.uuid, own.cluster_id)),
    }
}

fn check_queues(group: &GroupEntry, found: &[crate::backup::QueueEntry]) -> Result<(), String> {
    let expected = &group.state.queues;
    if let Some((expected, found)) = expected.iter().zip(found).find(|(a, b)| a != b) {
        return Err(format!("queue '{}' in vhost '{}': {}", expected.name, expected.vhost, differs(expected, found)));
    }
    match expected.len() == found.len() {
        true => Ok(()),
        false => Err(format!("group {} has {} queues instead of {}", group.place.group, found.len(), expected.len())),
    }
}

/// The metadata are those of the new cluster alone, and lead to each queue that has messages.
fn check_metadata(meta: &MetaMachine, manifest: &Manifest, new: &NewCluster, founder: MemberId) -> Result<(), String> {
    let cluster = meta.cluster().ok_or("the metadata are of no cluster")?;
    if cluster.cluster_id != new.cluster_id || cluster.epoch != 1 {
        return Err(format!("the metadata are of cluster {}, epoch {}", cluster.cluster_id, cluster.epoch));
    }
    let members: Vec<MemberId> = meta.members().map(|(id, _)| id).collect();
    if members != [founder] || meta.member(founder).is_none_or(|member| member.uuid != new.uuid.to_string()) {
        return Err(format!("the metadata have the members {members:?} instead of the founder alone"));
    }
    let listed = manifest.groups.iter().map(|group| group.place.group);
    let known: BTreeSet<GroupId> = listed.chain(manifest.missing.iter().map(|it| it.group)).map(GroupId).collect();
    for (id, info) in meta.groups() {
        let is_alone = info.voters.len() == 1 && info.replicas().all(|replica| replica.member == founder);
        if !known.contains(&id) || !is_alone || info.incarnation.nonce != new.nonce {
            return Err(format!("group {id} is not as it should be in the metadata: {info:?}"));
        }
    }
    for group in &manifest.groups {
        let id = GroupId(group.place.group);
        let life = meta.group(id).map(|info| info.incarnation);
        if life != Some(restored_life(group.place.place()?.incarnation, new.nonce)) {
            return Err(format!("the metadata have group {id} in the life {life:?}"));
        }
        for queue in group.state.queues.iter().filter(|queue| queue.messages > 0) {
            let info = meta.queue(QueueId(queue.id));
            let is_it = info.is_some_and(|info| {
                (&info.vhost, &info.name, info.placement)
                    == (&queue.vhost, &queue.name, Placement::Replicated { group: id })
            });
            if !is_it {
                let what = format!("queue '{}' in vhost '{}'", queue.name, queue.vhost);
                return Err(format!("{what} has {} messages, and the metadata do not lead to it", queue.messages));
            }
        }
    }
    Ok(())
}
