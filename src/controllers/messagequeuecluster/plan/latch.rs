//! Founding happens once in a cluster's life (design §3.5, §4.2).
//!
//! ```text
//!  nothing known, all disks blank ──► Record: PVC annotations and Secret, then status.clusterID
//!  recorded, founder's disk as it was ──► Found: ask that one member (idempotent by id)
//!  a disk says an id, nothing known ──► Record that id: adopt (CR deleted with Retain, applied again)
//!  id known, most of the disks that had joined blank, the founder's another ──► DataLost: nothing founds
//!  a disk says another id ──► Foreign
//! ```
//!
//! The founder's UUID is recorded with the id. A member is asked to found again only while it answers "blank" from
//! that very disk: then it never founded, and since the cluster begins with it, no other member can hold anything.
//!
//! A blank disk is a loss only where a disk that had joined was before: members that are being added are blank until the
//! others invite them. That a member has joined is recorded when it first answers with the cluster's id, on its volume
//! (which outlives this object) and in the status (which outlives the volume).

use std::collections::BTreeSet;

use super::super::{
    observe::{self, MemberFacts, Observed},
    validate::ValidatedCluster,
};
use crate::{
    api::v1alpha1::{Founder, MessageQueueClusterStatus},
    broker_admin::{Health, MemberState},
};

/// What is to be done about the cluster's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Latch {
    /// Not enough is known yet; the text says what is missing.
    Wait(String),
    /// Write the identity down, everywhere, before any broker hears of it.
    Record { cluster_id: String, founder: Option<Founder>, adopted: bool },
    /// Ask the founder.
    Found { cluster_id: String, member: u32 },
    /// The cluster exists.
    Founded { cluster_id: String },
    /// The id is known, and the data is gone.
    DataLost(String),
    /// Disks of different clusters.
    Foreign(String),
}

impl Latch {
    /// The id, where one is known.
    pub fn cluster_id(&self) -> Option<&str> {
        match self {
            Self::Record { cluster_id, .. } | Self::Found { cluster_id, .. } | Self::Founded { cluster_id } => {
                Some(cluster_id)
            }
            Self::Wait(_) | Self::DataLost(_) | Self::Foreign(_) => None,
        }
    }
}

/// Pure: `fresh_id` is used only if the cluster is new.
pub fn latch(
    cluster: &ValidatedCluster,
    status: &MessageQueueClusterStatus,
    observed: &Observed,
    fresh_id: &str,
) -> Latch {
    if let Some(waiting) = leftovers(status, observed) {
        return Latch::Wait(waiting);
    }
    let claims = claims(observed);
    let recorded: BTreeSet<&str> = status
        .cluster_id
        .as_deref()
        .into_iter()
        .chain(observed.members.values().filter_map(|m| m.volume.as_ref()?.cluster_id.as_deref()))
        .collect();
    if claims.len() > 1 || recorded.len() > 1 {
        let all: Vec<&str> = claims.union(&recorded).copied().collect();
        return Latch::Foreign(format!("volumes belong to different clusters: {}", all.join(", ")));
    }
    let known = recorded.first().copied();
    match (known, claims.first().copied()) {
        (Some(known), Some(claimed)) if known != claimed => Latch::Foreign(format!(
            "a volume belongs to cluster {claimed}, this is cluster {known}: remove the volume that does not belong here"
        )),
        (_, Some(claimed)) => claimed_by_a_disk(cluster, status, observed, claimed),
        (Some(known), None) => all_blank_so_far(cluster, status, observed, known),
        (None, None) => match missing(cluster, observed) {
            Some(missing) => Latch::Wait(missing),
            None => first_member(cluster, observed, fresh_id),
        },
    }
}

/// A new object waits until what the garbage collector takes of an earlier one of its name is gone: a cluster must not be
/// adopted from disks that are about to be deleted.
pub fn leftovers(status: &MessageQueueClusterStatus, observed: &Observed) -> Option<String> {
    let waits = status.cluster_id.is_none() && !observed.leftovers.is_empty();
    waits.then(|| {
        format!("waiting for what is left of a deleted cluster of this name to go: {}", observed.leftovers.join(", "))
    })
}

/// The ids that disks say they belong to.
fn claims(observed: &Observed) -> BTreeSet<&str> {
    observed.health().filter_map(|(_, h)| h.cluster_id.as_deref()).collect()
}

/// Every member must answer before anything is founded.
fn missing(cluster: &ValidatedCluster, observed: &Observed) -> Option<String> {
    let silent: Vec<String> = cluster
        .members
        .iter()
        .filter(|n| observed.members.get(n).and_then(|m| m.health()).is_none())
        .map(|n| cluster.names.pod(*n))
        .collect();
    (!silent.is_empty()).then(|| format!("waiting for {} to answer", silent.join(", ")))
}

fn first_member(cluster: &ValidatedCluster, observed: &Observed, fresh_id: &str) -> Latch {
    let first = cluster.members.first().and_then(|n| Some((n, observed.members.get(n)?.health()?)));
    match first {
        Some((number, health)) => Latch::Record {
            cluster_id: fresh_id.to_owned(),
            founder: Some(Founder { member: cluster.names.pod(*number), uuid: health.member_uuid.clone() }),
            adopted: false,
        },
        None => Latch::Wait("waiting for the first member".into()),
    }
}

fn claimed_by_a_disk(
    cluster: &ValidatedCluster,
    status: &MessageQueueClusterStatus,
    observed: &Observed,
    claimed: &str,
) -> Latch {
    let in_touch = observed.health().any(|(_, h)| h.quorum);
    if !in_touch && let Some(lost) = majority_lost(cluster, status, observed, claimed) {
        return Latch::DataLost(lost);
    }
    match is_recorded(status, observed, claimed) {
        true => Latch::Founded { cluster_id: claimed.to_owned() },
        false => Latch::Record {
            cluster_id: claimed.to_owned(),
            founder: founder(status, observed),
            adopted: status.cluster_id.is_none(),
        },
    }
}

/// An id is known, and no disk has it: a founding that was cut short, pods that are not up yet, or a loss.
fn all_blank_so_far(
    cluster: &ValidatedCluster,
    status: &MessageQueueClusterStatus,
    observed: &Observed,
    known: &str,
) -> Latch {
    let founder = founder(status, observed);
    let founder_unchanged = founder.as_ref().and_then(|founder| {
        let number = cluster.members.iter().find(|n| cluster.names.pod(**n) == founder.member)?;
        let health = observed.members.get(number)?.health()?;
        (health.state == MemberState::Blank && health.member_uuid == founder.uuid).then_some(*number)
    });
    match (missing(cluster, observed), founder_unchanged) {
        (None, Some(member)) if is_recorded(status, observed, known) => {
            Latch::Found { cluster_id: known.to_owned(), member }
        }
        (None, Some(_)) => Latch::Record { cluster_id: known.to_owned(), founder, adopted: false },
        (Some(missing), Some(_)) => Latch::Wait(missing),
        (missing, None) => match majority_lost(cluster, status, observed, known) {
            Some(lost) => Latch::DataLost(lost),
            None => Latch::Wait(missing.unwrap_or_else(|| "waiting for members".into())),
        },
    }
}

fn is_blank(health: &Health) -> bool {
    health.state == MemberState::Blank && health.cluster_id.is_none()
}

/// Members whose disks belonged to the cluster at some time: as recorded, or as any member still knows it. Where nobody
/// knows anything, the founder alone.
fn joined(cluster: &ValidatedCluster, status: &MessageQueueClusterStatus, observed: &Observed) -> BTreeSet<u32> {
    let known = |name: &str| observed.health().any(|(_, h)| h.members.iter().any(|m| m.name == name && m.id.is_some()));
    let recorded = |n: &u32, name: &str| {
        let volume = observed.members.get(n).and_then(|m| m.volume.as_ref());
        volume.is_some_and(|v| v.member_uuid.is_some())
            || status.members.iter().any(|m| m.name == name && m.uuid.is_some())
    };
    let name = |n: &u32| cluster.names.pod(*n);
    let numbers = || cluster.members.iter().copied();
    let joined: BTreeSet<u32> = numbers().filter(|n| recorded(n, &name(n)) || known(&name(n))).collect();
    match (joined.is_empty(), founder(status, observed)) {
        (true, Some(founder)) => numbers().filter(|n| name(n) == founder.member).collect(),
        _ => joined,
    }
}

/// Are most of the disks that had joined blank? In words; with what may still be saved, and never with the advice to
/// delete volumes of which one may hold the messages.
fn majority_lost(
    cluster: &ValidatedCluster,
    status: &MessageQueueClusterStatus,
    observed: &Observed,
    id: &str,
) -> Option<String> {
    let joined = joined(cluster, status, observed);
    let health = |n: &u32| observed.members.get(n).and_then(MemberFacts::health);
    let lost: BTreeSet<u32> = joined.iter().filter(|n| health(n).is_some_and(is_blank)).copied().collect();
    if lost.len() * 2 <= joined.len() {
        return None;
    }
    let names = |of: &mut dyn Iterator<Item = &u32>| of.map(|n| cluster.names.pod(*n)).collect::<Vec<_>>().join(", ");
    let silent = names(&mut joined.iter().filter(|n| health(n).is_none()));
    let intact = names(&mut joined.iter().filter(|n| health(n).is_some_and(|h| !is_blank(h))));
    let advice = match (silent.is_empty(), intact.is_empty()) {
        (false, _) => format!("Delete nothing: {silent} may still have them, and does not answer; bring it up first"),
        (true, false) => format!("Delete nothing: {intact} still has what was on its disk. Put the other volumes back"),
        (true, true) => "Put the volumes back, or delete this object and its volumes to begin anew".into(),
    };
    Some(format!(
        "this is cluster {id}, but the disks of {} are blank, so messages are lost; nothing is founded over them. {advice}",
        names(&mut lost.iter())
    ))
}

/// Is the id in the status, in the Secret and on every volume?
fn is_recorded(status: &MessageQueueClusterStatus, observed: &Observed, id: &str) -> bool {
    let in_secret = observed.secrets.identity.as_ref().and_then(|s| observe::text(s, "clusterId"));
    status.cluster_id.as_deref() == Some(id)
        && in_secret.as_deref() == Some(id)
        && observed
            .members
            .values()
            .filter_map(|m| m.volume.as_ref())
            .all(|volume| volume.cluster_id.as_deref() == Some(id))
}

/// From the status, or from a volume where the status went with an earlier object.
fn founder(status: &MessageQueueClusterStatus, observed: &Observed) -> Option<Founder> {
    status.founder.clone().or_else(|| {
        let text = observed.members.values().find_map(|m| m.volume.as_ref()?.founder.as_deref())?;
        let (member, uuid) = text.split_once('/')?;
        Some(Founder { member: member.into(), uuid: uuid.into() })
    })
}
