//! The manifest of a backup: which files of which members are part of it, and what they hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_queue::ids::{GroupId, Incarnation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::message::Place;

/// Names the format; a reader refuses any other.
pub const FORMAT: &str = "holdfast-backup/1";

/// A whole backup. The same file is in the hold of every member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub format: String,
    /// The barrier's name.
    pub id: String,
    pub cluster_id: String,
    pub cluster_epoch: u64,
    /// Wall clock of the coordinator when the cut was made, ms since 1970.
    pub taken_at_ms: u64,
    /// How long confirms and deliveries stood still.
    pub pause_ms: u64,
    pub totals: Totals,
    /// Ascending; group 0 first.
    pub groups: Vec<GroupEntry>,
    /// Groups that are not in the backup.
    pub missing: Vec<MissingGroup>,
    /// By name.
    pub members: Vec<MemberEntry>,
}

/// Sums over the whole backup; each message counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    pub groups: u64,
    pub queues: u64,
    pub messages: u64,
    /// Of contents: properties and bodies.
    pub message_bytes: u64,
    pub files: u64,
    pub file_bytes: u64,
}

/// A group at its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupEntry {
    #[serde(flatten)]
    pub place: PlaceEntry,
    #[serde(flatten)]
    pub state: StateEntry,
    /// Names of the members whose files hold all of it.
    pub holders: Vec<String>,
}

/// Where a group is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceEntry {
    pub group: u64,
    /// Counter and nonce of its incarnation; the nonce in hex, since readers of JSON round large numbers.
    pub incarnation: u32,
    pub nonce: String,
    pub index: u64,
}

/// What a group holds at its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateEntry {
    /// SHA-256 of the machine's canonical state, in hex.
    pub machine_sha256: String,
    /// Ascending by id; none in group 0.
    pub queues: Vec<QueueEntry>,
}

/// A queue at the place of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueEntry {
    pub id: u64,
    pub vhost: String,
    pub name: String,
    pub messages: u64,
    pub bytes: u64,
    /// SHA-256, in hex, over all messages in order: the place of each in the log and the SHA-256 of its content.
    pub sha256: String,
}

/// A group without a quorum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingGroup {
    pub group: u64,
    /// As `vhost/name`.
    pub queues: Vec<String>,
}

/// A member's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberEntry {
    pub name: String,
    pub uuid: String,
    /// Its Raft id.
    pub member: u64,
    /// In `journal/holds/<id>` of its data directory.
    pub files: Vec<FileEntry>,
    /// Groups of which it has a replica that is not whole, and why.
    pub incomplete: Vec<IncompleteGroup>,
}

/// A file. Only its first `length` bytes count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub name: String,
    pub length: u64,
    /// The size that it had, with what was reserved.
    pub file_bytes: u64,
    /// In hex.
    pub sha256: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncompleteGroup {
    pub group: u64,
    pub why: String,
}

/// What one member found in its own hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberPart {
    #[serde(flatten)]
    pub entry: MemberEntry,
    /// Groups that it has whole.
    pub whole: Vec<(PlaceEntry, StateEntry)>,
}

impl MemberPart {
    /// As it travels to the coordinator.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        // Nothing in it can fail: all keys are texts.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// What the coordinator adds.
pub struct Cut<'a> {
    pub id: &'a str,
    pub cluster_id: &'a str,
    pub cluster_epoch: u64,
    pub taken_at_ms: u64,
    pub pause_ms: u64,
    pub places: &'a [Place],
    pub missing: Vec<MissingGroup>,
    /// How many members have to hold each group at least.
    pub copies: &'a BTreeMap<GroupId, usize>,
}

impl From<&Place> for PlaceEntry {
    fn from(place: &Place) -> Self {
        let Incarnation { counter, nonce } = place.incarnation;
        Self { group: place.group.0, incarnation: counter, nonce: format!("{nonce:016x}"), index: place.index }
    }
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Manifest {
    /// Puts the parts of all members together.
    ///
    /// # Errors
    /// Members differ about a group, or too few have it, by its number and why.
    pub fn of(cut: &Cut<'_>, mut parts: Vec<MemberPart>) -> Result<Self, (GroupId, String)> {
        parts.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        let mut manifest = Self {
            format: FORMAT.into(),
            id: cut.id.into(),
            cluster_id: cut.cluster_id.into(),
            cluster_epoch: cut.cluster_epoch,
            taken_at_ms: cut.taken_at_ms,
            pause_ms: cut.pause_ms,
            missing: cut.missing.clone(),
            ..Self::default()
        };
        let whole = |part: &MemberPart| part.whole.iter().cloned().collect::<BTreeMap<_, _>>();
        let whole: Vec<BTreeMap<PlaceEntry, StateEntry>> = parts.iter().map(whole).collect();
        for place in cut.places {
            let entry = PlaceEntry::from(place);
            let mut found: Option<GroupEntry> = None;
            for (part, whole) in parts.iter().zip(&whole) {
                let Some(state) = whole.get(&entry) else { continue };
                let group = found.get_or_insert_with(|| GroupEntry {
                    place: entry.clone(),
                    state: state.clone(),
                    holders: Vec::new(),
                });
                if group.state != *state {
                    let why = format!("members {} and {} differ in what it holds", group.holders[0], part.entry.name);
                    return Err((place.group, why));
                }
                group.holders.push(part.entry.name.clone());
            }
            let copies = cut.copies.get(&place.group).copied().unwrap_or(1).max(1);
            let held = found.as_ref().map_or(0, |group| group.holders.len());
            match found {
                Some(group) if held >= copies => manifest.groups.push(group),
                _ => return Err((place.group, too_few(&parts, place.group, held, copies))),
            }
        }
        manifest.members = parts.into_iter().map(|part| part.entry).collect();
        manifest.totals = manifest.sums();
        Ok(manifest)
    }

    fn sums(&self) -> Totals {
        let queues = || self.groups.iter().flat_map(|group| &group.state.queues);
        let files = || self.members.iter().flat_map(|member| &member.files);
        Totals {
            groups: self.groups.len() as u64,
            queues: queues().count() as u64,
            messages: queues().map(|queue| queue.messages).sum(),
            message_bytes: queues().map(|queue| queue.bytes).sum(),
            files: files().count() as u64,
            file_bytes: files().map(|file| file.length).sum(),
        }
    }

    /// The file, and its SHA-256 in hex.
    #[must_use]
    pub fn to_file(&self) -> (Bytes, String) {
        // Nothing in it can fail: all keys are texts.
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        let sum = hex(&Sha256::digest(&bytes));
        (bytes.into(), sum)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is damaged, or of another format.
    pub fn from_file(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
        match manifest.format == FORMAT {
            true => Ok(manifest),
            false => Err(format!("its format is '{}', and this version reads '{FORMAT}'", manifest.format)),
        }
    }
}

fn too_few(parts: &[MemberPart], group: GroupId, held: usize, copies: usize) -> String {
    let reason = |part: &MemberPart| {
        let MemberEntry { name, files, incomplete, .. } = &part.entry;
        match incomplete.iter().find(|one| one.group == group.0) {
            Some(one) => format!("{name}: {}", one.why),
            None => format!("{name}: nothing of it is in its {} files", files.len()),
        }
    };
    let lack = |part: &&MemberPart| !part.whole.iter().any(|(place, _)| place.group == group.0);
    let reasons: Vec<String> = parts.iter().filter(lack).map(reason).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    format!("{held} members hold all of it, and {copies} should{reasons}")
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
