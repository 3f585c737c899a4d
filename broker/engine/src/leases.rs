//! Metadata leases (design §3.4): a member routes and confirms only while it knows that its view of group 0 is fresh.
//!
//! A member asks group 0's leader for a lease twice a second. The leader answers only after a majority of group 0's
//! voters said, *after* the request arrived, that they still follow it in this term; so no other leader can have
//! committed anything by the time the request was sent. The member counts the lease from when it sent the request, the
//! leader from when it granted, so the member's own end always comes first on clocks that run at nearly the same rate.
//!
//! A change to routing (declare, bind, delete) is answered once every member with a live lease has applied it. A grant
//! names the commit index at that time and is of no use before that much is applied, so a change at or below it waits
//! for nobody who has only that grant: a member that applies nothing delays a change by one lease at most. Such a member
//! gets no further grant either, until it has applied what the last one named: then it delays nothing at all. A new
//! leader does not know what its predecessor granted, so for one lease it treats every member as a holder.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::ids::MemberId;
use holdfast_queue::time::{Duration, Instant};

/// How long a lease lasts.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// How often a member asks for one.
pub(crate) const REQUEST_EVERY: Duration = Duration::from_millis(500);
/// What the leader adds to a lease it granted, for clocks of different speed.
const MARGIN: Duration = Duration::from_millis(100);

/// A member's side of its own lease.
#[derive(Debug, Default)]
pub(crate) struct Holder {
    round: u64,
    /// When requests without an answer were sent, by round.
    sent: BTreeMap<u64, Instant>,
    /// Granted leases: their end, and the index of group 0 that must be applied here before each counts. Kept side by
    /// side, since a later one may name a higher index than is applied yet, which does not end an earlier one.
    granted: Vec<(Instant, u64)>,
    next_request: Instant,
}

impl Holder {
    /// The round of a request that is due now, if one is.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        if now < self.next_request {
            return None;
        }
        self.next_request = now + REQUEST_EVERY;
        self.round += 1;
        self.sent.insert(self.round, now);
        while self.sent.len() > 8 {
            self.sent.pop_first();
        }
        Some(self.round)
    }

    /// Asks again at once, since group 0 has a new leader.
    pub(crate) fn hurry(&mut self) {
        self.next_request = Instant(0);
    }

    /// The leader granted the request of `round`, with its commit index.
    pub(crate) fn granted(&mut self, round: u64, commit: u64) {
        let Some(sent) = self.sent.remove(&round) else { return };
        self.granted.retain(|(until, _)| *until > sent);
        self.granted.push((sent + LEASE, commit));
    }

    /// True while routing on the local view is allowed; `applied` is the local applied index of group 0.
    pub(crate) fn fresh(&self, now: Instant, applied: u64) -> bool {
        self.granted.iter().any(|(until, commit)| now < *until && applied >= *commit)
    }

    /// True once the local view shows all that group 0 had committed at `since`: a live lease was asked for after that.
    pub(crate) fn fresh_since(&self, since: Instant, now: Instant, applied: u64) -> bool {
        let asked_since = |until: Instant| until >= since + LEASE;
        self.granted.iter().any(|(until, commit)| now < *until && asked_since(*until) && applied >= *commit)
    }
}

/// The leader's side: rounds of proof, grants, and who has applied what.
#[derive(Debug, Default)]
pub(crate) struct Granter {
    term: u64,
    /// Until then every member counts as a holder, since an earlier leader may have granted.
    inherited_until: Instant,
    probe_round: u64,
    acks: BTreeSet<MemberId>,
    probing: bool,
    probe_sent: Instant,
    /// Requests that the running round proves, and those that came later and wait for the next round.
    proving: Vec<(MemberId, u64)>,
    queued: Vec<(MemberId, u64)>,
    holders: BTreeMap<MemberId, Grants>,
    applied: BTreeMap<MemberId, u64>,
}

/// What one member was granted.
#[derive(Debug, Default)]
struct Grants {
    /// The end of each lease, and the commit index that it named; the newest last.
    live: Vec<(Instant, u64)>,
    /// The commit index that the newest one named, whether it lives or not.
    newest: u64,
}

impl Grants {
    fn add(&mut self, commit: u64, now: Instant) {
        self.live.retain(|(until, _)| now < *until);
        self.live.push((now + LEASE + MARGIN, commit));
        self.newest = commit;
    }

    /// True if one of them may be used by a member that has not applied `index`.
    fn count_against(&self, index: u64, now: Instant) -> bool {
        self.live.iter().any(|(until, commit)| now < *until && *commit < index)
    }
}

impl Granter {
    /// This member began to lead group 0.
    pub(crate) fn lead(&mut self, term: u64, now: Instant) {
        *self = Self { term, inherited_until: now + LEASE + MARGIN, probe_round: self.probe_round, ..Self::default() };
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// A member asks for a lease and says what it has applied. One that could not use its last grant yet gets no other.
    pub(crate) fn request(&mut self, from: MemberId, round: u64, applied: u64) {
        self.report_applied(from, applied);
        if self.holders.get(&from).is_some_and(|grants| self.applied[&from] < grants.newest) {
            return;
        }
        self.queued.retain(|(member, _)| *member != from);
        self.queued.push((from, round));
    }

    pub(crate) fn report_applied(&mut self, from: MemberId, applied: u64) {
        let known = self.applied.entry(from).or_default();
        *known = applied.max(*known);
    }

    /// Starts a round of proof if requests wait for one; returns its number, to be sent to every voter.
    pub(crate) fn begin_round(&mut self, now: Instant) -> Option<u64> {
        let stuck = self.probing && now.since(self.probe_sent) >= REQUEST_EVERY;
        if (self.probing && !stuck) || (self.queued.is_empty() && self.proving.is_empty()) {
            return None;
        }
        self.proving.append(&mut self.queued);
        self.proving.sort_unstable();
        // Only the newest request of a member matters.
        let mut newest: BTreeMap<MemberId, u64> = BTreeMap::new();
        newest.extend(self.proving.drain(..));
        self.proving.extend(newest);
        self.probing = true;
        self.probe_sent = now;
        self.probe_round += 1;
        self.acks.clear();
        Some(self.probe_round)
    }

    /// A voter says which term it is in; `commit` is group 0's commit index here. Returns the requests that are now
    /// granted, each to be told that index.
    pub(crate) fn acknowledged(
        &mut self,
        from: MemberId,
        round: u64,
        term: u64,
        voters: &[MemberId],
        commit: u64,
        now: Instant,
    ) -> Vec<(MemberId, u64)> {
        if !self.probing || round != self.probe_round || term != self.term || !voters.contains(&from) {
            return Vec::new();
        }
        self.acks.insert(from);
        if self.acks.len() <= voters.len() / 2 {
            return Vec::new();
        }
        self.probing = false;
        let granted = std::mem::take(&mut self.proving);
        for (member, _) in &granted {
            self.holders.entry(*member).or_default().add(commit, now);
        }
        granted
    }

    /// True when every one of `members` has applied `index` or can hold no lease that is of use without it. A removed
    /// member does not matter.
    pub(crate) fn visible_everywhere(&self, index: u64, members: impl Iterator<Item = MemberId>, now: Instant) -> bool {
        members.into_iter().all(|member| {
            let granted = self.holders.get(&member).is_some_and(|grants| grants.count_against(index, now));
            let holds = now < self.inherited_until || granted;
            !holds || self.applied.get(&member).is_some_and(|applied| *applied >= index)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTERS: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

    #[test]
    fn a_lease_counts_from_the_request_and_only_once_the_commit_index_is_applied() {
        let mut holder = Holder::default();
        let sent = Instant(1_000_000);
        let round = holder.due(sent).expect("due at once");
        holder.granted(round, 7);
        assert!(!holder.fresh(sent, 6));
        assert!(holder.fresh(sent, 7));
        assert!(holder.fresh(Instant(3_999_999), 7));
        assert!(!holder.fresh(Instant(4_000_000), 7));
        holder.granted(round + 1, 7);
        assert!(!holder.fresh(Instant(4_000_000), 7), "a grant nobody asked for is ignored");
    }

    #[test]
    fn a_view_is_fresh_since_a_time_only_by_a_lease_that_was_asked_for_later() {
        let mut holder = Holder::default();
        let first = holder.due(Instant(1_000_000)).expect("due at once");
        holder.granted(first, 7);
        let (since, now) = (Instant(1_100_000), Instant(1_600_000));
        assert!(holder.fresh(now, 7) && !holder.fresh_since(since, now, 9));
        let second = holder.due(now).expect("due again");
        holder.granted(second, 9);
        assert!(!holder.fresh_since(since, now, 8), "what it names is not applied yet");
        assert!(holder.fresh_since(since, now, 9));
    }

    #[test]
    fn a_request_is_granted_by_a_majority_that_answered_after_it_arrived() {
        let mut granter = Granter::default();
        let now = Instant(0);
        granter.lead(4, now);
        granter.request(MemberId(2), 1, 10);
        let round = granter.begin_round(now).expect("a request waits");
        granter.request(MemberId(3), 1, 10);
        assert!(granter.acknowledged(MemberId(1), round, 4, &VOTERS, 10, now).is_empty());
        assert!(granter.acknowledged(MemberId(2), round, 5, &VOTERS, 10, now).is_empty(), "it follows another term");
        let granted = granter.acknowledged(MemberId(2), round, 4, &VOTERS, 10, now);
        assert_eq!(granted, [(MemberId(2), 1)], "the request of member 3 came after the round began");
        assert!(granter.begin_round(now).is_some());
    }

    #[test]
    fn a_change_is_visible_once_every_holder_applied_it_or_its_lease_ran_out() {
        let mut granter = Granter::default();
        granter.lead(1, Instant(0));
        for (member, applied) in [(1, 5), (2, 5), (3, 4)] {
            granter.report_applied(MemberId(member), applied);
        }
        let visible = |granter: &Granter, now| granter.visible_everywhere(5, VOTERS.into_iter(), now);
        assert!(!visible(&granter, Instant(0)), "a predecessor may have granted member 3 a lease");
        assert!(visible(&granter, Instant(3_100_000)));
        granter.request(MemberId(3), 1, 4);
        let now = Instant(4_000_000);
        let round = granter.begin_round(now).expect("a request waits");
        granter.acknowledged(MemberId(1), round, 1, &VOTERS, 4, now);
        granter.acknowledged(MemberId(2), round, 1, &VOTERS, 4, now);
        assert!(!visible(&granter, now));
        assert!(visible(&granter, now + LEASE + MARGIN));
        granter.report_applied(MemberId(3), 5);
        assert!(visible(&granter, now));
    }

    /// Member 3 asks at `now` and is granted a lease if it may have one.
    fn grant(granter: &mut Granter, applied: u64, commit: u64, now: Instant) -> bool {
        granter.request(MemberId(3), 1, applied);
        let Some(round) = granter.begin_round(now) else { return false };
        granter.acknowledged(MemberId(1), round, 1, &VOTERS, commit, now);
        !granter.acknowledged(MemberId(2), round, 1, &VOTERS, commit, now).is_empty()
    }

    #[test]
    fn a_member_that_applies_nothing_holds_changes_back_for_one_lease_and_is_granted_no_other() {
        let mut granter = Granter::default();
        granter.lead(1, Instant(0));
        for member in [1, 2] {
            granter.report_applied(MemberId(member), 100);
        }
        let mut now = Instant(4_000_000);
        assert!(grant(&mut granter, 4, 6, now));
        assert!(granter.visible_everywhere(6, VOTERS.into_iter(), now), "the lease counts only once 6 is applied");
        assert!(!granter.visible_everywhere(7, VOTERS.into_iter(), now));
        for _ in 0..20 {
            now = now + REQUEST_EVERY;
            assert!(!grant(&mut granter, 4, 7, now), "it has no use for the lease that it has");
        }
        assert!(granter.visible_everywhere(7, VOTERS.into_iter(), now));
        assert!(grant(&mut granter, 6, 7, now), "it goes on");
    }
}
