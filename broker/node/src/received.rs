//! What a blank member has received of a backup, in `restore` of its data directory: the manifest, and files of members'
//! holds. A file has its name only once it is whole, verified and durable, so what is there after a restart counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_engine::backup::{FileEntry, Manifest, MemberEntry, is_hold_name};
use holdfast_engine::restore::{Coverage, HoldCopy, usable};
use holdfast_journal::RealFileSystem;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hold_dirs::sha256_hex;

/// The directory in the data directory.
const RESTORE: &str = "restore";
const MANIFEST: &str = "manifest.json";
const NOTE: &str = "restore.json";
/// The note before it is whole and durable.
const FRESH_NOTE: &str = "restore.json.new";
const MEMBERS: &str = "members";
/// Files on their way.
const INCOMING: &str = "incoming";
/// Copies that are not needed as long as others come wait for those, until nothing was heard of one of them for so long.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// The longest name of a file, as the journal has it.
const NAME_BYTES: usize = 100;

/// Which restore it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    backup: String,
    manifest_sha256: String,
}

/// Why something was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What was sent is not what it must be.
    #[error("{0}")]
    Bad(String),
    /// The manifest names no such file.
    #[error("{0}")]
    NoSuchFile(String),
    #[error("it cannot be stored: {0}")]
    Io(#[from] io::Error),
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub files_present: u64,
    pub bytes_present: u64,
    /// Of the files of as few members as have all groups together.
    pub bytes_needed: u64,
    /// Groups of which no member's files are all here.
    pub uncovered: u64,
    /// The queues of some of them.
    pub uncovered_queues: Vec<String>,
}

/// A restore that has begun.
#[derive(Clone, Debug)]
pub struct Received {
    root: PathBuf,
    pub backup: String,
    pub manifest_sha256: String,
    pub manifest: Manifest,
    /// Member and file.
    present: BTreeSet<(String, String)>,
    /// Members of whose copies something came, or whose senders have asked.
    heard: BTreeMap<String, Heard>,
}

/// Of a copy that comes.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Since when, without silence.
    since: Instant,
    last: Instant,
}

impl Heard {
    fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= SILENT_FOR
    }
}

/// What the sender of a member's copy is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Send.
    Now,
    /// Ask again: the copies that are on their way have all that is needed, if they come whole.
    Later,
    /// Nothing of it is needed.
    Never,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Names that are a file's in its directory, and no other's.
fn is_safe(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_BYTES && !name.starts_with('.') && name.bytes().all(fits)
}

fn check_names(manifest: &Manifest) -> Result<(), Refused> {
    let members = manifest.members.iter().map(|member| &member.name);
    let files = manifest.members.iter().flat_map(|member| member.files.iter().map(|file| &file.name));
    match members.chain(files).find(|name| !is_safe(name)) {
        Some(name) => Err(Refused::Bad(format!("the manifest has the name '{name}', which no file of a backup has"))),
        None => Ok(()),
    }
}

impl Received {
    /// Whether there is anything of a restore in a data directory.
    #[must_use]
    pub fn is_any(data_dir: &Path) -> bool {
        data_dir.join(RESTORE).exists()
    }

    /// Removes all of it. Nothing of it may be under way.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(data_dir: &Path) -> io::Result<()> {
        let root = data_dir.join(RESTORE);
        // First what makes it count: what is left after a crash in the middle is no restore.
        for name in [NOTE, MANIFEST] {
            match std::fs::remove_file(root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match std::fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(data_dir),
        }
    }

    /// What an earlier process has received; none if nothing of use is there, and then nothing is left of it.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(data_dir: &Path) -> io::Result<Option<Self>> {
        let root = data_dir.join(RESTORE);
        if !root.exists() {
            return Ok(None);
        }
        let _ = std::fs::remove_dir_all(root.join(INCOMING));
        let read = || -> Option<Self> {
            let note: Note = serde_json::from_slice(&std::fs::read(root.join(NOTE)).ok()?).ok()?;
            let bytes = std::fs::read(root.join(MANIFEST)).ok()?;
            if sha256_hex(&bytes) != note.manifest_sha256 {
                return None;
            }
            let manifest = Manifest::from_file(&bytes).ok()?;
            check_names(&manifest).ok()?;
            let (root, present) = (root.clone(), BTreeSet::new());
            let (backup, manifest_sha256) = (note.backup, note.manifest_sha256);
            Some(Self { root, backup, manifest_sha256, manifest, present, heard: BTreeMap::new() })
        };
        let Some(mut received) = read() else {
            Self::remove(data_dir)?;
            return Ok(None);
        };
        for member in &received.manifest.members {
            let dir = received.root.join(MEMBERS).join(&member.name);
            let is_here = |file: &&FileEntry| {
                std::fs::metadata(dir.join(&file.name)).is_ok_and(|found| found.len() == file.length)
            };
            let here = member.files.iter().filter(is_here).map(|file| (member.name.clone(), file.name.clone()));
            received.present.extend(here);
        }
        Ok(Some(received))
    }

    /// Begins with a manifest, durably.
    ///
    /// # Errors
    /// It is not what it must be, or the disk's.
    pub fn begin(data_dir: &Path, backup: &str, sha256: &str, bytes: &[u8]) -> Result<Self, Refused> {
        if !is_hold_name(backup) {
            return Err(Refused::Bad(format!("'{backup}' cannot name a backup")));
        }
        let found = sha256_hex(bytes);
        if !found.eq_ignore_ascii_case(sha256) {
            return Err(Refused::Bad(format!("the manifest's SHA-256 is {found}, and should be {sha256}")));
        }
        let manifest = Manifest::from_file(bytes).map_err(|why| Refused::Bad(format!("the manifest: {why}")))?;
        usable(&manifest).map_err(|error| Refused::Bad(error.to_string()))?;
        check_names(&manifest)?;
        Self::remove(data_dir)?;
        let root = data_dir.join(RESTORE);
        let (present, heard) = (BTreeSet::new(), BTreeMap::new());
        let received = Self { root, backup: backup.to_owned(), manifest_sha256: found, manifest, present, heard };
        if let Err(error) = received.store(data_dir, bytes) {
            // What was begun is no restore, and would be in the way of a bootstrap.
            let _ = Self::remove(data_dir);
            return Err(error.into());
        }
        Ok(received)
    }

    fn store(&self, data_dir: &Path, manifest: &[u8]) -> io::Result<()> {
        let members = self.root.join(MEMBERS);
        std::fs::create_dir_all(&members)?;
        for member in &self.manifest.members {
            std::fs::create_dir_all(members.join(&member.name))?;
        }
        sync_dir(&members)?;
        write_durably(&self.root.join(MANIFEST), manifest)?;
        let note = Note { backup: self.backup.clone(), manifest_sha256: self.manifest_sha256.clone() };
        let fresh = self.root.join(FRESH_NOTE);
        // Last: with it the restore counts.
        write_durably(&fresh, &serde_json::to_vec(&note)?)?;
        std::fs::rename(fresh, self.root.join(NOTE))?;
        sync_dir(&self.root)?;
        sync_dir(data_dir)
    }

    fn member(&self, member: &str) -> Result<&MemberEntry, Refused> {
        let known = self.manifest.members.iter().find(|known| known.name == member);
        known.ok_or_else(|| Refused::NoSuchFile(format!("the manifest has no files of member '{member}'")))
    }

    /// What the manifest says of a file.
    ///
    /// # Errors
    /// It does not name it.
    pub fn entry(&self, member: &str, file: &str) -> Result<&FileEntry, Refused> {
        let known = self.member(member)?.files.iter().find(|known| known.name == file);
        known.ok_or_else(|| Refused::NoSuchFile(format!("the manifest has no file '{file}' of member '{member}'")))
    }

    /// A place for a file that is to come.
    ///
    /// # Errors
    /// The manifest does not name it, or the disk's.
    pub fn expect(&self, member: &str, file: &str) -> Result<Incoming, Refused> {
        let entry = self.entry(member, file)?.clone();
        let incoming = self.root.join(INCOMING);
        std::fs::create_dir_all(&incoming)?;
        let path = incoming.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        let target = self.root.join(MEMBERS).join(member).join(file);
        let out = File::create(&path)?;
        Ok(Incoming { entry, path, target, out, length: 0, sum: Sha256::new() })
    }

    /// A file is there.
    pub fn arrived(&mut self, member: &str, file: &str) {
        self.present.insert((member.to_owned(), file.to_owned()));
    }

    #[must_use]
    pub fn has(&self, member: &str, file: &str) -> bool {
        self.present.contains(&(member.to_owned(), file.to_owned()))
    }

    /// Members all of whose files are here.
    #[must_use]
    pub fn whole(&self) -> BTreeSet<String> {
        let is_whole = |member: &&MemberEntry| member.files.iter().all(|file| self.has(&member.name, &file.name));
        self.manifest.members.iter().filter(is_whole).map(|member| member.name.clone()).collect()
    }

    /// The files of a member, and whether each is here.
    ///
    /// # Errors
    /// The manifest has none of that member.
    pub fn files_of(&self, member: &str) -> Result<Vec<(FileEntry, bool)>, Refused> {
        let files = self.member(member)?.files.iter();
        Ok(files.map(|file| (file.clone(), self.has(member, &file.name))).collect())
    }

    /// Something of a member's copy came, or its sender asks.
    pub fn heard_of(&mut self, member: &str, now: Instant) {
        let before = self.heard.get(member).filter(|heard| !heard.is_silent(now));
        let since = before.map_or(now, |heard| heard.since);
        self.heard.insert(member.to_owned(), Heard { since, last: now });
    }

    /// Whether a member's copy is to be sent. Each is as large as the backup, so of those that come, those that came first
    /// are taken, until they have all groups together. The others wait, until one of those is silent without being whole: it
    /// is damaged, or its sender has died.
    #[must_use]
    pub fn turn_of(&self, member: &str, now: Instant) -> Turn {
        let (coverage, whole) = (Coverage::of(&self.manifest), self.whole());
        if !coverage.is_needed(member, &whole) {
            return Turn::Never;
        }
        let coming = self.heard.iter().filter(|(name, heard)| !heard.is_silent(now) && !whole.contains(*name));
        let mut coming: Vec<(Instant, &String)> = coming.map(|(name, heard)| (heard.since, name)).collect();
        coming.sort();
        let mut taken = whole;
        for (_, name) in coming {
            if coverage.is_needed(name, &taken) {
                taken.insert(name.clone());
            }
        }
        match taken.contains(member) || !coverage.lacking(&taken).is_empty() {
            true => Turn::Now,
            false => Turn::Later,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let coverage = Coverage::of(&self.manifest);
        let all = self.manifest.members.iter().map(|member| member.name.clone()).collect();
        let needed = coverage.chosen(&all);
        let lacking = coverage.lacking(&self.whole());
        let files = self.manifest.members.iter();
        let files = files.flat_map(|member| member.files.iter().map(move |file| (member, file)));
        let present = files.filter(|(member, file)| self.has(&member.name, &file.name));
        let queues = lacking.iter().flat_map(|group| &group.state.queues);
        Progress {
            files_present: self.present.len() as u64,
            bytes_present: present.map(|(_, file)| file.length).sum(),
            bytes_needed: needed.iter().flat_map(|member| &member.files).map(|file| file.length).sum(),
            uncovered: lacking.len() as u64,
            uncovered_queues: queues.take(5).map(|queue| format!("{}/{}", queue.vhost, queue.name)).collect(),
        }
    }

    /// The copies that are whole.
    ///
    /// # Errors
    /// The disk's.
    pub fn copies(&self) -> io::Result<Vec<HoldCopy<RealFileSystem>>> {
        let copy = |member: String| {
            let files = RealFileSystem::new(&self.root.join(MEMBERS).join(&member))?;
            Ok(HoldCopy { member, files })
        };
        self.whole().into_iter().map(copy).collect()
    }
}

/// A file on its way. What is not finished is removed.
#[derive(Debug)]
pub struct Incoming {
    entry: FileEntry,
    path: PathBuf,
    target: PathBuf,
    out: File,
    length: u64,
    sum: Sha256,
}

impl Incoming {
    /// The next bytes.
    ///
    /// # Errors
    /// They are too many, or the disk's.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.length += bytes.len() as u64;
        if self.length > self.entry.length {
            return Err(self.wrong(format!("it has more than its {} bytes", self.entry.length)));
        }
        self.sum.update(bytes);
        self.out.write_all(bytes)?;
        Ok(())
    }

    fn wrong(&self, what: String) -> Refused {
        Refused::Bad(format!("{}: {what}", self.entry.name))
    }

    /// That was all: the file takes its place, durably, if it is what it must be.
    ///
    /// # Errors
    /// It is not, or the disk's.
    pub fn finish(mut self) -> Result<(), Refused> {
        if self.length < self.entry.length {
            let what = format!("it is truncated: {} bytes came of {}", self.length, self.entry.length);
            return Err(self.wrong(what));
        }
        let found: String = std::mem::take(&mut self.sum).finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != self.entry.sha256 {
            let what = format!("it is changed: its SHA-256 is {found}, and should be {}", self.entry.sha256);
            return Err(self.wrong(what));
        }
        self.out.sync_all()?;
        std::fs::rename(&self.path, &self.target)?;
        sync_dir(self.target.parent().unwrap_or(&self.target))?;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After it was finished there is nothing under this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_engine::backup::GroupEntry;

    /// Members a, b and c with a file each; the groups, by who holds them.
    fn received(dir: &Path, holders: &[&[&str]]) -> Received {
        let group = |(number, holders): (usize, &&[&str])| {
            let mut group = GroupEntry::default();
            group.place.group = number as u64;
            group.holders = holders.iter().map(ToString::to_string).collect();
            group
        };
        let member = |name: &str| {
            let file = FileEntry { name: "segment".into(), ..FileEntry::default() };
            MemberEntry { name: name.into(), files: vec![file], ..MemberEntry::default() }
        };
        let manifest = Manifest {
            groups: holders.iter().enumerate().map(group).collect(),
            members: ["a", "b", "c"].map(member).to_vec(),
            ..Manifest::default()
        };
        Received {
            root: dir.to_owned(),
            backup: "b".into(),
            manifest_sha256: String::new(),
            manifest,
            present: BTreeSet::new(),
            heard: BTreeMap::new(),
        }
    }

    fn turns(received: &Received, now: Instant) -> [Turn; 3] {
        ["a", "b", "c"].map(|member| received.turn_of(member, now))
    }

    #[test]
    fn the_copy_that_comes_first_is_taken_and_the_next_one_once_that_is_silent() {
        let all: &[&str] = &["a", "b", "c"];
        let (mut received, start) = (received(Path::new("nowhere"), &[all, all]), Instant::now());
        assert_eq!(turns(&received, start), [Turn::Now; 3], "nobody has come yet");
        received.heard_of("b", start);
        let later = start + Duration::from_secs(4);
        for member in ["a", "b", "c"] {
            received.heard_of(member, later);
        }
        assert_eq!(turns(&received, later), [Turn::Later, Turn::Now, Turn::Later]);
        // b says nothing any more, and c asks later than a.
        let silent = start + Duration::from_secs(9);
        for member in ["a", "c"] {
            received.heard_of(member, silent);
        }
        assert_eq!(received.turn_of("c", silent), Turn::Later);
        assert_eq!(received.turn_of("a", silent), Turn::Now);
        received.arrived("a", "segment");
        assert_eq!(turns(&received, silent), [Turn::Never; 3]);
    }

    #[test]
    fn copies_that_have_all_groups_only_together_all_come() {
        let (mut received, now) =
            (received(Path::new("nowhere"), &[&["a", "b"], &["b", "c"], &["a", "c"]]), Instant::now());
        for member in ["a", "b", "c"] {
            received.heard_of(member, now);
        }
        assert_eq!(turns(&received, now), [Turn::Now, Turn::Now, Turn::Later]);
        received.arrived("a", "segment");
        assert_eq!(
            turns(&received, now),
            [Turn::Never, Turn::Now, Turn::Later],
            "either of the two has the last group"
        );
    }
}
