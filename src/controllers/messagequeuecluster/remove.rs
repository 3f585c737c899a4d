//! The one function that removes pods, whatever the cause.
//!
//! It reads the pod once more, asks every other broker once more, also whether each of its groups has enough caught-up
//! voters without this member, moves the leaders away, and then goes through the Eviction API with the pod's UID, so that the PodDisruptionBudget has its say and a pod that was replaced meanwhile is
//! left alone. When a broker cannot be asked it removes nothing. A pod that cannot run as its template has it needs
//! nobody's answer.

use std::time::Duration;

use futures::future::join_all;
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
use crate::{
    api::v1alpha1::{BROKER_CONTAINER, MessageQueueCluster, Outcome as DecisionOutcome, Reason},
    broker_admin::Without,
};

/// What is said of a pod that small queues need; [`waited`] finds it again by these words.
const FEW_REPLICAS: &str = "leads or holds replicas of queues that have too few to go on without it";

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
    let fitness = if asks { fitness(ctx, mqc, observed, removal).await? } else { Fitness::Dispensable };
    let wait = mqc.spec.rollout.small_queue_wait();
    match fitness {
        Fitness::Dispensable => {}
        Fitness::Needed(why) => {
            outcome.hold(Reason::RemovalHeld, format!("{} stays for now: {why}", removal.pod));
            return Ok(());
        }
        Fitness::SmallQueues if waited(mqc, removal, (ctx.clock)()) >= wait => outcome.did(
            Reason::SmallQueueWait,
            format!("{} {FEW_REPLICAS}; rollout.smallQueueWaitSeconds ({}) are over", removal.pod, wait.as_secs()),
        ),
        Fitness::SmallQueues => {
            let message = format!("{} {FEW_REPLICAS}; it goes after {} s", removal.pod, wait.as_secs());
            outcome.hold(Reason::SmallQueueWait, message);
            return Ok(());
        }
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

/// Can the cluster do without a member for a while?
enum Fitness {
    Dispensable,
    /// No; the text says why.
    Needed(String),
    /// Some queues cannot, and it will not get better: they have too few replicas.
    SmallQueues,
}

/// Asks everybody again, then empties the member of leaders.
async fn fitness(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    removal: &Removal,
) -> Result<Fitness, Error> {
    let fresh = ask_again(ctx, mqc, observed, (ctx.clock)()).await?;
    let members: Vec<u32> = fresh.members.keys().copied().collect();
    if let Some(why) = others_unfit(&mqc.names(), &members, &fresh, removal.member) {
        return Ok(Fitness::Needed(why));
    }
    let blank = fresh.health().all(|(_, h)| h.cluster_id.is_none());
    if blank || members.iter().all(|n| *n == removal.member) {
        return Ok(Fitness::Dispensable);
    }
    let small = match few_voters(ctx, &fresh, &removal.pod).await {
        Ok(small) => small,
        Err(why) => return Ok(Fitness::Needed(why)),
    };
    let over = waited(mqc, removal, (ctx.clock)()) >= mqc.spec.rollout.small_queue_wait();
    if small && !over {
        return Ok(Fitness::SmallQueues);
    }
    let Some(member) = fresh.members.get(&removal.member) else { return Ok(Fitness::Dispensable) };
    if member.pod.as_ref().is_none_or(|pod| !pod.running) {
        return Ok(if small { Fitness::SmallQueues } else { Fitness::Dispensable });
    }
    let Some(door) = &member.door else { return Ok(Fitness::Needed("its broker cannot be asked yet".into())) };
    Ok(match ctx.brokers.drain_leaders(door, mqc.spec.rollout.drain_deadline()).await {
        Ok(0) if !small => Fitness::Dispensable,
        Ok(_) => Fitness::SmallQueues,
        Err(error) => Fitness::Needed(error.to_string()),
    })
}

/// Are there groups that never have enough voters without this member, however far the others are? The error says which
/// group has not enough just now, or who does not say.
async fn few_voters(ctx: &Context, fresh: &Observed, pod: &str) -> Result<bool, String> {
    let doors = fresh.members.values().filter_map(|m| m.door.as_ref());
    let mut small = false;
    for answer in join_all(doors.map(|door| ctx.brokers.groups(door))).await {
        for group in answer.map_err(|error| error.to_string())? {
            match group.without(pod) {
                Without::Enough => {}
                Without::TooFewVoters => small = true,
                Without::TooFewInSync { left, needed } => {
                    return Err(format!(
                        "group {} would have {left} of the {needed} caught-up voters it needs",
                        group.id
                    ));
                }
            }
        }
    }
    Ok(small)
}

/// Since when it is held back for small queues is in the status: it survives the operator.
fn waited(mqc: &MessageQueueCluster, removal: &Removal, now: Timestamp) -> Duration {
    let status = mqc.status_or_default();
    let prefix = format!("{} {FEW_REPLICAS}", removal.pod);
    let held = status.decisions.iter().find(|d| d.outcome == DecisionOutcome::Held && d.message.starts_with(&prefix));
    let since = held.and_then(|d| d.since.parse::<Timestamp>().ok());
    since.map_or(Duration::ZERO, |since| now.duration_since(since).unsigned_abs())
}
