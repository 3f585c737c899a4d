//! The pool: one btrfs file system that holds every volume and every snapshot as a subvolume, and beside each a record.
//!
//! A subvolume's snapshot is one transaction of the file system, so it shows every file at the same instant, and costs
//! neither a copy nor a pause. Sizes are recorded and not enforced. Snapshots belong to no zone, as those of a cloud
//! region, and a volume made from one may be in any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::faults::SnapshotParameters;

/// A volume of the pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// The name it was asked for under.
    pub name: String,
    /// What was promised.
    pub capacity_bytes: i64,
    /// Where it may be mounted; empty for anywhere.
    pub topology: BTreeMap<String, String>,
    /// The snapshot it began as.
    pub source_snapshot: Option<String>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name it was asked for under.
    pub name: String,
    /// The volume it shows.
    pub source_volume: String,
    /// The least capacity of a volume made from it.
    pub size_bytes: i64,
    /// The instant of the cut, in nanoseconds since 1970.
    pub created_ns: i64,
    /// Everything is copied, and whatever damage was asked for is done.
    pub complete: bool,
    /// How it was asked for.
    pub parameters: SnapshotParameters,
}

impl Snapshot {
    /// Whether a volume may be made from it now.
    pub fn ready_to_use(&self) -> bool {
        self.complete && now_ns() - self.created_ns >= self.parameters.ready_after_ms.saturating_mul(1_000_000)
    }
}

/// A record of the pool, with the folder that its kind lives in.
pub trait Record: Serialize + DeserializeOwned {
    /// The folder's name, and the first part of its ids.
    const KIND: &'static str;
}

impl Record for Volume {
    const KIND: &'static str = "volume";
}

impl Record for Snapshot {
    const KIND: &'static str = "snapshot";
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The id of what was asked for under `name`: the same name gives the same id, which makes creation idempotent. Names
/// may hold anything, ids only what is safe in a path.
pub fn id_of<R: Record>(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", R::KIND)
}

/// The pool below a mount point.
#[derive(Clone, Debug)]
pub struct Pool {
    root: PathBuf,
}

impl Pool {
    /// The pool at `root`, which must be the mount of a btrfs file system.
    ///
    /// # Errors
    /// When it is another file system, or not writable.
    pub async fn open(root: &Path) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
        let pool = Self { root: root.clone() };
        for folder in [pool.folder::<Volume>(), pool.folder::<Snapshot>()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let mount = btrfs(&["filesystem", "df", &root.to_string_lossy()]).await;
        mount
            .with_context(|| format!("{} must be on a btrfs file system: mkfs.btrfs and mount one", root.display()))?;
        Ok(pool)
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder<R: Record>(&self) -> PathBuf {
        self.root.join(format!("{}s", R::KIND))
    }

    /// The files of a volume or a snapshot.
    pub fn files<R: Record>(&self, id: &str) -> PathBuf {
        self.folder::<R>().join(id)
    }

    fn record_file<R: Record>(&self, id: &str) -> PathBuf {
        self.folder::<R>().join(format!("{id}.json"))
    }

    /// The record under an id, if there is one. An id that this driver cannot have given finds none.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn find<R: Record>(&self, id: &str) -> Result<Option<R>> {
        if !id.starts_with(R::KIND) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Ok(None);
        }
        let file = self.record_file::<R>(id);
        match std::fs::read(&file) {
            Ok(text) => {
                Ok(Some(serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep<R: Record>(&self, id: &str, record: &R) -> Result<()> {
        let file = self.record_file::<R>(id);
        let new = file.with_extension("new");
        let context = || format!("write {}", file.display());
        std::fs::write(&new, serde_json::to_vec_pretty(record)?).with_context(context)?;
        std::fs::rename(&new, &file).with_context(context)
    }

    /// Every record of a kind with its id, in the order of the ids.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn all<R: Record>(&self) -> Result<Vec<(String, R)>> {
        let folder = self.folder::<R>();
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let name = entry?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        ids.sort();
        let records = ids.into_iter().map(|id| Ok(self.find(&id)?.map(|record| (id, record))));
        records.filter_map(Result::transpose).collect()
    }

    /// Makes an empty subvolume for an id, in place of what an interrupted attempt left.
    ///
    /// # Errors
    /// What `btrfs` said.
    pub async fn make_empty<R: Record>(&self, id: &str) -> Result<()> {
        self.remove_files::<R>(id).await?;
        btrfs(&["subvolume", "create", &self.files::<R>(id).to_string_lossy()]).await
    }

    /// Makes the files of `to` those of `from` as they are at one instant.
    ///
    /// # Errors
    /// What `btrfs` said.
    pub async fn copy_at_once<From: Record, To: Record>(&self, from: &str, to: &str) -> Result<()> {
        self.remove_files::<To>(to).await?;
        let (from, to) = (self.files::<From>(from), self.files::<To>(to));
        btrfs(&["subvolume", "snapshot", &from.to_string_lossy(), &to.to_string_lossy()]).await
    }

    /// From now on nobody changes these files.
    ///
    /// # Errors
    /// What `btrfs` said.
    pub async fn seal<R: Record>(&self, id: &str) -> Result<()> {
        btrfs(&["property", "set", "-ts", &self.files::<R>(id).to_string_lossy(), "ro", "true"]).await
    }

    /// Removes the files and then the record; what is not there is no error.
    ///
    /// # Errors
    /// When something is left.
    pub async fn remove<R: Record>(&self, id: &str) -> Result<()> {
        self.remove_files::<R>(id).await?;
        let file = self.record_file::<R>(id);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    async fn remove_files<R: Record>(&self, id: &str) -> Result<()> {
        let files = self.files::<R>(id);
        ensure!(files.parent() == Some(&self.folder::<R>()), "{id} is no id of this pool");
        if files.try_exists().with_context(|| format!("look for {}", files.display()))? {
            btrfs(&["subvolume", "delete", &files.to_string_lossy()]).await?;
        }
        Ok(())
    }
}

/// Runs `btrfs` of btrfs-progs to its end.
async fn btrfs(args: &[&str]) -> Result<()> {
    run("btrfs", args).await
}

/// Runs a program to its end; its errors become ours.
///
/// # Errors
/// When it cannot be started or fails.
pub async fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = command.output().await.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ids_that_are_safe_in_a_path() {
        let id = id_of::<Volume>("../../etc/passwd\n");
        assert_eq!(id.len(), "volume-".len() + 24);
        assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
        assert_eq!(id, id_of::<Volume>("../../etc/passwd\n"));
        assert_ne!(id, id_of::<Volume>("another"));
    }

    #[test]
    fn records_are_found_by_ids_of_their_kind_only() {
        let root = tempfile::tempdir().unwrap();
        let pool = Pool { root: root.path().to_owned() };
        std::fs::create_dir_all(pool.folder::<Volume>()).unwrap();
        let volume =
            Volume { name: "a".to_owned(), capacity_bytes: 1, topology: BTreeMap::new(), source_snapshot: None };
        let id = id_of::<Volume>("a");
        pool.keep(&id, &volume).unwrap();
        assert_eq!(pool.find::<Volume>(&id).unwrap().unwrap().name, "a");
        assert_eq!(pool.all::<Volume>().unwrap().len(), 1);
        for unknown in ["", "volume-0", "../volume", &id_of::<Snapshot>("a")] {
            assert!(pool.find::<Volume>(unknown).unwrap().is_none(), "{unknown} was found");
        }
    }
}
