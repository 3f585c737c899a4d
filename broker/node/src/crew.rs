//! Threads that work on Raft groups side by side.
//!
//! The core hands each busy worker of the member to the thread of its number, does the first one's work itself, and waits
//! until all are back: between rounds nobody touches a replica but the core. A worker with little to do is not worth two
//! switches of threads, a single busy one gains nothing, and where no core is free threads only wait for one: then the core
//! does it all, as with one worker.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use holdfast_engine::{Crew, Worker};
use holdfast_journal::EntryReader;
use prometheus_client::metrics::counter::Counter;

/// The most workers that a member has unless it is told: beyond that the core itself is what everything waits for.
const MOST_BY_DEFAULT: usize = 4;
/// A worker with a load from here on ([`Worker::load`]) is given to its thread: about 100 µs of work, where waking a thread
/// and hearing of its end take 10 to 50 µs.
const WORTH_A_THREAD: usize = 24;

/// One worker for every two cores, since sockets, the journal and clients need theirs too, and at most four. With two cores
/// for everything more than one worker was never faster.
pub fn default_workers() -> usize {
    (available_parallelism().map_or(1, usize::from) / 2).clamp(1, MOST_BY_DEFAULT)
}

/// What a thread gives back: the worker, or the panic that ended its work.
type Back<R> = Result<Box<Worker<R>>, Box<dyn Any + Send>>;

/// Whether threads pay at present. On a machine whose cores are all taken they do not, however much there is to do: the core
/// then waits for a thread that waits for a core. So both ways are measured, and the cheaper one is taken.
#[derive(Debug, Default)]
struct Choice {
    /// What a unit of load took on the core alone and side by side, in nanoseconds, smoothed; none before the first time.
    alone: Option<f64>,
    side_by_side: Option<f64>,
    rounds: u32,
}

/// One in so many rounds tries the other way.
const TRY_EVERY: u32 = 64;
/// The part of the newest measurement in what is known.
const SMOOTHING: f64 = 0.125;

impl Choice {
    fn next_side_by_side(&mut self) -> bool {
        self.rounds = self.rounds.wrapping_add(1);
        let better = match (self.alone, self.side_by_side) {
            (Some(alone), Some(side_by_side)) => side_by_side < alone,
            (alone, _) => alone.is_some(),
        };
        if self.rounds.is_multiple_of(TRY_EVERY) { !better } else { better }
    }

    fn took(&mut self, side_by_side: bool, load: usize, time: Duration) {
        let known = if side_by_side { &mut self.side_by_side } else { &mut self.alone };
        let now = time.as_nanos() as f64 / load.max(1) as f64;
        *known = Some(known.map_or(now, |before| before + SMOOTHING * (now - before)));
    }
}

/// The threads of a member's workers, beside the core.
pub struct Threads<R: EntryReader> {
    /// For the worker with the number of the place and 1.
    threads: Vec<SyncSender<Box<Worker<R>>>>,
    back: Receiver<Back<R>>,
    /// Rounds in which more than one thread worked.
    rounds: Counter,
    worth_a_thread: usize,
    /// None: threads always pay.
    choice: Option<Choice>,
}

impl<R: EntryReader> Threads<R> {
    /// Threads for all of `workers` but the first, whose work the core does.
    pub fn start(workers: usize, rounds: Counter) -> std::io::Result<Self> {
        Self::start_for(workers, rounds, WORTH_A_THREAD, Some(Choice::default()))
    }

    fn start_for(
        workers: usize,
        rounds: Counter,
        worth_a_thread: usize,
        choice: Option<Choice>,
    ) -> std::io::Result<Self> {
        let (done, back) = channel();
        let thread = |index: usize| {
            let (todo, work) = sync_channel(1);
            let done = done.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            thread.spawn(move || run(&work, &done))?;
            Ok(todo)
        };
        let threads = (1..workers).map(thread).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { threads, back, rounds, worth_a_thread, choice })
    }
}

fn run<R: EntryReader>(work: &Receiver<Box<Worker<R>>>, done: &Sender<Back<R>>) {
    for mut worker in work {
        let outcome = catch_unwind(AssertUnwindSafe(|| worker.work()));
        if done.send(outcome.map(|()| worker)).is_err() {
            return;
        }
    }
}

impl<R: EntryReader> Threads<R> {
    /// Gives a worker to its thread; back if it has none.
    fn hand_over(&self, worker: Box<Worker<R>>) -> Option<Box<Worker<R>>> {
        match worker.index().checked_sub(1).and_then(|at| self.threads.get(at)) {
            // It takes one at a time and has given the last one back, so this does not wait.
            Some(thread) => thread.send(worker).err().map(|unsent| unsent.0),
            None => Some(worker),
        }
    }
}

impl<R: EntryReader> Crew<R> for Threads<R> {
    fn work(&mut self, mut workers: Vec<Box<Worker<R>>>) -> Vec<Box<Worker<R>>> {
        let is_busy = |worker: &Worker<R>| worker.load() >= self.worth_a_thread;
        let busy = workers.iter().filter(|worker| is_busy(worker)).count();
        if busy < 2 {
            workers.iter_mut().for_each(|worker| worker.work());
            return workers;
        }
        let load = workers.iter().map(|worker| worker.load()).sum();
        let side_by_side = self.choice.as_mut().is_none_or(Choice::next_side_by_side);
        let began = Instant::now();
        if side_by_side {
            workers = self.work_side_by_side(workers, busy);
            self.rounds.inc();
        } else {
            workers.iter_mut().for_each(|worker| worker.work());
        }
        if let Some(choice) = &mut self.choice {
            choice.took(side_by_side, load, began.elapsed());
        }
        workers
    }
}

impl<R: EntryReader> Threads<R> {
    fn work_side_by_side(&mut self, workers: Vec<Box<Worker<R>>>, mut busy: usize) -> Vec<Box<Worker<R>>> {
        let count = workers.len();
        let mut here = Vec::with_capacity(count);
        for worker in workers {
            // The core is one of the threads: the last busy worker is its own, if it has not the first.
            let goes = busy > 1 && worker.load() >= self.worth_a_thread;
            let kept = if goes { self.hand_over(worker) } else { Some(worker) };
            if kept.is_none() {
                busy -= 1;
            }
            here.extend(kept);
        }
        for worker in &mut here {
            worker.work();
        }
        while here.len() < count {
            match self.back.recv().expect("threads end only after the core has let go of them") {
                Ok(worker) => here.push(worker),
                Err(panic) => resume_unwind(panic),
            }
        }
        here
    }
}

#[cfg(test)]
#[path = "crew_tests.rs"]
mod tests;
