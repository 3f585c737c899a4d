//! What this member, as the home of its sessions, tells one group: a numbered row of commands, kept until the group has
//! them (design §3.3, "exactly once from session to queue").
//!
//! Commands are numbered 1, 2, 3 … for each run of the member and each group. The group takes each number once and in
//! order, whichever leader they reach and however often they are sent, so everything here is safe to send again: after a
//! change of leader, after a broken link, after two seconds without an answer. [`Attachment`] is the state of that
//! conversation: a home first asks the leader for all that it is owed (*attach*), learns from it what has arrived, and
//! sends only the rest.

use std::collections::{BTreeMap, VecDeque};

use holdfast_queue::codec::{Batch, Codec, Origin};
use holdfast_queue::ids::{BootId, MemberId};
use holdfast_queue::time::{Duration, Instant};

/// A home that gets no confirm for this long asks again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(2);
/// An attach without an answer is repeated after this.
const ATTACH_AGAIN: Duration = Duration::from_millis(500);
/// Commands that a group refused twice, since they are for a queue that it does not have yet, are sent again after this.
const OFFER_AGAIN: Duration = Duration::from_millis(100);
/// Commands of one batch hold about this much at most.
pub(crate) const MAX_BATCH_BYTES: usize = 256 << 10;

/// How this home stands with the group's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// Nothing may be sent until the leader has said what it has.
    Detached,
    Attaching {
        since: Instant,
    },
    Attached,
}

#[derive(Debug)]
struct Retained<C, P> {
    command: C,
    publish: Option<P>,
    size: usize,
    /// Disks that must have it before it is reported; 0 and 1 = a majority.
    copies: u8,
}

/// A publish that the group has, and not enough disks.
#[derive(Debug)]
struct Uncopied<P> {
    seq: u64,
    copies: u8,
    since: Instant,
    publish: P,
}

/// The group took in nothing from a command on.
#[derive(Debug)]
struct Gap {
    expected: u64,
    /// When that was last answered by sending again.
    since: Instant,
    /// The group has said so once more.
    repeated: bool,
}

/// The commands to one group. `C` is the group's command, `P` names a publish to be confirmed, `W` who waits for a reply.
#[derive(Debug)]
pub(crate) struct HomeStream<C, P, W> {
    /// Number of the first retained command.
    first: u64,
    retained: VecDeque<Retained<C, P>>,
    retained_bytes: usize,
    uncopied: VecDeque<Uncopied<P>>,
    /// The highest number that was sent in this attachment.
    sent: u64,
    /// The highest number that was ever sent: a group may have it, so its command never changes again.
    ever_sent: u64,
    /// Requests without a reply, by number.
    waiting: BTreeMap<u64, W>,
    /// The leader that is talked to, and its term.
    leader: Option<(MemberId, u64)>,
    attachment: Attachment,
    /// When the group last took something in, or when something was first sent after it had all.
    progress: Instant,
    /// The first request that the group has confirmed and not answered, and since when. It has answered, so that the answer
    /// is lost, whatever else it goes on to confirm.
    unanswered: Option<(u64, Instant)>,
    /// An answer came that could not be taken in.
    missed: bool,
    /// The last gap that was answered by sending again.
    gap: Option<Gap>,
    /// The group said that it expects a command which it had confirmed.
    doubted: bool,
}

impl<C, P, W> Default for HomeStream<C, P, W> {
    fn default() -> Self {
        Self {
            first: 1,
            retained: VecDeque::new(),
            retained_bytes: 0,
            uncopied: VecDeque::new(),
            sent: 0,
            ever_sent: 0,
            waiting: BTreeMap::new(),
            leader: None,
            attachment: Attachment::Detached,
            progress: Instant(0),
            unanswered: None,
            missed: false,
            gap: None,
            doubted: false,
        }
    }
}

impl<C: Codec + Clone, P: Copy, W> HomeStream<C, P, W> {
    /// Appends a command of about `size` bytes; `waiter` is given back when it is answered.
    pub(crate) fn push(&mut self, command: C, size: usize, waiter: Option<W>) -> u64 {
        let seq = self.retain(Retained { command, publish: None, size, copies: 0 });
        if let Some(waiter) = waiter {
            self.waiting.insert(seq, waiter);
        }
        seq
    }

    /// Appends a command of about `size` bytes; `publish` is given back once so many disks have it, a majority at least.
    pub(crate) fn push_tracked(&mut self, command: C, size: usize, publish: P, copies: u8) -> u64 {
        self.retain(Retained { command, publish: Some(publish), size, copies })
    }

    fn retain(&mut self, retained: Retained<C, P>) -> u64 {
        let seq = self.first + self.retained.len() as u64;
        self.retained_bytes += retained.size;
        self.retained.push_back(retained);
        seq
    }

    /// Lets `join` add to the last command, if that was never sent.
    pub(crate) fn merge(&mut self, join: impl FnOnce(&mut C) -> bool) -> bool {
        let unsent = self.first + self.retained.len() as u64 > self.ever_sent + 1;
        unsent && self.retained.back_mut().is_some_and(|last| join(&mut last.command))
    }

    pub(crate) fn leader(&self) -> Option<(MemberId, u64)> {
        self.leader
    }

    pub(crate) fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// Bytes of commands that the group does not have yet.
    pub(crate) fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// The group has a leader in this term. True if that is news, so that the stream must be attached again.
    pub(crate) fn led_by(&mut self, leader: MemberId, term: u64) -> bool {
        if self.leader.is_some_and(|(known, at)| at > term || (at == term && known == leader)) {
            return false;
        }
        self.leader = Some((leader, term));
        self.attachment = Attachment::Detached;
        true
    }

    /// What the leader sent may be lost: ask again.
    pub(crate) fn detach(&mut self) {
        self.attachment = Attachment::Detached;
    }

    /// True when an attach must be sent now, to [`HomeStream::leader`]. With nothing owed either way there is no need
    /// to ask, so the stream is attached at once.
    pub(crate) fn begin_attach(&mut self, has_consumers: bool, now: Instant) -> bool {
        if self.leader.is_none() || self.attachment != Attachment::Detached {
            return false;
        }
        let unanswered = self.waiting.range(..self.first).next().is_some();
        if self.sent < self.first && !unanswered && !has_consumers && self.uncopied.is_empty() {
            self.attachment = Attachment::Attached;
            return false;
        }
        self.attachment = Attachment::Attaching { since: now };
        true
    }

    /// The leader has sent all that was owed; what the group has not confirmed is sent again.
    pub(crate) fn attached(&mut self, term: u64, now: Instant) {
        if self.leader.is_some_and(|(_, known)| known == term)
            && matches!(self.attachment, Attachment::Attaching { .. })
        {
            self.attachment = Attachment::Attached;
            self.unanswered = None;
            self.sent = self.first - 1;
            self.progress = now;
            self.gap = None;
        }
    }

    /// The next commands to send, if the stream is attached and there are any.
    pub(crate) fn next_batch(&mut self, boot: BootId, now: Instant) -> Option<Batch<C>> {
        if self.attachment != Attachment::Attached {
            return None;
        }
        let sent = self.sent.max(self.first - 1);
        let start = (sent + 1 - self.first) as usize;
        let mut size = 0;
        let mut commands = Vec::with_capacity(self.retained.len().saturating_sub(start).min(1024));
        for retained in self.retained.range(start.min(self.retained.len())..) {
            if size > 0 && size + retained.size > MAX_BATCH_BYTES {
                break;
            }
            size += retained.size;
            commands.push(retained.command.clone());
        }
        if commands.is_empty() {
            return None;
        }
        if sent < self.first {
            self.progress = now;
        }
        self.sent = sent + commands.len() as u64;
        self.ever_sent = self.ever_sent.max(self.sent);
        Some(Batch { origin: Some(Origin { boot, first: sent + 1, answered: self.answered() }), commands })
    }

    fn answered(&self) -> u64 {
        match self.waiting.first_key_value() {
            Some((first, _)) => first - 1,
            None => self.first - 1,
        }
    }

    /// The group has all commands up to `seq`, on so many disks. Returns the publishes whose wait that ends.
    pub(crate) fn confirmed(&mut self, seq: u64, copies: u8, now: Instant) -> Vec<P> {
        self.doubted &= seq + 1 < self.first;
        let copied = |waiting: &mut Uncopied<P>| waiting.seq <= seq && waiting.copies <= copies;
        let mut publishes: Vec<P> = Vec::new();
        if !self.uncopied.is_empty() {
            publishes.extend(extract(&mut self.uncopied, copied));
            self.progress = now;
        }
        while self.first <= seq {
            let Some(retained) = self.retained.pop_front() else { break };
            self.retained_bytes -= retained.size;
            let seq = self.first;
            self.first += 1;
            self.progress = now;
            let Some(publish) = retained.publish else { continue };
            if retained.copies <= copies.max(1) {
                publishes.push(publish);
            } else {
                self.uncopied.push_back(Uncopied { seq, copies: retained.copies, since: now, publish });
            }
        }
        publishes
    }

    /// True when nothing is owed either way, so that time changes nothing; what sending took is given back.
    pub(crate) fn rest(&mut self) -> bool {
        let rests = self.attachment == Attachment::Attached
            && self.retained.is_empty()
            && self.waiting.is_empty()
            && self.uncopied.is_empty();
        if rests {
            (self.retained, self.uncopied) = (VecDeque::new(), VecDeque::new());
        }
        rests
    }

    /// True while the group has publishes that too few disks have.
    pub(crate) fn waits_for_copies(&self) -> bool {
        !self.uncopied.is_empty()
    }

    /// Gives up publishes that wait for copies for longer than `within`, where `may` allows it.
    pub(crate) fn take_overdue_copies(
        &mut self,
        now: Instant,
        within: Duration,
        mut may: impl FnMut(&P) -> bool,
    ) -> Vec<P> {
        let overdue = |waiting: &mut Uncopied<P>| now.since(waiting.since) >= within && may(&waiting.publish);
        extract(&mut self.uncopied, overdue)
    }

    /// The answer to a request came; a repeated answer has nobody waiting.
    pub(crate) fn replied(&mut self, seq: u64, now: Instant) -> Option<W> {
        self.progress = now;
        self.waiting.remove(&seq)
    }

    /// A batch did not follow on what the group has: send again from `expected`. False when the group expects a command
    /// that is not kept any more, so that the stream cannot go on: it must say so again after a new attach, since a
    /// report that later confirms overtook looks the same.
    pub(crate) fn gap(&mut self, expected: u64, now: Instant) -> bool {
        if expected < self.first {
            let is_sure = self.doubted && self.attachment == Attachment::Attached;
            self.doubted = true;
            self.attachment = Attachment::Detached;
            return !is_sure;
        }
        match &mut self.gap {
            Some(gap) if gap.expected == expected && now.since(gap.since) < ATTACH_AGAIN => gap.repeated = true,
            _ if expected <= self.sent => {
                self.gap = Some(Gap { expected, since: now, repeated: false });
                self.sent = expected - 1;
            }
            _ => {}
        }
        true
    }

    /// Goes back to what the group refused again although nothing is missing before it. True if there is such a thing.
    pub(crate) fn offer_again(&mut self, now: Instant) -> bool {
        let (is_attached, first, sent) = (self.attachment == Attachment::Attached, self.first, self.sent);
        let Some(gap) = self.gap.as_mut().filter(|gap| gap.repeated && now.since(gap.since) >= OFFER_AGAIN) else {
            return false;
        };
        if !is_attached || gap.expected < first || gap.expected > sent {
            return false;
        }
        (gap.since, gap.repeated) = (now, false);
        self.sent = gap.expected - 1;
        true
    }

    /// An answer came that this home may not take in yet. [`HomeStream::ask_for_missed`] gets it again.
    pub(crate) fn missed(&mut self) {
        self.missed = true;
    }

    /// From now on this home may take in what it missed: it asks for that, if there is any. True if so.
    pub(crate) fn ask_for_missed(&mut self) -> bool {
        let missed = std::mem::take(&mut self.missed);
        if missed {
            self.attachment = Attachment::Detached;
        }
        missed
    }

    /// True when a request that was confirmed has been without its answer for too long.
    fn is_answer_lost(&mut self, now: Instant) -> bool {
        let oldest = self.waiting.range(..self.first).next().map(|(seq, _)| *seq);
        let Some(oldest) = oldest else {
            self.unanswered = None;
            return false;
        };
        match self.unanswered {
            Some((seq, since)) if seq == oldest => now.since(since) >= ASK_AGAIN,
            _ => {
                self.unanswered = Some((oldest, now));
                false
            }
        }
    }

    /// Asks again when an answer is overdue. True if it was.
    pub(crate) fn check_overdue(&mut self, now: Instant) -> bool {
        let is_lost = self.is_answer_lost(now);
        let overdue = match self.attachment {
            Attachment::Detached => false,
            Attachment::Attaching { since } => now.since(since) >= ATTACH_AGAIN,
            Attachment::Attached => {
                let unanswered = self.waiting.range(..=self.sent).next().is_some();
                let owed = self.sent >= self.first || unanswered || !self.uncopied.is_empty();
                is_lost || (owed && now.since(self.progress) >= ASK_AGAIN)
            }
        };
        if overdue {
            self.attachment = Attachment::Detached;
            self.progress = now;
            self.unanswered = None;
        }
        overdue
    }

    /// Ends the stream: the publishes without a confirm and the requests without a reply.
    pub(crate) fn into_unfinished(self) -> (Vec<P>, Vec<W>) {
        let uncopied = self.uncopied.into_iter().map(|waiting| waiting.publish);
        let publishes = uncopied.chain(self.retained.into_iter().filter_map(|retained| retained.publish)).collect();
        (publishes, self.waiting.into_values().collect())
    }
}

/// Takes out what `wanted` says, in order.
fn extract<P>(waiting: &mut VecDeque<Uncopied<P>>, mut wanted: impl FnMut(&mut Uncopied<P>) -> bool) -> Vec<P> {
    let mut taken = Vec::new();
    for _ in 0..waiting.len() {
        let Some(mut one) = waiting.pop_front() else { break };
        if wanted(&mut one) {
            taken.push(one.publish);
        } else {
            waiting.push_back(one);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_queue::ids::QueueId;
    use holdfast_queue::queue::QueueCommand;

    const BOOT: BootId = BootId(7);
    const NOW: Instant = Instant(1_000_000);

    fn purge(queue: u64) -> QueueCommand {
        QueueCommand::Purge { queue: QueueId(queue) }
    }

    fn stream() -> HomeStream<QueueCommand, u32, char> {
        let mut stream = HomeStream::default();
        assert!(stream.led_by(MemberId(1), 4));
        assert!(!stream.begin_attach(false, NOW), "a new stream is owed nothing");
        stream
    }

    fn numbers(batch: &Batch<QueueCommand>) -> (u64, usize) {
        (batch.origin.expect("numbered").first, batch.commands.len())
    }

    #[test]
    fn what_was_sent_and_not_confirmed_is_sent_again_to_the_next_leader() {
        let mut stream = stream();
        for number in 1..=3 {
            stream.push_tracked(purge(number), 10, number as u32, 0);
        }
        assert_eq!(numbers(&stream.next_batch(BOOT, NOW).expect("three")), (1, 3));
        assert_eq!(stream.next_batch(BOOT, NOW), None);
        assert_eq!(stream.confirmed(1, 0, NOW), [1]);
        assert!(stream.led_by(MemberId(2), 5));
        assert!(stream.begin_attach(false, NOW));
        stream.push_tracked(purge(4), 10, 4, 0);
        assert_eq!(stream.next_batch(BOOT, NOW), None, "first the leader says what it has");
        assert_eq!(stream.confirmed(2, 0, NOW), [2]);
        stream.attached(5, NOW);
        assert_eq!(numbers(&stream.next_batch(BOOT, NOW).expect("the rest")), (3, 2));
        assert!(!stream.led_by(MemberId(1), 4), "an older leader is no news");
    }

    #[test]
    fn a_command_that_may_have_arrived_takes_nothing_more_in_even_when_it_is_to_be_sent_again() {
        let mut stream = stream();
        stream.push(purge(1), 10, None);
        assert!(stream.merge(|_| true), "not sent yet");
        stream.next_batch(BOOT, NOW).expect("one");
        assert!(stream.led_by(MemberId(2), 5));
        assert!(stream.begin_attach(false, NOW));
        stream.attached(5, NOW);
        assert!(!stream.merge(|_| true), "the group would skip it as one that it has");
        assert_eq!(numbers(&stream.next_batch(BOOT, NOW).expect("again")), (1, 1));
    }

    #[test]
    fn a_lost_answer_is_asked_for_although_the_group_goes_on_to_confirm_other_commands() {
        let mut stream = stream();
        stream.push(purge(1), 10, Some('a'));
        stream.next_batch(BOOT, NOW).expect("the request");
        let mut now = NOW;
        let mut asked_again = false;
        for number in 2..=30 {
            now = now + Duration::from_millis(100);
            stream.confirmed(number - 1, 0, now);
            stream.push_tracked(purge(number), 10, 1, 0);
            stream.next_batch(BOOT, now).expect("a publish");
            asked_again |= stream.check_overdue(now) && stream.begin_attach(false, now);
            stream.attached(4, now);
        }
        assert!(asked_again, "the request is confirmed and has no answer for three seconds");
        assert_eq!(stream.replied(1, now), Some('a'));
        assert!(!stream.check_overdue(now + Duration::from_millis(500)));
    }

    #[test]
    fn an_answer_that_came_too_early_is_asked_for_as_soon_as_it_may_be_taken_in() {
        let mut stream = stream();
        stream.push(purge(1), 10, Some('a'));
        stream.next_batch(BOOT, NOW).expect("the request");
        stream.confirmed(1, 0, NOW);
        assert!(!stream.ask_for_missed(), "nothing was missed");
        stream.missed();
        assert!(stream.ask_for_missed());
        assert!(stream.begin_attach(false, NOW), "the leader is asked for what it owes");
        stream.attached(4, NOW);
        assert!(!stream.ask_for_missed(), "once is enough");
    }

    #[test]
    fn a_gap_rewinds_once_and_a_lost_command_is_reported() {
        let mut stream = stream();
        for number in 1..=4 {
            stream.push(purge(number), 10, None);
        }
        stream.next_batch(BOOT, NOW).expect("all");
        stream.confirmed(2, 0, NOW);
        assert!(stream.gap(3, NOW));
        assert_eq!(numbers(&stream.next_batch(BOOT, NOW).expect("again")), (3, 2));
        assert!(stream.gap(3, NOW), "each lost batch reports the same gap");
        assert_eq!(stream.next_batch(BOOT, NOW), None);
        assert!(stream.gap(1, NOW), "an old report that confirms overtook, perhaps");
        assert!(stream.gap(1, NOW));
        assert!(stream.begin_attach(false, NOW));
        stream.attached(4, NOW);
        assert!(!stream.gap(1, NOW), "it still says so");
    }

    #[test]
    fn what_is_refused_again_is_offered_from_time_to_time_until_it_is_taken() {
        let mut stream = stream();
        for number in 1..=2 {
            stream.push(purge(number), 10, None);
        }
        stream.next_batch(BOOT, NOW).expect("both");
        stream.confirmed(1, 0, NOW);
        assert!(stream.gap(2, NOW));
        let mut now = NOW;
        for _ in 0..3 {
            assert_eq!(numbers(&stream.next_batch(BOOT, now).expect("again")), (2, 1));
            assert!(!stream.offer_again(now + OFFER_AGAIN), "it is on its way");
            assert!(stream.gap(2, now));
            assert!(!stream.offer_again(now));
            now = now + OFFER_AGAIN;
            assert!(stream.offer_again(now));
        }
        stream.next_batch(BOOT, now).expect("again");
        stream.gap(2, now);
        stream.confirmed(2, 0, now);
        assert!(!stream.offer_again(now + OFFER_AGAIN), "it was taken");
    }

    #[test]
    fn replies_are_forgotten_only_up_to_the_first_that_is_missing() {
        let mut stream = stream();
        stream.push(purge(1), 10, Some('a'));
        stream.push(purge(2), 10, Some('b'));
        stream.next_batch(BOOT, NOW).expect("both");
        stream.confirmed(2, 0, NOW);
        assert_eq!(stream.replied(2, NOW), Some('b'));
        assert_eq!(stream.replied(2, NOW), None);
        stream.push(purge(3), 10, None);
        let batch = stream.next_batch(BOOT, NOW).expect("one");
        assert_eq!(batch.origin.expect("numbered").answered, 0);
    }

    #[test]
    fn silence_for_two_seconds_asks_again() {
        let mut stream = stream();
        stream.push(purge(1), 10, Some('a'));
        stream.next_batch(BOOT, NOW).expect("one");
        assert!(!stream.check_overdue(NOW + Duration::from_millis(1_999)));
        assert!(stream.check_overdue(NOW + ASK_AGAIN));
        assert!(stream.begin_attach(false, NOW + ASK_AGAIN));
        stream.confirmed(1, 0, NOW + ASK_AGAIN);
        stream.attached(4, NOW + ASK_AGAIN);
        assert!(!stream.check_overdue(NOW + ASK_AGAIN));
        assert!(stream.check_overdue(NOW + ASK_AGAIN + ASK_AGAIN), "the reply is still missing");
    }

    #[test]
    fn batches_are_bounded_and_a_large_command_goes_alone() {
        let mut stream = stream();
        for (number, size) in [(1, 10), (2, MAX_BATCH_BYTES + 1), (3, 10)] {
            stream.push(purge(number), size, None);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| stream.next_batch(BOOT, NOW)).map(|batch| numbers(&batch)).collect();
        assert_eq!(sizes, [(1, 1), (2, 1), (3, 1)]);
    }
}
