//! Reading sealed segments again, bit by bit, to find damage while there are other copies to mend it from.

use crate::chore::Task;
use crate::filesystem::{FileSystem, StoredFile};
use crate::footer::Footer;
use crate::reader::ReadableSegment;
use crate::record::Kind;
use crate::segment::{SealedSegment, segment_name};
use crate::types::{Damage, Finding, GroupKey, Location};
use crate::writer::Journal;
use std::collections::{BTreeMap, VecDeque};

/// Bytes that one chore reads.
const STEP_BYTES: u64 = 1 << 20;

/// How far a look at one segment got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScrubPlace {
    pub sealed: SealedSegment,
    offset: u64,
    crc: u32,
}

/// What a step of it came to.
pub(crate) enum Scrubbed {
    Further(ScrubPlace),
    Sound,
    Damaged { what: String, records: Vec<BadRecord> },
}

/// A payload that does not verify, where it is the last of its kind and index in the segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadRecord {
    kind: Kind,
    key: GroupKey,
    index: u64,
    location: Location,
}

/// The state of scrubbing.
#[derive(Default)]
pub(crate) struct Scrub {
    todo: VecDeque<u32>,
    at: Option<ScrubPlace>,
    /// Bytes that may be read.
    credit: u64,
}

impl Scrub {
    pub(crate) fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(bytes).min(2 * STEP_BYTES);
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.at.is_some() || !self.todo.is_empty()
    }
}

/// Reads on from `place`.
pub(crate) fn scrub<F: StoredFile>(segment: &ReadableSegment<F>, mut place: ScrubPlace) -> Scrubbed {
    let sealed = place.sealed;
    let Some(footer) = Footer::load(&segment.file, sealed.end).filter(|footer| footer.belongs_to(&sealed)) else {
        let what = "its footer does not verify; a start will read the whole segment".to_owned();
        return Scrubbed::Damaged { what, records: Vec::new() };
    };
    let content_bytes = u64::from(footer.content_bytes);
    let mut buffer = vec![0; STEP_BYTES.min(content_bytes - place.offset) as usize];
    let trouble = match segment.file.read_at(place.offset, &mut buffer) {
        Ok(count) if count == buffer.len() => None,
        Ok(_) => Some("it is shorter than it was".to_owned()),
        Err(error) => Some(format!("reading it at byte {} failed: {error}", place.offset)),
    };
    if let Some(what) = trouble {
        return Scrubbed::Damaged { what, records: bad_records(segment, &footer) };
    }
    place.crc = crc32c::crc32c_append(place.crc, &buffer);
    place.offset += buffer.len() as u64;
    if place.offset < content_bytes {
        return Scrubbed::Further(place);
    }
    match place.crc == footer.content_crc {
        true => Scrubbed::Sound,
        false => Scrubbed::Damaged {
            what: "its content is not what was written".to_owned(),
            records: bad_records(segment, &footer),
        },
    }
}

fn bad_records<F: StoredFile>(segment: &ReadableSegment<F>, footer: &Footer) -> Vec<BadRecord> {
    let mut bad = BTreeMap::new();
    for (record, location) in footer.records().filter(|(record, _)| matches!(record.kind, Kind::Entry | Kind::Body)) {
        let (kind, key, index) = (record.kind, record.key, record.index);
        let place = (key, index, kind as u8);
        match segment.read(location) {
            Ok(_) => bad.remove(&place),
            Err(_) => bad.insert(place, BadRecord { kind, key, index, location }),
        };
    }
    bad.into_values().collect()
}

impl<F: FileSystem> Journal<F> {
    /// Has every sealed segment read again and compared with its checksum, as [`Journal::grant`] allows. What is found
    /// comes with [`Journal::upkeep`]. Nothing happens while an earlier scrub is under way.
    pub fn begin_scrub(&mut self) {
        if !self.keeper.scrub.is_under_way() {
            self.keeper.scrub.todo = self.keeper.footers.keys().copied().collect();
        }
    }

    /// Whether a scrub has something left to read.
    pub fn is_scrubbing(&self) -> bool {
        self.keeper.scrub.is_under_way()
    }

    pub(crate) fn scrub_task(&mut self) -> Option<Task<F>> {
        if self.keeper.scrub.credit < STEP_BYTES {
            return None;
        }
        let place = loop {
            match self.keeper.scrub.at.take() {
                Some(place) => break place,
                None => {
                    let number = self.keeper.scrub.todo.pop_front()?;
                    let sealed = self.older().get(&number).copied();
                    self.keeper.scrub.at = sealed.map(|sealed| ScrubPlace { sealed, offset: 0, crc: 0 });
                }
            }
        };
        let segment = self.open_segment(place.sealed.number)?;
        self.keeper.scrub.credit -= STEP_BYTES;
        self.keeper.scrub.at = Some(place);
        Some(Task::Scrub { segment, place })
    }

    pub(crate) fn scrub_done(&mut self, number: u32, found: Scrubbed) {
        match found {
            Scrubbed::Further(place) => self.keeper.scrub.at = Some(place),
            Scrubbed::Sound => self.keeper.scrub.at = None,
            Scrubbed::Damaged { what, records } => {
                self.keeper.scrub.at = None;
                // It may be gone by now, with everything that was wrong with it.
                if self.older().contains_key(&number) {
                    self.report_damage(number, what, records);
                }
            }
        }
    }

    fn report_damage(&mut self, number: u32, what: String, records: Vec<BadRecord>) {
        let file = segment_name(number);
        for bad in records {
            let BadRecord { kind, key, index, location } = bad;
            if self.accounting().is_live(kind, key, index, number) {
                let why = format!("entry {index} in {file} at byte {} does not verify", location.offset);
                self.keeper.news.damaged.push(Damage { key, index, why });
            }
        }
        self.keeper.news.findings.push(Finding { file, what });
    }
}
