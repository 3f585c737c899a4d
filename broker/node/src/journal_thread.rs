//! The journal's thread: everything that has arrived becomes durable with one `fdatasync`, then the core is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_engine::Input;
use holdfast_engine::backup::files::HoldNote;
use holdfast_engine::backup::{HoldNews, HoldOrder};
use holdfast_journal::{Batch, Chore, Done, FileSystem, HoldingFileSystem, Journal, JournalError, Op};

use crate::failure::{ExitKind, Failure};
use crate::holds::HoldKeeper;
use crate::inbox::{Arrival, Lane};
use crate::journal_pause::{JournalPause, NoStandstill, Standstill};
use crate::metrics::NodeMetrics;

/// Batches and bytes that one write takes; what is over waits for the next.
const WRITE_BATCHES: usize = 1024;
const WRITE_BYTES: u64 = 32 << 20;

/// How often an idle journal is asked for news, such as the room on its disk.
const IDLE: Duration = Duration::from_secs(1);
/// How often background work is allowed some more, while there is any.
const GRANT_EVERY: Duration = Duration::from_millis(100);
/// What it is allowed each time: 8 MiB a second, a tenth of what a slow network volume gives.
const GRANT_BYTES: u64 = 800 << 10;
/// Every sealed segment is read again this often, to find damage while there are other copies. The first time comes
/// after an hour, so that members that are restarted daily are read too.
const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
const FIRST_SCRUB: Duration = Duration::from_secs(3600);

/// A write that takes this long is told of in the log: half of what a failover may take.
const SLOW: Duration = Duration::from_millis(500);

/// What the journal's thread waits for.
enum Work {
    /// The batches of one round of the core, and their bytes.
    Write(Vec<Batch>, u64, Instant),
    /// A chore is done; its outcome is in a channel of its own.
    ChoreDone,
    /// Something about held files, once all before it is durable.
    Hold(HoldOrder),
    /// Somebody wants the journal to stand still.
    Pause,
    /// Nothing comes after this.
    End,
}

/// The core's end. It counts the bytes on the way; the core stops reading clients while there are many.
pub struct JournalHandle {
    queue: Sender<Work>,
    metrics: Arc<NodeMetrics>,
    pause: JournalPause,
}

/// Makes a running journal stand still.
#[derive(Clone)]
pub struct JournalBrake {
    queue: Sender<Work>,
    pause: JournalPause,
}

impl JournalBrake {
    /// The journal writes nothing for so long at least. False if it did not come to that in time. Blocks.
    pub fn freeze(&self, at_least: Duration) -> bool {
        self.pause.freeze(at_least, || drop(self.queue.send(Work::Pause)))
    }

    /// A freeze is in force.
    pub fn is_frozen(&self) -> bool {
        self.pause.is_frozen()
    }

    /// Ends a freeze; see [`JournalPause::thaw`].
    pub fn thaw(&self) -> bool {
        self.pause.thaw()
    }

    /// The journal writes nothing until what this gives is dropped, and for so long at most. Blocks.
    pub fn stand_still_for(&self, within: Duration) -> Result<Standstill, NoStandstill> {
        self.pause.stand_still_for(within, || drop(self.queue.send(Work::Pause)))
    }
}

impl JournalHandle {
    /// For the admin API.
    pub fn brake(&self) -> JournalBrake {
        JournalBrake { queue: self.queue.clone(), pause: self.pause.clone() }
    }

    /// Hands over the batches of a round, in order; one sync makes all of them durable.
    pub fn submit(&self, batches: Vec<Batch>) {
        let bytes = batches.iter().map(size_bytes).sum();
        self.metrics.journal_backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        // The thread is gone only when the journal failed, and then the process is about to end.
        let _ = self.queue.send(Work::Write(batches, bytes, Instant::now()));
    }

    /// Hands over what is to be done about holds, once all that was submitted before is durable.
    pub fn hold(&self, order: HoldOrder) {
        let _ = self.queue.send(Work::Hold(order));
    }

    /// Bytes handed over and not yet durable.
    pub fn backlog_bytes(&self) -> u64 {
        self.metrics.journal_backlog_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for JournalHandle {
    fn drop(&mut self) {
        let _ = self.queue.send(Work::End);
    }
}

/// Starts the thread, and a second one for what need not be done between writes. It reports through `inbox`, and ends
/// when the handle is dropped and all is written, or when the journal fails: then nothing later may count as durable, and
/// `failed` is called with what to tell the user.
pub fn start<F: HoldingFileSystem>(
    journal: Journal<F>,
    inbox: Lane,
    metrics: Arc<NodeMetrics>,
    holds: HoldKeeper<F>,
    failed: impl FnOnce(Failure) + Send + 'static,
) -> std::io::Result<(JournalHandle, JoinHandle<()>)> {
    let (queue, work) = channel();
    let chores = Chores::start(queue.clone())?;
    let pause = JournalPause::default();
    let handle = JournalHandle { queue, metrics: metrics.clone(), pause: pause.clone() };
    let thread = std::thread::Builder::new().name("journal".into()).stack_size(512 << 10).spawn(move || {
        let now = Instant::now();
        let (granted_at, scrub_at) = (now, now + FIRST_SCRUB);
        let writer = Writer { journal, inbox, metrics, chores, pause, holds, busy: 0, granted_at, scrub_at };
        if let Err(error) = writer.work(&work) {
            failed(Failure::new(
                ExitKind::Io,
                format!("the journal cannot go on: {error}"),
                "nothing confirmed is lost; free or repair the disk and start this member again",
            ));
        }
    })?;
    Ok((handle, thread))
}

/// The thread that runs the journal's chores, one at a time.
struct Chores<F: FileSystem> {
    todo: Sender<Chore<F>>,
    done: Receiver<Done<F>>,
}

impl<F: FileSystem> Chores<F> {
    fn start(wake: Sender<Work>) -> std::io::Result<Self> {
        let (todo, chores) = channel::<Chore<F>>();
        let (outcomes, done) = channel();
        std::thread::Builder::new().name("journal-chores".into()).stack_size(512 << 10).spawn(move || {
            for chore in chores {
                if outcomes.send(chore.run()).is_err() || wake.send(Work::ChoreDone).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { todo, done })
    }
}

struct Writer<F: HoldingFileSystem> {
    journal: Journal<F>,
    inbox: Lane,
    holds: HoldKeeper<F>,
    metrics: Arc<NodeMetrics>,
    chores: Chores<F>,
    pause: JournalPause,
    /// Chores that are under way.
    busy: usize,
    granted_at: Instant,
    scrub_at: Instant,
}

impl<F: HoldingFileSystem> Writer<F> {
    fn work(mut self, work: &Receiver<Work>) -> Result<(), JournalError> {
        let mut together = Vec::new();
        loop {
            let (mut bytes, mut ends, mut pauses, mut waiting_since) = (0, false, false, None);
            let mut order = None;
            let patience = if self.journal.has_work() { GRANT_EVERY } else { IDLE };
            let mut next = match work.recv_timeout(patience) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            while let Some(one) = next.take() {
                match one {
                    Work::Write(mut batches, more, since) => {
                        waiting_since.get_or_insert(since);
                        together.append(&mut batches);
                        bytes += more;
                    }
                    Work::ChoreDone => {}
                    Work::Hold(one) => order = Some(one),
                    Work::Pause => pauses = true,
                    Work::End => ends = true,
                }
                if !pauses && order.is_none() && together.len() < WRITE_BATCHES && bytes < WRITE_BYTES {
                    next = work.try_recv().ok();
                }
            }
            if let Some(since) = waiting_since {
                self.metrics.journal_wait_seconds.observe(since.elapsed().as_secs_f64());
            }
            if !self.write(&mut together, bytes)? || ends {
                return Ok(());
            }
            if let Some(order) = order
                && !self.hold(order)
            {
                return Ok(());
            }
            let began = Instant::now();
            if !self.keep_up()? {
                return Ok(());
            }
            self.metrics.journal_upkeep_seconds.observe(began.elapsed().as_secs_f64());
            tell_if_slow("the journal's upkeep", began, 0);
            if pauses {
                self.stand_still()?;
            }
        }
    }

    /// False when the core has ended.
    fn write(&mut self, together: &mut Vec<Batch>, bytes: u64) -> Result<bool, JournalError> {
        if together.is_empty() {
            return Ok(true);
        }
        let began = Instant::now();
        let written = self.journal.write_many(together)?;
        self.metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        tell_if_slow("writing and syncing what was to be confirmed", began, bytes);
        self.metrics.sync_batches.observe(together.len() as f64);
        self.metrics.journal_backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        together.clear();
        let at = Instant::now();
        Ok(self.inbox.send_blocking(Arrival::Written { reports: written, at }).is_ok())
    }

    /// Everything before it is durable. False when the core has ended.
    fn hold(&mut self, order: HoldOrder) -> bool {
        let HoldOrder::Make { barrier, hold, member, expires_at_ms, places } = order else {
            self.holds.order(order);
            return true;
        };
        let news = match self.journal.hold(&hold) {
            Ok((directory, files)) => {
                let note = HoldNote { id: hold, member, barrier: format!("{barrier:016x}"), expires_at_ms };
                self.holds.describe(barrier, note, directory, files, places);
                HoldNews::Held { barrier }
            }
            Err(error) => HoldNews::Described { barrier, part: Err(error.to_string()) },
        };
        self.inbox.send_blocking(Arrival::Input(Input::Hold(news))).is_ok()
    }

    /// Chores make and change files too, so none is under way meanwhile.
    fn stand_still(&mut self) -> Result<(), JournalError> {
        while self.busy > 0
            && let Ok(done) = self.chores.done.recv()
        {
            self.busy -= 1;
            self.journal.chore_done(done)?;
        }
        self.pause.stand_still();
        Ok(())
    }

    /// False when the core has ended.
    fn keep_up(&mut self) -> Result<bool, JournalError> {
        while let Ok(done) = self.chores.done.try_recv() {
            self.busy -= 1;
            self.journal.chore_done(done)?;
        }
        let now = Instant::now();
        if now >= self.scrub_at {
            self.scrub_at = now + SCRUB_EVERY;
            self.journal.begin_scrub();
        }
        if now.duration_since(self.granted_at) >= GRANT_EVERY {
            self.granted_at = now;
            self.journal.grant(GRANT_BYTES);
        }
        if let Some(chore) = self.journal.next_chore() {
            // The thread ends only with this one.
            let _ = self.chores.todo.send(chore);
            self.busy += 1;
        }
        match self.journal.upkeep()? {
            Some(upkeep) if upkeep.space.is_some_and(|space| space.low) => {
                self.holds.make_room();
                Ok(self.inbox.send_blocking(Arrival::Input(Input::Upkeep(upkeep))).is_ok())
            }
            Some(upkeep) => Ok(self.inbox.send_blocking(Arrival::Input(Input::Upkeep(upkeep))).is_ok()),
            None => Ok(true),
        }
    }
}

/// Confirms waited for this: whoever looks into a gap finds the disk named.
fn tell_if_slow(what: &str, began: Instant, bytes: u64) {
    let took = began.elapsed();
    if took >= SLOW {
        tracing::warn!(
            "the disk was slow: {what} took {} ms ({bytes} bytes), and confirms waited for it; look at what else uses \
             this disk, and at holdfast_disk_sync_seconds",
            took.as_millis()
        );
    }
}

/// About what a batch keeps in memory.
fn size_bytes(batch: &Batch) -> u64 {
    let op = |op: &Op| match op {
        Op::Entry { payload, .. } | Op::Body { payload, .. } => payload.len(),
        Op::Checkpoint { conf, machine, .. } | Op::CheckpointAside { conf, machine, .. } => conf.len() + machine.len(),
        Op::Compact { live: indexes, .. } | Op::Dead { indexes, .. } => indexes.len() * 8,
        Op::Identity(bytes) => bytes.len(),
        Op::HardState { .. } | Op::Reset { .. } | Op::Repaired { .. } | Op::Destroy { .. } | Op::MovesTaken { .. } => 0,
    };
    batch.ops.iter().map(|each| op(each) as u64 + 64).sum()
}
