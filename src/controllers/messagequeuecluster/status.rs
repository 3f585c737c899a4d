//! Step 6: what was found and done, in one patch of the status, and Events for what changed.

use std::time::Duration;

use jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    runtime::events::{Event, EventType},
};

use super::{
    super::{
        Context, Error,
        conditions::merged,
        status::{event, publish, write_status},
    },
    apply::Outcome,
    observe::{MemberFacts, Observed},
    plan::{Latch, Plan},
    validate::{Blocker, ValidatedCluster, Validation},
};
use crate::api::v1alpha1::{
    Binding, ConditionType, Decision, FailoverStatus, MemberStatus, MessageQueueCluster, MessageQueueClusterStatus,
    Outcome as DecisionOutcome, QuorumStatus, Reason, ReplicationStatus, RestoreStatus,
};

pub mod conditions;

use conditions::Picture;

/// Between two writes of one object's status, unless Ready or the identity changes.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);
const MAX_DECISIONS: usize = 20;

/// Writes the status if it changed. Answers when to come again, if a change has to wait.
pub async fn report(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let uid = mqc.uid().unwrap_or_default();
    for blocker in &outcome.done {
        let type_ = if blocker.reason == Reason::RecoveredByPolicy { EventType::Warning } else { EventType::Normal };
        publish(ctx, &mqc.object_ref(&()), event(type_, &blocker.reason.to_string(), &blocker.message)).await;
    }
    let (done, written) = ctx.remembered(&uid, |memory| {
        let new = outcome.done.iter().map(|b| decision(DecisionOutcome::Done, b, now.to_string()));
        memory.unwritten.extend(new);
        // Writes may fail for long; what would not fit into the status is not kept for it.
        let surplus = memory.unwritten.len().saturating_sub(MAX_DECISIONS);
        memory.unwritten.drain(..surplus);
        (memory.unwritten.clone(), memory.status_written)
    });
    let before = mqc.status_or_default();
    let after = next(mqc, validation, observed, plan, outcome, &done, now);
    if before == after {
        return Ok(None);
    }
    let waited = written.map(|at| now.duration_since(at).unsigned_abs());
    if let Some(waited) = waited.filter(|waited| *waited < WRITE_INTERVAL && !is_urgent(&before, &after)) {
        return Ok(Some(WRITE_INTERVAL - waited));
    }
    write_status(ctx, mqc, &after).await?;
    ctx.remembered(&uid, |memory| {
        memory.status_written = Some(now);
        memory.unwritten.clear();
    });
    for event in events(&before, &after) {
        publish(ctx, &mqc.object_ref(&()), event).await;
    }
    Ok(None)
}

/// Others wait for these: they are written at once.
fn is_urgent(before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus) -> bool {
    let differs = |type_| before.is(type_) != after.is(type_);
    before.cluster_id != after.cluster_id
        || before.founder != after.founder
        || before.replication != after.replication
        || joined(before) != joined(after)
        || before.binding != after.binding
        || before.restore.as_ref().map(|r| &r.completed_at) != after.restore.as_ref().map(|r| &r.completed_at)
        || before.observed_generation != after.observed_generation
        || differs(ConditionType::Ready)
        || differs(ConditionType::Available)
        || differs(ConditionType::Stalled)
}

/// Members that are known to have joined: what a blank disk is judged by.
fn joined(status: &MessageQueueClusterStatus) -> usize {
    status.members.iter().filter(|m| m.uuid.is_some()).count()
}

/// The status after this pass. Pure. `done` are decisions that were carried out and are not in the status yet.
pub fn next(
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    done: &[Decision],
    now: Timestamp,
) -> MessageQueueClusterStatus {
    let observed = &observed.forgiving();
    let mut status = mqc.status_or_default();
    let cluster = validation.cluster.as_ref();
    status.observed_generation = mqc.metadata.generation;
    status.selector = Some(mqc.names().selector_string());
    if outcome.applied
        && let Some(id) = plan.latch.cluster_id()
    {
        status.cluster_id = Some(id.to_owned());
    }
    if let (true, Latch::Record { founder: Some(founder), .. }) = (outcome.applied, &plan.latch) {
        status.founder = Some(founder.clone());
    }
    if let Some(version) = &outcome.user_version {
        status.binding = Some(Binding { name: mqc.names().user_secret(), resource_version: Some(version.clone()) });
    }
    if let Some(cluster) = cluster {
        let former = std::mem::take(&mut status.members);
        status.image = Some(cluster.template.image.clone());
        status.member_count = cluster.members.len() as i32;
        let id = status.cluster_id.as_deref();
        let member = |n: &u32| member_status(cluster.names.pod(*n), observed.members.get(n), id, &former);
        status.members = cluster.members.iter().map(member).collect();
    }
    status.restore = restore(status.restore.take(), plan, now);
    status.replication = replication(&status, cluster, plan, outcome);
    let ready = status.members.iter().filter(|m| m.ready).count();
    status.ready_members = Some(format!("{ready}/{}", status.member_count));
    status.quorum = Some(quorum(observed));
    status.failovers = Some(failovers(observed, status.failovers.take().unwrap_or_default()));
    status.decisions = decisions(&status.decisions, plan, outcome, done, now);
    let picture = Picture {
        cluster,
        blockers: &validation.blockers,
        observed,
        plan,
        failure: outcome.failure.as_ref().map(ToString::to_string),
        held: &outcome.held,
        user_is_set: status.binding.is_some() && (!plan.set_user || outcome.user_version.is_some()),
        was_founded: status.members.iter().any(|m| m.uuid.is_some()),
    };
    status.conditions = merged(&status.conditions, conditions::all(&picture), mqc.metadata.generation, now);
    status
}

fn member_status(name: String, facts: Option<&MemberFacts>, id: Option<&str>, former: &[MemberStatus]) -> MemberStatus {
    let known = former.iter().find(|m| m.name == name).and_then(|m| m.uuid.clone());
    let Some(facts) = facts else {
        return MemberStatus { name, uuid: known, state: Some("being created".into()), ..MemberStatus::default() };
    };
    let health = facts.health();
    let joined = health.filter(|h| h.cluster_id.is_some() && h.cluster_id.as_deref() == id);
    let recorded = facts.volume.as_ref().filter(|v| v.cluster_id.as_deref() == id).and_then(|v| v.member_uuid.clone());
    let pod = facts.pod.as_ref();
    let disk = health.map(|h| (h.disk_bytes_used, h.disk_bytes_used.saturating_add(h.disk_bytes_free)));
    MemberStatus {
        name,
        node: pod.and_then(|p| p.node.clone()),
        zone: pod.and_then(|p| p.zone.clone()).or_else(|| health.map(|h| h.zone.clone())).filter(|z| !z.is_empty()),
        version: health.map(|h| h.version.clone()).filter(|v| !v.is_empty()),
        uuid: joined.map(|h| h.member_uuid.clone()).or(known).or(recorded),
        ready: facts.is_ready(),
        state: Some(conditions::state(facts)),
        leaders: health.map_or(0, |h| h.groups.leading as i64),
        replicas: health.map_or(0, |h| h.groups.total as i64),
        lagging: health.map_or(0, |h| h.groups.lagging as i64),
        disk_used_percent: disk
            .filter(|(_, all)| *all > 0)
            .map(|(used, all)| (u128::from(used) * 100 / u128::from(all)) as i32),
    }
}

/// The factor is recorded with the identity, before any broker hears of either.
fn replication(
    before: &MessageQueueClusterStatus,
    cluster: Option<&ValidatedCluster>,
    plan: &Plan,
    outcome: &Outcome,
) -> Option<ReplicationStatus> {
    let mut replication = before.replication.unwrap_or_default();
    let is_new = matches!(plan.latch, Latch::Record { adopted: false, .. }) && joined(before) == 0;
    if let (true, true, Some(cluster)) = (outcome.applied, is_new, cluster) {
        replication.factor = Some(cluster.replication_factor);
    }
    replication.min_in_sync_replicas = outcome.told_min_in_sync.or(replication.min_in_sync_replicas);
    Some(replication).filter(|r| *r != ReplicationStatus::default())
}

/// How far the beginning from a backup is. What the cluster began with stays there.
fn restore(before: Option<RestoreStatus>, plan: &Plan, now: Timestamp) -> Option<RestoreStatus> {
    if let (Latch::Founded { .. }, Some(before)) = (&plan.latch, &before) {
        let completed_at = before.completed_at.clone().or_else(|| Some(now.to_string()));
        return Some(RestoreStatus { completed_at, bytes_present: before.bytes_needed, ..before.clone() });
    }
    let Some((restore, source)) = plan.restore.as_ref().and_then(|r| Some((r, r.source.as_ref()?))) else {
        return before;
    };
    let same = before.filter(|before| before.barrier == source.barrier);
    let most = |now: u64, before: Option<i64>| i64::try_from(now).unwrap_or(i64::MAX).max(before.unwrap_or(0));
    Some(RestoreStatus {
        barrier: source.barrier.clone(),
        manifest_sha256: source.manifest_sha256.clone(),
        bytes_present: most(restore.progress.bytes_present, same.as_ref().map(|s| s.bytes_present)),
        bytes_needed: most(restore.progress.bytes_needed, same.as_ref().map(|s| s.bytes_needed)),
        damaged: match restore.damaged.is_empty() {
            true => same.as_ref().map(|s| s.damaged.clone()).unwrap_or_default(),
            false => restore.damaged.clone(),
        },
        started_at: same.and_then(|s| s.started_at).or_else(|| Some(now.to_string())),
        completed_at: None,
    })
}

fn quorum(observed: &Observed) -> QuorumStatus {
    let spokesman = observed.spokesman();
    QuorumStatus {
        metadata_leader: spokesman.and_then(|(_, h)| h.metadata_leader.clone()),
        present: spokesman.is_some(),
        live: observed.health().count() as i32,
    }
}

/// Each member counts the failovers that it won, since it started. A restart must not take the figures back, so the
/// count only grows, and a later failover counts at least once.
fn failovers(observed: &Observed, before: FailoverStatus) -> FailoverStatus {
    let sum: u64 = observed.health().map(|(_, h)| h.failovers).sum();
    let last = observed.health().filter_map(|(_, h)| h.last_failover).max_by_key(|f| f.at_ms);
    let last = last.and_then(|f| Some((Timestamp::from_millisecond(f.at_ms as i64).ok()?, f.duration_ms as i64)));
    let known = before.last_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
    match last.filter(|(at, _)| known.is_none_or(|known| *at > known)) {
        None => FailoverStatus { count: before.count.max(sum as i64), ..before },
        Some((at, duration_ms)) => FailoverStatus {
            count: (before.count + 1).max(sum as i64),
            last_at: Some(at.to_string()),
            last_duration_ms: Some(duration_ms),
        },
    }
}

/// Held ones first, each with the time since when it is held; then what was done, newest first.
fn decisions(before: &[Decision], plan: &Plan, outcome: &Outcome, done: &[Decision], now: Timestamp) -> Vec<Decision> {
    let since = |blocker: &Blocker| {
        let same = |d: &&Decision| d.outcome == DecisionOutcome::Held && d.message == blocker.message;
        before.iter().find(same).map_or_else(|| now.to_string(), |d| d.since.clone())
    };
    let held = plan.held.iter().chain(&outcome.held).map(|b| decision(DecisionOutcome::Held, b, since(b)));
    let former = before.iter().filter(|d| d.outcome == DecisionOutcome::Done);
    held.chain(done.iter().rev().chain(former).cloned()).take(MAX_DECISIONS).collect()
}

fn decision(outcome: DecisionOutcome, blocker: &Blocker, since: String) -> Decision {
    Decision { outcome, reason: blocker.reason.to_string(), message: blocker.message.clone(), since }
}

/// What changed, as Events. Coming up for the first time is no warning; what hinders it is, by the condition Degraded.
fn events(before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let ready = ConditionType::Ready;
    match (before.is(ready), after.condition(ready)) {
        (false, Some(now)) if now.status == "True" => events.push(event(EventType::Normal, &now.reason, &now.message)),
        (true, Some(now)) if now.status != "True" => events.push(event(EventType::Warning, &now.reason, &now.message)),
        _ => {}
    }
    for type_ in [ConditionType::Degraded, ConditionType::Stalled] {
        let Some(now) = after.condition(type_).filter(|c| c.status == "True") else { continue };
        let said =
            events.iter().any(|e: &Event| e.reason == now.reason) || now.reason == Reason::MemberLost.to_string();
        let changed = before.condition(type_).is_none_or(|f| f.status != now.status || f.reason != now.reason);
        if changed && !said {
            events.push(event(EventType::Warning, &now.reason, &now.message));
        }
    }
    let restored = |status: &MessageQueueClusterStatus| status.restore.clone().filter(|r| r.completed_at.is_some());
    if let (None, Some(restore)) = (restored(before), restored(after)) {
        let note = format!("the cluster began with what is in barrier {}", restore.barrier);
        events.push(event(EventType::Normal, &Reason::Restored.to_string(), &note));
    }
    events.extend(newly_held(before, after));
    let last = |status: &MessageQueueClusterStatus| status.failovers.clone().unwrap_or_default();
    let (old, new) = (last(before), last(after));
    if let (true, Some(ms)) = (new.last_at.is_some() && old.last_at != new.last_at, new.last_duration_ms) {
        let note = format!("a new leader took over {ms} ms after the last sign of the old one");
        events.push(event(EventType::Normal, &Reason::FailedOver.to_string(), &note));
    }
    events
}

/// What is held back for reasons that a person should hear of, once.
fn newly_held(before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus) -> Vec<Event> {
    let told = [
        Reason::MemberLost,
        Reason::SmallQueueWait,
        Reason::FactorFixedAtFounding,
        Reason::RecoveryHeld,
        Reason::RestoreBlocked,
        Reason::BackupDamaged,
    ]
    .map(|r| r.to_string());
    let known = |d: &Decision| before.decisions.iter().any(|b| b.outcome == d.outcome && b.message == d.message);
    let held = after.decisions.iter().filter(|d| d.outcome == DecisionOutcome::Held && told.contains(&d.reason));
    held.filter(|d| !known(d)).map(|d| event(EventType::Warning, &d.reason, &d.message)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::broker_admin::{Failover, Health};

    fn member(failovers: u64, last: Option<(u64, u64)>) -> MemberFacts {
        let last_failover = last.map(|(at_ms, duration_ms)| Failover { at_ms, duration_ms });
        MemberFacts {
            answer: Some(Ok(Health { failovers, last_failover, ..Health::default() })),
            ..MemberFacts::default()
        }
    }

    fn seen(members: Vec<MemberFacts>) -> Observed {
        Observed { members: (0..).zip(members).collect(), ..Observed::default() }
    }

    #[test]
    fn a_brokers_restart_does_not_take_failovers_back() {
        let first = failovers(
            &seen(vec![member(2, Some((1_000, 500))), member(1, Some((2_000, 600)))]),
            FailoverStatus::default(),
        );
        assert_eq!((first.count, first.last_duration_ms), (3, Some(600)));
        let restarted = failovers(&seen(vec![member(2, Some((1_000, 500))), member(0, None)]), first.clone());
        assert_eq!(restarted, first);
        let another = failovers(&seen(vec![member(0, None), member(1, Some((3_000, 700)))]), restarted);
        assert_eq!((another.count, another.last_duration_ms), (4, Some(700)));
    }

    #[test]
    fn only_a_cluster_that_was_ready_warns_that_it_is_not() {
        let status = |ready: &str, reason: &str| -> MessageQueueClusterStatus {
            serde_json::from_value(json!({ "conditions": [{ "type": "Ready", "status": ready, "reason": reason,
                "message": "", "lastTransitionTime": "2026-11-22T10:00:00Z" }] }))
            .expect("a status")
        };
        let reasons = |before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus| {
            events(before, after).iter().map(|e| e.reason.clone()).collect::<Vec<_>>()
        };
        let (new, coming, ready) =
            (status("Unknown", "Pending"), status("False", "Bootstrapping"), status("True", "AllMembersReady"));
        assert_eq!(reasons(&new, &coming), Vec::<String>::new());
        assert_eq!(reasons(&coming, &ready), ["AllMembersReady"]);
        assert_eq!(reasons(&ready, &status("False", "MembersNotReady")), ["MembersNotReady"]);
    }
}
