//! The node service: shows a volume of the pool where kubelet wants it. And kubelet's registration of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::mounts;
use crate::pool::{Pool, Volume};
use crate::protocol::{
    Empty, GetNodeInfoResponse, PluginInfo, PublishVolumeRequest, RegistrationStatus, ServiceCapabilities, Topology,
    UnpublishVolumeRequest,
};
use crate::rpc::{Answer, Code, Methods, Refusal};
use crate::{DRIVER, ZONE_LABEL};

/// The node this process serves.
#[derive(Debug)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where the volumes are.
    pub pool: Pool,
}

impl Node {
    /// Adds the node service.
    #[must_use]
    pub fn methods(self: &Arc<Self>, methods: Methods) -> Methods {
        let (info, publish, unpublish) = (self.clone(), self.clone(), self.clone());
        methods
            .add("/csi.v1.Node/NodeGetCapabilities", |_: Empty| async { Ok(ServiceCapabilities::default()) })
            .add("/csi.v1.Node/NodeGetInfo", move |_: Empty| {
                let info = info.info();
                async { Ok(info) }
            })
            .add("/csi.v1.Node/NodePublishVolume", move |request| {
                let node = publish.clone();
                async move { node.publish(request).await }
            })
            .add("/csi.v1.Node/NodeUnpublishVolume", move |request| {
                let node = unpublish.clone();
                async move { node.unpublish(request).await }
            })
    }

    fn topology(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(ZONE_LABEL.to_owned(), self.zone.clone())])
    }

    fn info(&self) -> GetNodeInfoResponse {
        GetNodeInfoResponse {
            node_id: self.name.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology { segments: self.topology() }),
        }
    }

    async fn publish(&self, request: PublishVolumeRequest) -> Answer<Empty> {
        let PublishVolumeRequest { volume_id, target_path, volume_capability, readonly } = request;
        let target = target_of(&volume_id, &target_path)?;
        if volume_capability.is_none_or(|capability| capability.block.is_some()) {
            return Err(Refusal::new(Code::InvalidArgument, "volume_capability must ask for a mounted file system"));
        }
        let volume = self.pool.find::<Volume>(&volume_id)?;
        let volume = volume.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no volume {volume_id}")))?;
        if !volume.topology.is_empty() && volume.topology != self.topology() {
            let message = format!("{volume_id} is in {:?}, and {} in {}", volume.topology, self.name, self.zone);
            return Err(Refusal::new(Code::FailedPrecondition, message));
        }
        if !mounts::is_mounted(&target)? {
            mounts::bind(&self.pool.files::<Volume>(&volume_id), &target, readonly).await?;
            tracing::info!(volume_id, target = %target.display(), readonly, "published");
        }
        Ok(Empty {})
    }

    async fn unpublish(&self, request: UnpublishVolumeRequest) -> Answer<Empty> {
        let target = target_of(&request.volume_id, &request.target_path)?;
        mounts::release(&target).await?;
        tracing::info!(volume_id = request.volume_id, target = %target.display(), "unpublished");
        Ok(Empty {})
    }
}

fn target_of(volume_id: &str, target: &str) -> Answer<PathBuf> {
    if volume_id.is_empty() || target.is_empty() {
        return Err(Refusal::new(Code::InvalidArgument, "volume_id and target_path must be given"));
    }
    Ok(PathBuf::from(target))
}

/// What kubelet finds behind the socket in its registration folder: where the driver is, and kubelet's verdict on it.
#[must_use]
pub fn registration(endpoint: &Path) -> Methods {
    let info = PluginInfo {
        r#type: "CSIPlugin".to_owned(),
        name: DRIVER.to_owned(),
        endpoint: endpoint.to_string_lossy().into_owned(),
        supported_versions: vec!["1.0.0".to_owned()],
    };
    Methods::default()
        .add("/pluginregistration.Registration/GetInfo", move |_: Empty| {
            let info = info.clone();
            async { Ok(info) }
        })
        .add("/pluginregistration.Registration/NotifyRegistrationStatus", |status: RegistrationStatus| async move {
            if status.plugin_registered {
                tracing::info!("kubelet has registered the driver");
            } else {
                tracing::warn!(error = status.error, "kubelet refused the driver");
            }
            Ok(Empty {})
        })
}
