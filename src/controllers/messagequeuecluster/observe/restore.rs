//! The backup that a new cluster is to begin with, and the pods that bring it to the founder.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams},
};

use super::super::{
    super::{Context, Doing, Error, messagequeuebackup::observe::volume_snapshots},
    validate::Blocker,
};
use super::Observed;
use crate::{
    api::v1alpha1::{
        BARRIER_ANNOTATION, BackupPhase, MANIFEST_ANNOTATION, MessageQueueBackup, MessageQueueCluster, Reason,
        RecoverySource, object_labels,
    },
    broker_admin::{AdminError, RestoreProgress},
};

/// What `bootstrap.recovery` names, and how far it has come.
#[derive(Clone, Debug)]
pub struct RestoreFacts {
    pub source: Result<Source, Blocker>,
    /// By the Job's name.
    pub loaders: BTreeMap<String, LoaderFacts>,
    /// What the founder says, once there is one to ask.
    pub progress: Option<Result<RestoreProgress, AdminError>>,
}

/// A backup that can be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub barrier: String,
    pub manifest_sha256: String,
    pub snapshots: BTreeSet<SourceSnapshot>,
    /// By which they are read; None is the cluster's own.
    pub storage_class: Option<String>,
}

/// One snapshot of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSnapshot {
    pub name: String,
    /// The least size of a volume that it is restored to; None where the storage does not say.
    pub restore_size: Option<String>,
}

/// A Job that sends what is on one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoaderFacts {
    pub succeeded: bool,
    pub failed: bool,
    /// Why its pod does not get on, in the words of the scheduler, the kubelet or the program.
    pub trouble: Option<String>,
    /// What is on the snapshot is not what its manifest says; in the program's words.
    pub damage: Option<String>,
}

/// The exit code of a broker's program that was given data which cannot be used (`EX_DATAERR` of sysexits.h).
const DATA_ERROR: i32 = 65;

/// None where nothing is to be restored, or nothing any more.
pub(super) async fn observe(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
) -> Result<Option<RestoreFacts>, Error> {
    let recovery = mqc.spec.bootstrap.as_ref().and_then(|bootstrap| bootstrap.recovery.as_ref());
    let founded = observed.health().any(|(_, health)| health.cluster_id.is_some());
    let (Some(recovery), false) = (recovery, founded || mqc.spec.hibernate) else { return Ok(None) };
    let source = source(ctx, &mqc.namespace_or_default(), recovery).await?;
    let loaders = loaders(ctx, mqc).await?;
    let status = mqc.status_or_default();
    let founder = status.founder.as_ref().and_then(|founder| {
        let door = observed.members.values().find_map(|m| m.door.as_ref().filter(|door| door.member == founder.member));
        door.cloned()
    });
    let progress = match founder {
        Some(door) => Some(ctx.brokers.restore_progress(&door).await),
        None => None,
    };
    Ok(Some(RestoreFacts { source, loaders, progress }))
}

async fn source(ctx: &Context, namespace: &str, recovery: &RecoverySource) -> Result<Result<Source, Blocker>, Error> {
    let blocked = |message: String| Ok(Err(Blocker { reason: Reason::RestoreBlocked, message }));
    let mut source = Source { storage_class: recovery.storage_class_name.clone(), ..Source::default() };
    let names: Vec<String> = match &recovery.backup {
        None => recovery.volume_snapshots.clone(),
        Some(reference) => {
            let api = Api::<MessageQueueBackup>::namespaced(ctx.client.clone(), namespace);
            let name = &reference.name;
            let found = api.get_opt(name).await.doing(|| format!("cannot read backup {name}"))?;
            let Some(status) = found.map(|backup| backup.status_or_default()) else {
                return blocked(format!(
                    "there is no MessageQueueBackup {name} in this namespace: name another one in bootstrap.recovery, or name its volumeSnapshots"
                ));
            };
            match status.phase {
                BackupPhase::Completed => {}
                BackupPhase::Failed => {
                    return blocked(format!("backup {name} failed: name another one in bootstrap.recovery"));
                }
                phase => return blocked(format!("waiting for backup {name}, which is {phase:?}")),
            }
            let barrier = status.barrier.unwrap_or_default();
            source.barrier = barrier.id;
            source.manifest_sha256 = barrier.manifest_sha256.unwrap_or_default();
            status.snapshots.into_iter().map(|snapshot| snapshot.name).collect()
        }
    };
    let api = Api::<DynamicObject>::namespaced_with(ctx.client.clone(), namespace, &volume_snapshots());
    for name in names {
        let found = match api.get_opt(&name).await {
            // The API server knows no such kind.
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            other => other.doing(|| format!("cannot read VolumeSnapshot {name}"))?,
        };
        let Some(snapshot) = found else {
            return blocked(format!(
                "there is no VolumeSnapshot {name} in this namespace: what was on it cannot be restored"
            ));
        };
        if let Err(message) = source.add(&snapshot) {
            return blocked(message);
        }
    }
    match source.snapshots.is_empty() {
        true => blocked("the backup has no snapshots: name another one in bootstrap.recovery".into()),
        false => Ok(Ok(source)),
    }
}

impl Source {
    fn add(&mut self, snapshot: &DynamicObject) -> Result<(), String> {
        let name = snapshot.name_any();
        let status = &snapshot.data["status"];
        if status["readyToUse"].as_bool() != Some(true) {
            return Err(format!("VolumeSnapshot {name} is not ready to use: see its status"));
        }
        let annotation = |key: &str| snapshot.annotations().get(key).cloned().unwrap_or_default();
        let (barrier, manifest) = (annotation(BARRIER_ANNOTATION), annotation(MANIFEST_ANNOTATION));
        if barrier.is_empty() || manifest.is_empty() {
            return Err(format!(
                "VolumeSnapshot {name} has no annotations {BARRIER_ANNOTATION} and {MANIFEST_ANNOTATION}: it was not made for a backup, or they were lost with its object; put them back"
            ));
        }
        if self.barrier.is_empty() {
            (self.barrier, self.manifest_sha256) = (barrier.clone(), manifest.clone());
        }
        if (&barrier, &manifest) != (&self.barrier, &self.manifest_sha256) {
            return Err(format!(
                "VolumeSnapshot {name} is of another backup than the others ({barrier}, not {})",
                self.barrier
            ));
        }
        let restore_size = status["restoreSize"].as_str().map(str::to_owned);
        self.snapshots.insert(SourceSnapshot { name, restore_size });
        Ok(())
    }
}

/// The selector of what brings a backup to the founder.
fn selector(mqc: &MessageQueueCluster) -> String {
    let labels = object_labels(&mqc.name_any(), super::super::plan::restore::COMPONENT);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

async fn loaders(ctx: &Context, mqc: &MessageQueueCluster) -> Result<BTreeMap<String, LoaderFacts>, Error> {
    let own = ListParams::default().labels(&selector(mqc));
    let namespace = mqc.namespace_or_default();
    let jobs = Api::<Job>::namespaced(ctx.client.clone(), &namespace);
    let pods = Api::<Pod>::namespaced(ctx.client.clone(), &namespace);
    let (jobs, pods) = futures::future::try_join(jobs.list(&own), pods.list(&own))
        .await
        .doing(|| format!("cannot list what restores {}", mqc.name_any()))?;
    let of_job = |pod: &&Pod, job: &str| {
        pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Job" && owner.name == job)
    };
    let facts = |job: &Job| {
        let name = job.name_any();
        let has = |type_: &str| {
            let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
        };
        let own = || pods.iter().filter(|pod| of_job(pod, &name));
        LoaderFacts {
            succeeded: has("Complete"),
            failed: has("Failed"),
            trouble: own().find_map(trouble),
            damage: own().find_map(|pod| last_words(pod, |code| code == DATA_ERROR)),
        }
    };
    Ok(jobs
        .iter()
        .filter(|job| job.metadata.deletion_timestamp.is_none())
        .map(|job| (job.name_any(), facts(job)))
        .collect())
}

fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let unschedulable =
        conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False").find_map(|c| c.message.clone());
    if unschedulable.is_some() {
        return unschedulable;
    }
    let waiting = |container: &ContainerStatus| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref());
        let usual = ["ContainerCreating", "PodInitializing"];
        (!usual.contains(&reason)).then(|| format!("{reason}: {}", message.unwrap_or_default()))
    };
    last_words(pod, |code| code != 0).or_else(|| containers(pod).find_map(waiting))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    first.chain(status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten())
}

/// What a program of the pod ended with, if it ended with such a code: the last line that it wrote of what was wrong.
fn last_words(pod: &Pod, of: impl Fn(i32) -> bool) -> Option<String> {
    let states = containers(pod).flat_map(|container| [&container.state, &container.last_state]).flatten();
    let ended = states.filter_map(|state| state.terminated.as_ref()).find(|ended| of(ended.exit_code))?;
    let lines = ended.message.as_deref()?.lines().map(str::trim).rev();
    // The broker's programs end with advice.
    lines.filter(|line| !line.is_empty() && !line.starts_with("what to do:")).map(str::to_owned).next()
}
