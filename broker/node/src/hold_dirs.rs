//! Copies of members' holds in directories, and the manifest that says what they must be.

use std::io;
use std::path::Path;

use holdfast_engine::backup::files::{HOLD, MANIFEST, note_of};
use holdfast_engine::backup::{Manifest, MemberEntry};
use holdfast_journal::{HoldingFileSystem, RealFileSystem};
use sha2::{Digest, Sha256};

use crate::data_dir::JOURNAL;
use crate::failure::{ExitKind, Failure};

/// SHA-256 in lower-case hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a manifest, and the bytes of its file; they must have the sum that is given.
///
/// # Errors
/// It cannot be read, or is not what it should be.
pub fn read_manifest(path: &Path, sha256: Option<&str>) -> Result<(Manifest, Vec<u8>), Failure> {
    let bytes = std::fs::read(path).map_err(|error| {
        let problem = format!("the manifest {} cannot be read: {error}", path.display());
        Failure::new(ExitKind::Io, problem, "give the manifest.json of the backup")
    })?;
    let damaged = |why: String| {
        Failure::new(ExitKind::Data, format!("the manifest {}: {why}", path.display()), "use another copy of it")
    };
    let found = sha256_hex(&bytes);
    if let Some(expected) = sha256.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
        return Err(damaged(format!("its SHA-256 is {found}, and should be {expected}")));
    }
    let manifest = Manifest::from_file(&bytes).map_err(damaged)?;
    Ok((manifest, bytes))
}

/// The hold of a backup in `dir`: a copy of a data directory, of its journal, or of the hold itself.
///
/// # Errors
/// There is none, or it cannot be opened.
pub fn hold_in(dir: &Path, manifest: &Manifest) -> Result<RealFileSystem, Failure> {
    let journal = dir.join(JOURNAL);
    let open = || match () {
        () if journal.is_dir() => RealFileSystem::new(&journal)?.open_hold(&manifest.id),
        () if dir.join("holds").is_dir() => RealFileSystem::new(dir)?.open_hold(&manifest.id),
        () if dir.join(HOLD).is_file() || dir.join(MANIFEST).is_file() => RealFileSystem::new(dir),
        () => Err(io::ErrorKind::NotFound.into()),
    };
    open().map_err(|error| {
        let hold = journal.join("holds").join(&manifest.id);
        let kind = if error.kind() == io::ErrorKind::NotFound { ExitKind::Data } else { ExitKind::Io };
        Failure::new(
            kind,
            format!("{} cannot be opened: {error}", hold.display()),
            "give a copy of a data directory that was made while the backup's hold lived",
        )
    })
}

/// Whose hold it is, by name or as it says itself.
///
/// # Errors
/// It does not say, or the manifest has nothing of that member.
pub fn member_of<'a>(
    manifest: &'a Manifest,
    name: Option<&str>,
    hold: &RealFileSystem,
) -> Result<&'a MemberEntry, Failure> {
    let said = note_of(hold).map(|note| note.member);
    let Some(name) = name.map(str::to_owned).or(said) else {
        let problem = "the hold does not say which member's it is: its hold.json is missing or damaged";
        return Err(Failure::new(ExitKind::Data, problem, "say it with --member"));
    };
    manifest.members.iter().find(|member| member.name == name).ok_or_else(|| {
        let known: Vec<&str> = manifest.members.iter().map(|member| member.name.as_str()).collect();
        let problem = format!("the manifest has no files of member {name}");
        Failure::new(ExitKind::Data, problem, format!("it has those of {}", known.join(", ")))
    })
}
