//! One pure function for each condition.

use super::super::{
    super::conditions::{Truth, Verdict},
    observe::{MemberFacts, Observed},
    plan::{Latch, Plan},
    validate::{Blocker, ValidatedCluster},
};
use crate::{
    api::v1alpha1::{ConditionType, Reason},
    broker_admin::MemberState,
};

mod backups;

/// What conditions are computed from.
pub struct Picture<'a> {
    pub cluster: Option<&'a ValidatedCluster>,
    pub blockers: &'a [Blocker],
    pub observed: &'a Observed,
    pub plan: &'a Plan,
    /// Why the pass could not be finished.
    pub failure: Option<String>,
    pub held: &'a [Blocker],
    pub user_is_set: bool,
    /// Has any member ever belonged to the cluster?
    pub was_founded: bool,
}

/// All conditions that are present, in the order in which people read them.
pub fn all(picture: &Picture<'_>) -> Vec<(ConditionType, Verdict)> {
    let always = [
        (ConditionType::Ready, ready(picture)),
        (ConditionType::Available, available(picture)),
        (ConditionType::Progressing, progressing(picture)),
        (ConditionType::Degraded, degraded(picture)),
        (ConditionType::ZoneFaultTolerant, zone_fault_tolerant(picture)),
    ];
    let sometimes = [
        (ConditionType::Reconciling, reconciling(picture)),
        (ConditionType::Stalled, stalled(picture)),
        (ConditionType::Paused, paused(picture)),
        (ConditionType::BackupHealthy, backups::healthy(&picture.observed.schedules)),
        (ConditionType::BackupVerified, backups::verified(&picture.observed.schedules)),
    ];
    always.into_iter().chain(sometimes.into_iter().filter_map(|(type_, v)| Some((type_, v?)))).collect()
}

/// The cluster is what its spec asks for, and serves.
pub fn ready(p: &Picture<'_>) -> Verdict {
    match not_ready(p) {
        Some((reason, message)) => Verdict::new(Truth::False, reason, message),
        None if p.cluster.is_some_and(|c| c.hibernate) => {
            Verdict::new(Truth::True, Reason::Hibernated, "no broker runs; the volumes are kept")
        }
        None => {
            let count = p.cluster.map_or(0, |c| c.members.len());
            Verdict::new(Truth::True, Reason::AllMembersReady, format!("{count} of {count} members are ready"))
        }
    }
}

/// The first thing that is missing, in the order in which a cluster comes up.
fn not_ready(p: &Picture<'_>) -> Option<(Reason, String)> {
    let Some(cluster) = p.cluster else { return p.blockers.first().map(|b| (b.reason, b.message.clone())) };
    if let Latch::DataLost(why) = &p.plan.latch {
        return Some((Reason::DataLost, why.clone()));
    }
    if let Latch::Foreign(why) = &p.plan.latch {
        return Some((Reason::ForeignDisk, why.clone()));
    }
    if let Some(invalid) = p.blockers.iter().find(|b| b.reason == Reason::InvalidSpec) {
        return Some((invalid.reason, invalid.message.clone()));
    }
    let missing = match cluster.hibernate {
        true => still_running(p),
        false => incomplete(p, cluster),
    };
    match (missing, &p.failure) {
        (Some(_), Some(failure)) => Some((Reason::ApplyFailed, failure.clone())),
        (missing, _) => missing,
    }
}

fn still_running(p: &Picture<'_>) -> Option<(Reason, String)> {
    let running: Vec<&str> =
        p.observed.members.values().filter_map(|m| m.pod.as_ref()).map(|pod| pod.name.as_str()).collect();
    (!running.is_empty()).then(|| (Reason::Hibernated, format!("stopping {}", running.join(", "))))
}

fn incomplete(p: &Picture<'_>, cluster: &ValidatedCluster) -> Option<(Reason, String)> {
    let trouble = trouble(p, cluster).into_iter().next();
    match &p.plan.latch {
        Latch::Wait(what) => return trouble.or_else(|| Some((Reason::WaitingForMembers, what.clone()))),
        Latch::Record { .. } | Latch::Found { .. } => return Some(beginning(p)),
        Latch::Founded { .. } | Latch::DataLost(_) | Latch::Foreign(_) => {}
    }
    let unready = unready(p, cluster);
    if p.observed.spokesman().is_none() {
        let who = unready.join(", ");
        return trouble
            .or_else(|| Some((Reason::QuorumLost, format!("no majority of members is in touch; not ready: {who}"))));
    }
    if !unready.is_empty() {
        return trouble.or_else(|| Some((Reason::MembersNotReady, format!("not ready: {}", unready.join(", ")))));
    }
    if !p.user_is_set {
        return Some((Reason::SettingUser, "giving the brokers the user of the connection Secret".into()));
    }
    (!p.plan.outdated.is_empty()).then(|| (Reason::RollingOut, rolling(p, cluster)))
}

/// What a new cluster is at: with nothing, or with a backup.
fn beginning(p: &Picture<'_>) -> (Reason, String) {
    match &p.plan.restore {
        Some(restore) => (restore.state.reason, restore.state.message.clone()),
        None => (Reason::Bootstrapping, "founding the cluster".into()),
    }
}

fn rolling(p: &Picture<'_>, cluster: &ValidatedCluster) -> String {
    let left: Vec<String> = p.plan.outdated.iter().map(|n| cluster.names.pod(*n)).collect();
    let held = p.held.iter().chain(&p.plan.held).next().map(|b| format!(" ({})", b.message)).unwrap_or_default();
    format!("members not yet on the new template: {}{held}", left.join(", "))
}

fn unready(p: &Picture<'_>, cluster: &ValidatedCluster) -> Vec<String> {
    let absent = MemberFacts::default();
    let members = cluster.members.iter().map(|n| (cluster.names.pod(*n), p.observed.members.get(n).unwrap_or(&absent)));
    members.filter(|(_, m)| !m.is_ready()).map(|(name, m)| format!("{name} ({})", state(m))).collect()
}

/// What keeps members from running and does not pass by itself.
fn trouble(p: &Picture<'_>, cluster: &ValidatedCluster) -> Vec<(Reason, String)> {
    let storage = p.blockers.iter().filter(|b| b.reason == Reason::StorageClassMissing);
    let members = cluster.members.iter().filter_map(|n| pod_trouble(p.observed.members.get(n)?));
    storage.map(|b| (b.reason, b.message.clone())).chain(members).collect()
}

fn pod_trouble(member: &MemberFacts) -> Option<(Reason, String)> {
    let pod = member.pod.as_ref()?;
    if let Some(words) = &pod.unschedulable {
        let hint = match words.contains("topology spread") {
            true => {
                "; give the nodes the label of placement.topologyKey, name another label there, or set placement.whenUnsatisfiable: ScheduleAnyway"
            }
            false => "",
        };
        return Some((Reason::Unschedulable, format!("{}: {words}{hint}", pod.name)));
    }
    let (reason, message) = pod.waiting.as_ref()?;
    let kind = match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Reason::ImagePullFailed,
        "CrashLoopBackOff" | "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Reason::BrokerCrashing
        }
        _ => return None,
    };
    let hint = match kind {
        Reason::ImagePullFailed => "; correct image or version, no pod has to be deleted",
        _ => "; the broker says why in its log: kubectl logs",
    };
    let name = match kind {
        Reason::ImagePullFailed => String::new(),
        _ => format!(" {}", pod.name),
    };
    Some((kind, format!("{}: {reason}: {message}{hint}{name}", pod.name)))
}

/// How far a member is, in words.
pub fn state(member: &MemberFacts) -> String {
    let Some(pod) = &member.pod else { return "no pod".into() };
    match (&member.answer, &pod.waiting) {
        _ if pod.going => "stopping".into(),
        (Some(Ok(health)), _) => match (health.state, health.ready, pod.ready) {
            (MemberState::Blank, ..) => "blank".into(),
            (_, true, true) => "ready".into(),
            (_, true, false) => "ready, its pod is not yet".into(),
            (MemberState::Joining, ..) => "joining".into(),
            (MemberState::Started, ..) => "catching up".into(),
        },
        (Some(Err(_)), _) => "does not answer".into(),
        (None, Some((reason, _))) => reason.clone(),
        (None, None) if pod.unschedulable.is_some() => "unschedulable".into(),
        (None, None) => "starting".into(),
    }
}

/// Clients can publish and consume.
pub fn available(p: &Picture<'_>) -> Verdict {
    if p.cluster.is_some_and(|c| c.hibernate) {
        return Verdict::new(Truth::False, Reason::Hibernated, "hibernated: no broker runs");
    }
    let serving = p.observed.members.values().filter(|m| m.pod.as_ref().is_some_and(|pod| pod.ready && pod.serving));
    let serving = serving.count();
    let pods = p.observed.members.values().filter(|m| m.pod.is_some()).count();
    match (p.observed.spokesman(), p.observed.health().count()) {
        (Some(_), _) if serving > 0 => Verdict::new(
            Truth::True,
            Reason::Quorum,
            format!("a majority is in touch; {serving} members take connections"),
        ),
        (Some(_), _) => Verdict::new(Truth::False, Reason::WaitingForMembers, "no pod is Ready to take connections"),
        (None, 0) if serving > 0 => Verdict::new(
            Truth::Unknown,
            Reason::NoAnswer,
            "no broker answers the operator, though pods are Ready; is port 5690 open to it?",
        ),
        (None, _) if !p.was_founded => {
            Verdict::new(Truth::False, Reason::Bootstrapping, "the cluster is not founded yet")
        }
        (None, answers) => {
            Verdict::new(Truth::False, Reason::QuorumLost, format!("no majority: {answers} of {pods} brokers answer"))
        }
    }
}

/// The operator is changing something.
pub fn progressing(p: &Picture<'_>) -> Verdict {
    match under_way(p) {
        Some((reason, message)) => Verdict::new(Truth::True, reason, message),
        None => Verdict::new(Truth::False, Reason::Idle, "nothing is being changed"),
    }
}

fn under_way(p: &Picture<'_>) -> Option<(Reason, String)> {
    let cluster = p.cluster.filter(|c| !c.paused)?;
    if matches!(p.plan.latch, Latch::DataLost(_) | Latch::Foreign(_)) {
        return None;
    }
    if cluster.hibernate {
        return still_running(p);
    }
    let absent = |n: &&u32| p.observed.members.get(n).is_none_or(|m| m.stateful_set.is_none());
    let new = cluster.members.iter().filter(absent).count();
    match &p.plan.latch {
        Latch::Wait(what) if !p.was_founded => return Some((Reason::CreatingMembers, what.clone())),
        Latch::Record { .. } | Latch::Found { .. } => return Some(beginning(p)),
        _ if new > 0 => return Some((Reason::Scaling, format!("{new} members are being added"))),
        _ => {}
    }
    let joining = p.observed.health().filter(|(_, h)| h.state != MemberState::Started).count();
    if joining > 0 {
        return Some((Reason::JoiningMembers, format!("{joining} members are joining")));
    }
    if !p.user_is_set && p.observed.spokesman().is_some() {
        return Some((Reason::SettingUser, "giving the brokers the user of the connection Secret".into()));
    }
    (!p.plan.outdated.is_empty()).then(|| (Reason::RollingOut, rolling(p, cluster)))
}

/// Something needs attention, though the cluster may serve.
pub fn degraded(p: &Picture<'_>) -> Verdict {
    match attention(p) {
        Some((reason, message)) => Verdict::new(Truth::True, reason, message),
        None => Verdict::new(Truth::False, Reason::Healthy, "nothing needs attention"),
    }
}

fn attention(p: &Picture<'_>) -> Option<(Reason, String)> {
    match &p.plan.latch {
        Latch::DataLost(why) => return Some((Reason::DataLost, why.clone())),
        Latch::Foreign(why) => return Some((Reason::ForeignDisk, why.clone())),
        _ => {}
    }
    if let Some(blocker) = p.blockers.first() {
        return Some((blocker.reason, blocker.message.clone()));
    }
    let cluster = p.cluster?;
    if let Some(trouble) = trouble(p, cluster).into_iter().next() {
        return Some(trouble);
    }
    if let Some(refused) = p.held.iter().find(|b| b.reason == Reason::StorageGrowthRefused) {
        return Some((refused.reason, refused.message.clone()));
    }
    if let Some(blocked) =
        p.plan.held.iter().find(|b| matches!(b.reason, Reason::RestoreBlocked | Reason::BackupDamaged))
    {
        return Some((blocked.reason, blocked.message.clone()));
    }
    if cluster.hibernate || !p.was_founded {
        return None;
    }
    if p.observed.spokesman().is_none() && !p.observed.members.is_empty() {
        return Some((Reason::QuorumLost, "no majority of members is in touch".into()));
    }
    let quarantined: u64 = p.observed.health().map(|(_, h)| h.groups.quarantined).sum();
    if quarantined > 0 {
        return Some((
            Reason::ReplicaQuarantined,
            format!("{quarantined} replicas are set aside; the brokers' logs say why"),
        ));
    }
    if let Some(lost) = p.plan.held.iter().find(|b| b.reason == Reason::MemberLost) {
        return Some((lost.reason, lost.message.clone()));
    }
    let unready = unready(p, cluster);
    if !unready.is_empty() {
        return Some((Reason::MembersNotReady, format!("not ready: {}", unready.join(", "))));
    }
    let behind: u64 = p.observed.health().map(|(_, h)| h.groups.under_replicated + h.groups.lagging).sum();
    (behind > 0)
        .then(|| (Reason::ReplicasCatchingUp, format!("{behind} groups have replicas that are behind or missing")))
}

/// Only while the spec is not yet in effect (kstatus).
pub fn reconciling(p: &Picture<'_>) -> Option<Verdict> {
    if stalled(p).is_some() || p.cluster.is_some_and(|c| c.paused) {
        return None;
    }
    let (reason, message) = not_ready(p)?;
    Some(Verdict::new(Truth::True, reason, message))
}

/// Only while nothing goes on until a person acts (kstatus).
pub fn stalled(p: &Picture<'_>) -> Option<Verdict> {
    let verdict = |reason, message: &str| Some(Verdict::new(Truth::True, reason, message));
    match (&p.plan.latch, p.cluster) {
        (Latch::DataLost(why), _) => verdict(Reason::DataLost, why),
        (Latch::Foreign(why), _) => verdict(Reason::ForeignDisk, why),
        (_, None) => p.blockers.first().and_then(|b| verdict(b.reason, &b.message)),
        // The cluster goes on as it was, and so does everything but what the spec gets wrong.
        (_, Some(_)) => {
            p.blockers.iter().find(|b| b.reason == Reason::InvalidSpec).and_then(|b| verdict(b.reason, &b.message))
        }
    }
}

/// Only while `spec.paused`.
pub fn paused(p: &Picture<'_>) -> Option<Verdict> {
    p.cluster.filter(|c| c.paused)?;
    Some(Verdict::new(Truth::True, Reason::Paused, "spec.paused is true: the operator reports and changes nothing"))
}

/// Any one zone may be lost. The brokers judge by what is on the replicas' disks; zones are Kubernetes' facts.
pub fn zone_fault_tolerant(p: &Picture<'_>) -> Verdict {
    let no = |reason, message: String| Verdict::new(Truth::False, reason, message);
    let Some(cluster) = p.cluster else {
        return Verdict::new(Truth::Unknown, Reason::InvalidSpec, "the spec makes no cluster");
    };
    if cluster.hibernate {
        return no(Reason::Hibernated, "hibernated: no broker runs".into());
    }
    if cluster.members.len() < 3 {
        let count = cluster.members.len();
        return no(
            Reason::TooFewMembers,
            format!("{count} members outlive no loss of a majority's zone: set members to 3 or more"),
        );
    }
    if let Some(outgrown) = p.plan.held.iter().find(|b| b.reason == Reason::FactorFixedAtFounding) {
        return no(outgrown.reason, outgrown.message.clone());
    }
    let answers: Vec<_> = p.observed.health().collect();
    if answers.is_empty() || !p.was_founded {
        return Verdict::new(Truth::Unknown, Reason::NoAnswer, "no broker can say yet");
    }
    let zones: Vec<Option<&str>> =
        cluster.members.iter().map(|n| p.observed.members.get(n)?.pod.as_ref()?.zone.as_deref()).collect();
    if zones.iter().any(Option::is_none) {
        return no(
            Reason::UnknownZones,
            format!(
                "not every member's node has the label {}: label the nodes, or name another label in placement.topologyKey",
                cluster.template.topology_key
            ),
        );
    }
    let mut distinct = zones.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < 3 {
        return no(
            Reason::TooFewZones,
            format!("members are in {} zones; a majority outlives a zone only with 3 or more", distinct.len()),
        );
    }
    if let Some((_, health)) = answers.iter().find(|(_, h)| !h.zone_fault_tolerant) {
        let why = health
            .zone_fault_blocker
            .clone()
            .unwrap_or_else(|| format!("{} cannot vouch for the queues it leads", health.name));
        return no(Reason::ReplicasNotSpread, why);
    }
    match answers.len() == cluster.members.len() {
        true => Verdict::new(Truth::True, Reason::EveryQueueSpansZones, "any one zone may be lost"),
        false => no(Reason::NoAnswer, format!("only {} of {} brokers answer", answers.len(), cluster.members.len())),
    }
}

#[cfg(test)]
mod tests;
