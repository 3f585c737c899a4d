//! The disk, as far as the journal needs one.

use crate::hold::HoldingFileSystem;
use rustix::fs::{self, FallocateFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One directory of files.
///
/// What counts as durable is as on a real disk, and `conformance` checks it: written bytes after `sync_data` of their
/// file, and names (created, renamed, removed) after `sync_dir`. Until then a crash may keep any part of it, in any
/// order. Names have no slash and at most 100 bytes.
pub trait FileSystem: Clone + Send + Sync + 'static {
    type File: StoredFile;

    /// Makes a new file of `size_bytes` zero bytes with its space reserved. Fails when the name is taken.
    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// All names, ascending.
    fn list(&self) -> io::Result<Vec<String>>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// How much room there is.
    fn space(&self) -> io::Result<DiskSpace>;
}

/// The room on a file system, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    /// What this process may still take.
    pub free_bytes: u64,
}

/// Zero bytes are written in pieces of this size, each synced: one huge sync would delay those of the log.
const ZERO_BYTES: usize = 1 << 20;

/// The directory of holds, beside the journal's files: one directory for each hold.
const HOLDS: &str = "holds";

/// An open file. It stays readable after its name is removed.
pub trait StoredFile: Send + Sync + 'static {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Fills `buffer` from `offset`; returns less than its length only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file, or extends it with zero bytes.
    fn set_len(&self, size_bytes: u64) -> io::Result<()>;
    /// Writes zero bytes from the start up to `size_bytes` of a file that was just created, and makes them durable by
    /// and by. A file system for which it makes no difference may leave it out.
    fn write_zeros(&self, size_bytes: u64) -> io::Result<()> {
        let zeros = vec![0; ZERO_BYTES.min(size_bytes as usize)];
        let mut offset = 0;
        while offset < size_bytes {
            let count = zeros.len().min((size_bytes - offset) as usize);
            self.write_at(offset, &zeros[..count])?;
            self.sync_data()?;
            offset += count as u64;
        }
        Ok(())
    }
    /// Makes the bytes, and the length needed to read them, durable. After an error nothing is known about any byte
    /// written since the last success, whatever a later call says.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealFileSystem {
    root: Arc<PathBuf>,
}

impl RealFileSystem {
    /// Makes the directory (and its parents) when it is not there.
    pub fn new(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        Ok(Self { root: Arc::new(root.to_owned()) })
    }
}

impl FileSystem for RealFileSystem {
    type File = File;

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.root.join(name))?;
        if size_bytes > 0 {
            match fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
                Ok(()) => {}
                // Not every file system can reserve (NFS, some overlays); it is an optimisation.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size_bytes)?,
                Err(error) => {
                    // What could be reserved of it is of no use.
                    let _ = std::fs::remove_file(self.root.join(name));
                    return Err(error.into());
                }
            }
        }
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.root.join(name);
        match OpenOptions::new().read(true).write(true).open(&path) {
            // A backup's copy may be mounted read-only; who writes there learns it at the first write.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            opened => opened,
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.as_path())? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.root.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(self.root.as_path())?.sync_all()
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let found = fs::statvfs(self.root.as_path())?;
        let block = found.f_frsize;
        Ok(DiskSpace { total_bytes: found.f_blocks * block, free_bytes: found.f_bavail * block })
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl HoldingFileSystem for RealFileSystem {
    fn holds(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.root.join(HOLDS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn make_hold(&self, hold: &str) -> io::Result<Self> {
        let holds = self.root.join(HOLDS);
        std::fs::create_dir_all(&holds)?;
        sync_directory(&self.root)?;
        let path = holds.join(hold);
        std::fs::create_dir(&path)?;
        sync_directory(&holds)?;
        Ok(Self { root: Arc::new(path) })
    }

    fn open_hold(&self, hold: &str) -> io::Result<Self> {
        let path = self.root.join(HOLDS).join(hold);
        match std::fs::metadata(&path)?.is_dir() {
            true => Ok(Self { root: Arc::new(path) }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn link(&self, name: &str, hold: &Self) -> io::Result<()> {
        std::fs::hard_link(self.root.join(name), hold.root.join(name))
    }

    fn remove_hold(&self, hold: &str) -> io::Result<()> {
        let holds = self.root.join(HOLDS);
        match std::fs::remove_dir_all(holds.join(hold)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_directory(&holds)),
        }
    }
}

impl StoredFile for File {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, size_bytes: u64) -> io::Result<()> {
        File::set_len(self, size_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}
