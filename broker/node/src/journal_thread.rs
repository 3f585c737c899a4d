//! The journal's thread: everything that has arrived becomes durable with one `fdatasync`, then the core is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use holdfast_engine::Input;
use holdfast_journal::{Batch, FileSystem, Journal, JournalError, Op};

use crate::failure::{ExitKind, Failure};
use crate::inbox::{Arrival, Lane};
use crate::metrics::NodeMetrics;

/// Batches and bytes that one write takes; what is over waits for the next.
const WRITE_BATCHES: usize = 1024;
const WRITE_BYTES: u64 = 32 << 20;

/// The core's end. It counts the bytes on the way; the core stops reading clients while there are many.
pub struct JournalHandle {
    queue: Sender<(Batch, u64)>,
    metrics: Arc<NodeMetrics>,
}

impl JournalHandle {
    /// Hands a batch over, in order.
    pub fn submit(&self, batch: Batch) {
        let bytes = size_bytes(&batch);
        self.metrics.journal_backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        // The thread is gone only when the journal failed, and then the process is about to end.
        let _ = self.queue.send((batch, bytes));
    }

    /// Bytes handed over and not yet durable.
    pub fn backlog_bytes(&self) -> u64 {
        self.metrics.journal_backlog_bytes.load(Ordering::Relaxed)
    }
}

/// Starts the thread. It reports through `inbox`, and ends when the handle is dropped and all is written, or when the
/// journal fails: then nothing later may count as durable, and `failed` is called with what to tell the user.
pub fn start<F: FileSystem>(
    journal: Journal<F>,
    inbox: Lane,
    metrics: Arc<NodeMetrics>,
    failed: impl FnOnce(Failure) + Send + 'static,
) -> std::io::Result<(JournalHandle, JoinHandle<()>)> {
    let (queue, batches) = channel();
    let handle = JournalHandle { queue, metrics: metrics.clone() };
    let thread = std::thread::Builder::new().name("journal".into()).stack_size(512 << 10).spawn(move || {
        if let Err(error) = write_all(journal, &batches, &inbox, &metrics) {
            failed(Failure::new(
                ExitKind::Io,
                format!("the journal cannot go on: {error}"),
                "nothing confirmed is lost; free or repair the disk and start this member again",
            ));
        }
    })?;
    Ok((handle, thread))
}

fn write_all<F: FileSystem>(
    mut journal: Journal<F>,
    batches: &Receiver<(Batch, u64)>,
    inbox: &Lane,
    metrics: &NodeMetrics,
) -> Result<(), JournalError> {
    let mut together = Vec::new();
    while let Ok((first, mut bytes)) = batches.recv() {
        together.push(first);
        while together.len() < WRITE_BATCHES && bytes < WRITE_BYTES {
            let Ok((next, more)) = batches.try_recv() else { break };
            together.push(next);
            bytes += more;
        }
        let began = Instant::now();
        let written = journal.write_many(&together)?;
        metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        metrics.sync_batches.observe(together.len() as f64);
        metrics.journal_backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        together.clear();
        for report in written {
            if inbox.send_blocking(Arrival::Input(Input::Written(report))).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// About what a batch keeps in memory.
fn size_bytes(batch: &Batch) -> u64 {
    let op = |op: &Op| match op {
        Op::Entry { payload, .. } | Op::Body { payload, .. } => payload.len(),
        Op::Checkpoint { conf, machine, .. } => conf.len() + machine.len(),
        Op::Compact { live: indexes, .. } | Op::Dead { indexes, .. } => indexes.len() * 8,
        Op::Identity(bytes) => bytes.len(),
        Op::HardState { .. } | Op::Reset { .. } | Op::Destroy { .. } => 0,
    };
    batch.ops.iter().map(|each| op(each) as u64 + 64).sum()
}
