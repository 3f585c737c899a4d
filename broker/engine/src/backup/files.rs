//! A member's hold: what its files are, what they hold, and until when it lives. Slow work: any thread but the core's.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use holdfast_journal::{
    EntryReader, FileSystem, HeldFile, HeldView, HoldingFileSystem, RecoveredGroup, Scrutiny, StoredFile,
    inspect_with_reader,
};
use holdfast_queue::codec::{Codec, Message, message_at};
use holdfast_queue::ids::QueueId;
use holdfast_queue::{AnyMachine, Machine};
use holdfast_replica::{GroupCopy, group_key};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{
    FileEntry, IncompleteGroup, Manifest, MemberEntry, MemberPart, PlaceEntry, QueueEntry, StateEntry, hex,
};
use super::message::Place;
use crate::identity::Identity;

/// The manifest's file in each hold.
pub const MANIFEST: &str = "manifest.json";
/// Until when the hold lives, and whose it is.
pub const HOLD: &str = "hold.json";

/// Files are read in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// The file beside the held ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldNote {
    pub id: String,
    /// The member's name.
    pub member: String,
    /// The attempt that made it, in hex.
    pub barrier: String,
    /// Wall clock, ms since 1970.
    pub expires_at_ms: u64,
}

/// Writes a small file of a hold whole and durably, in place of an older one.
///
/// # Errors
/// The disk's.
pub fn write_file<F: FileSystem>(hold: &F, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = format!("{name}.tmp");
    match hold.remove(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = hold.create(&aside, 0)?;
    file.write_at(0, bytes)?;
    file.sync_data()?;
    hold.rename(&aside, name)?;
    hold.sync_dir()
}

/// Reads a file of a hold whole.
///
/// # Errors
/// The disk's.
pub fn read_file<F: FileSystem>(hold: &F, name: &str) -> io::Result<Vec<u8>> {
    let file = hold.open(name)?;
    let mut bytes = vec![0; file.len()? as usize];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// What a hold says of itself; none when that cannot be read.
pub fn note_of<F: FileSystem>(hold: &F) -> Option<HoldNote> {
    serde_json::from_slice(&read_file(hold, HOLD).ok()?).ok()
}

/// Sets until when a hold lives.
///
/// # Errors
/// The disk's.
pub fn set_note<F: FileSystem>(hold: &F, note: &HoldNote) -> io::Result<()> {
    write_file(hold, HOLD, &serde_json::to_vec(note)?)
}

/// Removes the holds whose time has come and, with `unfinished`, those that say nothing of themselves: they were being made
/// when the process ended. Gives the names of those that went.
///
/// # Errors
/// The disk's.
pub fn remove_expired<F: HoldingFileSystem>(fs: &F, now_ms: u64, unfinished: bool) -> io::Result<Vec<String>> {
    let mut gone = Vec::new();
    for name in fs.holds()? {
        let note = fs.open_hold(&name).ok().and_then(|hold| note_of(&hold));
        if note.map_or(unfinished, |note| note.expires_at_ms <= now_ms) {
            fs.remove_hold(&name)?;
            gone.push(name);
        }
    }
    Ok(gone)
}

/// Removes the hold that this attempt made, if it is there.
///
/// # Errors
/// The disk's.
pub fn release<F: HoldingFileSystem>(fs: &F, hold: &str, barrier: u64) -> io::Result<()> {
    let note = fs.open_hold(hold).ok().and_then(|hold| note_of(&hold));
    match note.is_some_and(|note| note.barrier == format!("{barrier:016x}")) {
        true => fs.remove_hold(hold),
        false => Ok(()),
    }
}

/// Reads a member's hold: the sums of its files, and of each group what is there at its place.
///
/// # Errors
/// A file that cannot be read, by its name.
pub fn describe<F: FileSystem>(
    name: &str,
    hold: &F,
    files: &[HeldFile],
    places: &[Place],
) -> Result<MemberPart, String> {
    let mut part = MemberPart { entry: MemberEntry { name: name.into(), ..MemberEntry::default() }, whole: Vec::new() };
    for file in files {
        let sha256 = match sum_of(hold, &file.name, file.length) {
            Ok((read, sum)) if read == file.length => sum,
            Ok((read, _)) => return Err(format!("{} has {read} bytes instead of {}", file.name, file.length)),
            Err(error) => return Err(format!("{} cannot be read: {error}", file.name)),
        };
        let HeldFile { name, length, file_bytes } = file.clone();
        part.entry.files.push(FileEntry { name, length, file_bytes, sha256 });
    }
    let view = HeldView::new(hold.clone(), files.iter().cloned());
    let (found, reader) =
        inspect_with_reader(&view, Scrutiny::AsAtStart).map_err(|error| format!("the log cannot be read: {error}"))?;
    let identity = found.identity.as_ref().ok_or("there is no identity")?;
    let identity = Identity::decode(identity).map_err(|error| error.to_string())?;
    part.entry.uuid = identity.uuid.to_string();
    part.entry.member = identity.membership.map_or(0, |own| own.member.0);
    let mut groups: BTreeMap<_, RecoveredGroup> = found.groups.into_iter().map(|group| (group.key, group)).collect();
    for place in places {
        let key = group_key(place.group, place.incarnation);
        let Some(group) = groups.remove(&key) else {
            // Of a group that is not there nothing is said: most have no replica here. See `Manifest::of`.
            let other = groups.keys().find(|other| other.group == key.group);
            let why = other.map(|other| format!("its files have {other}, and not {key}"));
            part.entry.incomplete.extend(why.map(|why| IncompleteGroup { group: place.group.0, why }));
            continue;
        };
        match state_at(group, &reader, place.index, &mut |_, _| {}) {
            Ok(state) => part.whole.push((PlaceEntry::from(place), state)),
            Err(why) => part.entry.incomplete.push(IncompleteGroup { group: place.group.0, why }),
        }
    }
    Ok(part)
}

/// The SHA-256 of the first `length` bytes of a file, in hex, and how many of them there are.
fn sum_of<F: FileSystem>(fs: &F, name: &str, length: u64) -> io::Result<(u64, String)> {
    let file = fs.open(name)?;
    let mut sum = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES.min(length as usize)];
    let mut at = 0;
    while at < length {
        let wanted = piece.len().min((length - at) as usize);
        let count = file.read_at(at, &mut piece[..wanted])?;
        if count == 0 {
            break;
        }
        sum.update(&piece[..count]);
        at += count as u64;
    }
    Ok((at, hex(&sum.finalize())))
}

fn state_at<R: EntryReader>(
    group: RecoveredGroup,
    reader: &R,
    index: u64,
    visit: &mut dyn FnMut(&QueueEntry, &Message),
) -> Result<StateEntry, String> {
    state_of(&GroupCopy::read_cut(group, reader, index)?, reader, visit)
}

/// What a copy of a group holds, as a manifest has it; each message goes to `visit`.
pub(crate) fn state_of<R: EntryReader>(
    copy: &GroupCopy<AnyMachine>,
    reader: &R,
    visit: &mut dyn FnMut(&QueueEntry, &Message),
) -> Result<StateEntry, String> {
    let places: BTreeMap<u64, _> = copy.live_payloads()?.into_iter().collect();
    let mut state = StateEntry { machine_sha256: hex(&Sha256::digest(copy.machine.snapshot())), queues: Vec::new() };
    let Some(machine) = copy.machine.queue() else { return Ok(state) };
    let ids: Vec<QueueId> = machine.queues().map(|(id, _)| id).collect();
    for id in ids {
        let (vhost, name) = machine.queue_name(id).unwrap_or_default();
        let mut queue = QueueEntry { id: id.0, vhost: vhost.into(), name: name.into(), ..QueueEntry::default() };
        let mut sum = Sha256::new();
        let mut last: Option<(u64, Bytes)> = None;
        for (at, size) in machine.messages(id).unwrap_or_default() {
            if last.as_ref().is_none_or(|(index, _)| *index != at.index) {
                let place = places.get(&at.index).ok_or_else(|| format!("message {} is not there", at.index))?;
                last = Some((at.index, reader.read(*place).map_err(|error| error.to_string())?));
            }
            let Some((_, payload)) = &last else { continue };
            let message = message_at(payload, at.sub).map_err(|error| format!("message {}: {error}", at.index))?;
            sum.update(at.index.to_le_bytes());
            sum.update(at.sub.to_le_bytes());
            sum.update(Sha256::digest(message.to_bytes()));
            visit(&queue, &message);
            queue.messages += 1;
            queue.bytes += u64::from(size);
        }
        queue.sha256 = hex(&sum.finalize());
        state.queues.push(queue);
    }
    Ok(state)
}

/// Gives each message that a copy of a member's hold has at the cut, queue by queue and in order, to `visit`. Of the queue
/// only what names it is filled in. Uses no file that the manifest does not name.
///
/// # Errors
/// What cannot be read.
pub fn contents<F: FileSystem>(
    manifest: &Manifest,
    member: &MemberEntry,
    hold: &F,
    visit: &mut dyn FnMut(&QueueEntry, &Message),
) -> Result<(), String> {
    let view = HeldView::new(hold.clone(), member.files.iter().map(FileEntry::held));
    let (found, reader) =
        inspect_with_reader(&view, Scrutiny::AsAtStart).map_err(|error| format!("the log cannot be read: {error}"))?;
    let mut groups: BTreeMap<_, RecoveredGroup> = found.groups.into_iter().map(|group| (group.key, group)).collect();
    for group in manifest.groups.iter().filter(|group| group.holders.contains(&member.name)) {
        let place = group.place.place()?;
        let recovered = groups.remove(&group_key(place.group, place.incarnation));
        let recovered = recovered.ok_or_else(|| format!("group {} is not there", place.group))?;
        state_at(recovered, &reader, place.index, visit).map_err(|why| format!("group {}: {why}", place.group))?;
    }
    Ok(())
}

/// What is wrong with a copy of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or queue that it is about.
    pub of: String,
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.of, self.what)
    }
}

/// Compares the files of a copy of a member's hold with the manifest. Uses no other file.
#[must_use]
pub fn damage_in<F: FileSystem>(member: &MemberEntry, hold: &F) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |of: &str, what: String| problems.push(Problem { of: of.to_owned(), what });
    for file in &member.files {
        match sum_of(hold, &file.name, file.length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => problem(&file.name, "it is missing".into()),
            Err(error) => problem(&file.name, format!("it cannot be read: {error}")),
            Ok((read, _)) if read < file.length => {
                problem(&file.name, format!("it is truncated: {read} bytes are left of {}", file.length));
            }
            Ok((_, sum)) if sum != file.sha256 => {
                problem(&file.name, format!("it is changed: its SHA-256 is {sum}, and should be {}", file.sha256));
            }
            Ok(_) => {}
        }
    }
    problems
}

/// Compares a copy of a member's hold with the manifest: each file, then what the files hold. Uses no other file.
#[must_use]
pub fn verify<F: FileSystem>(manifest: &Manifest, member: &MemberEntry, hold: &F) -> Vec<Problem> {
    let mut problems = damage_in(member, hold);
    if !problems.is_empty() {
        return problems;
    }
    let mut problem = |of: &str, what: String| problems.push(Problem { of: of.to_owned(), what });
    let held = |group: &&super::manifest::GroupEntry| group.holders.contains(&member.name);
    let groups: Vec<_> = manifest.groups.iter().filter(held).collect();
    let places: Result<Vec<Place>, String> = groups.iter().map(|group| group.place.place()).collect();
    let files: Vec<HeldFile> = member.files.iter().map(FileEntry::held).collect();
    let part = match places.and_then(|places| describe(&member.name, hold, &files, &places)) {
        Ok(part) => part,
        Err(why) => {
            problem(&member.name, why);
            return problems;
        }
    };
    let whole: BTreeMap<PlaceEntry, StateEntry> = part.whole.into_iter().collect();
    for group in groups {
        let name = format!("group {}", group.place.group);
        let Some(state) = whole.get(&group.place) else {
            let why = part.entry.incomplete.iter().find(|one| one.group == group.place.group);
            problem(&name, why.map_or_else(|| "it is not there".into(), |one| one.why.clone()));
            continue;
        };
        for (expected, found) in group.state.queues.iter().zip(&state.queues).filter(|(a, b)| a != b) {
            problem(&format!("queue '{}' in vhost '{}'", expected.name, expected.vhost), differs(expected, found));
        }
        if group.state.machine_sha256 != state.machine_sha256 || group.state.queues.len() != state.queues.len() {
            problem(&name, "its state is another than the manifest says".into());
        }
    }
    problems
}

pub(crate) fn differs(expected: &QueueEntry, found: &QueueEntry) -> String {
    format!(
        "it holds {} messages of {} bytes with the sum {}, and should hold {} of {} with {}",
        found.messages, found.bytes, found.sha256, expected.messages, expected.bytes, expected.sha256
    )
}

impl FileEntry {
    /// What counts of it.
    #[must_use]
    pub fn held(&self) -> HeldFile {
        HeldFile { name: self.name.clone(), length: self.length, file_bytes: self.file_bytes }
    }
}

impl PlaceEntry {
    pub(crate) fn place(&self) -> Result<Place, String> {
        let nonce = u64::from_str_radix(&self.nonce, 16).map_err(|_| format!("'{}' is no nonce", self.nonce))?;
        let incarnation = holdfast_queue::ids::Incarnation { counter: self.incarnation, nonce };
        let group = holdfast_queue::ids::GroupId(self.group);
        Ok(Place { group, incarnation, term: 0, index: self.index })
    }
}
