//! The one function that removes pods, whatever the cause.
//!
//! It reads the pod once more, asks every other broker once more, moves the leaders away, and then goes through the
//! Eviction API with the pod's UID, so that the PodDisruptionBudget has its say and a pod that was replaced meanwhile is
//! left alone. When a broker cannot be asked it removes nothing. A pod that cannot run as its template has it needs
//! nobody's answer.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::PostParams};

use serde_json::{Value, json};

use super::{
    super::{Context, Doing, Error},
    apply::Outcome,
    observe::{Observed, ask_again},
    plan::{Removal, others_unfit},
};
use crate::api::v1alpha1::{BROKER_CONTAINER, MessageQueueCluster, Outcome as DecisionOutcome, Reason};

/// Time for leaders to move.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a pod is kept for the leaders of queues that no other member has a replica of.
const SMALL_QUEUE_WAIT: Duration = Duration::from_secs(60);

/// Removes the pod, or says in `outcome` why it is held back.
pub async fn remove_pod(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    removal: &Removal,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let api = Api::<Pod>::namespaced(ctx.client.clone(), &mqc.namespace_or_default());
    let pod = api.get_opt(&removal.pod).await.doing(|| format!("cannot read pod {}", removal.pod))?;
    let Some(pod) = pod.filter(|p| p.uid().as_deref() == Some(&removal.uid) && p.metadata.deletion_timestamp.is_none())
    else {
        return Ok(());
    };
    let asks = broker_runs(&pod) || !removal.broken;
    if asks && let Some(why) = unfit_to_lose(ctx, mqc, observed, removal).await? {
        outcome.hold(Reason::RemovalHeld, format!("{} stays for now: {why}", removal.pod));
        return Ok(());
    }
    match evict(&api, removal).await {
        Ok(_) => outcome.did(Reason::MemberRestarted, format!("{} is restarted: {}", removal.pod, removal.cause)),
        // Gone, or replaced: what was wanted.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(kube::Error::Api(status)) if status.code == 429 => {
            outcome.hold(Reason::RemovalHeld, format!("{} stays for now: {}", removal.pod, status.message));
        }
        Err(error) => return Err(error).doing(|| format!("cannot evict pod {}", removal.pod)),
    }
    Ok(())
}

/// Not by `Api::evict`: kube 5.0 spells the precondition in a way that the API server ignores.
async fn evict(api: &Api<Pod>, removal: &Removal) -> Result<Value, kube::Error> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": removal.pod },
        "deleteOptions": { "preconditions": { "uid": removal.uid } },
    });
    api.create_subresource("eviction", &removal.pod, &PostParams::default(), &eviction).await
}

fn broker_runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.is_some_and(|all| {
        let broker = all.iter().find(|c| c.name == BROKER_CONTAINER);
        broker.and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some())
    })
}

/// Asks everybody again, then empties the member of leaders. None means: it can go.
async fn unfit_to_lose(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    removal: &Removal,
) -> Result<Option<String>, Error> {
    let now = (ctx.clock)();
    let fresh = ask_again(ctx, mqc, observed, now).await?;
    let members: Vec<u32> = fresh.members.keys().copied().collect();
    if let Some(why) = others_unfit(&mqc.names(), &members, &fresh, removal.member) {
        return Ok(Some(why));
    }
    let blank = fresh.health().all(|(_, h)| h.cluster_id.is_none());
    let others = members.iter().any(|n| *n != removal.member);
    if blank || !others {
        return Ok(None);
    }
    let Some(member) = fresh.members.get(&removal.member) else { return Ok(None) };
    if member.pod.as_ref().is_none_or(|pod| !pod.running) {
        return Ok(None);
    }
    let Some(door) = &member.door else { return Ok(Some("its broker cannot be asked yet".into())) };
    Ok(match ctx.brokers.drain_leaders(door, DRAIN_DEADLINE).await {
        Ok(0) => None,
        Ok(_) if waited_long_enough(mqc, removal, now) => None,
        Ok(_) => Some(format!(
            "it leads queues that no other member has a replica of; it goes after {} s",
            SMALL_QUEUE_WAIT.as_secs()
        )),
        Err(error) => Some(error.to_string()),
    })
}

/// How long it is held back is in the status: it survives the operator.
fn waited_long_enough(mqc: &MessageQueueCluster, removal: &Removal, now: Timestamp) -> bool {
    let status = mqc.status_or_default();
    let prefix = format!("{} stays for now: it leads", removal.pod);
    let held = status.decisions.iter().find(|d| d.outcome == DecisionOutcome::Held && d.message.starts_with(&prefix));
    let since = held.and_then(|d| d.since.parse::<Timestamp>().ok());
    since.is_some_and(|since| now.duration_since(since).unsigned_abs() >= SMALL_QUEUE_WAIT)
}
