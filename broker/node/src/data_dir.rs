//! The data directory: ours alone while this process runs, and never mistaken for another directory.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::failure::{ExitKind, Failure};

/// The lock file; holds the process id of its holder, for messages.
const LOCK: &str = "LOCK";
/// Says that the directory is ours, and in which layout.
const MARKER: &str = "HOLDFAST";
/// The marker before it is whole and durable; left behind only by a first start that was cut short.
const FRESH_MARKER: &str = "HOLDFAST.new";
const MARKER_TEXT: &str = "Holdfast data directory, layout 1. Do not change or remove files in it.\n";

/// Where the journal lives in it.
pub(crate) const JOURNAL: &str = "journal";

/// An exclusively locked data directory. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be, waits up to `patience` for its lock, and checks that it is ours.
    /// Never deletes anything.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, Failure> {
        std::fs::create_dir_all(path).map_err(|error| unusable(path, "created", &error))?;
        refuse_foreign(path)?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join(LOCK))
            .map_err(|error| unusable(path, "written", &error))?;
        wait_for(&mut lock, path, patience)?;
        let note = |lock: &mut File| -> std::io::Result<()> {
            lock.set_permissions(Permissions::from_mode(0o600))?;
            lock.set_len(0)?;
            lock.rewind()?;
            write!(lock, "{}", std::process::id())?;
            mark(path)
        };
        note(&mut lock).map_err(|error| unusable(path, "written", &error))?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// As [`DataDir::open`], for a directory that a member has used already. Nothing is created in any other.
    pub fn open_existing(path: &Path, patience: Duration) -> Result<Self, Failure> {
        if !path.join(MARKER).is_file() {
            return Err(Failure::new(
                ExitKind::Data,
                format!("{} is not a Holdfast data directory: it has no file {MARKER}", path.display()),
                "give the directory that is dataDir in the member's configuration; nothing was changed",
            ));
        }
        Self::open(path, patience)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the journal lives in it.
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }
}

/// Puts the marker there, whole and durable before anything else is: a power loss must not leave a directory with data
/// whose marker is empty or gone, which every later start would refuse.
fn mark(path: &Path) -> std::io::Result<()> {
    let (marker, fresh) = (path.join(MARKER), path.join(FRESH_MARKER));
    if !marker.exists() {
        let mut file = File::create(&fresh)?;
        file.write_all(MARKER_TEXT.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &marker)?;
    }
    // Also when it was there: the start that made it may have ended before this.
    File::open(path)?.sync_all()
}

fn unusable(path: &Path, verb: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        ExitKind::Io,
        format!("the data directory {} cannot be {verb}: {error}", path.display()),
        "check that its volume is mounted and that this user owns it; nothing was changed",
    )
}

/// Refuses a directory that holds files but not our marker, such as a home directory or another program's data.
fn refuse_foreign(path: &Path) -> Result<(), Failure> {
    match std::fs::read_to_string(path.join(MARKER)) {
        Ok(text) if text == MARKER_TEXT => return Ok(()),
        Ok(text) => {
            return Err(Failure::new(
                ExitKind::Data,
                format!(
                    "the data directory {} is marked {:?}, which this version does not know",
                    path.display(),
                    text.chars().take(80).collect::<String>()
                ),
                "start the version of holdfast-broker that wrote it; nothing was changed",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(path, "read", &error)),
    }
    let entries = std::fs::read_dir(path).map_err(|error| unusable(path, "read", &error))?;
    let stranger = entries
        .filter_map(|entry| entry.ok())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| ![LOCK, FRESH_MARKER, "lost+found"].contains(&name.as_str()));
    match stranger {
        None => Ok(()),
        Some(name) => Err(Failure::new(
            ExitKind::Data,
            format!("{} is not a Holdfast data directory: it holds `{name}` and no file {MARKER}", path.display()),
            "point dataDir at an empty directory or at one that Holdfast made; nothing was changed",
        )),
    }
}

fn wait_for(lock: &mut File, path: &Path, patience: Duration) -> Result<(), Failure> {
    let start = Instant::now();
    let mut told = false;
    loop {
        match flock(&*lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(unusable(path, "locked", &error.into())),
        }
        let holder = holder(lock);
        if start.elapsed() >= patience {
            return Err(Failure::new(
                ExitKind::Temporary,
                format!("the data directory {} is in use by {holder}", path.display()),
                "stop that process, or give this one a data directory of its own",
            ));
        }
        if !told {
            tracing::warn!("waiting for the data directory {}, which is in use by {holder}", path.display());
            told = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The lock's holder in words, as far as the file tells.
fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory_and_the_first_one_leaves_no_lock_behind() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), Duration::ZERO).unwrap();
        let failure = DataDir::open(dir.path(), Duration::from_millis(10)).unwrap_err();
        assert_eq!(failure.kind, ExitKind::Temporary);
        assert!(failure.problem.contains(&format!("process {}", std::process::id())), "{failure}");
        drop(first);
        DataDir::open(dir.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_directory_with_files_of_others_is_refused_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let failure = DataDir::open(dir.path(), Duration::ZERO).unwrap_err();
        assert!(failure.problem.contains("thesis.txt"), "{failure}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK), "").unwrap();
        std::fs::write(dir.path().join(FRESH_MARKER), &MARKER_TEXT[..9]).unwrap();
        drop(DataDir::open(dir.path(), Duration::ZERO).unwrap());
        assert_eq!(std::fs::read_to_string(dir.path().join(MARKER)).unwrap(), MARKER_TEXT);
        assert!(!dir.path().join(FRESH_MARKER).exists());
        DataDir::open_existing(dir.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_layout_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MARKER), "Holdfast data directory, layout 9.").unwrap();
        assert_eq!(DataDir::open(dir.path(), Duration::ZERO).unwrap_err().kind, ExitKind::Data);
    }

    #[test]
    fn a_path_that_is_a_file_is_refused_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = DataDir::open(file.path(), Duration::ZERO).unwrap_err();
        assert_eq!(failure.kind, ExitKind::Io);
        assert!(failure.problem.contains("cannot be created"), "{failure}");
    }
}
