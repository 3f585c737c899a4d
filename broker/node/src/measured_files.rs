//! The journal's directory, with a meter on it: how often and for how long the disk is asked to make something durable, and
//! how much is written.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use holdfast_journal::{DiskSpace, FileSystem, HoldingFileSystem, RealFileSystem, StoredFile};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// What the disk was asked for. Clones count together.
#[derive(Clone)]
pub struct DiskMeter {
    /// Each `fdatasync` of a file, the log's and all others, seconds.
    pub sync_seconds: Histogram,
    /// Each `fsync` of the directory, seconds.
    pub directory_sync_seconds: Histogram,
    /// Bytes handed to the operating system.
    pub written_bytes: Counter,
}

impl Default for DiskMeter {
    fn default() -> Self {
        let times = || exponential_buckets(0.000_05, 2.0, 17);
        Self {
            sync_seconds: Histogram::new(times()),
            directory_sync_seconds: Histogram::new(times()),
            written_bytes: Counter::default(),
        }
    }
}

/// [`RealFileSystem`], measured.
#[derive(Clone)]
pub struct MeasuredFiles {
    files: RealFileSystem,
    meter: Arc<DiskMeter>,
}

/// A file of [`MeasuredFiles`].
pub struct MeasuredFile {
    file: File,
    meter: Arc<DiskMeter>,
}

impl MeasuredFiles {
    /// Counts into `meter` from now on.
    pub fn new(files: RealFileSystem, meter: DiskMeter) -> Self {
        Self { files, meter: Arc::new(meter) }
    }

    fn measured(&self, file: File) -> MeasuredFile {
        MeasuredFile { file, meter: self.meter.clone() }
    }
}

fn timed<T>(histogram: &Histogram, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    let result = call();
    histogram.observe(began.elapsed().as_secs_f64());
    result
}

impl FileSystem for MeasuredFiles {
    type File = MeasuredFile;

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<MeasuredFile> {
        self.files.create(name, size_bytes).map(|file| self.measured(file))
    }

    fn open(&self, name: &str) -> io::Result<MeasuredFile> {
        self.files.open(name).map(|file| self.measured(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        timed(&self.meter.directory_sync_seconds, || self.files.sync_dir())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        self.files.space()
    }
}

impl HoldingFileSystem for MeasuredFiles {
    fn holds(&self) -> io::Result<Vec<String>> {
        self.files.holds()
    }

    fn make_hold(&self, hold: &str) -> io::Result<Self> {
        Ok(Self { files: self.files.make_hold(hold)?, meter: self.meter.clone() })
    }

    fn open_hold(&self, hold: &str) -> io::Result<Self> {
        Ok(Self { files: self.files.open_hold(hold)?, meter: self.meter.clone() })
    }

    fn link(&self, name: &str, hold: &Self) -> io::Result<()> {
        self.files.link(name, &hold.files)
    }

    fn remove_hold(&self, hold: &str) -> io::Result<()> {
        self.files.remove_hold(hold)
    }
}

impl StoredFile for MeasuredFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.meter.written_bytes.inc_by(data.len() as u64);
        StoredFile::write_at(&self.file, offset, data)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        StoredFile::read_at(&self.file, offset, buffer)
    }

    fn len(&self) -> io::Result<u64> {
        StoredFile::len(&self.file)
    }

    fn set_len(&self, size_bytes: u64) -> io::Result<()> {
        StoredFile::set_len(&self.file, size_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        timed(&self.meter.sync_seconds, || StoredFile::sync_data(&self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_journal::conformance::{check_all, check_holds};
    use std::cell::RefCell;

    #[test]
    fn measured_files_do_what_every_file_system_does() {
        let (meter, directories) = (DiskMeter::default(), RefCell::new(Vec::new()));
        let blank = || {
            let directory = tempfile::tempdir().unwrap();
            let files = RealFileSystem::new(directory.path()).unwrap();
            directories.borrow_mut().push(directory);
            MeasuredFiles::new(files, meter.clone())
        };
        check_all(blank);
        check_holds(blank);
        assert!(meter.written_bytes.get() > 0);
    }
}
