//! A slow copy of live files: each is read while others, and itself, are written to. What comes out is what the plainest
//! of storage classes call a snapshot.

use std::collections::HashMap;
use std::fs::{File, Metadata, Permissions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Read at a time; small enough that a low rate is even.
const CHUNK_BYTES: usize = 128 << 10;

/// One copy under way.
pub struct TornCopy<'a> {
    rate_mib_per_s: u64,
    cancelled: &'a AtomicBool,
    started: Instant,
    copied_bytes: u64,
    /// Where a file with several names was copied to under its first.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<'a> TornCopy<'a> {
    /// A copy at most this fast (0: no limit), until `cancelled`.
    pub fn new(rate_mib_per_s: u64, cancelled: &'a AtomicBool) -> Self {
        Self { rate_mib_per_s, cancelled, started: Instant::now(), copied_bytes: 0, linked: HashMap::new() }
    }

    /// Copies what is in `from` into the folder `to`, in the order of names. What vanishes meanwhile is left out.
    /// Returns the bytes that were read.
    ///
    /// # Errors
    /// When something cannot be read or written, or the copy is cancelled.
    pub fn copy_tree(mut self, from: &Path, to: &Path) -> Result<u64> {
        self.copy_folder(from, to)?;
        keep_owner_and_mode(to, &from.metadata().with_context(|| format!("look at {}", from.display()))?)?;
        Ok(self.copied_bytes)
    }

    fn copy_folder(&mut self, from: &Path, to: &Path) -> Result<()> {
        let Some(entries) = there(std::fs::read_dir(from)).with_context(|| format!("list {}", from.display()))? else {
            return Ok(());
        };
        let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let (from, to) = (from.join(&name), to.join(&name));
            let found = there(from.symlink_metadata()).with_context(|| format!("look at {}", from.display()))?;
            if let Some(found) = found {
                self.copy_entry(&from, &to, &found).with_context(|| format!("copy {}", from.display()))?;
            }
        }
        Ok(())
    }

    fn copy_entry(&mut self, from: &Path, to: &Path, found: &Metadata) -> Result<()> {
        let kind = found.file_type();
        if kind.is_dir() {
            std::fs::create_dir(to)?;
            self.copy_folder(from, to)?;
        } else if kind.is_symlink() {
            let Some(target) = there(std::fs::read_link(from))? else { return Ok(()) };
            std::os::unix::fs::symlink(target, to)?;
            std::os::unix::fs::lchown(to, Some(found.uid()), Some(found.gid()))?;
            return Ok(());
        } else if kind.is_file() {
            if let Some(first) = self.linked.get(&(found.dev(), found.ino())) {
                std::fs::hard_link(first, to)?;
                return Ok(());
            }
            if !self.copy_file(from, to)? {
                return Ok(());
            }
            if found.nlink() > 1 {
                self.linked.insert((found.dev(), found.ino()), to.to_owned());
            }
        } else {
            // Sockets and pipes hold no data.
            return Ok(());
        }
        keep_owner_and_mode(to, found)
    }

    /// False if the file had vanished.
    fn copy_file(&mut self, from: &Path, to: &Path) -> Result<bool> {
        let Some(mut from) = there(File::open(from))? else { return Ok(false) };
        let mut to = File::create_new(to)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut length = 0;
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            // Preallocated space stays a hole.
            if chunk[..read].iter().all(|byte| *byte == 0) {
                to.seek(SeekFrom::Current(i64::try_from(read)?))?;
            } else {
                to.write_all(&chunk[..read])?;
            }
            length += read as u64;
            self.pace(read as u64)?;
        }
        to.set_len(length)?;
        Ok(true)
    }

    /// Waits until `read` more bytes are within the rate.
    fn pace(&mut self, read: u64) -> Result<()> {
        self.copied_bytes += read;
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                bail!("the copy was cancelled");
            }
            let due = self.due().saturating_sub(self.started.elapsed());
            if due.is_zero() {
                return Ok(());
            }
            // In slices, so that a cancelled copy ends soon.
            std::thread::sleep(due.min(Duration::from_millis(100)));
        }
    }

    /// When the bytes copied so far are due, from the start.
    fn due(&self) -> Duration {
        match self.rate_mib_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_millis(self.copied_bytes.saturating_mul(1000) / (rate << 20)),
        }
    }
}

/// `None` for what is not there any more.
fn there<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn keep_owner_and_mode(to: &Path, found: &Metadata) -> Result<()> {
    let context = || format!("set the owner of {}", to.display());
    std::os::unix::fs::chown(to, Some(found.uid()), Some(found.gid())).with_context(context)?;
    std::fs::set_permissions(to, Permissions::from_mode(found.mode())).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(from: &Path, to: &Path, rate: u64) -> Result<u64> {
        TornCopy::new(rate, &AtomicBool::new(false)).copy_tree(from, to)
    }

    #[test]
    fn a_copy_has_the_files_modes_links_and_holes_of_its_source() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path(), to.path());
        std::fs::create_dir(from.join("folder")).unwrap();
        std::fs::write(from.join("folder/data"), vec![7; 300_000]).unwrap();
        std::fs::set_permissions(from.join("folder/data"), Permissions::from_mode(0o640)).unwrap();
        std::fs::hard_link(from.join("folder/data"), from.join("held")).unwrap();
        std::os::unix::fs::symlink("folder/data", from.join("link")).unwrap();
        File::create(from.join("hole")).unwrap().set_len(10 << 20).unwrap();
        copy(from, to, 0).unwrap();

        assert_eq!(std::fs::read(to.join("folder/data")).unwrap(), vec![7; 300_000]);
        let data = to.join("folder/data").metadata().unwrap();
        assert_eq!((data.mode() & 0o777, data.nlink()), (0o640, 2));
        assert_eq!(data.ino(), to.join("held").metadata().unwrap().ino());
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("folder/data"));
        let hole = to.join("hole").metadata().unwrap();
        assert_eq!(hole.len(), 10 << 20);
        assert!(hole.blocks() * 512 < 1 << 20, "{} blocks", hole.blocks());
    }

    #[test]
    fn a_copy_is_not_faster_than_its_rate() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("data"), vec![7; 1 << 20]).unwrap();
        let start = Instant::now();
        copy(from.path(), to.path(), 5).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[test]
    fn a_cancelled_copy_ends_with_an_error() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("data"), vec![7; 1 << 20]).unwrap();
        let cancelled = AtomicBool::new(true);
        assert!(TornCopy::new(1, &cancelled).copy_tree(from.path(), to.path()).is_err());
    }
}
