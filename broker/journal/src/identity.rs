//! The member's identity: a few bytes that must outlive any single damaged block, so they are kept twice. Beside it stands
//! whether the log has lost what nobody can name: a recovery that finds a file missing makes a log that does not show it.

use crate::checkpoint::{read_file, replace_file};
use crate::encoding::Cursor;
use crate::filesystem::FileSystem;
use crate::record::crc_around;
use crate::types::{Finding, JournalError};
use bytes::Bytes;

pub(crate) const COPIES: [&str; 2] = ["identity-1", "identity-2"];
const MAGIC: [u8; 8] = *b"HFIDENT2";
const HEADER_BYTES: usize = 21;

/// The identity with the count of its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredIdentity {
    pub changes: u64,
    /// A recovery found that records which nobody can name are lost, and the caller has written no identity since.
    pub forgetful: bool,
    pub bytes: Bytes,
}

/// Makes both copies durable, one after the other.
pub(crate) fn store<F: FileSystem>(fs: &F, identity: &StoredIdentity) -> Result<(), JournalError> {
    let mut out = Vec::with_capacity(HEADER_BYTES + identity.bytes.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&identity.changes.to_le_bytes());
    out.push(u8::from(identity.forgetful));
    out.extend_from_slice(&identity.bytes);
    let crc = crc_around(&out, 8);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    for copy in COPIES {
        replace_file(fs, copy, &out)?;
        fs.sync_dir().map_err(|error| JournalError::io("sync directory", copy, error))?;
    }
    Ok(())
}

/// Makes both copies anew where one of them is damaged, missing or older: the next damaged block may be in the other one.
/// On a full disk that waits for the next start.
pub(crate) fn mend<F: FileSystem>(fs: &F, identity: &StoredIdentity) -> Result<(), JournalError> {
    if COPIES.iter().all(|copy| read_file(fs, copy).and_then(decode).is_some_and(|found| found == *identity)) {
        return Ok(());
    }
    match store(fs, identity) {
        Err(JournalError::NoSpace { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The newer of the intact copies; none on a disk that never had one.
pub(crate) fn load<F: FileSystem>(
    fs: &F,
    names: &[String],
    findings: &mut Vec<Finding>,
) -> Result<Option<StoredIdentity>, JournalError> {
    let mut newest: Option<StoredIdentity> = None;
    let mut damaged = 0;
    for copy in COPIES.iter().filter(|copy| names.iter().any(|name| name == *copy)) {
        match read_file(fs, copy).and_then(decode) {
            Some(found) if newest.as_ref().is_none_or(|best| best.changes < found.changes) => newest = Some(found),
            Some(_) => {}
            None => {
                damaged += 1;
                findings
                    .push(Finding { file: (*copy).to_owned(), what: "this copy of the identity is damaged".into() });
            }
        }
    }
    if newest.is_none() && damaged > 0 {
        return Err(JournalError::IdentityDamaged);
    }
    Ok(newest)
}

fn decode(bytes: Bytes) -> Option<StoredIdentity> {
    let mut cursor = Cursor(&bytes);
    let magic = cursor.bytes(8)?;
    let crc = cursor.u32()?;
    let changes = cursor.u64()?;
    let forgetful = cursor.u8()? != 0;
    let intact = magic == MAGIC && crc_around(&bytes, 8) == crc;
    intact.then(|| StoredIdentity { changes, forgetful, bytes: bytes.slice(HEADER_BYTES..) })
}
