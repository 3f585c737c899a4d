//! Data directories of stopped members under a forced recovery: read, and given a new journal in one step.
//!
//! The new journal is made in a directory beside the old one; then the two exchange their names, which is one step for
//! the file system. The old journal stays, under the name that the new one was made under. Which recovery a journal comes
//! from, and what its directory held before, is in a file in it: so a recovery that was cut off can be gone on with.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_engine::recovery::{Plan, Survey, SurveyError, rebuild, survey};
use holdfast_journal::{
    Inspection, Journal, JournalConfig, JournalError, JournalReader, RealFileSystem, Scrutiny, inspect_with_reader,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::clock::random_u64;
use crate::data_dir::{DataDir, JOURNAL};
use crate::failure::{ExitKind, Failure};

/// In a journal that a recovery made.
const RECORD: &str = "recovery.json";

/// What a recovery leaves in the journals that it makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The plan's hash.
    pub plan_hash: String,
    /// Drawn for this recovery, the same in all of its directories.
    pub nonce: u64,
    /// The epoch that it began.
    pub epoch: u64,
    /// UUIDs of the members that go on in it, each with a directory of its own.
    pub parts: Vec<String>,
    /// What the directory held before.
    pub before: Survey,
}

/// What a data directory holds, and the last recovery that made its journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Surveyed {
    pub survey: Survey,
    pub record: Option<Record>,
}

impl Surveyed {
    /// What it held before the recovery by this plan, if that has made its journal.
    pub fn before(&self, plan_hash: &str) -> Option<&Record> {
        self.record.as_ref().filter(|record| record.plan_hash == plan_hash)
    }
}

/// A data directory to which nobody writes.
#[derive(Debug)]
pub struct StoppedDir {
    path: PathBuf,
    /// Its lock; none where this process has it and stands still.
    _lock: Option<DataDir>,
    /// What it holds.
    pub surveyed: Surveyed,
}

fn trouble(path: &Path, kind: ExitKind, what: impl std::fmt::Display, remedy: &str) -> Failure {
    Failure::new(kind, format!("{}: {what}", path.display()), remedy)
}

fn io_trouble(path: &Path, what: &str, error: impl std::fmt::Display) -> Failure {
    trouble(path, ExitKind::Io, format!("{what}: {error}"), "check the volume; what the directory held is as it was")
}

impl StoppedDir {
    /// Takes the directory's lock and reads all that is in it; every byte is verified. None for a directory without
    /// anything to recover. Nothing is changed.
    pub fn open(path: &Path) -> Result<Option<Self>, Failure> {
        let lock = DataDir::open_existing(path, Duration::ZERO)?;
        Ok(Self::paused(path)?.map(|dir| Self { _lock: Some(lock), ..dir }))
    }

    /// As [`StoppedDir::open`], of this process' own directory, while nothing is written to its journal.
    pub fn paused(path: &Path) -> Result<Option<Self>, Failure> {
        let (found, reader) = read(path)?;
        let survey = match survey(&found, &reader) {
            Ok(surveyed) => surveyed,
            Err(SurveyError::Blank) => return Ok(None),
            Err(error) => {
                let remedy = "leave this directory out, or use the version of holdfast-broker that wrote it";
                return Err(trouble(path, ExitKind::Data, error, remedy));
            }
        };
        let surveyed = Surveyed { survey, record: read_record(&path.join(JOURNAL))? };
        Ok(Some(Self { path: path.to_path_buf(), _lock: None, surveyed }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory's part of the plan, beside its journal; gives its place. Nothing counts before
    /// [`StoppedDir::exchange`].
    pub fn prepare(&self, plan: &Plan, plan_hash: &str, nonce: u64) -> Result<PathBuf, Failure> {
        let aside = self.free_name(plan)?;
        let record = Record {
            plan_hash: plan_hash.to_owned(),
            nonce,
            epoch: plan.next_epoch(),
            parts: plan.parts().map(str::to_owned).collect(),
            before: self.surveyed.survey.clone(),
        };
        if let Err(failure) = self.make_journal(&aside, plan, &record) {
            // What was begun is worth nothing, and takes room.
            let _ = std::fs::remove_dir_all(&aside);
            return Err(failure);
        }
        Ok(aside)
    }

    /// The prepared journal and the old one exchange their places: it has happened wholly or not at all.
    pub fn exchange(&self, prepared: &Path) -> Result<(), Failure> {
        renameat_with(CWD, prepared, CWD, self.path.join(JOURNAL), RenameFlags::EXCHANGE)
            .map_err(|error| io_trouble(self.path(), "the new journal cannot take the old one's place", error))?;
        sync_dir(self.path())
    }

    /// Removes what was prepared and is not to count. What cannot be removed is in nobody's way: the next one is made in
    /// its place.
    pub fn discard(&self, prepared: &Path) {
        let _ = std::fs::remove_dir_all(prepared);
    }

    fn make_journal(&self, at: &Path, plan: &Plan, record: &Record) -> Result<(), Failure> {
        let (found, reader) = read(&self.path)?;
        let files = RealFileSystem::new(at).map_err(|error| io_trouble(at, "cannot be made", error))?;
        // First of all, so that an unfinished one is never taken for an old journal.
        write_record(at, record)?;
        let nonce = random_u64().map_err(|error| io_trouble(at, "no random numbers", error))?;
        let config = JournalConfig { nonce, ..JournalConfig::default() };
        let made = Journal::open(files, config).map_err(Into::into);
        let made = made.and_then(|(mut journal, _)| rebuild(&mut journal, &found, &reader, plan, record.nonce));
        made.map_err(|error| {
            let remedy = "nothing was changed here; make the plan again (and free space, if that is what lacks)";
            trouble(self.path(), ExitKind::Io, error, remedy)
        })?;
        sync_dir(at)
    }

    /// A name beside the journal that nothing has, or only what a recovery that was cut off has left unfinished.
    fn free_name(&self, plan: &Plan) -> Result<PathBuf, Failure> {
        for attempt in 1..100 {
            let number = if attempt == 1 { String::new() } else { format!("-{attempt}") };
            let name = self.path().join(format!("journal-of-epoch-{}{number}", self.surveyed.survey.epoch));
            if !name.exists() {
                return Ok(name);
            }
            if read_record(&name).is_ok_and(|record| record.is_some_and(|record| record.epoch > plan.epoch)) {
                std::fs::remove_dir_all(&name).map_err(|error| io_trouble(&name, "cannot be removed", error))?;
                return Ok(name);
            }
        }
        Err(io_trouble(self.path(), "there is no name for the old journal", "a hundred are taken"))
    }
}

type Found = (Inspection, JournalReader<RealFileSystem>);

fn read(path: &Path) -> Result<Found, Failure> {
    let files = RealFileSystem::new(&path.join(JOURNAL))
        .map_err(|error| io_trouble(path, "the journal cannot be opened", error))?;
    inspect_with_reader(&files, Scrutiny::EveryByte).map_err(|error| {
        let kind = match error {
            JournalError::IdentityDamaged | JournalError::UnknownVersion { .. } => ExitKind::Data,
            _ => ExitKind::Io,
        };
        trouble(path, kind, error, "leave this directory out, or mend its volume; nothing was changed")
    })
}

fn read_record(journal: &Path) -> Result<Option<Record>, Failure> {
    let path = journal.join(RECORD);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| trouble(&path, ExitKind::Data, error, "use the version of holdfast-broker that wrote it")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_trouble(&path, "cannot be read", error)),
    }
}

fn write_record(journal: &Path, record: &Record) -> Result<(), Failure> {
    let path = journal.join(RECORD);
    let bytes = serde_json::to_vec(record).map_err(|error| io_trouble(&path, "cannot be written", error))?;
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(|error| io_trouble(&path, "cannot be written", error))
}

fn sync_dir(path: &Path) -> Result<(), Failure> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(|error| io_trouble(path, "cannot be synced", error))
}
