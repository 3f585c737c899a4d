//! Step 5: ask the brokers and the storage for the one thing that was planned.

use std::collections::BTreeSet;

use futures::future::join_all;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
};

use super::{
    super::{Context, Doing, Error},
    build, cover,
    observe::{BrokerFacts, Observed, volume_snapshots},
    plan::{self, FIRST_HOLD, HOLD, Plan, Step},
};
use crate::{
    api::v1alpha1::{MANAGER, MessageQueueBackup, Reason, SnapshotMembers, SnapshotStatus},
    broker_admin::{AdminError, Barrier, BarrierRequest},
    controllers::messagequeuecluster::validate::Blocker,
};

/// What came of a step. The status is built from this, so it cannot claim what was not done.
#[derive(Debug, Default)]
pub struct Outcome {
    pub failure: Option<Error>,
    pub found: Found,
}

/// What a step brought.
#[derive(Debug, Default)]
pub enum Found {
    #[default]
    Nothing,
    /// The line, and the snapshots that it needs.
    Line(Barrier, Vec<SnapshotStatus>),
    /// All holds lived after the last cut.
    Proven,
    /// Nobody holds anything any more, or will in a moment by itself.
    Released,
    /// The try has failed in this very step, and was cleaned up.
    Failed(Blocker),
    /// A failed try was cleaned up.
    CleanedUp,
}

/// Does what the plan says.
pub async fn apply(ctx: &Context, backup: &MessageQueueBackup, observed: &Observed, plan: &Plan) -> Outcome {
    let result = match &plan.step {
        Step::Wait(_) | Step::Begin { .. } | Step::Await(_) | Step::Complete => Ok(Found::Nothing),
        Step::DrawLine => draw_line(ctx, backup, observed).await,
        Step::Cut { create } => cut(ctx, backup, observed, create).await,
        Step::Prove => Ok(match renew(ctx, backup, observed).await {
            Ok(true) => Found::Proven,
            Ok(false) => Found::Nothing,
            Err(why) => Found::Failed(why),
        }),
        Step::Release => Ok(release(ctx, backup, observed).await),
        Step::Abandon { .. } => clean_up(ctx, backup, observed).await,
    };
    // Nothing is left behind by a try that has failed; only then it is written down as failed.
    let result = match result {
        Ok(Found::Failed(why)) => clean_up(ctx, backup, observed).await.map(|_| Found::Failed(why)),
        other => other,
    };
    match result {
        Ok(found) => Outcome { failure: None, found },
        Err(failure) => Outcome { failure: Some(failure), found: Found::Nothing },
    }
}

fn failed(reason: Reason, message: String) -> Found {
    Found::Failed(Blocker { reason, message })
}

async fn draw_line(ctx: &Context, backup: &MessageQueueBackup, observed: &Observed) -> Result<Found, Error> {
    let status = backup.status_or_default();
    let (Some(cluster), Some(barrier)) = (&observed.cluster, &status.barrier) else {
        return Ok(failed(Reason::ClusterMissing, "the cluster is gone".into()));
    };
    let Some(spokesman) = cluster.spokesman() else {
        return Ok(failed(Reason::QuorumLost, "no broker says that a majority is in touch".into()));
    };
    let request = BarrierRequest {
        id: barrier.id.clone(),
        hold_seconds: FIRST_HOLD.as_secs(),
        allow_partial: backup.spec.template.allow_partial,
    };
    let line = match ctx.brokers.draw_barrier(&spokesman.door, &request).await {
        Ok(line) => line,
        // One is under way: that of an operator that ended meanwhile, most likely, and then it is this one's line too.
        Err(AdminError::Refused { status: 409, error, .. }) => {
            tracing::info!(backup = %backup.name_any(), "{error}; asking again");
            return Ok(Found::Nothing);
        }
        Err(error) => return Ok(failed(Reason::BarrierFailed, error.to_string())),
    };
    let members = match backup.spec.template.volume_snapshot.members {
        SnapshotMembers::All => line.members.clone(),
        SnapshotMembers::Covering => {
            let zone = |(name, broker): (&String, &BrokerFacts)| Some((name.clone(), broker.zone.clone()?));
            cover::cover(&line.holders, &cluster.brokers.iter().filter_map(zone).collect())
        }
    };
    if members.is_empty() {
        return Ok(failed(Reason::BarrierFailed, "no member holds anything complete".into()));
    }
    let snapshots = plan::snapshots(backup, cluster, &members);
    Ok(Found::Line(line, snapshots))
}

/// Holds first: a snapshot is only ever asked for while its files are held.
async fn cut(
    ctx: &Context,
    backup: &MessageQueueBackup,
    observed: &Observed,
    create: &[SnapshotStatus],
) -> Result<Found, Error> {
    match renew(ctx, backup, observed).await {
        Ok(true) => {}
        Ok(false) => return Ok(Found::Nothing),
        Err(why) => return Ok(Found::Failed(why)),
    }
    let Some(cluster) = &observed.cluster else { return Ok(Found::Nothing) };
    let api = snapshots(ctx, backup);
    for snapshot in create {
        let body = build::volume_snapshot(backup, cluster, snapshot);
        api.patch(&snapshot.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body))
            .await
            .doing(|| format!("cannot make VolumeSnapshot {}", snapshot.name))?;
    }
    Ok(Found::Nothing)
}

fn snapshots(ctx: &Context, backup: &MessageQueueBackup) -> Api<DynamicObject> {
    Api::namespaced_with(ctx.client.clone(), &backup.namespace().unwrap_or_default(), &volume_snapshots())
}

/// Does every member whose volume is snapshotted hold the files, for a while from now? One that does not answer may be
/// restarting: its hold outlives that, and whether it did shows when it answers again.
async fn renew(ctx: &Context, backup: &MessageQueueBackup, observed: &Observed) -> Result<bool, Blocker> {
    let status = backup.status_or_default();
    let (Some(cluster), Some(barrier)) = (&observed.cluster, &status.barrier) else {
        return Err(Blocker { reason: Reason::ClusterMissing, message: "the cluster is gone".into() });
    };
    let members: BTreeSet<&String> = status.snapshots.iter().map(|snapshot| &snapshot.member).collect();
    let doors: Vec<_> = members.iter().filter_map(|member| cluster.brokers.get(*member)).map(|b| &b.door).collect();
    let answers = join_all(doors.iter().map(|door| ctx.brokers.renew_hold(door, &barrier.id, HOLD))).await;
    let mut all = doors.len() == members.len();
    for answer in answers {
        match answer {
            Ok(()) => {}
            Err(AdminError::NoAnswer { .. }) => all = false,
            Err(refused) => return Err(Blocker { reason: Reason::HoldEnded, message: refused.to_string() }),
        }
    }
    Ok(all)
}

/// Everybody who was asked is told, whether it holds anything or not, and of every try: files may have been held for one
/// after nobody waited for its answer any more. Who cannot be told ends its hold by itself.
async fn release(ctx: &Context, backup: &MessageQueueBackup, observed: &Observed) -> Found {
    let status = backup.status_or_default();
    let (Some(cluster), Some(barrier)) = (&observed.cluster, &status.barrier) else { return Found::Released };
    let doors = || barrier.asked.iter().filter_map(|member| cluster.brokers.get(member)).map(|broker| &broker.door);
    let ids: Vec<String> = (1..=status.attempt).map(|attempt| backup.barrier_id(attempt)).collect();
    let told = join_all(ids.iter().flat_map(|id| doors().map(move |door| ctx.brokers.release_hold(door, id)))).await;
    for error in told.into_iter().filter_map(Result::err) {
        tracing::info!(backup = %backup.name_any(), "{error}; its hold ends by itself within {} s", HOLD.as_secs());
    }
    Found::Released
}

async fn clean_up(ctx: &Context, backup: &MessageQueueBackup, observed: &Observed) -> Result<Found, Error> {
    release(ctx, backup, observed).await;
    let api = snapshots(ctx, backup);
    for name in observed.snapshots.iter().filter(|(_, facts)| !facts.going).map(|(name, _)| name) {
        match api.delete(name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.doing(|| format!("cannot delete VolumeSnapshot {name}"))?),
        }
    }
    Ok(Found::CleanedUp)
}
