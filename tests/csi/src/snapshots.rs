//! Snapshots: cut at one instant, or torn; and what goes wrong with them on demand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;

use crate::controller::{Controller, page, require, to_the_end};
use crate::faults::{Fault, Mode, SnapshotParameters, damage};
use crate::pool::{Snapshot, Volume, id_of, now_ns};
use crate::protocol::{
    self, CreateSnapshotRequest, DeleteRequest, Empty, ListSnapshotsRequest, ListSnapshotsResponse, SnapshotEntry,
    Timestamp,
};
use crate::rpc::{Answer, Code, Refusal};
use crate::torn::TornCopy;

/// How soon a call that hangs notices that it need not any more.
const HANG_LOOK: Duration = Duration::from_millis(100);

/// A torn copy that runs beside the calls.
pub(crate) struct CopyUnderWay {
    cancelled: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Controller {
    /// Cuts a snapshot. Asked again under the same name, it answers with the same one. A torn one is copied after the
    /// answer, and says through `ready_to_use` when that is done.
    ///
    /// # Errors
    /// What the request lacks, or the fault that was asked for.
    pub async fn create_snapshot(self: Arc<Self>, request: CreateSnapshotRequest) -> Answer<SnapshotEntry> {
        require(!request.name.is_empty(), "name must be given")?;
        require(!request.source_volume_id.is_empty(), "source_volume_id must be given")?;
        if let Some(there) = self.snapshot_of_that_name(&request)? {
            return Ok(there);
        }
        let parameters = loop {
            let parameters = self.control.over(&request.parameters, &request.source_volume_id);
            let parameters = parameters.map_err(|error| Refusal::new(Code::InvalidArgument, format!("{error:#}")))?;
            match parameters.fault {
                // Nothing is spawned yet: a call whose caller gives up ends here, and cuts nothing later.
                Fault::Hang => tokio::time::sleep(HANG_LOOK).await,
                Fault::Fail => return Err(Refusal::new(Code::Internal, "CreateSnapshot fails, as was asked for")),
                _ => break parameters,
            }
        };
        to_the_end(async move { self.cut(request, parameters).await }).await
    }

    fn snapshot_of_that_name(&self, request: &CreateSnapshotRequest) -> Answer<Option<SnapshotEntry>> {
        let id = id_of::<Snapshot>(&request.name);
        match self.pool.find::<Snapshot>(&id)? {
            Some(there) if there.source_volume != request.source_volume_id => {
                let message = format!("there is a snapshot of {} under the name {}", there.source_volume, there.name);
                Err(Refusal::new(Code::AlreadyExists, message))
            }
            there => Ok(there.map(|snapshot| entry(&id, &snapshot))),
        }
    }

    async fn cut(
        self: &Arc<Self>,
        request: CreateSnapshotRequest,
        parameters: SnapshotParameters,
    ) -> Answer<SnapshotEntry> {
        let _alone = self.changes.lock().await;
        if let Some(there) = self.snapshot_of_that_name(&request)? {
            return Ok(there);
        }
        let id = id_of::<Snapshot>(&request.name);
        let CreateSnapshotRequest { source_volume_id, name, .. } = request;
        let volume = self.pool.find::<Volume>(&source_volume_id)?;
        let volume =
            volume.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no volume {source_volume_id}")))?;
        let mut snapshot = Snapshot {
            name,
            source_volume: source_volume_id,
            size_bytes: volume.capacity_bytes,
            created_ns: now_ns(),
            complete: false,
            parameters,
        };
        match snapshot.parameters.mode {
            Mode::Atomic => {
                self.pool.copy_at_once::<Volume, Snapshot>(&snapshot.source_volume, &id).await?;
                self.finish(&id, &mut snapshot).await?;
            }
            Mode::Torn => {
                self.pool.make_empty::<Snapshot>(&id).await?;
                self.pool.keep(&id, &snapshot)?;
                self.start_copy(&id, snapshot.clone());
            }
        }
        tracing::info!(id, ?snapshot, "cut a snapshot");
        Ok(entry(&id, &snapshot))
    }

    /// What is left to do once all files are there.
    async fn finish(&self, id: &str, snapshot: &mut Snapshot) -> Result<()> {
        if let Some(file) = damage(&self.pool.files::<Snapshot>(id), &snapshot.parameters)? {
            tracing::warn!(id, fault = ?snapshot.parameters.fault, file = %file.display(), "damaged, as was asked for");
        }
        self.pool.seal::<Snapshot>(id).await?;
        snapshot.complete = true;
        self.pool.keep(id, snapshot)
    }

    fn start_copy(self: &Arc<Self>, id: &str, snapshot: Snapshot) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = self.clone().copy(id.to_owned(), snapshot, cancelled.clone());
        let owned = id.to_owned();
        let task = tokio::spawn(async move {
            // It stays "not ready": whoever waits for it has a limit.
            if let Err(error) = work.await {
                tracing::warn!(id = owned, "a torn copy ended: {error:#}");
            }
        });
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.retain(|_, copy| !copy.task.is_finished());
        copies.insert(id.to_owned(), CopyUnderWay { cancelled, task });
    }

    async fn copy(self: Arc<Self>, id: String, mut snapshot: Snapshot, cancelled: Arc<AtomicBool>) -> Result<()> {
        let (from, to) = (self.pool.files::<Volume>(&snapshot.source_volume), self.pool.files::<Snapshot>(&id));
        let rate = snapshot.parameters.rate_mib_per_s;
        let copy = move || TornCopy::new(rate, &cancelled).copy_tree(&from, &to);
        let copied_bytes = tokio::task::spawn_blocking(copy).await.context("the copying thread")??;
        self.finish(&id, &mut snapshot).await?;
        tracing::info!(id, copied_bytes, "a torn copy is complete");
        Ok(())
    }

    /// Starts the copies again that an end of this process broke off.
    ///
    /// # Errors
    /// When the pool cannot be read or a copy's place not be emptied.
    pub async fn resume_copies(self: &Arc<Self>) -> Result<()> {
        let _alone = self.changes.lock().await;
        for (id, snapshot) in self.pool.all::<Snapshot>()? {
            if !snapshot.complete {
                self.pool.make_empty::<Snapshot>(&id).await?;
                self.start_copy(&id, snapshot);
            }
        }
        Ok(())
    }

    /// Removes a snapshot, also one that is still being copied; one that is not there is no error.
    ///
    /// # Errors
    /// When something of it is left.
    pub async fn delete_snapshot(self: Arc<Self>, request: DeleteRequest) -> Answer<Empty> {
        require(!request.id.is_empty(), "snapshot_id must be given")?;
        to_the_end(async move {
            let _alone = self.changes.lock().await;
            let copy = self.copies.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.id);
            if let Some(copy) = copy {
                copy.cancelled.store(true, Ordering::Relaxed);
                copy.task.await.context("the torn copy")?;
            }
            if self.pool.find::<Snapshot>(&request.id)?.is_some() {
                self.pool.remove::<Snapshot>(&request.id).await?;
                tracing::info!(id = request.id, "removed a snapshot");
            }
            Ok(Empty {})
        })
        .await
    }

    pub(crate) async fn list_snapshots(
        self: Arc<Self>,
        request: ListSnapshotsRequest,
    ) -> Answer<ListSnapshotsResponse> {
        let wanted = |id: &str, snapshot: &Snapshot| {
            (request.snapshot_id.is_empty() || request.snapshot_id == id)
                && (request.source_volume_id.is_empty() || request.source_volume_id == snapshot.source_volume)
        };
        let mut snapshots = self.pool.all::<Snapshot>()?;
        snapshots.retain(|(id, snapshot)| wanted(id, snapshot));
        let (snapshots, next_token) = page(snapshots, request.max_entries, &request.starting_token)?;
        let entries = snapshots.iter().map(|(id, snapshot)| entry(id, snapshot)).collect();
        Ok(ListSnapshotsResponse { entries, next_token })
    }
}

fn entry(id: &str, snapshot: &Snapshot) -> SnapshotEntry {
    let nanos = i32::try_from(snapshot.created_ns.rem_euclid(1_000_000_000)).unwrap_or_default();
    SnapshotEntry {
        snapshot: Some(protocol::Snapshot {
            size_bytes: snapshot.size_bytes,
            snapshot_id: id.to_owned(),
            source_volume_id: snapshot.source_volume.clone(),
            creation_time: Some(Timestamp { seconds: snapshot.created_ns.div_euclid(1_000_000_000), nanos }),
            ready_to_use: snapshot.ready_to_use(),
        }),
    }
}
