//! Step 6: what was found and done, in one patch of the status, and Events for what changed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

use super::{
    super::{Context, Doing, Error},
    apply::Outcome,
    observe::{MemberFacts, Observed},
    plan::{Latch, Plan},
    validate::{Blocker, Validation},
};
use crate::api::v1alpha1::{
    Binding, ConditionType, Decision, FailoverStatus, MemberStatus, MessageQueueCluster, MessageQueueClusterStatus,
    Outcome as DecisionOutcome, QuorumStatus, Reason, STATUS_MANAGER,
};

pub mod conditions;

use conditions::{Picture, Verdict};

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
    let before = mqc.status_or_default();
    let after = next(mqc, validation, observed, plan, outcome, now);
    if before == after {
        return Ok(None);
    }
    let uid = mqc.uid().unwrap_or_default();
    let written = ctx.remembered(&uid, |memory| memory.status_written);
    let waited = written.map(|at| now.duration_since(at).unsigned_abs());
    if let Some(waited) = waited.filter(|waited| *waited < WRITE_INTERVAL && !is_urgent(&before, &after)) {
        return Ok(Some(WRITE_INTERVAL - waited));
    }
    let api = Api::<MessageQueueCluster>::namespaced(ctx.client.clone(), &mqc.namespace_or_default());
    let patch = json!({
        "apiVersion": MessageQueueCluster::api_version(&()),
        "kind": MessageQueueCluster::kind(&()),
        "metadata": { "name": mqc.name_any() },
        "status": after,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    match api.patch_status(&mqc.name_any(), &params, &Patch::Apply(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        other => other.doing(|| format!("cannot write the status of {}", mqc.name_any()))?,
    };
    ctx.remembered(&uid, |memory| memory.status_written = Some(now));
    for event in events(&before, &after, outcome) {
        if let Err(error) = ctx.recorder.publish(&event, &mqc.object_ref(&())).await {
            tracing::debug!(%error, "cannot publish an Event");
        }
    }
    Ok(None)
}

/// Others wait for these: they are written at once.
fn is_urgent(before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus) -> bool {
    let differs = |type_| before.is(type_) != after.is(type_);
    before.cluster_id != after.cluster_id
        || before.founder != after.founder
        || before.binding != after.binding
        || before.observed_generation != after.observed_generation
        || differs(ConditionType::Ready)
        || differs(ConditionType::Available)
        || differs(ConditionType::Stalled)
}

/// The status after this pass. Pure.
pub fn next(
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> MessageQueueClusterStatus {
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
        status.image = Some(cluster.template.image.clone());
        status.member_count = cluster.members.len() as i32;
        status.members =
            cluster.members.iter().map(|n| member_status(cluster.names.pod(*n), observed.members.get(n))).collect();
    }
    let ready = status.members.iter().filter(|m| m.ready).count();
    status.ready_members = Some(format!("{ready}/{}", status.member_count));
    status.quorum = Some(quorum(observed));
    status.failovers = Some(failovers(observed, status.failovers.take().unwrap_or_default()));
    status.decisions = decisions(&status.decisions, plan, outcome, now);
    let picture = Picture {
        cluster,
        blockers: &validation.blockers,
        observed,
        plan,
        failure: outcome.failure.as_ref().map(ToString::to_string),
        held: &outcome.held,
        user_is_set: status.binding.is_some() && (!plan.set_user || outcome.user_version.is_some()),
        was_founded: mqc.status_or_default().cluster_id.is_some(),
    };
    status.conditions = merged(&status.conditions, &picture, mqc.metadata.generation, now);
    status
}

fn member_status(name: String, facts: Option<&MemberFacts>) -> MemberStatus {
    let Some(facts) = facts else {
        return MemberStatus { name, state: Some("being created".into()), ..MemberStatus::default() };
    };
    let health = facts.health();
    let pod = facts.pod.as_ref();
    let disk = health.map(|h| (h.disk_bytes_used, h.disk_bytes_used.saturating_add(h.disk_bytes_free)));
    MemberStatus {
        name,
        node: pod.and_then(|p| p.node.clone()),
        zone: pod.and_then(|p| p.zone.clone()).or_else(|| health.map(|h| h.zone.clone())).filter(|z| !z.is_empty()),
        version: health.map(|h| h.version.clone()).filter(|v| !v.is_empty()),
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

fn quorum(observed: &Observed) -> QuorumStatus {
    let spokesman = observed.spokesman();
    QuorumStatus {
        metadata_leader: spokesman.and_then(|(_, h)| h.metadata_leader.clone()),
        present: spokesman.is_some(),
        live: observed.health().count() as i32,
    }
}

/// Each member counts the failovers that it won. While some do not answer, the former figures stand.
fn failovers(observed: &Observed, before: FailoverStatus) -> FailoverStatus {
    let all_answer = observed.members.values().all(|m| m.health().is_some());
    let count: u64 = observed.health().map(|(_, h)| h.failovers).sum();
    let last = observed.health().filter_map(|(_, h)| h.last_failover).max_by_key(|f| f.at_ms);
    let last_at = last.and_then(|f| Timestamp::from_millisecond(f.at_ms as i64).ok()).map(|at| at.to_string());
    FailoverStatus {
        count: if all_answer { count as i64 } else { before.count.max(count as i64) },
        last_duration_ms: last.map(|f| f.duration_ms as i64).filter(|_| last_at.is_some()).or(before.last_duration_ms),
        last_at: last_at.or(before.last_at),
    }
}

/// Held ones first, each with the time since when it is held; then what was done, newest first.
fn decisions(before: &[Decision], plan: &Plan, outcome: &Outcome, now: Timestamp) -> Vec<Decision> {
    let decision = |outcome: DecisionOutcome, blocker: &Blocker, since: String| Decision {
        outcome,
        reason: blocker.reason.to_string(),
        message: blocker.message.clone(),
        since,
    };
    let since = |blocker: &Blocker| {
        let same = |d: &&Decision| d.outcome == DecisionOutcome::Held && d.message == blocker.message;
        before.iter().find(same).map_or_else(|| now.to_string(), |d| d.since.clone())
    };
    let held = plan.held.iter().chain(&outcome.held).map(|b| decision(DecisionOutcome::Held, b, since(b)));
    let done = outcome.done.iter().rev().map(|b| decision(DecisionOutcome::Done, b, now.to_string()));
    let former = before.iter().filter(|d| d.outcome == DecisionOutcome::Done).cloned();
    held.chain(done).chain(former).take(MAX_DECISIONS).collect()
}

/// Conditions that are only present while true disappear; a transition time changes with the status only.
fn merged(before: &[Condition], picture: &Picture<'_>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let condition = |(type_, verdict): (ConditionType, Verdict)| {
        let former = before.iter().find(|c| c.type_ == type_.to_string() && c.status == verdict.status.as_str());
        Condition {
            type_: type_.to_string(),
            status: verdict.status.as_str().into(),
            reason: verdict.reason.to_string(),
            message: verdict.message,
            observed_generation: generation,
            last_transition_time: former.map_or_else(|| Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
        }
    };
    conditions::all(picture).into_iter().map(condition).collect()
}

/// Times in conditions are written in whole seconds; anything finer would make each status differ from what is stored.
fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// What changed, as Events.
fn events(before: &MessageQueueClusterStatus, after: &MessageQueueClusterStatus, outcome: &Outcome) -> Vec<Event> {
    let mut events: Vec<Event> =
        outcome.done.iter().map(|b| event(EventType::Normal, &b.reason.to_string(), &b.message)).collect();
    for type_ in [ConditionType::Ready, ConditionType::Degraded, ConditionType::Stalled] {
        let Some(condition) = after.condition(type_) else { continue };
        let former = before.condition(type_);
        let good = (type_ == ConditionType::Ready) == (condition.status == "True");
        let changed = former.is_none_or(|f| f.status != condition.status || (!good && f.reason != condition.reason));
        let first_words = former.is_none_or(|f| f.reason == Reason::Pending.to_string());
        match (good, changed) {
            (true, true) if type_ == ConditionType::Ready => {
                events.push(event(EventType::Normal, &condition.reason, &condition.message));
            }
            (false, true) if !(first_words && type_ == ConditionType::Ready) => {
                events.push(event(EventType::Warning, &condition.reason, &condition.message));
            }
            _ => {}
        }
    }
    let last = |status: &MessageQueueClusterStatus| status.failovers.clone().unwrap_or_default();
    let (old, new) = (last(before), last(after));
    if let (true, Some(ms)) = (new.last_at.is_some() && old.last_at != new.last_at, new.last_duration_ms) {
        let note = format!("a new leader took over {ms} ms after the last sign of the old one");
        events.push(event(EventType::Normal, &Reason::FailedOver.to_string(), &note));
    }
    events
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    // The API server takes 1 kB.
    let note = note.chars().take(1000).collect();
    Event { type_, reason: reason.into(), note: Some(note), action: "Reconcile".into(), secondary: None }
}
