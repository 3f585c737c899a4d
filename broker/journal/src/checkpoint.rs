//! Checkpoints: one state of one group's machine each. A large one is a file, written aside, synced and renamed into
//! place; a small one, as of the many queues that are short, is part of the `Mark` record itself: thousands of groups
//! are born, and checkpointed, with one sync, and are read back with the log.
//!
//! A file counts only once a `Mark` record that names it is durable; the others are removed at the next start.

use crate::encoding::Cursor;
use crate::filesystem::{FileSystem, StoredFile};
use crate::record::{CheckpointPlace, Mark, crc_around};
use crate::types::{Checkpoint, GroupKey, JournalError};
use bytes::Bytes;

const MAGIC: [u8; 8] = *b"HFCHKPNT";
const HEADER_BYTES: usize = 68;

/// The file that holds the checkpoint; none if it is in the log.
pub(crate) fn checkpoint_name(key: GroupKey, mark: &Mark) -> Option<String> {
    let CheckpointPlace::File { sequence } = mark.place else { return None };
    let GroupKey { group, incarnation } = key;
    let (counter, nonce) = (incarnation.counter, incarnation.nonce);
    Some(format!("checkpoint-{group:016x}-{counter:08x}-{nonce:016x}-{:016x}-{sequence:016x}.state", mark.index))
}

/// Where the checkpoint is to be: in the log if it has at most `small_bytes`, else in the file of this sequence.
pub(crate) fn mark_for(key: GroupKey, checkpoint: &Checkpoint, sequence: u64, small_bytes: usize) -> Mark {
    let place = match checkpoint.conf.len() + checkpoint.machine.len() <= small_bytes {
        true => CheckpointPlace::Here(encode(key, checkpoint).into()),
        false => CheckpointPlace::File { sequence },
    };
    Mark { index: checkpoint.index, place }
}

pub(crate) fn is_checkpoint_name(name: &str) -> bool {
    name.starts_with("checkpoint-") && name.ends_with(".state")
}

/// Makes the file and its bytes durable, but not yet its name.
pub(crate) fn store<F: FileSystem>(
    fs: &F,
    name: &str,
    key: GroupKey,
    checkpoint: &Checkpoint,
) -> Result<(), JournalError> {
    replace_file(fs, name, &encode(key, checkpoint))
}

/// Writes aside, syncs and renames. The new name is durable after the caller's `sync_dir`.
pub(crate) fn replace_file<F: FileSystem>(fs: &F, name: &str, bytes: &[u8]) -> Result<(), JournalError> {
    let aside = format!("{name}.tmp");
    let file = fs.create(&aside, 0).map_err(|error| JournalError::io("create", &aside, error))?;
    file.write_at(0, bytes).map_err(|error| JournalError::io("write", &aside, error))?;
    file.sync_data().map_err(|error| JournalError::io("sync", &aside, error))?;
    fs.rename(&aside, name).map_err(|error| JournalError::io("rename", &aside, error))
}

/// None when the file is missing, or what is there is damaged or another group's.
pub(crate) fn load<F: FileSystem>(fs: &F, key: GroupKey, mark: &Mark) -> Option<Checkpoint> {
    let bytes = match (&mark.place, checkpoint_name(key, mark)) {
        (CheckpointPlace::Here(bytes), _) => bytes.clone(),
        (_, name) => read_file(fs, &name?)?,
    };
    let checkpoint = decode(key, bytes)?;
    (checkpoint.index == mark.index).then_some(checkpoint)
}

/// The whole file; none when it is missing or cannot be read.
pub(crate) fn read_file<F: FileSystem>(fs: &F, name: &str) -> Option<Bytes> {
    let file = fs.open(name).ok()?;
    let mut bytes = vec![0; file.len().ok()? as usize];
    let count = file.read_at(0, &mut bytes).ok()?;
    bytes.truncate(count);
    Some(bytes.into())
}

fn encode(key: GroupKey, checkpoint: &Checkpoint) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + checkpoint.conf.len() + checkpoint.machine.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    for number in [1, key.incarnation.counter, checkpoint.conf.len() as u32, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let machine_bytes = checkpoint.machine.len() as u64;
    for number in [key.group, key.incarnation.nonce, checkpoint.index, checkpoint.term, machine_bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&checkpoint.conf);
    out.extend_from_slice(&checkpoint.machine);
    let crc = crc_around(&out, 8);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(key: GroupKey, bytes: Bytes) -> Option<Checkpoint> {
    let mut cursor = Cursor(&bytes);
    let magic = cursor.bytes(8)?;
    let crc = cursor.u32()?;
    if magic != MAGIC || bytes.len() < HEADER_BYTES || crc_around(&bytes, 8) != crc {
        return None;
    }
    let version = cursor.u32()?;
    let counter = cursor.u32()?;
    let conf_bytes = cursor.u32()? as usize;
    cursor.u32()?;
    let group = cursor.u64()?;
    let nonce = cursor.u64()?;
    let index = cursor.u64()?;
    let term = cursor.u64()?;
    let machine_bytes = cursor.u64()? as usize;
    let same_key = group == key.group && (counter, nonce) == (key.incarnation.counter, key.incarnation.nonce);
    let body = bytes.slice(HEADER_BYTES..);
    if version != 1 || !same_key || conf_bytes.checked_add(machine_bytes) != Some(body.len()) {
        return None;
    }
    Some(Checkpoint { index, term, conf: body.slice(..conf_bytes), machine: body.slice(conf_bytes..) })
}
