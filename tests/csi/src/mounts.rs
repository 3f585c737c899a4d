//! Bind mounts of this mount namespace.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::pool::run;

/// The columns of `/proc/self/mountinfo` that matter: the device as `major:minor`, what of its file system is mounted,
/// and where.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    root: PathBuf,
    target: PathBuf,
}

fn mounts() -> Result<Vec<Mount>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let mut columns = line.split(' ').skip(2);
    let device = columns.next()?.to_owned();
    Some(Mount { device, root: unescaped(columns.next()?), target: unescaped(columns.next()?) })
}

/// The kernel writes white space and backslashes as `\` and three octal digits.
fn unescaped(column: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(column.len());
    let mut rest = column.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether something is mounted at exactly this path.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn is_mounted(target: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.target == target))
}

/// Where a folder of the pool is mounted besides its own place.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mounted_at(pool: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let mounts = mounts()?;
    let below = folder.strip_prefix(pool).context("a folder of the pool")?;
    let Some(own) = mounts.iter().rev().find(|mount| mount.target == pool) else {
        return Ok(Vec::new());
    };
    let root = own.root.join(below);
    let found = mounts.iter().filter(|mount| mount.device == own.device && mount.root == root);
    Ok(found.map(|mount| mount.target.clone()).collect())
}

/// Shows `folder` at `target` as well, which is made if it is missing.
///
/// # Errors
/// What `mount` said.
pub async fn bind(folder: &Path, target: &Path, readonly: bool) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let options = if readonly { "bind,ro" } else { "bind" };
    run("mount", &["-o", options, &folder.to_string_lossy(), &target.to_string_lossy()]).await
}

/// Takes away whatever is mounted at `target`, and the folder itself. One that is not there is no error.
///
/// # Errors
/// What `umount` said.
pub async fn release(target: &Path) -> Result<()> {
    // One mount may lie over another.
    for _ in 0..8 {
        if !is_mounted(target)? {
            return match std::fs::remove_dir(target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("remove {}", target.display()))
                }
                _ => Ok(()),
            };
        }
        run("umount", &[&target.to_string_lossy()]).await?;
    }
    bail!("{} is still mounted", target.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_escapes() {
        let line = r"36 35 0:52 /volumes/volume-1 /var/lib/a\040b rw,relatime shared:1 - btrfs /dev/loop0 rw";
        let expected = Mount {
            device: "0:52".to_owned(),
            root: PathBuf::from("/volumes/volume-1"),
            target: PathBuf::from("/var/lib/a b"),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("cut off"), None);
    }

    #[test]
    fn the_root_is_mounted_and_a_plain_folder_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_mounted(Path::new("/")).unwrap());
        assert!(!is_mounted(folder.path()).unwrap());
    }
}
