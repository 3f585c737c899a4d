//! Step 1: the cluster and its brokers, other backups of it, the snapshot class, and the snapshots so far.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};

use super::super::{Context, Doing, Error, messagequeuecluster::observe::brokers_of};
use crate::{
    api::v1alpha1::{BACKUP_UID_LABEL, BackupPhase, MessageQueueBackup, MessageQueueCluster},
    broker_admin::{Door, Health},
};

/// Everything a pass knows.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub cluster: Option<ClusterFacts>,
    /// Another backup of the cluster that goes first.
    pub goes_first: Option<String>,
    pub class: ClassFacts,
    /// The snapshots of this backup, of whatever try, by name.
    pub snapshots: BTreeMap<String, SnapshotFacts>,
}

/// The cluster, as far as a backup is concerned.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    pub paused: bool,
    pub cluster_id: Option<String>,
    pub uid: String,
    pub members: i32,
    pub storage_size: String,
    pub storage_class: Option<String>,
    pub image: Option<String>,
    pub replication_factor: Option<i32>,
    /// By the members' names, which are their pods'.
    pub brokers: BTreeMap<String, BrokerFacts>,
}

/// One broker.
#[derive(Clone, Debug)]
pub struct BrokerFacts {
    pub door: Door,
    /// None: it does not answer.
    pub health: Option<Health>,
    pub zone: Option<String>,
}

/// Is there a class of snapshots?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassFacts {
    #[default]
    Found,
    Missing,
    /// None is named, and none is the default.
    NoDefault,
    /// The API server knows of no VolumeSnapshots at all.
    NoKind,
}

/// A VolumeSnapshot, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFacts {
    pub creation_time: Option<String>,
    pub ready_to_use: bool,
    pub restore_size: Option<String>,
    pub error: Option<String>,
    /// Is it on its way out?
    pub going: bool,
    pub created: Option<Timestamp>,
}

impl ClusterFacts {
    /// A broker that is in touch with a majority; the metadata's leader if it answers.
    pub fn spokesman(&self) -> Option<&BrokerFacts> {
        let in_touch = || self.brokers.values().filter(|b| b.health.as_ref().is_some_and(|h| h.quorum));
        let leads = |b: &&BrokerFacts| {
            b.health.as_ref().is_some_and(|h| h.metadata_leader.as_deref() == Some(b.door.member.as_str()))
        };
        in_touch().find(leads).or_else(|| in_touch().next())
    }
}

/// The kind `VolumeSnapshot`.
pub fn volume_snapshots() -> ApiResource {
    snapshot_kind("VolumeSnapshot", "volumesnapshots")
}

fn snapshot_kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind), plural)
}

/// None where the backup's cluster belongs to another operator.
pub async fn observe(ctx: &Context, backup: &MessageQueueBackup, now: Timestamp) -> Result<Option<Observed>, Error> {
    let namespace = backup.namespace().unwrap_or_default();
    let what = || format!("for backup {}", backup.name_any());
    let clusters = Api::<MessageQueueCluster>::namespaced(ctx.client.clone(), &namespace);
    let cluster = clusters
        .get_opt(&backup.spec.cluster.name)
        .await
        .doing(|| format!("cannot read cluster {} {}", backup.spec.cluster.name, what()))?;
    if cluster.as_ref().is_some_and(|cluster| !ctx.looks_after(cluster)) {
        return Ok(None);
    }
    let backups = Api::<MessageQueueBackup>::namespaced(ctx.client.clone(), &namespace);
    let others = backups.list(&ListParams::default()).await.doing(|| format!("cannot list backups {}", what()))?;
    let (class, snapshots) = snapshots(ctx, backup, &namespace).await?;
    let cluster = match cluster {
        Some(cluster) => Some(cluster_facts(ctx, &cluster, now).await?),
        None => None,
    };
    Ok(Some(Observed { cluster, goes_first: goes_first(backup, &others.items), class, snapshots }))
}

async fn cluster_facts(ctx: &Context, mqc: &MessageQueueCluster, now: Timestamp) -> Result<ClusterFacts, Error> {
    let status = mqc.status_or_default();
    let names = mqc.names();
    let members = brokers_of(ctx, mqc, now).await?.members;
    let brokers = members.into_iter().filter_map(|(number, member)| {
        let health = member.health().cloned();
        let zone = member.pod.as_ref().and_then(|pod| pod.zone.clone());
        let zone = zone.or_else(|| health.as_ref().map(|h| h.zone.clone()));
        Some((names.pod(number), BrokerFacts { door: member.door?, health, zone }))
    });
    Ok(ClusterFacts {
        paused: mqc.spec.paused,
        cluster_id: status.cluster_id,
        uid: mqc.uid().unwrap_or_default(),
        members: status.member_count,
        storage_size: mqc.spec.storage.size.clone(),
        storage_class: mqc.spec.storage.storage_class_name.clone(),
        image: status.image,
        replication_factor: status.replication.and_then(|replication| replication.factor),
        brokers: brokers.collect(),
    })
}

/// One backup of a cluster is at work at a time: the one that has begun, else the oldest.
fn goes_first(backup: &MessageQueueBackup, others: &[MessageQueueBackup]) -> Option<String> {
    let phase = |b: &MessageQueueBackup| b.status_or_default().phase;
    if phase(backup) != BackupPhase::Pending {
        return None;
    }
    let rank = |b: &MessageQueueBackup| {
        (phase(b) == BackupPhase::Pending, b.metadata.creation_timestamp.as_ref().map(|time| time.0), b.name_any())
    };
    let first = others
        .iter()
        .filter(|other| other.spec.cluster == backup.spec.cluster && !phase(other).is_over())
        .filter(|other| other.metadata.deletion_timestamp.is_none())
        .min_by_key(|other| rank(other))?;
    (first.name_any() != backup.name_any()).then(|| first.name_any())
}

async fn snapshots(
    ctx: &Context,
    backup: &MessageQueueBackup,
    namespace: &str,
) -> Result<(ClassFacts, BTreeMap<String, SnapshotFacts>), Error> {
    let api = Api::<DynamicObject>::namespaced_with(ctx.client.clone(), namespace, &volume_snapshots());
    let own = ListParams::default().labels(&format!("{BACKUP_UID_LABEL}={}", backup.uid().unwrap_or_default()));
    let found = match api.list(&own).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok((ClassFacts::NoKind, BTreeMap::new())),
        other => other.doing(|| format!("cannot list the snapshots of backup {}", backup.name_any()))?,
    };
    let snapshots = found.iter().map(|snapshot| (snapshot.name_any(), facts(snapshot))).collect();
    let class = match backup.status_or_default().phase {
        BackupPhase::Pending => class(ctx, backup).await?,
        _ => ClassFacts::Found,
    };
    Ok((class, snapshots))
}

async fn class(ctx: &Context, backup: &MessageQueueBackup) -> Result<ClassFacts, Error> {
    const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
    let api = Api::<DynamicObject>::all_with(
        ctx.client.clone(),
        &snapshot_kind("VolumeSnapshotClass", "volumesnapshotclasses"),
    );
    let classes = match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(ClassFacts::NoKind),
        // Without the right to look, whether the class is there shows when it is used.
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(ClassFacts::Found),
        other => other.doing(|| "cannot list VolumeSnapshotClasses".to_owned())?,
    };
    Ok(match &backup.spec.template.volume_snapshot.class_name {
        Some(wanted) if classes.iter().any(|class| class.name_any() == *wanted) => ClassFacts::Found,
        Some(_) => ClassFacts::Missing,
        None if classes.iter().any(|class| class.annotations().get(DEFAULT).is_some_and(|v| v == "true")) => {
            ClassFacts::Found
        }
        None => ClassFacts::NoDefault,
    })
}

fn facts(snapshot: &DynamicObject) -> SnapshotFacts {
    let status = &snapshot.data["status"];
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    SnapshotFacts {
        creation_time: text(&status["creationTime"]),
        ready_to_use: status["readyToUse"].as_bool().unwrap_or(false),
        restore_size: text(&status["restoreSize"]),
        error: text(&status["error"]["message"]),
        going: snapshot.metadata.deletion_timestamp.is_some(),
        created: snapshot.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}
