//! The controller service: makes, lists, grows and removes volumes. Its snapshots are in `snapshots`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::faults::ControlFile;
use crate::mounts;
use crate::pool::{Pool, Record, Snapshot, Volume, id_of};
use crate::protocol::{
    self, CapacityRange, Confirmed, CreateVolumeRequest, DeleteRequest, Empty, ExpandVolumeRequest,
    ExpandVolumeResponse, Kind, ListVolumesRequest, ListVolumesResponse, ServiceCapabilities, ServiceCapability,
    SourceId, Topology, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, VolumeCapability,
    VolumeContentSource, VolumeEntry, access_mode, controller,
};
use crate::rpc::{Answer, Code, Methods, Refusal};
use crate::snapshots::CopyUnderWay;

/// What a volume gets that was asked for without a size.
const DEFAULT_CAPACITY_BYTES: i64 = 1 << 30;

/// The one process that changes the pool.
pub struct Controller {
    pub(crate) pool: Pool,
    pub(crate) control: ControlFile,
    /// One change at a time: "is there one of that name already" and the change that follows belong together.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Torn copies by the id of their snapshot.
    pub(crate) copies: Mutex<HashMap<String, CopyUnderWay>>,
}

impl Controller {
    /// A controller of this pool.
    #[must_use]
    pub fn new(pool: Pool, control: ControlFile) -> Arc<Self> {
        Arc::new(Self { pool, control, changes: tokio::sync::Mutex::default(), copies: Mutex::default() })
    }

    /// Adds the controller service.
    #[must_use]
    pub fn methods(self: &Arc<Self>, methods: Methods) -> Methods {
        let methods =
            methods.add("/csi.v1.Controller/ControllerGetCapabilities", |_: Empty| async { Ok(capabilities()) });
        let methods = self.add(methods, "/csi.v1.Controller/CreateVolume", Self::create_volume);
        let methods = self.add(methods, "/csi.v1.Controller/DeleteVolume", Self::delete_volume);
        let methods = self.add(methods, "/csi.v1.Controller/ControllerExpandVolume", Self::expand_volume);
        let methods = self.add(methods, "/csi.v1.Controller/ListVolumes", Self::list_volumes);
        let methods = self.add(methods, "/csi.v1.Controller/ValidateVolumeCapabilities", Self::validate);
        let methods = self.add(methods, "/csi.v1.Controller/CreateSnapshot", Self::create_snapshot);
        let methods = self.add(methods, "/csi.v1.Controller/DeleteSnapshot", Self::delete_snapshot);
        self.add(methods, "/csi.v1.Controller/ListSnapshots", Self::list_snapshots)
    }

    fn add<Q, A, F>(self: &Arc<Self>, methods: Methods, path: &'static str, method: fn(Arc<Self>, Q) -> F) -> Methods
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + 'static,
        F: Future<Output = Answer<A>> + Send + 'static,
    {
        let controller = self.clone();
        methods.add(path, move |request| method(controller.clone(), request))
    }

    /// Makes a volume, empty or from a snapshot. Asked again under the same name, it answers with the same volume.
    ///
    /// # Errors
    /// What the request lacks, or why it cannot be met.
    pub async fn create_volume(self: Arc<Self>, request: CreateVolumeRequest) -> Answer<VolumeEntry> {
        to_the_end(async move { self.make_volume(request).await }).await
    }

    async fn make_volume(&self, request: CreateVolumeRequest) -> Answer<VolumeEntry> {
        let CreateVolumeRequest { name, capacity_range, volume_capabilities, volume_content_source, .. } = request;
        require(!name.is_empty(), "name must be given")?;
        require(!volume_capabilities.is_empty(), "volume_capabilities must be given")?;
        if let Some(reason) = volume_capabilities.iter().find_map(unsupported) {
            return Err(Refusal::new(Code::InvalidArgument, reason));
        }
        let range = capacity_range.unwrap_or_default();
        let capacity_bytes = capacity(range)?;
        let topology = chosen(request.accessibility_requirements);
        let source = volume_content_source.unwrap_or_default();
        require(source.volume.is_none(), "a volume cannot be made from another volume, only from a snapshot")?;
        let source_snapshot = source.snapshot.map(|snapshot| snapshot.id);

        let _alone = self.changes.lock().await;
        let id = id_of::<Volume>(&name);
        if let Some(there) = self.pool.find::<Volume>(&id)? {
            let fits = there.capacity_bytes >= range.required_bytes
                && (range.limit_bytes == 0 || there.capacity_bytes <= range.limit_bytes);
            if !fits || there.source_snapshot != source_snapshot {
                let message =
                    format!("there is another volume under the name {name}, of {} bytes", there.capacity_bytes);
                return Err(Refusal::new(Code::AlreadyExists, message));
            }
            return Ok(entry(&id, &there));
        }
        match &source_snapshot {
            None => self.pool.make_empty::<Volume>(&id).await?,
            Some(snapshot) => {
                self.check_source(snapshot, capacity_bytes)?;
                self.pool.copy_at_once::<Snapshot, Volume>(snapshot, &id).await?;
            }
        }
        let volume = Volume { name, capacity_bytes, topology, source_snapshot };
        self.pool.keep(&id, &volume)?;
        tracing::info!(id, ?volume, "made a volume");
        Ok(entry(&id, &volume))
    }

    fn check_source(&self, id: &str, capacity_bytes: i64) -> Answer<()> {
        let snapshot = self.pool.find::<Snapshot>(id)?;
        let snapshot = snapshot.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no snapshot {id}")))?;
        if !snapshot.ready_to_use() {
            return Err(Refusal::new(Code::Unavailable, format!("snapshot {id} is not ready to use yet")));
        }
        if capacity_bytes < snapshot.size_bytes {
            let message = format!("snapshot {id} needs {} bytes, not {capacity_bytes}", snapshot.size_bytes);
            return Err(Refusal::new(Code::OutOfRange, message));
        }
        Ok(())
    }

    /// Removes a volume with all that is in it; one that is not there is no error.
    ///
    /// # Errors
    /// When it is still mounted.
    pub async fn delete_volume(self: Arc<Self>, request: DeleteRequest) -> Answer<Empty> {
        require(!request.id.is_empty(), "volume_id must be given")?;
        to_the_end(async move {
            let _alone = self.changes.lock().await;
            if self.pool.find::<Volume>(&request.id)?.is_none() {
                return Ok(Empty {});
            }
            let mounted = mounts::mounted_at(self.pool.root(), &self.pool.files::<Volume>(&request.id))?;
            if let Some(target) = mounted.first() {
                let message = format!("{} is still mounted at {}", request.id, target.display());
                return Err(Refusal::new(Code::FailedPrecondition, message));
            }
            self.pool.remove::<Volume>(&request.id).await?;
            tracing::info!(id = request.id, "removed a volume");
            Ok(Empty {})
        })
        .await
    }

    /// Raises what a volume promises; one that is as large already stays as it is.
    ///
    /// # Errors
    /// When the limit lies below its size.
    pub async fn expand_volume(self: Arc<Self>, request: ExpandVolumeRequest) -> Answer<ExpandVolumeResponse> {
        require(!request.volume_id.is_empty(), "volume_id must be given")?;
        let range = request.capacity_range;
        let range = range.ok_or_else(|| Refusal::new(Code::InvalidArgument, "capacity_range must be given"))?;
        let _alone = self.changes.lock().await;
        let mut volume = self.volume(&request.volume_id)?;
        let capacity_bytes = capacity(range)?.max(volume.capacity_bytes);
        if range.limit_bytes != 0 && capacity_bytes > range.limit_bytes {
            return Err(Refusal::new(Code::OutOfRange, format!("the volume has {capacity_bytes} bytes already")));
        }
        volume.capacity_bytes = capacity_bytes;
        self.pool.keep(&request.volume_id, &volume)?;
        Ok(ExpandVolumeResponse { capacity_bytes, node_expansion_required: false })
    }

    async fn list_volumes(self: Arc<Self>, request: ListVolumesRequest) -> Answer<ListVolumesResponse> {
        let (volumes, next_token) = page(self.pool.all::<Volume>()?, request.max_entries, &request.starting_token)?;
        Ok(ListVolumesResponse { entries: volumes.iter().map(|(id, volume)| entry(id, volume)).collect(), next_token })
    }

    async fn validate(
        self: Arc<Self>,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let ValidateVolumeCapabilitiesRequest { volume_id, volume_capabilities } = request;
        require(!volume_id.is_empty(), "volume_id must be given")?;
        require(!volume_capabilities.is_empty(), "volume_capabilities must be given")?;
        self.volume(&volume_id)?;
        let reason = volume_capabilities.iter().find_map(unsupported);
        let confirmed = reason.is_none().then_some(Confirmed { volume_capabilities });
        Ok(ValidateVolumeCapabilitiesResponse { confirmed, message: reason.unwrap_or_default().to_owned() })
    }

    fn volume(&self, id: &str) -> Answer<Volume> {
        let volume = self.pool.find(id)?;
        volume.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no volume {id}")))
    }
}

fn capabilities() -> ServiceCapabilities {
    let kinds = [
        controller::CREATE_DELETE_VOLUME,
        controller::LIST_VOLUMES,
        controller::CREATE_DELETE_SNAPSHOT,
        controller::LIST_SNAPSHOTS,
        controller::EXPAND_VOLUME,
    ];
    let capabilities = kinds.iter().map(|kind| ServiceCapability { rpc: Some(Kind { r#type: *kind }) });
    ServiceCapabilities { capabilities: capabilities.collect() }
}

/// Why a volume of this driver cannot be used that way.
fn unsupported(capability: &VolumeCapability) -> Option<&'static str> {
    let mode = capability.access_mode.map(|mode| mode.r#type);
    if capability.block.is_some() {
        Some("block volumes are not to be had, only mounted file systems")
    } else if !matches!(mode, Some(access_mode::SINGLE_NODE_WRITER | access_mode::SINGLE_NODE_READER_ONLY)) {
        Some("a volume serves one node at a time")
    } else {
        None
    }
}

fn capacity(range: CapacityRange) -> Answer<i64> {
    let CapacityRange { required_bytes, limit_bytes } = range;
    if required_bytes < 0 || limit_bytes < 0 || (limit_bytes != 0 && limit_bytes < required_bytes) {
        let message = format!("no capacity is at least {required_bytes} and at most {limit_bytes} bytes");
        return Err(Refusal::new(Code::OutOfRange, message));
    }
    let limit = if limit_bytes == 0 { i64::MAX } else { limit_bytes };
    Ok(if required_bytes == 0 { DEFAULT_CAPACITY_BYTES.min(limit) } else { required_bytes })
}

/// The topology that is liked best, or none where there is no wish.
fn chosen(wishes: Option<protocol::TopologyRequirement>) -> std::collections::BTreeMap<String, String> {
    let wishes = wishes.unwrap_or_default();
    wishes.preferred.into_iter().chain(wishes.requisite).next().unwrap_or_default().segments
}

fn entry(id: &str, volume: &Volume) -> VolumeEntry {
    let snapshot = volume.source_snapshot.clone().map(|id| SourceId { id });
    let topology = Topology { segments: volume.topology.clone() };
    VolumeEntry {
        volume: Some(protocol::Volume {
            capacity_bytes: volume.capacity_bytes,
            volume_id: id.to_owned(),
            content_source: snapshot.map(|snapshot| VolumeContentSource { snapshot: Some(snapshot), volume: None }),
            accessible_topology: if topology.segments.is_empty() { Vec::new() } else { vec![topology] },
        }),
    }
}

/// An argument that must be there.
pub(crate) fn require(given: bool, what: &str) -> Answer<()> {
    if given { Ok(()) } else { Err(Refusal::new(Code::InvalidArgument, what)) }
}

/// Carries work to its end even when the caller gives up meanwhile.
pub(crate) async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Refusal::new(Code::Internal, format!("the driver failed: {error}"))))
}

/// One page of what is sorted by id, and the token of the next: the last id on this one, so that what comes and goes
/// between two pages neither hides nor repeats anything else.
pub(crate) fn page<R: Record>(
    mut all: Vec<(String, R)>,
    max_entries: i32,
    starting_token: &str,
) -> Answer<(Vec<(String, R)>, String)> {
    let Ok(limit) = usize::try_from(max_entries) else {
        return Err(Refusal::new(Code::InvalidArgument, "max_entries must not be negative"));
    };
    if !starting_token.is_empty() {
        if !starting_token.starts_with(R::KIND) {
            return Err(Refusal::new(Code::Aborted, format!("{starting_token} is no token of a list of {}s", R::KIND)));
        }
        all.retain(|(id, _)| id.as_str() > starting_token);
    }
    let more = limit != 0 && all.len() > limit;
    if more {
        all.truncate(limit);
    }
    let next_token = all.last().filter(|_| more).map(|(id, _)| id.clone()).unwrap_or_default();
    Ok((all, next_token))
}
