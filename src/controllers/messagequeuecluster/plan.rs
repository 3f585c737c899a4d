//! Step 3: from facts to what is done in this pass. Pure; every decision the operator takes is taken here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    observe::{Observed, text},
    validate::{Blocker, ValidatedCluster, Validation},
};
use crate::{
    api::v1alpha1::{MessageQueueCluster, MessageQueueClusterStatus, Reason},
    broker_admin::ExpectedMember,
};

mod latch;
pub mod recovery;
pub mod restore;
mod roll;

pub use latch::Latch;
use recovery::Recovery;
use restore::Restore;
use roll::Roll;
pub use roll::{Removal, others_unfit};

/// Between passes while something is going on.
const SOON: Duration = Duration::from_secs(1);
/// Before a member that could not hand all its leaders over is asked again.
const DRAIN_AGAIN: Duration = Duration::from_secs(60);
/// The annotation of the TLS Secret that says when its leaf was issued; it identifies the leaf.
pub const LEAF_ANNOTATION: &str = "holdfast.dev/leaf";
/// When the leaf is to be replaced, RFC 3339.
pub const RENEW_ANNOTATION: &str = "holdfast.dev/renew-after";
/// The hash of the leaf's names and of its authority.
pub const NAMES_ANNOTATION: &str = "holdfast.dev/certified-names";

/// What this pass does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Nothing is changed at all: the cluster is paused, or the spec makes none.
    pub hands_off: bool,
    pub latch: Latch,
    pub leaf: Leaf,
    /// Members whose ConfigMap and StatefulSet are rendered now.
    pub write: BTreeSet<u32>,
    pub outdated: BTreeSet<u32>,
    pub removal: Option<Removal>,
    /// Members whose leaders are moved, because their pod or node is about to go.
    pub drain: Vec<u32>,
    /// Pods whose serving label changes.
    pub serving: BTreeMap<String, bool>,
    /// Volumes to grow.
    pub grow: BTreeSet<u32>,
    /// The whole list of members, where the brokers' differs.
    pub membership: Option<Vec<ExpectedMember>>,
    /// The brokers do not have the password that is in the Secret.
    pub set_user: bool,
    /// The brokers do not have the number of copies that confirms are to wait for.
    pub set_min_in_sync: Option<i32>,
    /// A forced recovery is due, if the queues' policies allow it.
    pub recovery: Option<Recovery>,
    /// The cluster is to begin with a backup, and has not begun.
    pub restore: Option<Restore>,
    /// What is held back, and why.
    pub held: Vec<Blocker>,
    pub next: Duration,
}

/// The brokers' certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    Keep { id: String },
    Issue { id: String },
}

impl Leaf {
    /// What identifies the leaf that members are to have.
    pub fn id(&self) -> &str {
        match self {
            Self::Keep { id } | Self::Issue { id } => id,
        }
    }
}

/// Decides. `fresh_id` becomes the cluster's id if it is founded anew.
pub fn plan(
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    fresh_id: &str,
    now: Timestamp,
) -> Plan {
    let Some(cluster) = validation.cluster.as_ref() else {
        return hands_off(Latch::Wait("the spec is invalid".into()), Duration::from_secs(5));
    };
    let status = mqc.status_or_default();
    let interval = cluster.health.interval();
    let latch = latch::latch(cluster, &status, observed, fresh_id);
    if cluster.paused {
        return hands_off(latch, interval);
    }
    if latch::leftovers(&status, observed).is_some() {
        return hands_off(latch, SOON);
    }
    let leaf = leaf(cluster, observed, now);
    let roll = if cluster.frozen { Roll::default() } else { roll::roll(cluster, observed, leaf.id(), now) };
    let mut held = Vec::new();
    held.extend(roll.held.map(|message| Blocker { reason: Reason::RemovalHeld, message }));
    held.extend(lost_members(cluster, observed, now));
    held.extend(cluster.outgrew_factor.then(|| outgrown(cluster)));
    let (recovery, why_not) = recovery::recovery(cluster, observed, now);
    held.extend(why_not);
    let restore = restore::restore(cluster, observed);
    held.extend(restore.iter().map(|restore| &restore.state).filter(|b| b.reason != Reason::Restoring).cloned());
    let founded = matches!(latch, Latch::Founded { .. }) && observed.spokesman().is_some();
    let mut plan = Plan {
        hands_off: false,
        leaf,
        write: roll.write,
        outdated: roll.outdated,
        removal: roll.removal,
        drain: drain(cluster, observed, now),
        serving: serving(cluster, observed, now),
        grow: grow(cluster, observed),
        membership: if founded { membership(cluster, observed) } else { None },
        set_user: founded && user_is_due(&status, observed),
        recovery,
        restore,
        set_min_in_sync: Some(cluster.min_in_sync_replicas)
            .filter(|wanted| founded && status.replication.and_then(|r| r.min_in_sync_replicas) != Some(*wanted)),
        held,
        next: interval,
        latch,
    };
    if !is_settled(&plan, cluster, observed) {
        plan.next = SOON.min(interval);
    }
    plan
}

fn hands_off(latch: Latch, next: Duration) -> Plan {
    Plan {
        hands_off: true,
        latch,
        leaf: Leaf::Keep { id: String::new() },
        write: BTreeSet::new(),
        outdated: BTreeSet::new(),
        removal: None,
        drain: Vec::new(),
        serving: BTreeMap::new(),
        grow: BTreeSet::new(),
        membership: None,
        set_user: false,
        set_min_in_sync: None,
        recovery: None,
        restore: None,
        held: Vec::new(),
        next,
    }
}

/// Is there nothing left to wait for?
fn is_settled(plan: &Plan, cluster: &ValidatedCluster, observed: &Observed) -> bool {
    if cluster.hibernate {
        return observed.members.values().all(|m| m.pod.is_none());
    }
    matches!(plan.latch, Latch::Founded { .. } | Latch::DataLost(_) | Latch::Foreign(_))
        && plan.outdated.is_empty()
        && !plan.set_user
        && plan.set_min_in_sync.is_none()
        && cluster.members.iter().all(|n| observed.members.get(n).is_some_and(|m| m.is_ready()))
}

/// Replacing a member is not there yet; that it is due is said, and nothing is deleted.
fn lost_members(cluster: &ValidatedCluster, observed: &Observed, now: Timestamp) -> Vec<Blocker> {
    let after = cluster.health.replace_after();
    let pods = cluster.members.iter().filter_map(|n| observed.members.get(n)?.pod.as_ref());
    let lost = pods.filter_map(|pod| {
        let since = pod.node_unreachable_since.filter(|at| now.duration_since(*at).unsigned_abs() >= after)?;
        let node = pod.node.as_deref().unwrap_or_default();
        let message = format!(
            "{} is lost: its node {node} has been unreachable since {since}, longer than health.replaceAfterSeconds ({}). Members are not replaced yet: bring the node back; or, if it is gone for good, delete its Node object, and the pod starts elsewhere, if its volume can follow",
            pod.name,
            after.as_secs()
        );
        Some(Blocker { reason: Reason::MemberLost, message })
    });
    lost.collect()
}

fn outgrown(cluster: &ValidatedCluster) -> Blocker {
    let (factor, members) = (cluster.replication_factor, cluster.members.len());
    let message = format!(
        "queues get {factor} replica, which was fixed when the cluster was founded with fewer members, though there are {members} now: for more, found another cluster with replication.factor: 3 and move the messages there"
    );
    Blocker { reason: Reason::FactorFixedAtFounding, message }
}

/// Keeps the leaf while it has the right names, the right authority and time left.
fn leaf(cluster: &ValidatedCluster, observed: &Observed, now: Timestamp) -> Leaf {
    let annotations = observed.secrets.tls.as_ref().and_then(|s| s.metadata.annotations.clone()).unwrap_or_default();
    let id = annotations.get(LEAF_ANNOTATION).filter(|id| !id.is_empty());
    let in_time = annotations
        .get(RENEW_ANNOTATION)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .is_some_and(|renew_after| now < renew_after);
    // Nothing that brokers would trust can be issued.
    if observed.authority_lost().is_some() {
        return Leaf::Keep { id: id.cloned().unwrap_or_default() };
    }
    let names_fit = annotations.get(NAMES_ANNOTATION) == Some(&certified_names(cluster, observed));
    match id {
        Some(id) if in_time && names_fit && observed.secrets.usable_authority().is_some() => {
            Leaf::Keep { id: id.clone() }
        }
        _ => Leaf::Issue { id: now.as_millisecond().to_string() },
    }
}

/// What the leaf's names and authority are, as one hash.
pub fn certified_names(cluster: &ValidatedCluster, observed: &Observed) -> String {
    let authority = observed.secrets.authority.as_ref().and_then(|s| text(s, "tls.crt")).unwrap_or_default();
    certified(cluster, &authority)
}

/// As [`certified_names`], for an authority that is not written yet.
pub fn certified(cluster: &ValidatedCluster, authority: &str) -> String {
    super::validate::hex_digest(&format!("{:?}{authority}", cluster.certificate_names()))
}

/// Leaders leave members whose pod is being deleted or whose node is being emptied, if another member can take them.
/// One that had to keep some, of queues that are nowhere else, is asked again after a while only.
fn drain(cluster: &ValidatedCluster, observed: &Observed, now: Timestamp) -> Vec<u32> {
    let going = |n: &u32| observed.members.get(n).and_then(|m| m.pod.as_ref()).is_some_and(|p| p.going || p.node_going);
    let leads = |n: &u32| observed.members.get(n).and_then(|m| m.health()).is_some_and(|h| h.groups.leading > 0);
    let can_take = cluster.members.iter().any(|n| !going(n) && observed.members.get(n).is_some_and(|m| m.is_ready()));
    match can_take {
        true => {
            cluster.members.iter().filter(|n| going(n) && leads(n) && !in_vain(observed, **n, now)).copied().collect()
        }
        false => Vec::new(),
    }
}

/// Was the member asked lately, and leads no more than what it could not hand over then?
fn in_vain(observed: &Observed, number: u32, now: Timestamp) -> bool {
    let Some(member) = observed.members.get(&number) else { return false };
    let Some((at, kept)) = member.kept_leaders else { return false };
    let leading = member.health().map_or(0, |h| h.groups.leading);
    leading <= kept && now.duration_since(at).unsigned_abs() < DRAIN_AGAIN
}

/// A broker that has been silent for long gets no new connections, until it has answered often enough. If none answers,
/// the operator is the one cut off, and nothing is changed.
fn serving(cluster: &ValidatedCluster, observed: &Observed, now: Timestamp) -> BTreeMap<String, bool> {
    let patience = cluster.health.patience();
    let enough = cluster.health.success_threshold.max(1) as u32;
    let some_answer = observed.health().next().is_some();
    let mut changes = BTreeMap::new();
    for member in observed.members.values() {
        let (Some(pod), Some(answer)) = (&member.pod, &member.answer) else { continue };
        let silent = member.silent_since.is_some_and(|since| now.duration_since(since).unsigned_abs() >= patience);
        match answer {
            Ok(_) if !pod.serving && member.answers_in_row >= enough => changes.insert(pod.name.clone(), true),
            Err(_) if pod.serving && silent && some_answer => changes.insert(pod.name.clone(), false),
            _ => None,
        };
    }
    changes
}

fn grow(cluster: &ValidatedCluster, observed: &Observed) -> BTreeSet<u32> {
    let wanted = super::validate::quantity_bytes(&cluster.storage_size.0).unwrap_or(0.0);
    let differs = |requested: &str| super::validate::quantity_bytes(requested).is_some_and(|bytes| bytes != wanted);
    let volumes = observed.members.iter().filter_map(|(n, m)| Some((n, m.volume.as_ref()?)));
    volumes.filter(|(_, v)| v.bound && v.requested.as_deref().is_some_and(differs)).map(|(n, _)| *n).collect()
}

/// The members with their zones, as founding and scaling up tell the brokers. A member whose pod has no node yet has no
/// zone yet, and is not listed.
pub fn expected_members(cluster: &ValidatedCluster, observed: &Observed) -> Vec<ExpectedMember> {
    let known = |n: u32| {
        let name = cluster.names.pod(n);
        let (_, health) = observed.spokesman()?;
        Some(health.members.iter().find(|m| m.name == name)?.zone.clone())
    };
    let zone = |n: u32| {
        let pod = observed.members.get(&n).and_then(|m| m.pod.as_ref());
        let here = pod.and_then(|p| p.zone.clone());
        here.or_else(|| known(n)).or_else(|| pod.filter(|p| p.node.is_some()).map(|_| String::new()))
    };
    let member = |n: u32| {
        let zone = zone(n)?;
        Some(ExpectedMember { name: cluster.names.pod(n), address: cluster.names.peer_address(n), zone })
    };
    cluster.members.iter().filter_map(|n| member(*n)).collect()
}

fn membership(cluster: &ValidatedCluster, observed: &Observed) -> Option<Vec<ExpectedMember>> {
    let (_, health) = observed.spokesman()?;
    let wanted = expected_members(cluster, observed);
    let listed = |m: &ExpectedMember| health.members.iter().any(|k| k.name == m.name && k.zone == m.zone);
    let all_known = health.members.iter().all(|k| wanted.iter().any(|m| m.name == k.name));
    (all_known && !wanted.iter().all(listed)).then_some(wanted)
}

fn user_is_due(status: &MessageQueueClusterStatus, observed: &Observed) -> bool {
    let version = observed.secrets.user.as_ref().and_then(|s| s.metadata.resource_version.clone());
    version.is_some() && status.binding.as_ref().and_then(|b| b.resource_version.clone()) != version
}

#[cfg(test)]
mod tests;
