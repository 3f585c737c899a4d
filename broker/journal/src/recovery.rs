//! From the files of a stopped, killed or unplugged member to a journal that can go on.
//!
//! 1. The newest segment's header lists the older ones; files it does not list were removed and came back.
//! 2. Segments are read in order: of sealed ones the footer, of all others everything. Damage in a batch that was durable is corruption of its groups; damage in the last
//!    batch of the newest segment is a torn tail, and the log is cut there.
//! 3. The last batch may be in the page cache only (its sync failed, or the process died within it). It is written
//!    again, into a new segment with a new epoch, whose header holds the cut. What is known of corruption goes along.
//! 4. Only then are leftovers removed and the result reported.

use crate::accounting::{Accounting, JOURNAL_KEY};
use crate::checkpoint::{checkpoint_name, is_checkpoint_name};
use crate::entry_run::EntryRun;
use crate::filesystem::{FileSystem, StoredFile};
use crate::footer::{Footer, FooterBuilder};
use crate::identity::{self, StoredIdentity};
use crate::index_set::IndexSet;
use crate::inspection::{Inspection, Scrutiny, SegmentReport};
use crate::reader::{JournalReader, ReadableSegment, Segments};
use crate::record::{Kind, Record, corrupt_record, indexes_of};
use crate::replay::Replay;
use crate::scan::{ScanEnd, ScanLimit, ScanPlan, Scanned, ScannedBatch, find_first_batch, scan};
use crate::segment::{SealedSegment, SegmentHeader, segment_name, segment_number};
use crate::types::{Finding, GroupKey, JournalConfig, JournalError, Location, Recovered, RecoveredGroup};
use crate::writer::{Journal, Resume, Unsealed};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How the name of a file ends while it is written, before it is renamed.
const UNFINISHED: &str = ".tmp";

pub(crate) fn open<F: FileSystem>(fs: F, config: JournalConfig) -> Result<(Journal<F>, Recovered), JournalError> {
    let names = fs.list().map_err(|error| JournalError::io("list", "the data directory", error))?;
    let mut findings = Vec::new();
    let identity = identity::load(&fs, &names, &mut findings)?;
    let recovery = Recovery::new(&fs, config, &names, identity, findings);
    let numbers: BTreeSet<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    let checkpoints: Vec<String> = names.into_iter().filter(|name| is_checkpoint_name(name)).collect();
    recovery.run(&numbers, checkpoints)
}

pub(crate) struct Recovery<F: FileSystem> {
    fs: F,
    config: JournalConfig,
    identity: Option<StoredIdentity>,
    findings: Vec<Finding>,
    replay: Replay,
    accounting: Accounting,
    segments: Segments<F::File>,
    /// Segments that stay, as the new header lists them.
    kept: BTreeMap<u32, SealedSegment>,
    /// The sizes of footers that verify.
    footers: BTreeMap<u32, u32>,
    /// Segments that are whole and have no footer, or no good one.
    unsealed: Vec<Unsealed<F>>,
    /// Files to remove once the new segment is durable.
    leftovers: Vec<String>,
    /// Records of the last batch, when it may not be durable.
    tail: Vec<(Record, Location)>,
    /// The file to be cut once the new segment is durable, and where.
    cut: Option<(String, u64)>,
    /// Something that was durable once cannot be read.
    is_damaged: bool,
    /// Set while nothing may be changed or synced.
    looks_only: Option<Scrutiny>,
}

/// The newest segment, read but not yet replayed.
struct Newest {
    number: u32,
    epoch: u64,
    first_sequence: u64,
    scanned: Vec<Scanned>,
    end: ScanEnd,
    file_bytes: u64,
    /// What the file was made with, as far as that is known.
    made_bytes: u64,
    /// None when the header is damaged.
    older: Option<Vec<SealedSegment>>,
    /// What is to become its footer; none when it is damaged.
    footer: Option<FooterBuilder>,
    /// It has a footer already, so it was full, and another one was begun.
    was_sealed: bool,
}

impl<F: FileSystem> Recovery<F> {
    fn new(
        fs: &F,
        config: JournalConfig,
        names: &[String],
        identity: Option<StoredIdentity>,
        findings: Vec<Finding>,
    ) -> Self {
        Self {
            fs: fs.clone(),
            config,
            identity,
            findings,
            replay: Replay::default(),
            accounting: Accounting::default(),
            segments: Segments::new(),
            kept: BTreeMap::new(),
            footers: BTreeMap::new(),
            unsealed: Vec::new(),
            leftovers: names.iter().filter(|name| name.ends_with(UNFINISHED)).cloned().collect(),
            tail: Vec::new(),
            cut: None,
            is_damaged: false,
            looks_only: None,
        }
    }

    /// Reads everything that a start would read, or more, and changes nothing.
    pub(crate) fn look(fs: &F, scrutiny: Scrutiny) -> Result<(Inspection, JournalReader<F>), JournalError> {
        let names = fs.list().map_err(|error| JournalError::io("list", "the data directory", error))?;
        let mut findings = Vec::new();
        let identity = identity::load(fs, &names, &mut findings)?;
        let is_damaged = !findings.is_empty();
        let mut recovery = Self::new(fs, JournalConfig::default(), &names, identity, findings);
        (recovery.looks_only, recovery.is_damaged) = (Some(scrutiny), is_damaged);
        let mut present = names.iter().filter_map(|name| segment_number(name)).collect();
        match recovery.find_newest(&mut present)? {
            Some(newest) => drop(recovery.replay_all(newest, present)?),
            None if recovery.identity.is_some() => {
                recovery.damage("the log", "an identity is there, but no segment is, or none that can be read");
            }
            None => {}
        }
        let replay = std::mem::take(&mut recovery.replay);
        let forgetful = replay.is_forgetful();
        let groups = replay.finish(fs);
        let segments = recovery.kept.values().map(|sealed| recovery.segment_report(sealed)).collect();
        let reader = JournalReader::new(std::mem::take(&mut recovery.segments));
        let found = Inspection {
            identity: recovery.identity.map(|identity| identity.bytes),
            segments,
            is_damaged: recovery.is_damaged || groups.iter().any(|group| group.corruption.is_some()),
            groups,
            forgetful,
            findings: recovery.findings,
        };
        Ok((found, reader))
    }

    fn segment_report(&self, sealed: &SealedSegment) -> SegmentReport {
        let used = self.accounting.usage(sealed.number);
        SegmentReport {
            file: segment_name(sealed.number),
            number: sealed.number,
            is_open: self.kept.last_key_value().is_some_and(|(last, _)| *last == sealed.number),
            has_footer: self.footers.contains_key(&sealed.number),
            size_bytes: u64::from(sealed.end),
            batches: (sealed.first_sequence, sealed.last_sequence),
            live_entries: used.entries,
            live_bodies: used.bodies,
            live_bytes: used.live_bytes,
        }
    }

    fn run(
        mut self,
        numbers: &BTreeSet<u32>,
        checkpoints: Vec<String>,
    ) -> Result<(Journal<F>, Recovered), JournalError> {
        let mut present = numbers.clone();
        let newest = self.find_newest(&mut present)?;
        // A blank disk has its first segment before its identity.
        if newest.is_none() && self.identity.is_some() {
            return Err(JournalError::LogMissing);
        }
        let mut last_sequence = 0;
        if let Some(newest) = newest {
            last_sequence = self.replay_all(newest, present)?;
        }
        let replay = std::mem::take(&mut self.replay);
        let forgetful = replay.is_forgetful();
        self.keep_in_mind(forgetful)?;
        let mut groups = replay.finish(&self.fs);
        let mut records: Vec<Record> = self.tail.iter().map(|(record, _)| record.clone()).collect();
        for group in &groups {
            if let Some(corruption) = &group.corruption {
                self.findings.push(Finding {
                    file: group.key.to_string(),
                    what: format!("this replica is damaged and must not serve: {}", corruption.why),
                });
                records.push(corrupt_record(group.key, corruption));
            }
        }
        let marks: BTreeSet<String> =
            groups.iter().filter_map(|group| checkpoint_name(group.key, self.accounting.mark(group.key)?)).collect();
        let reader = JournalReader::new(std::mem::take(&mut self.segments));
        let mut journal = Journal::resume(Resume {
            fs: self.fs.clone(),
            config: self.config,
            reader,
            accounting: std::mem::take(&mut self.accounting),
            older: std::mem::take(&mut self.kept),
            footers: std::mem::take(&mut self.footers),
            unsealed: std::mem::take(&mut self.unsealed),
            next_segment: numbers.last().map_or(1, |number| number + 1),
            next_sequence: last_sequence + 1,
            identity_changes: self.identity.as_ref().map_or(0, |identity| identity.changes),
        })?;
        let locations = journal.append(&mut records, false)?;
        self.relocate_tail(&mut groups, &locations);
        self.leftovers.extend(checkpoints.into_iter().filter(|name| !marks.contains(name)));
        self.clean_up()?;
        if let Some(identity) = &self.identity {
            identity::mend(&self.fs, identity)?;
        }
        let identity = self.identity.map(|identity| identity.bytes);
        Ok((journal, Recovered { identity, groups, forgetful, findings: self.findings }))
    }

    /// The new segment's header will not list a file that is missing, so nothing would show the loss at the next opening,
    /// and this process may end before its member has taken note of it. Without an identity there is no member yet, and
    /// nothing that it could have promised.
    fn keep_in_mind(&mut self, forgetful: bool) -> Result<(), JournalError> {
        let Some(identity) = self.identity.as_mut().filter(|identity| forgetful && !identity.forgetful) else {
            return Ok(());
        };
        // A file that was never finished is in the way of the next one of its name.
        for name in self.leftovers.extract_if(.., |name| name.ends_with(UNFINISHED)) {
            self.fs.remove(&name).map_err(|error| JournalError::io("remove", &name, error))?;
        }
        identity.changes += 1;
        identity.forgetful = true;
        identity::store(&self.fs, identity)
    }

    /// Reads the newest segment that was finished being created. One without a readable header or batch was not: its
    /// header is synced before anything else happens in it.
    fn find_newest(&mut self, present: &mut BTreeSet<u32>) -> Result<Option<Newest>, JournalError> {
        while let Some(number) = present.pop_last() {
            let name = segment_name(number);
            let (file, bytes) = self.read_segment(number)?;
            let header = SegmentHeader::decode(&bytes, &name)?;
            let first = match &header {
                Some(header) => Some((header.epoch, header.first_sequence)),
                None => find_first_batch(&bytes, self.config.block_bytes),
            };
            let Some((epoch, first_sequence)) = first else {
                self.leftovers.push(name);
                continue;
            };
            if self.looks_only.is_none() {
                file.sync_data().map_err(|error| JournalError::io("sync", &name, error))?;
            }
            let plan = ScanPlan {
                number,
                epoch,
                block_bytes: header.as_ref().map_or(self.config.block_bytes, |header| header.block_bytes),
                start: header.as_ref().map(SegmentHeader::stored_bytes),
                first_sequence,
                limit: ScanLimit::Open,
            };
            let mut scanned = Vec::new();
            let end = scan(&plan, &bytes, &mut |found| scanned.push(found));
            let footer = header
                .as_ref()
                .and_then(|_| rebuilt_footer(&bytes, &scanned, end.last_sequence.saturating_sub(1), end.cut));
            let was_sealed =
                Footer::load(&file, end.cut as u32).is_some_and(|found| (found.number, found.epoch) == (number, epoch));
            self.segments.insert(number, Arc::new(ReadableSegment { file, epoch }));
            let made_bytes = header.as_ref().map_or(0, |header| header.file_bytes);
            let older = header.map(|header| header.older);
            let file_bytes = bytes.len() as u64;
            return Ok(Some(Newest {
                number,
                epoch,
                first_sequence,
                scanned,
                end,
                file_bytes,
                made_bytes,
                older,
                footer,
                was_sealed,
            }));
        }
        Ok(None)
    }

    /// Replays the older segments and then the newest; returns the sequence of the last batch.
    fn replay_all(&mut self, newest: Newest, present: BTreeSet<u32>) -> Result<u64, JournalError> {
        let name = segment_name(newest.number);
        let removed = removed_segments(&newest.scanned);
        let listed = match &newest.older {
            Some(older) => older.clone(),
            None => {
                self.damage(&name, "the header is damaged; the list of older segments is lost with it");
                self.replay.lost(&format!("the header of {name} is damaged"));
                self.list_from_headers(&present)?
            }
        };
        let listed: BTreeMap<u32, SealedSegment> = listed
            .into_iter()
            .filter(|sealed| !removed.contains(u64::from(sealed.number)))
            .map(|sealed| (sealed.number, sealed))
            .collect();
        let unlisted = present.iter().filter(|number| !listed.contains_key(number));
        self.leftovers.extend(unlisted.map(|number| segment_name(*number)));
        for sealed in listed.values() {
            if present.contains(&sealed.number) {
                self.replay_sealed(*sealed)?;
            } else {
                let name = segment_name(sealed.number);
                self.damage(&name, "the file is missing");
                self.replay.lost(&format!("{name} is missing"));
            }
        }
        let last_sequence = self.replay_newest(newest);
        if self.identity.as_ref().is_some_and(|identity| identity.forgetful) {
            let why =
                "an earlier opening found that parts of the log are lost, and its member has not taken note of it";
            self.damage("the log", why);
            self.replay.lost(why);
        }
        Ok(last_sequence)
    }

    /// What the older segments say of themselves, when no list of them is left.
    fn list_from_headers(&mut self, present: &BTreeSet<u32>) -> Result<Vec<SealedSegment>, JournalError> {
        let mut listed = Vec::new();
        for number in present {
            let (_, bytes) = self.read_segment(*number)?;
            let Some(header) = SegmentHeader::decode(&bytes, &segment_name(*number))? else { continue };
            let plan = ScanPlan {
                number: *number,
                epoch: header.epoch,
                block_bytes: header.block_bytes,
                start: Some(header.stored_bytes()),
                first_sequence: header.first_sequence,
                limit: ScanLimit::Open,
            };
            let end = scan(&plan, &bytes, &mut |_| {});
            listed.push(SealedSegment {
                number: *number,
                end: end.cut as u32,
                epoch: header.epoch,
                first_sequence: header.first_sequence,
                last_sequence: end.last_sequence,
                proven: end.last_sequence,
            });
        }
        Ok(listed)
    }

    fn replay_sealed(&mut self, sealed: SealedSegment) -> Result<(), JournalError> {
        let number = sealed.number;
        let name = segment_name(number);
        if self.replay_footer(sealed)? {
            return Ok(());
        }
        let (file, bytes) = self.read_segment(number)?;
        let header = SegmentHeader::decode(&bytes, &name)?.filter(|header| header.epoch == sealed.epoch);
        if header.is_none() {
            self.damage(&name, "the header is damaged; its batches are searched one by one");
        }
        let plan = ScanPlan {
            number,
            epoch: sealed.epoch,
            block_bytes: header.as_ref().map_or(self.config.block_bytes, |header| header.block_bytes),
            start: header.as_ref().map(SegmentHeader::stored_bytes),
            first_sequence: sealed.first_sequence,
            limit: ScanLimit::Sealed { last_sequence: sealed.last_sequence, proven: sealed.proven },
        };
        let mut scanned = Vec::new();
        scan(&plan, &bytes, &mut |found| scanned.push(found));
        let segment = Arc::new(ReadableSegment { file, epoch: sealed.epoch });
        let footer = rebuilt_footer(&bytes, &scanned, sealed.proven, u64::from(sealed.end));
        if let Some(footer) = footer.filter(|_| header.is_some()) {
            self.unsealed.push(Unsealed { sealed, segment: Arc::clone(&segment), footer });
        }
        for found in scanned {
            let is_unproven = matches!(&found, Scanned::Batch(batch) if batch.sequence > sealed.proven);
            self.take(number, found, is_unproven);
        }
        self.segments.insert(number, segment);
        self.kept.insert(number, sealed);
        Ok(())
    }

    /// Replays what the segment's footer says. False when there is none that verifies. It speaks of nothing that is not
    /// proven: a batch that may not have reached the disk is replayed from its copy in the next segment, which was
    /// durable before the footer was written.
    fn replay_footer(&mut self, sealed: SealedSegment) -> Result<bool, JournalError> {
        let number = sealed.number;
        let name = segment_name(number);
        let file = self.fs.open(&name).map_err(|error| JournalError::io("open", &name, error))?;
        let Some(footer) = Footer::load(&file, sealed.end).filter(|footer| footer.belongs_to(&sealed)) else {
            return Ok(false);
        };
        self.footers.insert(number, footer.stored_bytes);
        if self.looks_only == Some(Scrutiny::EveryByte) {
            self.compare_with(&footer, &file, &name);
            return Ok(false);
        }
        let mut records = footer.records();
        let mut run = EntryRun::default();
        for (record, location) in records.by_ref() {
            if run.add(&record, location) {
                continue;
            }
            self.take_run(&mut run, number);
            if !run.add(&record, location) {
                self.replay.apply(&record, location);
                self.accounting.apply(&record, number, location.len);
            }
        }
        self.take_run(&mut run, number);
        if !records.is_complete() {
            self.damage(&name, "the footer verifies and makes no sense");
            self.replay.lost(&format!("the footer of {name} makes no sense"));
        }
        self.tail = Vec::new();
        self.segments.insert(number, Arc::new(ReadableSegment { file, epoch: sealed.epoch }));
        self.kept.insert(number, sealed);
        Ok(true)
    }

    /// Replays entries that follow one another.
    fn take_run(&mut self, run: &mut EntryRun, segment: u32) {
        if !run.is_empty() {
            self.replay.entries(run);
            self.accounting.entries(run, segment);
            run.clear();
        }
    }

    /// Whether the content of a segment is what its footer was made of.
    fn compare_with(&mut self, footer: &Footer, file: &F::File, name: &str) {
        let mut content = vec![0; footer.content_bytes as usize];
        let sound = file.read_at(0, &mut content).is_ok() && crc32c::crc32c(&content) == footer.content_crc;
        if !sound {
            self.damage(name, "its content is not what its footer was made of");
        }
    }

    fn replay_newest(&mut self, newest: Newest) -> u64 {
        let Newest { number, epoch, first_sequence, scanned, end, file_bytes, made_bytes, footer, was_sealed, .. } =
            newest;
        let name = segment_name(number);
        // The length is durable before the first batch is written.
        if file_bytes < made_bytes && !scanned.is_empty() && !was_sealed {
            let why = format!("{name} was cut: it has {file_bytes} bytes of {made_bytes}");
            self.damage(&name, &format!("{why}; no crash does that, so it is not a torn tail"));
            self.replay.lost(&why);
        } else if end.torn && !was_sealed {
            let what = format!("the last write was torn; the log is cut at byte {} of {file_bytes}", end.cut);
            self.find(&name, &what);
        }
        if scanned.is_empty() {
            self.segments.remove(&number);
            self.leftovers.push(name);
            return end.last_sequence;
        }
        self.cut = Some((name.clone(), end.cut));
        let last = scanned.len() - 1;
        for (position, found) in scanned.into_iter().enumerate() {
            self.take(number, found, position == last);
        }
        let sealed = SealedSegment {
            number,
            end: end.cut as u32,
            epoch,
            first_sequence,
            last_sequence: end.last_sequence,
            proven: end.last_sequence - 1,
        };
        self.kept.insert(number, sealed);
        if was_sealed {
            self.damage(&name, "it is full and closed, and the segment that was begun after it is missing");
            self.replay.lost(&format!("the segment after {name} is missing"));
        } else if let (Some(footer), Some(segment)) = (footer, self.segments.get(&number)) {
            self.unsealed.push(Unsealed { sealed, segment: Arc::clone(segment), footer });
        }
        end.last_sequence
    }

    /// Replays one thing found in a segment. `is_tail`: it may not be durable yet.
    fn take(&mut self, segment: u32, found: Scanned, is_tail: bool) {
        let name = segment_name(segment);
        match found {
            Scanned::Lost { first_sequence, offset } => {
                let why = format!("batch {first_sequence} in {name} at byte {offset} is unreadable");
                self.damage(&name, &format!("{why}, and later ones prove that it was durable: not a torn tail"));
                self.replay.lost(&why);
            }
            Scanned::Batch(ScannedBatch { sequence, offset, records, damaged }) => {
                for listed in &damaged {
                    let why = format!("batch {sequence} in {name} at byte {offset} is damaged");
                    self.damage(&name, &format!("{why}: records of {} do not verify", listed.key));
                    self.replay.damaged(listed, &why);
                    self.accounting.damaged(listed, segment);
                }
                for (record, location) in &records {
                    self.replay.apply(record, *location);
                    self.accounting.apply(record, segment, location.len);
                }
                // What follows an unproven batch is its copy, or what was written after the copy was durable.
                self.tail = if is_tail { records } else { Vec::new() };
            }
        }
    }

    /// The last batch lies in the new segment now.
    fn relocate_tail(&self, groups: &mut [RecoveredGroup], locations: &[Location]) {
        let old = self.tail.iter().map(|(_, location)| *location);
        let moved: BTreeMap<Location, Location> = old.zip(locations.iter().copied()).collect();
        let keys: BTreeSet<GroupKey> = self.tail.iter().map(|(record, _)| record.key).collect();
        let segment = self.tail.first().map(|(_, location)| location.segment);
        for group in groups.iter_mut().filter(|group| keys.contains(&group.key)) {
            let entries = group.entries.iter_mut().map(|entry| &mut entry.location);
            let all = entries.chain(group.bodies.iter_mut().map(|(_, location)| location));
            // Of millions only the last few lie in the segment of the last batch.
            for location in all.filter(|location| Some(location.segment) == segment) {
                if let Some(new) = moved.get(location) {
                    *location = *new;
                }
            }
        }
    }

    /// Removes what does not count, and gives back what the cut segment had reserved.
    fn clean_up(&mut self) -> Result<(), JournalError> {
        for name in std::mem::take(&mut self.leftovers) {
            self.fs.remove(&name).map_err(|error| JournalError::io("remove", &name, error))?;
        }
        if let Some((name, end)) = self.cut.take() {
            let file = self.fs.open(&name).map_err(|error| JournalError::io("open", &name, error))?;
            file.set_len(end).map_err(|error| JournalError::io("cut", &name, error))?;
        }
        self.fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))
    }

    fn damage(&mut self, file: &str, what: &str) {
        self.is_damaged = true;
        self.find(file, what);
    }

    fn find(&mut self, file: &str, what: &str) {
        self.findings.push(Finding { file: file.to_owned(), what: what.to_owned() });
    }

    /// The whole segment. Blocks that the disk cannot read are taken as zero, which no checksum accepts.
    fn read_segment(&mut self, number: u32) -> Result<(F::File, Bytes), JournalError> {
        let name = segment_name(number);
        let file = self.fs.open(&name).map_err(|error| JournalError::io("open", &name, error))?;
        let len = file.len().map_err(|error| JournalError::io("read", &name, error))?;
        let mut bytes = vec![0; len as usize];
        if file.read_at(0, &mut bytes).is_err() {
            let mut unreadable = 0;
            for (block, chunk) in bytes.chunks_mut(4096).enumerate() {
                if file.read_at(block as u64 * 4096, chunk).is_err() {
                    chunk.fill(0);
                    unreadable += 1;
                }
            }
            self.damage(&name, &format!("the disk cannot read {unreadable} blocks of it"));
        }
        Ok((file, bytes.into()))
    }
}

/// The footer of a segment that was scanned, up to the batch `proven`; none when something in it is damaged.
fn rebuilt_footer(bytes: &Bytes, scanned: &[Scanned], proven: u64, end: u64) -> Option<FooterBuilder> {
    let mut builder = FooterBuilder::default();
    let mut content = end;
    for found in scanned {
        match found {
            Scanned::Batch(batch) if batch.sequence > proven => content = content.min(batch.offset),
            Scanned::Batch(batch) if batch.damaged.is_empty() => {
                batch.records.iter().for_each(|(record, location)| builder.record(record, *location));
            }
            _ => return None,
        }
    }
    builder.content(bytes.get(..content as usize)?);
    Some(builder)
}

/// Segments that the records say were about to be removed.
fn removed_segments(scanned: &[Scanned]) -> IndexSet {
    let mut removed = IndexSet::default();
    for found in scanned {
        let Scanned::Batch(batch) = found else { continue };
        for (record, _) in &batch.records {
            if record.key == JOURNAL_KEY && record.kind == Kind::Removed {
                for number in indexes_of(record).unwrap_or_default().iter() {
                    removed.insert(number);
                }
            }
        }
    }
    removed
}
