//! A member's part once the cut is made: its disk holds what it has of it.
//!
//! It waits until its replicas have applied their places, which a follower has done only once they are durable here (group
//! 0's followers apply earlier; but the order to hold leaves behind all that they have handed to the journal). Then the
//! journal's files are held, and only after that checkpoints and compaction go on.

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::ids::MemberId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::group_key;

use super::message::{BarrierMessage, Place};
use super::{HoldNews, HoldOrder};
use crate::member::Member;
use crate::peer_message::PeerMessage;
use crate::seam::{Output, Severity};

/// A replica that has not applied its place after this is not whole here; it is less than history is kept for.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// The cut that this member seals, or has sealed last.
pub(crate) struct Sealing {
    barrier: u64,
    coordinator: MemberId,
    hold: String,
    hold_for: Duration,
    places: Vec<Place>,
    until: Instant,
    ordered: bool,
    part: Option<Result<Bytes, String>>,
}

impl<R: EntryReader> Member<R> {
    /// The cut is made. Said again to a member that has not answered.
    pub(super) fn seal(&mut self, from: MemberId, barrier: u64, hold: (String, u64), places: Vec<Place>) {
        self.backup.gate.end(barrier);
        if let Some(sealing) = self.backup.sealing.as_ref().filter(|sealing| sealing.barrier == barrier) {
            if let Some(part) = sealing.part.clone() {
                self.send_or_take(from, PeerMessage::Barrier(BarrierMessage::Sealed { barrier, part }));
            }
            return;
        }
        self.backup.sealing = Some(Sealing {
            barrier,
            coordinator: from,
            hold: hold.0,
            hold_for: Duration::from_millis(hold.1),
            places,
            until: self.now + APPLIED_WITHIN,
            ordered: false,
            part: None,
        });
        self.drive_sealing();
    }

    /// Orders the files to be held once all replicas here are at their places.
    pub(crate) fn drive_sealing(&mut self) {
        let (Some(sealing), Some(host)) = (self.backup.sealing.as_ref(), self.host.as_ref()) else { return };
        if sealing.ordered {
            return;
        }
        let is_behind = |place: &Place| {
            host.key(place.group) == Some(group_key(place.group, place.incarnation))
                && host.machine(place.group).is_some()
                && host.applied(place.group) < place.index
        };
        if self.now < sealing.until && sealing.places.iter().any(is_behind) {
            return;
        }
        let expires_at_ms = self.wall_ms + sealing.hold_for.as_millis() as u64;
        let Some(sealing) = self.backup.sealing.as_mut() else { return };
        sealing.ordered = true;
        let (barrier, hold, places) = (sealing.barrier, sealing.hold.clone(), sealing.places.clone());
        let member = self.config.name.clone();
        self.outputs.push_back(Output::Hold(HoldOrder::Make { barrier, hold, member, expires_at_ms, places }));
    }

    /// The driver has done something about a hold.
    pub(crate) fn hold_news(&mut self, news: HoldNews) {
        match news {
            HoldNews::Held { barrier } => {
                if self.backup.sealing.as_ref().is_some_and(|sealing| sealing.barrier == barrier) {
                    self.forget_history();
                }
            }
            HoldNews::Described { barrier, part } => {
                let Some(sealing) = self.backup.sealing.as_mut().filter(|sealing| sealing.barrier == barrier) else {
                    return;
                };
                sealing.part = Some(part.clone());
                let (to, hold) = (sealing.coordinator, sealing.hold.clone());
                if let Err(why) = &part {
                    self.forget_history();
                    self.event(Severity::Warning, format!("the backup '{hold}' holds nothing of this member: {why}"));
                }
                self.send_or_take(to, PeerMessage::Barrier(BarrierMessage::Sealed { barrier, part }));
            }
            HoldNews::Stored { barrier, outcome } => {
                let Some(sealing) = self.backup.sealing.as_ref().filter(|sealing| sealing.barrier == barrier) else {
                    return;
                };
                let to = sealing.coordinator;
                self.send_or_take(to, PeerMessage::Barrier(BarrierMessage::Stored { barrier, outcome }));
            }
        }
    }
}
