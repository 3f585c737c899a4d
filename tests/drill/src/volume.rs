//! A member's disk: ext4 on a loop device over an image file. A power loss is the kernel's own: the file system is shut
//! down without writing anything more ([`Volume::lose_power`]), so that what was not synced is gone after the next
//! mount, and what the journal of the file system had committed by itself is there.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_e2e::kubernetes::{eventually, run};

/// `FS_IOC_SHUTDOWN` of linux/fs.h, which ext4, xfs and btrfs know: `_IOR('X', 125, __u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
/// Neither data nor the file system's own journal is written first.
const WITHOUT_FLUSH: u32 = 2;

/// One disk.
#[derive(Debug)]
pub struct Volume {
    image: PathBuf,
    mount_point: PathBuf,
}

impl Volume {
    /// Makes an empty disk of this size and mounts it. The image takes only the room that is written.
    ///
    /// # Errors
    /// What the system said.
    pub async fn create(dir: &Path, name: &str, size_mib: u64) -> Result<Self> {
        let volume = Self { image: dir.join(format!("{name}.img")), mount_point: dir.join(name) };
        std::fs::create_dir_all(&volume.mount_point)?;
        volume.format(size_mib).await?;
        volume.mount().await?;
        Ok(volume)
    }

    async fn format(&self, size_mib: u64) -> Result<()> {
        let image = std::fs::File::create(&self.image).with_context(|| self.image.display().to_string())?;
        image.set_len(size_mib << 20)?;
        drop(image);
        let args = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", text(&self.image)?];
        run("mkfs.ext4", &args, None).await.map(|_| ())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// # Errors
    /// What `mount` said.
    pub async fn mount(&self) -> Result<()> {
        run("mount", &["-o", "loop", text(&self.image)?, text(&self.mount_point)?], None).await.map(|_| ())
    }

    /// Unmounts it, once nobody has files open there.
    ///
    /// # Errors
    /// When somebody still has after some seconds.
    pub async fn unmount(&self) -> Result<()> {
        let path = text(&self.mount_point)?;
        eventually("unmount", Duration::from_secs(10), || async { run("umount", &[path], None).await })
            .await
            .map(|_| ())
    }

    /// From here on nothing reaches the disk: what was not synced is lost. The volume has to be mounted anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    #[allow(unsafe_code)]
    pub fn lose_power(&self) -> Result<()> {
        let dir = std::fs::File::open(&self.mount_point)?;
        // SAFETY: the kernel reads one u32 through the pointer, which `Setter` holds for the call, and writes nothing.
        let done = unsafe { rustix::ioctl::ioctl(&dir, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(WITHOUT_FLUSH)) };
        done.context("shut the file system down without a flush")
    }

    /// After [`Volume::lose_power`], with the member's process gone.
    ///
    /// # Errors
    /// What the system said.
    pub async fn restore_power(&self) -> Result<()> {
        self.unmount().await?;
        self.mount().await
    }

    /// An empty file system in its place, as when a volume is lost and a new one is given.
    ///
    /// # Errors
    /// What the system said.
    pub async fn replace_with_blank(&self) -> Result<()> {
        let size_mib = std::fs::metadata(&self.image)?.len() >> 20;
        self.unmount().await?;
        self.format(size_mib).await?;
        self.mount().await
    }
}

/// A path as an argument of a program.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Shows on a disk of its own that a power loss takes what was not synced, and nothing else: a drill whose power
/// losses lose nothing would prove nothing.
///
/// # Errors
/// When the kernel keeps what was not synced, or loses what was.
pub async fn prove_power_loss(work: &Path) -> Result<String> {
    let dir = work.join("power-loss");
    std::fs::create_dir_all(&dir)?;
    let volume = Volume::create(&dir, "disk", 64).await?;
    let kept = volume.path().join("kept");
    let mut file = std::fs::File::create(&kept)?;
    file.write_all(&[1; 5000])?;
    file.sync_all()?;
    std::fs::File::open(volume.path())?.sync_all()?;
    file.write_all(&[2; 5000])?;
    std::fs::write(volume.path().join("new"), [3; 100])?;
    volume.lose_power()?;
    drop(file);
    volume.restore_power().await?;
    let found = std::fs::read(&kept)?;
    let (synced, unsynced) = (count(&found, 1), count(&found, 2));
    let new_file = volume.path().join("new").exists();
    volume.unmount().await?;
    std::fs::remove_dir_all(&dir)?;
    ensure!(synced == 5000, "a power loss took {} of 5000 synced bytes", 5000 - synced);
    ensure!(unsynced == 0 && !new_file, "a power loss did not take what was not synced: it cannot be tried here");
    Ok("5000 of 5000 synced bytes kept, 5000 of 5000 unsynced ones and an unsynced new file lost".to_owned())
}

fn count(bytes: &[u8], value: u8) -> usize {
    bytes.iter().filter(|byte| **byte == value).count()
}
