//! The member that was asked for a barrier: attempts until one gives a cut, then the seals of all members, then the
//! manifest on every disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::time::{Duration, Instant};

use super::attempt::{Attempt, Step, View};
use super::manifest::{Cut, Manifest, MemberPart, MissingGroup};
use super::message::{BarrierMessage, Led, Place};
use super::{BarrierReport, HoldOrder};
use crate::admin::{AdminError, AdminErrorKind, AdminReply};
use crate::member::Member;
use crate::peer_message::PeerMessage;
use crate::seam::{AdminRequestId, Output, Severity};

/// Attempts before the caller is told that it does not work: a leader that moves, or a member that dies, ends one.
const ATTEMPTS: u32 = 3;
/// The longest hold that can be asked for at a time; it can be renewed.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);
/// Groups that a refusal names.
const NAMED: usize = 5;
/// The longest name of a barrier, which is a directory's.
const NAME_BYTES: usize = 64;
/// A group has to be whole on two members, or on its only one (design §3.6).
const COPIES: usize = 2;
/// A member that has not answered is told again this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// The manifest is a small file.
const STORED_WITHIN: Duration = Duration::from_secs(30);

/// A barrier that this member coordinates.
pub(crate) struct Coordination {
    request: AdminRequestId,
    id: String,
    hold: Duration,
    allow_partial: bool,
    attempts: u32,
    phase: Phase,
}

enum Phase {
    Cutting(Attempt),
    Sealing(Seals),
    Storing(Seals, Box<BarrierReport>, Bytes),
}

/// What is left to do once the cut is made.
struct Seals {
    barrier: u64,
    places: Vec<Place>,
    missing: BTreeSet<GroupId>,
    pause: Duration,
    taken_at_ms: u64,
    since: Instant,
    told_at: Instant,
    /// Members that have not answered.
    waiting: BTreeSet<MemberId>,
    parts: BTreeMap<MemberId, MemberPart>,
    /// Members that hold nothing, by name, and why.
    failed: BTreeMap<String, String>,
}

impl Coordination {
    fn barrier(&self) -> u64 {
        match &self.phase {
            Phase::Cutting(attempt) => attempt.barrier,
            Phase::Sealing(seals) | Phase::Storing(seals, ..) => seals.barrier,
        }
    }

    fn end(&self, places: Vec<Place>) -> BarrierMessage {
        let (hold, hold_ms) = (self.id.clone(), self.hold.as_millis() as u64);
        BarrierMessage::End { barrier: self.barrier(), hold, hold_ms, cut: places }
    }
}

/// What a barrier's request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierRequest {
    /// Names the backup: letters, digits, `-`, `_` and `.`, at most 64 of them, beginning with a letter or digit.
    pub id: String,
    /// The files are held for so long, unless the hold is renewed or released.
    pub hold_seconds: u64,
    /// Groups without a quorum are left out and named; otherwise they fail the barrier.
    pub allow_partial: bool,
}

/// True for names that are safe as that of a directory.
#[must_use]
pub fn is_hold_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= NAME_BYTES
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn refused(kind: AdminErrorKind, error: impl Into<String>, hint: &str) -> AdminError {
    AdminError { kind, error: error.into(), hint: hint.to_owned() }
}

impl<R: EntryReader> Member<R> {
    /// Begins a barrier; the answer comes when it is done.
    pub(crate) fn begin_barrier(&mut self, request: AdminRequestId, wanted: BarrierRequest) -> Result<(), AdminError> {
        let BarrierRequest { id, hold_seconds, allow_partial } = wanted;
        if !is_hold_name(&id) {
            let hint = "use at most 64 letters, digits, hyphens, underscores and dots";
            return Err(refused(AdminErrorKind::BadRequest, format!("'{id}' cannot name a backup"), hint));
        }
        let hold = Duration::from_secs(hold_seconds.min(LONGEST_HOLD.as_secs() + 1));
        if hold.is_zero() || hold > LONGEST_HOLD {
            let error = format!("a hold of {hold_seconds} seconds is not possible");
            return Err(refused(AdminErrorKind::BadRequest, error, "ask for 1 to 86400; it can be renewed"));
        }
        self.need_metadata()?;
        if !self.lease_fresh() {
            let error = "this member's metadata are not known to be fresh";
            return Err(refused(AdminErrorKind::Unavailable, error, "ask again soon, or another member"));
        }
        if let Some(other) = &self.backup.coordination {
            let error = format!("the barrier '{}' is under way", other.id);
            return Err(refused(AdminErrorKind::Conflict, error, "wait until it is done"));
        }
        let phase = Phase::Cutting(Attempt::new(self.rng.next_u64(), allow_partial, self.now));
        self.backup.coordination = Some(Coordination { request, id, hold, allow_partial, attempts: 1, phase });
        self.drive_barrier();
        Ok(())
    }

    /// Takes a barrier's message in.
    pub(crate) fn barrier_message(&mut self, from: MemberId, message: BarrierMessage) {
        match message {
            BarrierMessage::Ask { barrier, round, gate } => self.barrier_asked(from, barrier, round, gate),
            BarrierMessage::Answer { barrier, round, busy, led, groups } => {
                self.barrier_answered(from, (barrier, round), busy, (led, groups));
            }
            BarrierMessage::End { barrier, cut, .. } if cut.is_empty() => self.barrier_ended(barrier),
            BarrierMessage::End { barrier, hold, hold_ms, cut } => self.seal(from, barrier, (hold, hold_ms), cut),
            BarrierMessage::Sealed { barrier, part } => self.sealed(from, barrier, part),
            BarrierMessage::Manifest { barrier, hold, manifest } => {
                self.outputs.push_back(Output::Hold(HoldOrder::Store { barrier, hold, manifest }));
            }
            BarrierMessage::Stored { barrier, outcome } => self.manifest_stored(from, barrier, outcome),
            BarrierMessage::Release { barrier, hold } => {
                self.outputs.push_back(Output::Hold(HoldOrder::Release { barrier, hold }));
            }
        }
    }

    fn barrier_answered(
        &mut self,
        from: MemberId,
        (barrier, round): (u64, u32),
        busy: bool,
        (led, groups): (Vec<Led>, Vec<GroupId>),
    ) {
        let Some(Coordination { phase: Phase::Cutting(attempt), .. }) = self.backup.coordination.as_mut() else {
            return;
        };
        if attempt.barrier != barrier {
            return;
        }
        if busy {
            let error = format!("member '{}' takes part in another barrier", self.name_or_number(from));
            let hint = "wait until it is done; what nobody coordinates any more ends within 10 seconds";
            return self.fail_barrier(refused(AdminErrorKind::Conflict, error, hint));
        }
        attempt.answered(from, round, led, groups);
        self.drive_barrier();
    }

    fn name_or_number(&self, member: MemberId) -> String {
        self.name_of(member).unwrap_or_else(|| member.to_string())
    }

    /// Members that are not suspected, this one included.
    fn live_members(&self) -> BTreeSet<MemberId> {
        let me = self.me();
        let answers = |member: &MemberId| *member == me || self.peers.get(*member).is_some_and(|peer| !peer.suspected);
        let members = self.metadata().into_iter().flat_map(|meta| meta.members().map(|(member, _)| member));
        members.filter(answers).collect()
    }

    /// Goes on with the barrier that this member coordinates.
    pub(crate) fn drive_barrier(&mut self) {
        match self.backup.coordination.as_ref().map(|own| &own.phase) {
            None => {}
            Some(Phase::Cutting(_)) => self.drive_attempt(),
            Some(Phase::Sealing(_) | Phase::Storing(..)) => self.drive_seals(),
        }
    }

    fn drive_attempt(&mut self) {
        let Some(meta) = self.metadata() else {
            let error = "this member has lost its metadata";
            return self.fail_barrier(refused(AdminErrorKind::Unavailable, error, "ask another member"));
        };
        let groups: BTreeSet<GroupId> =
            meta.groups().map(|(group, _)| group).filter(|group| *group != GroupId::META).collect();
        let live = self.live_members();
        let (now, applied, taken_at_ms) = (self.now, self.meta_applied, self.wall_ms);
        let Some(own) = self.backup.coordination.as_mut() else { return };
        let Phase::Cutting(attempt) = &mut own.phase else { return };
        match attempt.next(now, &View { groups: &groups, applied, live: &live }) {
            Step::Wait => {}
            Step::Ask { round, gate } => {
                let barrier = attempt.barrier;
                self.tell_all(&BarrierMessage::Ask { barrier, round, gate });
            }
            Step::Cut { places, pause } => {
                let (barrier, missing) = (attempt.barrier, std::mem::take(&mut attempt.missing));
                own.phase = Phase::Sealing(Seals {
                    barrier,
                    places: places.clone(),
                    missing,
                    pause,
                    taken_at_ms,
                    since: now,
                    told_at: now,
                    waiting: live,
                    parts: BTreeMap::new(),
                    failed: BTreeMap::new(),
                });
                let end = own.end(places);
                self.tell_all(&end);
            }
            Step::GiveUp { why, groups } => self.give_attempt_up(&why, &groups),
        }
    }

    fn give_attempt_up(&mut self, why: &str, groups: &[GroupId]) {
        let groups = self.groups_in_words(groups);
        let now = self.now;
        let Some(own) = self.backup.coordination.as_ref() else { return };
        let (tried, allow_partial, end) = (own.attempts, own.allow_partial, own.end(Vec::new()));
        let text = format!("the barrier '{}' has no place in {groups}: {why}", own.id);
        self.event(Severity::Warning, text.clone());
        if tried >= ATTEMPTS {
            let hint = "see GET /v1/groups; with allowPartial the backup goes on without groups that have no quorum";
            return self.fail_barrier(refused(AdminErrorKind::Unavailable, text, hint));
        }
        self.tell_all(&end);
        let barrier = self.rng.next_u64();
        if let Some(own) = self.backup.coordination.as_mut() {
            own.attempts += 1;
            own.phase = Phase::Cutting(Attempt::new(barrier, allow_partial, now));
        }
    }

    /// The groups with their queues, some of them.
    fn groups_in_words(&self, groups: &[GroupId]) -> String {
        let word = |group: &GroupId| match self.queue_names(*group).as_slice() {
            [] if *group == GroupId::META => "group 0 (the metadata)".to_owned(),
            [] => format!("group {group}"),
            names => format!("group {group} ({})", names.join(", ")),
        };
        let named: Vec<String> = groups.iter().take(NAMED).map(word).collect();
        match groups.len().saturating_sub(NAMED) {
            0 => named.join(", "),
            more => format!("{} and {more} more", named.join(", ")),
        }
    }

    /// A member has sealed, or cannot.
    fn sealed(&mut self, from: MemberId, barrier: u64, part: Result<Bytes, String>) {
        let name = self.name_or_number(from);
        let Some(Coordination { phase: Phase::Sealing(seals), .. }) = self.backup.coordination.as_mut() else {
            return;
        };
        if seals.barrier != barrier || !seals.waiting.remove(&from) {
            return;
        }
        let read = |part: Bytes| serde_json::from_slice(&part).map_err(|error| format!("what it said: {error}"));
        match part.and_then(read) {
            Ok(part) => drop(seals.parts.insert(from, part)),
            Err(why) => {
                seals.failed.insert(name.clone(), why.clone());
                self.event(Severity::Warning, format!("member '{name}' holds nothing for the backup: {why}"));
            }
        }
        self.drive_seals();
    }

    fn manifest_stored(&mut self, from: MemberId, barrier: u64, outcome: Result<(), String>) {
        let name = self.name_or_number(from);
        let Some(Coordination { phase: Phase::Storing(seals, ..), .. }) = self.backup.coordination.as_mut() else {
            return;
        };
        if seals.barrier != barrier {
            return;
        }
        match outcome {
            Ok(()) => drop(seals.waiting.remove(&from)),
            Err(why) => {
                let error = format!("member '{name}' cannot store the manifest: {why}");
                return self.fail_barrier(refused(AdminErrorKind::Unavailable, error, "see its disk, then try again"));
            }
        }
        self.drive_seals();
    }

    /// Goes on once all members that are there have answered, and tells the others again.
    fn drive_seals(&mut self) {
        let (now, live) = (self.now, self.live_members());
        let Some(own) = self.backup.coordination.as_mut() else { return };
        let hold = own.hold;
        match &mut own.phase {
            Phase::Cutting(_) => {}
            Phase::Sealing(seals) => {
                seals.waiting.retain(|member| live.contains(member));
                if seals.waiting.is_empty() {
                    return self.make_manifest();
                }
                if now.since(seals.since) >= hold {
                    let error = "the hold ended before all members had read what they hold";
                    return self.fail_barrier(refused(AdminErrorKind::Unavailable, error, "ask for a longer hold"));
                }
                if now.since(seals.told_at) >= TELL_EVERY {
                    seals.told_at = now;
                    let (waiting, places) = (seals.waiting.clone(), seals.places.clone());
                    let end = own.end(places);
                    self.say_to(waiting, &end);
                }
            }
            Phase::Storing(seals, report, manifest) => {
                if seals.waiting.is_empty() {
                    let report = std::mem::take(report);
                    if let Some(own) = self.backup.coordination.take() {
                        self.admin_reply(own.request, Ok(AdminReply::Barrier(report)));
                    }
                    return;
                }
                if now.since(seals.since) >= STORED_WITHIN {
                    let error = "not every member stored the manifest in time";
                    return self.fail_barrier(refused(AdminErrorKind::Unavailable, error, "try again"));
                }
                if now.since(seals.told_at) >= TELL_EVERY {
                    seals.told_at = now;
                    let (barrier, waiting, manifest) = (seals.barrier, seals.waiting.clone(), manifest.clone());
                    let hold = own.id.clone();
                    self.say_to(waiting, &BarrierMessage::Manifest { barrier, hold, manifest });
                }
            }
        }
    }

    fn make_manifest(&mut self) {
        let now = self.now;
        let Some(mut own) = self.backup.coordination.take() else { return };
        let Phase::Sealing(mut seals) = own.phase else { return };
        let copies_of = |place: &Place| {
            let voters = self.metadata().and_then(|meta| meta.group(place.group)).map_or(1, |info| info.voters.len());
            (place.group, voters.min(COPIES))
        };
        let copies = seals.places.iter().map(copies_of).collect();
        let missing = seals.missing.iter();
        let missing = missing.map(|group| MissingGroup { group: group.0, queues: self.queue_names(*group) }).collect();
        let membership = self.identity.membership.as_ref();
        let cut = Cut {
            id: &own.id,
            cluster_id: membership.map_or("", |own| &own.cluster_id),
            cluster_epoch: membership.map_or(1, |own| own.cluster_epoch),
            taken_at_ms: seals.taken_at_ms,
            pause_ms: seals.pause.as_millis() as u64,
            places: &seals.places,
            missing,
            copies: &copies,
        };
        let made = Manifest::of(&cut, seals.parts.values().cloned().collect());
        let barrier = seals.barrier;
        let manifest = match made {
            Ok(manifest) => manifest,
            Err((group, why)) => {
                let failed: String =
                    seals.failed.iter().map(|(name, why)| format!("; {name} holds nothing: {why}")).collect();
                let text = format!("the backup '{}' lacks {}: {why}{failed}", own.id, self.groups_in_words(&[group]));
                own.phase = Phase::Sealing(seals);
                self.backup.coordination = Some(own);
                return self.fail_barrier(refused(
                    AdminErrorKind::Unavailable,
                    text,
                    "try again once its members are up",
                ));
            }
        };
        let (file, sha256) = manifest.to_file();
        let report = BarrierReport { places: std::mem::take(&mut seals.places), manifest_sha256: sha256, manifest };
        seals.waiting = seals.parts.keys().copied().collect();
        (seals.since, seals.told_at) = (now, now);
        let (holders, hold) = (seals.waiting.clone(), own.id.clone());
        own.phase = Phase::Storing(seals, Box::new(report), file.clone());
        self.backup.coordination = Some(own);
        self.say_to(holders, &BarrierMessage::Manifest { barrier, hold, manifest: file });
    }

    /// The barrier failed: members go on, and hold nothing for it.
    fn fail_barrier(&mut self, error: AdminError) {
        let Some(own) = self.backup.coordination.take() else { return };
        self.tell_all(&own.end(Vec::new()));
        if !matches!(own.phase, Phase::Cutting(_)) {
            self.tell_all(&BarrierMessage::Release { barrier: own.barrier(), hold: own.id.clone() });
        }
        self.admin_reply(own.request, Err(error));
    }

    /// Says something to every member, this one included.
    fn tell_all(&mut self, message: &BarrierMessage) {
        let members: BTreeSet<MemberId> =
            self.metadata().map(|meta| meta.members().map(|(member, _)| member).collect()).unwrap_or_default();
        self.say_to(members, message);
    }

    fn say_to(&mut self, members: BTreeSet<MemberId>, message: &BarrierMessage) {
        for member in members {
            self.send_or_take(member, PeerMessage::Barrier(message.clone()));
        }
    }
}
