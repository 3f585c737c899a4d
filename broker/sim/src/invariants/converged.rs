//! When nothing happens any more, replicas hold the same: every machine is byte-equal to the others of its group, and
//! nobody has a group that the metadata does not know.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_journal::GroupKey;
use holdfast_queue::Machine;
use holdfast_queue::ids::GroupId;
use holdfast_replica::GroupStatus;

use crate::process::Process;

/// Groups of the metadata, as each member that has it knows them.
fn known_groups(process: &Process) -> Option<Vec<GroupId>> {
    let host = process.running.as_ref()?.member.host()?;
    let meta = host.machine(GroupId::META)?.meta()?;
    Some(meta.groups().map(|(group, _)| group).chain([GroupId::META]).collect())
}

/// True when all replicas of every group have applied the same, with one leader in one term. A replica that is
/// quarantined does not count.
#[must_use]
pub fn converged(processes: &[Process]) -> bool {
    let mut places: BTreeMap<GroupKey, (u64, u64)> = BTreeMap::new();
    let mut led: BTreeMap<GroupKey, usize> = BTreeMap::new();
    for host in processes.iter().filter_map(|process| process.running.as_ref()?.member.host()) {
        for status in host.groups().filter_map(|group| host.status(group)) {
            if status.quarantined.is_some() {
                continue;
            }
            let place = (status.last, status.term);
            if status.applied != status.last || *places.entry(status.key).or_insert(place) != place {
                return false;
            }
            *led.entry(status.key).or_default() += usize::from(status.me_leading);
        }
    }
    led.values().all(|leaders| *leaders == 1)
}

/// Every replica of the groups in which [`converged`] finds something missing, in words, for the report of a failure.
pub fn apart(processes: &[Process]) -> String {
    let mut groups: BTreeMap<GroupKey, Vec<(usize, GroupStatus)>> = BTreeMap::new();
    for (member, process) in processes.iter().enumerate() {
        let Some(host) = process.running.as_ref().and_then(|running| running.member.host()) else { continue };
        for status in host.groups().filter_map(|group| host.status(group)) {
            groups.entry(status.key).or_default().push((member, status));
        }
    }
    let is_apart = |replicas: &Vec<(usize, GroupStatus)>| {
        let sound = || replicas.iter().map(|(_, status)| status).filter(|status| status.quarantined.is_none());
        let places: BTreeSet<(u64, u64)> = sound().map(|status| (status.last, status.term)).collect();
        let leaders = sound().filter(|status| status.me_leading).count();
        places.len() > 1 || sound().any(|status| status.applied != status.last) || (leaders != 1 && !places.is_empty())
    };
    let words = |(member, s): &(usize, GroupStatus)| {
        format!(
            "m{member} is {:?} in term {}, last {}, commit {}, applied {}, knows leader {:?}, voters {:?}, learners {:?}",
            s.role, s.term, s.last, s.commit, s.applied, s.leader, s.voters, s.learners
        )
    };
    let lines = groups
        .iter()
        .filter(|(_, replicas)| is_apart(replicas))
        .map(|(key, replicas)| format!("{key}: {}", replicas.iter().map(words).collect::<Vec<_>>().join("; ")));
    lines.collect::<Vec<_>>().join(" | ")
}

/// What differs between replicas that should be equal. The disk of the member `damaged` was damaged.
///
/// # Errors
/// The first difference, in words.
pub fn differences(processes: &[Process], damaged: Option<usize>) -> Result<(), String> {
    let mut machines: BTreeMap<GroupKey, (usize, Bytes)> = BTreeMap::new();
    let mut payloads: BTreeMap<(GroupKey, u64), (usize, Bytes)> = BTreeMap::new();
    for (member, process) in processes.iter().enumerate() {
        let Some(host) = process.running.as_ref().and_then(|running| running.member.host()) else { continue };
        let known = known_groups(process);
        for group in host.groups() {
            let quarantined = host.status(group).and_then(|status| status.quarantined);
            if let Some(why) = quarantined.filter(|_| damaged != Some(member)) {
                return Err(format!("m{member} quarantined group {group} on a sound disk: {why}"));
            }
            let (Some(key), Some(machine)) = (host.key(group), host.machine(group)) else { continue };
            if known.as_ref().is_some_and(|known| !known.contains(&group)) {
                return Err(format!("m{member} has a replica of group {group}, which no queue is in"));
            }
            let snapshot = machine.snapshot();
            let (first, expected) = machines.entry(key).or_insert_with(|| (member, snapshot.clone()));
            if *expected != snapshot {
                return Err(format!("the machines of group {group} differ between m{first} and m{member}"));
            }
            for index in machine.live_indexes() {
                let payload = host.payload(group, index).map_err(|error| {
                    format!("m{member} cannot read message {index} of group {group}, which is live: {error}")
                })?;
                let (first, expected) = payloads.entry((key, index)).or_insert_with(|| (member, payload.clone()));
                if *expected != payload {
                    return Err(format!("message {index} of group {group} differs between m{first} and m{member}"));
                }
            }
        }
    }
    Ok(())
}
