//! A stopped member's journal files, and what a bad disk does to them. Only as much of the format is known here as it
//! takes to find batches: blocks of 4096 bytes, each batch at the start of one, with its magic, and its size in its
//! header (`broker/journal/src/record.rs`).

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;

/// What a batch starts at a multiple of.
const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
const BATCH_MAGIC: &[u8] = b"HFBT";
const BATCH_HEADER_BYTES: usize = 48;
const LISTED_GROUP_BYTES: usize = 72;

/// The journal's files of one member.
pub struct JournalFiles {
    dir: PathBuf,
}

impl JournalFiles {
    /// Of the data directory `dir`.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.join("journal") }
    }

    fn named(&self, is: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.dir).with_context(|| self.dir.display().to_string())?;
        let name = |path: &PathBuf| path.file_name().is_some_and(|name| is(&name.to_string_lossy()));
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(name).collect();
        files.sort();
        Ok(files)
    }

    /// Segments, oldest first.
    ///
    /// # Errors
    /// When there is none.
    pub fn segments(&self) -> Result<Vec<PathBuf>> {
        let segments = self.named(|name| name.starts_with("segment-"))?;
        ensure!(!segments.is_empty(), "no segments in {}", self.dir.display());
        Ok(segments)
    }

    /// Segments with batches, oldest first: one that is only made ready for later has none.
    fn written_segments(&self) -> Result<Vec<PathBuf>> {
        let written = |segment: &PathBuf| std::fs::read(segment).is_ok_and(|bytes| !find_batches(&bytes).is_empty());
        Ok(self.segments()?.into_iter().filter(written).collect())
    }

    /// The segment that is written to.
    ///
    /// # Errors
    /// When there is none.
    pub fn open_segment(&self) -> Result<PathBuf> {
        self.written_segments()?.pop().context("an open segment")
    }

    /// The last segment that is written no more.
    ///
    /// # Errors
    /// When there is none.
    pub fn sealed_segment(&self) -> Result<PathBuf> {
        let mut segments = self.written_segments()?;
        segments.pop();
        segments.pop().context("a sealed segment")
    }

    /// Checkpoints of groups: that of the metadata first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<PathBuf>> {
        self.named(|name| name.starts_with("checkpoint-"))
    }

    /// The copies of the member's identity.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn identities(&self) -> Result<Vec<PathBuf>> {
        self.named(|name| name.starts_with("identity-"))
    }
}

/// Where the batches of a segment are.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn batches(segment: &Path) -> Result<Vec<Range<usize>>> {
    let found = find_batches(&std::fs::read(segment)?);
    ensure!(!found.is_empty(), "no batches in {}", segment.display());
    Ok(found)
}

fn find_batches(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + BATCH_HEADER_BYTES) {
        if !header.starts_with(BATCH_MAGIC) {
            at += BLOCK;
            continue;
        }
        let number = |at: usize| header[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let end = at + BATCH_HEADER_BYTES + number(32) + number(44) * LISTED_GROUP_BYTES;
        found.push(at..end.min(bytes.len()));
        at = end.next_multiple_of(BLOCK);
    }
    found
}

/// Changes one bit of a byte.
///
/// # Errors
/// When the file cannot be changed.
pub fn flip(path: &Path, at: usize, bit: u32) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64)?;
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, at as u64)?;
    Ok(file.sync_all()?)
}

/// Changes a bit anywhere in a file.
///
/// # Errors
/// When the file is empty or cannot be changed.
pub fn flip_somewhere(path: &Path, rng: &mut StdRng) -> Result<()> {
    let size = usize::try_from(std::fs::metadata(path)?.len())?;
    ensure!(size > 0, "{} is empty", path.display());
    flip(path, rng.random_range(0..size), rng.random_range(0..8))
}

/// What is in a range comes to be zero, as never written.
///
/// # Errors
/// When the file cannot be changed.
pub fn zero(path: &Path, range: Range<usize>) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&vec![0; range.len()], range.start as u64)?;
    Ok(file.sync_all()?)
}

/// Of the last batch only the bytes before a drawn one were written.
///
/// # Errors
/// When the file cannot be changed.
pub fn tear(path: &Path, rng: &mut StdRng) -> Result<String> {
    let last = batches(path)?.pop().context("a last batch")?;
    let cut = rng.random_range(last.clone());
    zero(path, cut..last.end)?;
    Ok(format!("{} of the {} bytes of the last batch written", cut - last.start, last.len()))
}

/// Of the last batch some sectors were written and earlier ones were not.
///
/// # Errors
/// When the file cannot be changed.
pub fn tear_out_of_order(path: &Path, rng: &mut StdRng) -> Result<String> {
    let last = batches(path)?.pop().context("a last batch")?;
    let sectors = last.len().div_ceil(SECTOR);
    // At least one is missing, and if there is a later one, it is there.
    let missing = rng.random_range(0..sectors.saturating_sub(1).max(1));
    for sector in (0..sectors).filter(|sector| *sector <= missing) {
        if sector == missing || rng.random_bool(0.5) {
            let start = last.start + sector * SECTOR;
            zero(path, start..(start + SECTOR).min(last.end.next_multiple_of(SECTOR)))?;
        }
    }
    Ok(format!("sector {missing} of {sectors} of the last batch missing, later ones there"))
}

/// A block of the segment is written where another one belongs.
///
/// # Errors
/// When the file cannot be changed.
pub fn misdirect(path: &Path, rng: &mut StdRng) -> Result<String> {
    let found = batches(path)?;
    ensure!(found.len() > 4, "only {} batches in {}", found.len(), path.display());
    let from = rng.random_range(0..found.len() / 2);
    let to = rng.random_range(found.len() / 2..found.len() - 1);
    copy_block(path, found[from].start, path, found[to].start)?;
    Ok(format!("the block of batch {from} written over that of batch {to} of {}", found.len()))
}

/// What belongs to one place of a disk is found at another.
///
/// # Errors
/// When the files cannot be read or changed.
pub fn copy_block(from: &Path, at: usize, to: &Path, place: usize) -> Result<()> {
    let mut block = vec![0; BLOCK];
    std::fs::File::open(from)?.read_exact_at(&mut block, at as u64)?;
    let file = OpenOptions::new().write(true).open(to)?;
    file.write_all_at(&block, place as u64)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(records_bytes: usize, groups: usize) -> Vec<u8> {
        let mut bytes = BATCH_MAGIC.to_vec();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        bytes[32..36].copy_from_slice(&u32::try_from(records_bytes).unwrap().to_le_bytes());
        bytes[44..48].copy_from_slice(&u32::try_from(groups).unwrap().to_le_bytes());
        bytes.resize(BATCH_HEADER_BYTES + records_bytes + groups * LISTED_GROUP_BYTES, 7);
        bytes
    }

    #[test]
    fn batches_are_found_where_they_begin_and_end() {
        let mut segment = vec![1; BLOCK];
        segment.extend(batch(5000, 2));
        segment.resize(3 * BLOCK, 0);
        segment.extend(batch(10, 1));
        segment.resize(8 * BLOCK, 0);
        let first = BLOCK..BLOCK + 5000 + 48 + 144;
        let second = 3 * BLOCK..3 * BLOCK + 10 + 48 + 72;
        assert_eq!(find_batches(&segment), vec![first, second]);
        assert_eq!(find_batches(&[0; 3 * BLOCK]), Vec::<Range<usize>>::new());
    }
}
