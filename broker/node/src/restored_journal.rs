//! A blank data directory is given the journal of a new cluster's founder, out of a backup.
//!
//! The journal is made beside the blank one, read again and compared with the manifest, and then takes its place in one step
//! of the file system. Whatever instant a process ends at, the directory is either blank, with perhaps something unfinished
//! beside its journal, or that of the founder. Which restore a journal comes from is in a file in it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use holdfast_engine::backup::{Manifest, MemberEntry};
use holdfast_engine::identity::Identity;
use holdfast_engine::restore::{Coverage, HoldCopy, NewCluster, RestoreError, Restored, build, check};
use holdfast_journal::{FileSystem, Inspection, Journal, JournalConfig, RealFileSystem, Scrutiny, inspect};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::clock::random_u64;
use crate::data_dir::JOURNAL;
use crate::failure::{ExitKind, Failure};
use crate::received::Received;

/// In a journal that a restore made.
const RECORD: &str = "restore.json";
/// Where the new journal is made, and the blank one goes.
const BESIDE: &str = "journal-restored";
/// Room beside what the files of the backup take: the open segment and the one that is made ready.
const SPARE_BYTES: u64 = 2 * (64 << 20);
/// What a group's records take in the log beside its messages, at most a block of the disk.
const CHECKPOINT_BYTES: u64 = 4096;

/// Which restore made a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreRecord {
    pub backup: String,
    pub manifest_sha256: String,
    pub cluster_id: String,
}

fn trouble(path: &Path, what: &str, error: impl std::fmt::Display) -> Failure {
    let problem = format!("{}: {what}: {error}", path.display());
    Failure::new(ExitKind::Io, problem, "check the volume; what the directory held is as it was")
}

/// The restore that made the journal of this data directory, if one did.
///
/// # Errors
/// The record cannot be read.
pub fn record_of(data_dir: &Path) -> Result<Option<RestoreRecord>, Failure> {
    let path = data_dir.join(JOURNAL).join(RECORD);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| trouble(&path, "cannot be read", error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(trouble(&path, "cannot be read", error)),
    }
}

/// Removes what a restore has left beside the journal: something unfinished, or the blank journal that was replaced.
///
/// # Errors
/// The disk's.
pub fn tidy(data_dir: &Path) -> Result<(), Failure> {
    let beside = data_dir.join(BESIDE);
    match std::fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(trouble(&beside, "cannot be removed", error)),
        _ => Ok(()),
    }
}

/// At a start: what is left of a restore that was done, or that can never be applied, goes; what a blank member has received
/// stays, so that it can be gone on with.
///
/// # Errors
/// The disk's.
pub fn tidy_at_start(data_dir: &Path, is_blank: bool) -> Result<(), Failure> {
    tidy(data_dir)?;
    match is_blank {
        true => Ok(()),
        false => {
            Received::remove(data_dir).map_err(|error| trouble(data_dir, "what was received cannot be removed", error))
        }
    }
}

/// After the new journal is in its place, as far as that can be: the next start does the rest.
pub fn clear_away(data_dir: &Path) {
    if let Err(failure) = tidy_at_start(data_dir, false) {
        tracing::warn!("{failure}");
    }
}

/// Refuses a directory whose member is in a cluster, or was. Gives the highest token that it has seen.
///
/// # Errors
/// It is not blank, or cannot be read.
pub fn refuse_used(data_dir: &Path) -> Result<u64, Failure> {
    let journal = data_dir.join(JOURNAL);
    if !journal.is_dir() {
        return Ok(0);
    }
    let files = RealFileSystem::new(&journal).map_err(|error| trouble(&journal, "cannot be opened", error))?;
    let used = |what: String| {
        let remedy = "a restore takes an empty directory; nothing was changed";
        Failure::new(ExitKind::Data, format!("{} is not blank: {what}", data_dir.display()), remedy)
    };
    let found: Inspection = inspect(&files, Scrutiny::AsAtStart).map_err(|error| used(error.to_string()))?;
    let identity = found.identity.as_ref().map(|bytes| Identity::decode(bytes)).transpose();
    let identity = identity.map_err(|error| used(error.to_string()))?;
    if let Some(own) = identity.as_ref().and_then(|identity| identity.membership.as_ref()) {
        return Err(used(format!("it is that of member {} of cluster {}", own.member, own.cluster_id)));
    }
    match found.groups.first() {
        Some(group) => Err(used(format!("it holds group {}", group.key.group))),
        None => Ok(identity.map_or(0, |identity| identity.admin_token)),
    }
}

/// Bytes that the new journal takes at most: what it is made of, and room to work.
#[must_use]
pub fn bytes_needed(manifest: &Manifest, members: &[&MemberEntry]) -> u64 {
    let read = members.iter().flat_map(|member| &member.files).map(|file| file.length).sum::<u64>();
    // What is written is part of what is read, but for a checkpoint of every group.
    read + CHECKPOINT_BYTES * manifest.totals.groups + SPARE_BYTES
}

/// Refuses a directory on whose volume there is less room.
///
/// # Errors
/// It says how much is needed.
pub fn refuse_lack_of_room(dir: &Path, needed: u64) -> Result<(), Failure> {
    let stat = rustix::fs::statvfs(dir).map_err(|error| trouble(dir, "its room cannot be had", error))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free >= needed {
        return Ok(());
    }
    Err(Failure::new(
        ExitKind::Io,
        format!("{} has no room: the restore needs {needed} bytes, and {free} are free", dir.display()),
        "make the volume larger, or free some of it; nothing was changed",
    ))
}

/// Makes the founder's journal beside the blank one, and proves it. Nothing counts before [`put_in_place`].
///
/// # Errors
/// Nothing was changed then.
pub fn prepare<F: FileSystem>(
    data_dir: &Path,
    manifest: &Manifest,
    copies: &[HoldCopy<F>],
    new: &NewCluster,
    record: &RestoreRecord,
) -> Result<Restored, Failure> {
    tidy(data_dir)?;
    let beside = data_dir.join(BESIDE);
    let made = make(&beside, manifest, copies, new, record);
    if made.is_err() {
        // What was begun is worth nothing, and takes room. If it cannot be removed, the next one does it.
        let _ = tidy(data_dir);
    }
    made
}

fn make<F: FileSystem>(
    beside: &Path,
    manifest: &Manifest,
    copies: &[HoldCopy<F>],
    new: &NewCluster,
    record: &RestoreRecord,
) -> Result<Restored, Failure> {
    let files = RealFileSystem::new(beside).map_err(|error| trouble(beside, "cannot be made", error))?;
    let members = copies.iter().map(|copy| copy.member.clone()).collect();
    refuse_lack_of_room(beside, bytes_needed(manifest, &Coverage::of(manifest).chosen(&members)))?;
    let nonce = random_u64().map_err(|error| trouble(beside, "no random numbers", error))?;
    let config = JournalConfig { nonce, ..JournalConfig::default() };
    let (mut journal, _) =
        Journal::open(files.clone(), config).map_err(|error| failed(beside, &RestoreError::Journal(error)))?;
    let restored = build(&mut journal, manifest, copies, new).map_err(|error| failed(beside, &error))?;
    drop(journal);
    check(&files, manifest, new).map_err(|error| failed(beside, &error))?;
    let path = beside.join(RECORD);
    let bytes = serde_json::to_vec(record).map_err(|error| trouble(&path, "cannot be written", error))?;
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        File::open(beside)?.sync_all()
    };
    write().map_err(|error| trouble(&path, "cannot be written", error))?;
    Ok(restored)
}

fn failed(beside: &Path, error: &RestoreError) -> Failure {
    match error {
        RestoreError::Backup(why) => {
            Failure::new(ExitKind::Data, why.clone(), "give a whole copy of another member's hold; nothing was changed")
        }
        RestoreError::Journal(error) => trouble(beside, "the new journal cannot be written", error),
        RestoreError::Differs(_) => {
            let remedy = "nothing was changed; if it happens again, report it, with the manifest";
            Failure::new(ExitKind::Internal, error.to_string(), remedy)
        }
    }
}

/// The prepared journal takes the place of the blank one: it has happened wholly or not at all.
///
/// # Errors
/// The disk's.
pub fn put_in_place(data_dir: &Path) -> Result<(), Failure> {
    let (beside, journal): (PathBuf, PathBuf) = (data_dir.join(BESIDE), data_dir.join(JOURNAL));
    let flags = if journal.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, &beside, CWD, &journal, flags)
        .map_err(|error| trouble(data_dir, "the new journal cannot take the blank one's place", error))?;
    let synced = File::open(data_dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| trouble(data_dir, "cannot be synced", error))
}
