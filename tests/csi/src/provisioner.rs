//! What csi-provisioner and csi-resizer would do: makes a volume and its PersistentVolume for a claim, grows both, and
//! removes them when the claim is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{Controller as Watch, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::controller::Controller;
use crate::protocol::{
    CapacityRange, CreateVolumeRequest, DeleteRequest, ExpandVolumeRequest, Kind, MountVolume, SourceId, Topology,
    TopologyRequirement, VolumeCapability, VolumeContentSource, access_mode,
};
use crate::{DRIVER, ZONE_LABEL};

/// Set by Kubernetes on a claim that waits for us.
const WANTED_FROM: &str = "volume.kubernetes.io/storage-provisioner";
/// The node that the scheduler has chosen for the claim's first pod.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// By it, Kubernetes leaves the removal of a volume to us.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";
/// After an error, such as a snapshot that is not ready yet.
const TRY_AGAIN: Duration = Duration::from_secs(1);

struct Provisioner {
    client: Client,
    controller: Arc<Controller>,
    recorder: Recorder,
}

/// Looks after every claim and every volume of this driver, for as long as it is polled.
pub async fn run(client: Client, controller: Arc<Controller>) {
    let reporter = Reporter { controller: DRIVER.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let claims = Api::<PersistentVolumeClaim>::all(client.clone());
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let provisioner = Arc::new(Provisioner { client, controller, recorder });
    let watch_claims = Watch::new(claims, watcher::Config::default())
        .run(reconcile_claim, |claim, error, _| try_again(&claim.name_any(), error), provisioner.clone())
        .for_each(|_| std::future::ready(()));
    let watch_volumes = Watch::new(volumes, watcher::Config::default())
        .run(reconcile_volume, |volume, error, _| try_again(&volume.name_any(), error), provisioner)
        .for_each(|_| std::future::ready(()));
    futures::join!(watch_claims, watch_volumes);
}

/// An error of a pass, in the shape that the watch asks for.
#[derive(Debug)]
struct PassError(anyhow::Error);

impl std::fmt::Display for PassError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for PassError {}

fn try_again(name: &str, error: &PassError) -> Action {
    tracing::warn!(name, %error, "will be tried again");
    Action::requeue(TRY_AGAIN)
}

async fn reconcile_claim(
    claim: Arc<PersistentVolumeClaim>,
    provisioner: Arc<Provisioner>,
) -> Result<Action, PassError> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    let (reason, result) = match bound {
        Some(volume) => ("VolumeResizeFailed", provisioner.grow(&claim, volume).await),
        None => ("ProvisioningFailed", provisioner.provision(&claim).await),
    };
    if let Err(error) = &result {
        provisioner.tell(&claim, EventType::Warning, reason, &format!("{error:#}")).await;
    }
    result.map(|()| Action::await_change()).map_err(PassError)
}

async fn reconcile_volume(volume: Arc<PersistentVolume>, provisioner: Arc<Provisioner>) -> Result<Action, PassError> {
    let released = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Released"));
    let spec = volume.spec.as_ref();
    let ours = spec.and_then(|spec| spec.csi.as_ref()).filter(|csi| csi.driver == DRIVER);
    let delete = spec.is_some_and(|spec| spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete"));
    if let Some(csi) = ours
        && released
        && delete
        && volume.metadata.deletion_timestamp.is_none()
    {
        provisioner.remove(&volume.name_any(), &csi.volume_handle).await.map_err(PassError)?;
    }
    Ok(Action::await_change())
}

impl Provisioner {
    async fn provision(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        if claim.annotations().get(WANTED_FROM).map(String::as_str) != Some(DRIVER) {
            return Ok(());
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let class_name = spec.storage_class_name.clone().unwrap_or_default();
        let class = Api::<StorageClass>::all(self.client.clone()).get(&class_name).await;
        let class = class.with_context(|| format!("StorageClass {class_name}"))?;
        let selected = claim.annotations().get(SELECTED_NODE);
        if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") && selected.is_none() {
            return Ok(());
        }
        let topology = match selected {
            Some(node) => Some(self.topology_of(node).await?),
            None => None,
        };
        let uid = claim.uid().context("a claim without a UID")?;
        let request = CreateVolumeRequest {
            name: format!("pvc-{uid}"),
            capacity_range: Some(CapacityRange { required_bytes: requested(claim)?, limit_bytes: 0 }),
            volume_capabilities: vec![capability(&spec)],
            volume_content_source: self.source(claim).await?,
            accessibility_requirements: topology
                .map(|segments| TopologyRequirement { requisite: vec![Topology { segments }], preferred: Vec::new() }),
        };
        let name = request.name.clone();
        let made =
            self.controller.clone().create_volume(request).await.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        let made = made.volume.context("a volume")?;
        let volume = persistent_volume(&name, claim, &class, &made);
        match Api::<PersistentVolume>::all(self.client.clone()).create(&PostParams::default(), &volume).await {
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            other => other.with_context(|| format!("make PersistentVolume {name}"))?,
        };
        self.tell(claim, EventType::Normal, "ProvisioningSucceeded", &format!("made {name} ({})", made.volume_id))
            .await;
        Ok(())
    }

    async fn topology_of(&self, node: &str) -> Result<BTreeMap<String, String>> {
        let found = Api::<Node>::all(self.client.clone()).get(node).await.with_context(|| format!("Node {node}"))?;
        let zone = found.labels().get(ZONE_LABEL).with_context(|| format!("Node {node} has no label {ZONE_LABEL}"))?;
        Ok(BTreeMap::from([(ZONE_LABEL.to_owned(), zone.clone())]))
    }

    /// What the claim asks to be filled with.
    async fn source(&self, claim: &PersistentVolumeClaim) -> Result<Option<VolumeContentSource>> {
        let Some(wish) = claim.spec.as_ref().and_then(|spec| spec.data_source.as_ref()) else {
            return Ok(None);
        };
        if wish.kind != "VolumeSnapshot" || wish.api_group.as_deref() != Some(SNAPSHOT_GROUP) {
            bail!("a volume can only be made from a VolumeSnapshot, not from a {}", wish.kind);
        }
        let kind = |kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk(SNAPSHOT_GROUP, "v1", kind));
        let namespace = claim.namespace().context("a claim without a namespace")?;
        let snapshots: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &namespace, &kind("VolumeSnapshot"));
        let what = || format!("VolumeSnapshot {}", wish.name);
        let snapshot = snapshots.get(&wish.name).await.with_context(what)?;
        let status = &snapshot.data["status"];
        if status["readyToUse"] != true {
            bail!("VolumeSnapshot {} is not ready to use", wish.name);
        }
        let content = status["boundVolumeSnapshotContentName"].as_str().with_context(what)?;
        let contents: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind("VolumeSnapshotContent"));
        let content = contents.get(content).await.with_context(|| format!("VolumeSnapshotContent {content}"))?;
        if content.data["spec"]["driver"] != DRIVER {
            bail!("VolumeSnapshot {} belongs to another driver", wish.name);
        }
        let id = content.data["status"]["snapshotHandle"].as_str().with_context(what)?.to_owned();
        Ok(Some(VolumeContentSource { snapshot: Some(SourceId { id }), volume: None }))
    }

    async fn grow(&self, claim: &PersistentVolumeClaim, volume_name: &str) -> Result<()> {
        let wanted = requested(claim)?;
        let has = claim.status.as_ref().and_then(|status| status.capacity.as_ref()).and_then(|c| c.get("storage"));
        if has.is_none_or(|has| bytes_of(&has.0).is_ok_and(|has| has >= wanted)) {
            return Ok(());
        }
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let volume = volumes.get(volume_name).await.with_context(|| format!("PersistentVolume {volume_name}"))?;
        let ours = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).filter(|csi| csi.driver == DRIVER);
        let Some(csi) = ours else { return Ok(()) };
        let range = CapacityRange { required_bytes: wanted, limit_bytes: 0 };
        let request = ExpandVolumeRequest { volume_id: csi.volume_handle.clone(), capacity_range: Some(range) };
        let grown =
            self.controller.clone().expand_volume(request).await.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        let storage = json!({"storage": quantity_of(claim, grown.capacity_bytes)});
        let patch = Patch::Merge(json!({"spec": {"capacity": storage}}));
        volumes.patch(volume_name, &PatchParams::default(), &patch).await.context("the volume's capacity")?;
        let claims =
            Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": {"capacity": storage}}));
        claims
            .patch_status(&claim.name_any(), &PatchParams::default(), &patch)
            .await
            .context("the claim's capacity")?;
        self.tell(claim, EventType::Normal, "VolumeResizeSuccessful", &format!("{} bytes", grown.capacity_bytes)).await;
        Ok(())
    }

    async fn remove(&self, name: &str, id: &str) -> Result<()> {
        let request = DeleteRequest { id: id.to_owned() };
        self.controller.clone().delete_volume(request).await.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        match Api::<PersistentVolume>::all(self.client.clone()).delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(|_| ()).with_context(|| format!("delete PersistentVolume {name}")),
        }
    }

    async fn tell(&self, claim: &PersistentVolumeClaim, type_: EventType, reason: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Provision".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &claim.object_ref(&())).await {
            tracing::warn!(%error, "cannot record an Event");
        }
    }
}

fn requested(claim: &PersistentVolumeClaim) -> Result<i64> {
    bytes_of(&requested_quantity(claim).context("the claim requests no storage")?.0)
}

fn requested_quantity(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// In the claim's own words where it got what it asked for, such as `1Gi`.
fn quantity_of(claim: &PersistentVolumeClaim, bytes: i64) -> Quantity {
    let same = requested_quantity(claim).filter(|quantity| bytes_of(&quantity.0).is_ok_and(|asked| asked == bytes));
    same.cloned().unwrap_or_else(|| Quantity(bytes.to_string()))
}

/// Bytes of a Kubernetes quantity of whole units, such as `1Gi` or `1500M`.
fn bytes_of(quantity: &str) -> Result<i64> {
    let wrong = || format!("'{quantity}' is no number of bytes such as 1Gi");
    let digits = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(digits);
    let units = ["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
    let power = units.iter().position(|known| *known == unit).with_context(wrong)?;
    let factor = if power <= 4 { 1000_i64.pow(power as u32) } else { 1024_i64.pow(power as u32 - 4) };
    number.parse::<i64>().ok().and_then(|number| number.checked_mul(factor)).with_context(wrong)
}

fn capability(spec: &k8s_openapi::api::core::v1::PersistentVolumeClaimSpec) -> VolumeCapability {
    let block = spec.volume_mode.as_deref() == Some("Block");
    let alone = spec.access_modes.iter().flatten().all(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
    // Zero is no access mode, and refused with a reason.
    let mode = if alone { access_mode::SINGLE_NODE_WRITER } else { 0 };
    VolumeCapability {
        block: block.then_some(crate::protocol::Empty {}),
        mount: (!block).then(MountVolume::default),
        access_mode: Some(Kind { r#type: mode }),
    }
}

fn persistent_volume(
    name: &str,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    made: &crate::protocol::Volume,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let terms = made.accessible_topology.iter().map(|topology| NodeSelectorTerm {
        match_expressions: Some(topology.segments.iter().map(|(key, value)| only_in(key, value)).collect()),
        match_fields: None,
    });
    let terms: Vec<NodeSelectorTerm> = terms.collect();
    let affinity = VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms.clone() }) };
    let csi = CSIPersistentVolumeSource {
        driver: DRIVER.to_owned(),
        volume_handle: made.volume_id.clone(),
        ..CSIPersistentVolumeSource::default()
    };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.to_owned(), DRIVER.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), quantity_of(claim, made.capacity_bytes))])),
            claim_ref: Some(ObjectReference { resource_version: None, ..claim.object_ref(&()) }),
            csi: Some(csi),
            mount_options: class.mount_options.clone(),
            node_affinity: (!terms.is_empty()).then_some(affinity),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: spec.storage_class_name,
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

fn only_in(key: &str, value: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement { key: key.to_owned(), operator: "In".to_owned(), values: Some(vec![value.to_owned()]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (quantity, bytes) in [("0", 0), ("1024", 1024), ("1k", 1000), ("1Ki", 1024), ("10Gi", 10 << 30)] {
            assert_eq!(bytes_of(quantity).unwrap(), bytes, "{quantity}");
        }
        for wrong in ["", "Gi", "1.5Gi", "-1", "1Xi", "99999999999Ti"] {
            assert!(bytes_of(wrong).is_err(), "{wrong}");
        }
    }
}
