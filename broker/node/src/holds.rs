//! The thread that looks after holds: files that are kept for a backup until it is copied (see `holdfast_engine::backup`).
//!
//! Holds survive a restart. Each ends when it is released, when its time has come, or when the disk is nearly full: serving
//! comes before a backup, which then fails.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use holdfast_engine::Input;
use holdfast_engine::backup::files::{
    HoldNote, MANIFEST, describe, note_of, read_file, release, remove_expired, set_note, write_file,
};
use holdfast_engine::backup::{HoldNews, HoldOrder, Place};
use holdfast_journal::{HeldFile, HoldingFileSystem};
use tokio::sync::oneshot;

use crate::clock::wall_ms;
use crate::inbox::{Arrival, Lane};

/// How often it is looked whether the time of a hold has come.
const LOOK_EVERY: Duration = Duration::from_secs(1);

enum Job<F> {
    Describe { barrier: u64, note: HoldNote, hold: F, files: Vec<HeldFile>, places: Vec<Place> },
    Order(HoldOrder),
    MakeRoom,
    List(oneshot::Sender<std::io::Result<Vec<HoldNote>>>),
    Renew { hold: String, expires_at_ms: u64, done: oneshot::Sender<std::io::Result<()>> },
    Remove { hold: String, done: oneshot::Sender<std::io::Result<()>> },
    Manifest { hold: String, done: oneshot::Sender<std::io::Result<Held>> },
}

/// What there is of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Nothing,
    /// Files, or some of them; the barrier is not done.
    Unfinished,
    /// A whole backup, and this is its manifest.
    Manifest(Vec<u8>),
}

/// The way to the thread. It ends when all of these are gone.
pub struct HoldKeeper<F> {
    jobs: Sender<Job<F>>,
}

impl<F> Clone for HoldKeeper<F> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<F: HoldingFileSystem> HoldKeeper<F> {
    /// Removes what an earlier process has left unfinished or too long, and starts the thread. News go to `inbox`.
    pub fn start(files: F, inbox: Lane) -> std::io::Result<Self> {
        tell_expired(remove_expired(&files, wall_ms(), true));
        let (jobs, todo) = channel();
        std::thread::Builder::new().name("holds".into()).spawn(move || keep(&files, &inbox, &todo))?;
        Ok(Self { jobs })
    }

    /// The files are held: they are to be read, and the member is told what they are.
    pub fn describe(&self, barrier: u64, note: HoldNote, hold: F, files: Vec<HeldFile>, places: Vec<Place>) {
        let _ = self.jobs.send(Job::Describe { barrier, note, hold, files, places });
    }

    /// Any order but to make a hold, which is the journal's.
    pub fn order(&self, order: HoldOrder) {
        let _ = self.jobs.send(Job::Order(order));
    }

    /// The disk is nearly full: all holds go.
    pub fn make_room(&self) {
        let _ = self.jobs.send(Job::MakeRoom);
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<std::io::Result<T>>) -> Job<F>) -> std::io::Result<T> {
        let (done, answer) = oneshot::channel();
        let _ = self.jobs.send(job(done));
        answer.await.map_err(|_| std::io::Error::other("the thread of holds has ended"))?
    }

    /// The holds that there are.
    ///
    /// # Errors
    /// The disk's.
    pub async fn list(&self) -> std::io::Result<Vec<HoldNote>> {
        self.ask(Job::List).await
    }

    /// Lets a hold live until then. There must be one of that name.
    ///
    /// # Errors
    /// The disk's; `NotFound` without such a hold.
    pub async fn renew(&self, hold: String, expires_at_ms: u64) -> std::io::Result<()> {
        self.ask(|done| Job::Renew { hold, expires_at_ms, done }).await
    }

    /// What there is of the hold of that name.
    ///
    /// # Errors
    /// The disk's.
    pub async fn manifest(&self, hold: String) -> std::io::Result<Held> {
        self.ask(|done| Job::Manifest { hold, done }).await
    }

    /// Ends a hold, if there is one of that name.
    ///
    /// # Errors
    /// The disk's.
    pub async fn remove(&self, hold: String) -> std::io::Result<()> {
        self.ask(|done| Job::Remove { hold, done }).await
    }
}

fn keep<F: HoldingFileSystem>(files: &F, inbox: &Lane, todo: &Receiver<Job<F>>) {
    let mut next_look = Instant::now() + LOOK_EVERY;
    loop {
        match todo.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
            Ok(job) => {
                let news = carry_out(files, job);
                if news.is_some_and(|news| inbox.send_blocking(Arrival::Input(Input::Hold(news))).is_err()) {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Also between jobs: somebody may ask again and again whether a hold has ended.
        if Instant::now() >= next_look {
            tell_expired(remove_expired(files, wall_ms(), false));
            next_look = Instant::now() + LOOK_EVERY;
        }
    }
}

fn tell_expired(removed: std::io::Result<Vec<String>>) {
    match removed {
        Ok(names) => names.iter().for_each(|name| tracing::info!("the hold of backup '{name}' has ended")),
        Err(error) => tracing::warn!("holds whose time has come cannot be removed: {error}"),
    }
}

fn carry_out<F: HoldingFileSystem>(files: &F, job: Job<F>) -> Option<HoldNews> {
    match job {
        Job::Describe { barrier, note, hold, files: held, places } => {
            let part = set_note(&hold, &note)
                .map_err(|error| format!("the hold cannot be noted: {error}"))
                .and_then(|()| describe(&note.member, &hold, &held, &places))
                .map(|part| part.to_bytes());
            if part.is_err()
                && let Err(error) = files.remove_hold(&note.id)
            {
                tracing::warn!("the hold of backup '{}' cannot be removed: {error}", note.id);
            }
            return Some(HoldNews::Described { barrier, part });
        }
        Job::Order(HoldOrder::Store { barrier, hold, manifest }) => {
            let stored = files.open_hold(&hold).and_then(|hold| write_file(&hold, MANIFEST, &manifest));
            return Some(HoldNews::Stored { barrier, outcome: stored.map_err(|error| error.to_string()) });
        }
        Job::Order(HoldOrder::Release { barrier, hold }) => {
            if let Err(error) = release(files, &hold, barrier) {
                tracing::warn!("the hold of backup '{hold}' cannot be removed: {error}");
            }
        }
        Job::Order(HoldOrder::Make { .. }) => {} // The journal's.
        Job::MakeRoom => {
            for hold in files.holds().unwrap_or_default() {
                tracing::error!("the disk is nearly full: the hold of backup '{hold}' is given up");
                let _ = files.remove_hold(&hold);
            }
        }
        Job::List(done) => drop(done.send(list(files))),
        Job::Renew { hold, expires_at_ms, done } => drop(done.send(renew(files, &hold, expires_at_ms))),
        Job::Remove { hold, done } => drop(done.send(files.remove_hold(&hold))),
        Job::Manifest { hold, done } => drop(done.send(manifest(files, &hold))),
    }
    None
}

fn list<F: HoldingFileSystem>(files: &F) -> std::io::Result<Vec<HoldNote>> {
    let note = |name: String| files.open_hold(&name).ok().and_then(|hold| note_of(&hold));
    Ok(files.holds()?.into_iter().filter_map(note).collect())
}

fn manifest<F: HoldingFileSystem>(files: &F, hold: &str) -> std::io::Result<Held> {
    let directory = match files.open_hold(hold) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Held::Nothing),
        opened => opened?,
    };
    match read_file(&directory, MANIFEST) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Held::Unfinished),
        read => read.map(Held::Manifest),
    }
}

fn renew<F: HoldingFileSystem>(files: &F, hold: &str, expires_at_ms: u64) -> std::io::Result<()> {
    let directory = files.open_hold(hold)?;
    let note = note_of(&directory).ok_or(std::io::ErrorKind::NotFound)?;
    set_note(&directory, &HoldNote { expires_at_ms, ..note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_journal::{FileSystem, RealFileSystem};

    fn hold(files: &RealFileSystem, name: &str, expires_at_ms: Option<u64>) {
        let hold = files.make_hold(name).unwrap();
        hold.create("segment", 10).unwrap();
        if let Some(expires_at_ms) = expires_at_ms {
            let note = HoldNote { id: name.into(), member: "m".into(), barrier: format!("{:016x}", 7), expires_at_ms };
            set_note(&hold, &note).unwrap();
        }
    }

    #[test]
    fn holds_end_when_their_time_has_come_and_unfinished_ones_only_at_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let files = RealFileSystem::new(directory.path()).unwrap();
        hold(&files, "long", Some(2_000));
        hold(&files, "short", Some(1_000));
        hold(&files, "unfinished", None);
        assert_eq!(remove_expired(&files, 999, false).unwrap(), Vec::<String>::new());
        assert_eq!(remove_expired(&files, 1_000, false).unwrap(), ["short"]);
        renew(&files, "long", 3_000).unwrap();
        assert!(renew(&files, "short", 3_000).is_err(), "it has ended");
        assert_eq!(remove_expired(&files, 2_500, true).unwrap(), ["unfinished"]);
        assert_eq!(list(&files).unwrap().iter().map(|note| note.expires_at_ms).collect::<Vec<_>>(), [3_000]);
    }

    #[test]
    fn a_barrier_releases_only_what_it_has_made_and_a_full_disk_ends_all() {
        let directory = tempfile::tempdir().unwrap();
        let files = RealFileSystem::new(directory.path()).unwrap();
        hold(&files, "a", Some(u64::MAX));
        hold(&files, "b", Some(u64::MAX));
        carry_out(&files, Job::Order(HoldOrder::Release { barrier: 8, hold: "a".into() }));
        assert_eq!(files.holds().unwrap(), ["a", "b"], "another barrier's");
        carry_out(&files, Job::Order(HoldOrder::Release { barrier: 7, hold: "a".into() }));
        assert_eq!(files.holds().unwrap(), ["b"]);
        carry_out(&files, Job::MakeRoom);
        assert_eq!(files.holds().unwrap(), Vec::<String>::new());
    }
}
