//! The outside ledger ([`holdfast_sim::ledger`]), shared between the tasks of a real run and with the times of confirms.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use holdfast_sim::ledger::{MessageId, Verdict, encode_body};

#[derive(Default)]
struct State {
    ledger: holdfast_sim::ledger::Ledger,
    confirms: Vec<(Instant, u32)>,
    first_sent: BTreeMap<MessageId, Instant>,
    latencies: Vec<(Instant, MessageId, Duration)>,
    /// When a producer had all of its confirms: after that its silence is no gap.
    finished: BTreeMap<u32, Instant>,
}

/// A ledger shared by all producers and consumers of one queue.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message is about to be written to a socket.
    pub fn sent(&self, id: MessageId) {
        let mut state = self.lock();
        state.ledger.sent(id);
        state.first_sent.entry(id).or_insert_with(Instant::now);
    }

    /// Its confirm was read.
    pub fn confirmed(&self, id: MessageId) {
        let mut state = self.lock();
        state.ledger.confirmed(id);
        let now = Instant::now();
        state.confirms.push((now, id.producer));
        if let Some(sent) = state.first_sent.remove(&id) {
            state.latencies.push((now, id, now - sent));
        }
    }

    /// A producer has sent everything and has every confirm.
    pub fn finished(&self, producer: u32) {
        self.lock().finished.insert(producer, Instant::now());
    }

    /// The broker refused it with a nack.
    pub fn refused(&self, id: MessageId) {
        self.lock().ledger.refused(id);
    }

    /// A consumer received it.
    pub fn delivered(&self, consumer: u32, body: &[u8], redelivered: bool) -> Option<MessageId> {
        self.lock().ledger.delivered(consumer, body, redelivered)
    }

    /// The acks of these messages are durable.
    pub fn acks_durable(&self, ids: &[MessageId]) {
        self.lock().ledger.acks_durable(ids);
    }

    /// Distinct messages confirmed so far.
    #[must_use]
    pub fn confirmed_count(&self) -> u64 {
        self.lock().ledger.confirmed_count()
    }

    /// Confirmed messages that nobody has received yet.
    #[must_use]
    pub fn undelivered_count(&self) -> u64 {
        self.lock().ledger.undelivered_count()
    }

    /// The longest time that any one of `producers` was without a confirm, between `from` and `from + window`: a client
    /// that is stuck counts, however well the others do. A window that ends in silence counts to its end, or to when the
    /// producer had nothing more to wait for.
    #[must_use]
    pub fn longest_confirm_gap(&self, from: Instant, window: Duration, producers: &[u32]) -> Duration {
        let state = self.lock();
        let (end, now) = (from + window, Instant::now());
        let gap_of = |producer: &u32| {
            let mut last = from;
            let mut longest = Duration::ZERO;
            let own = state.confirms.iter().filter(|(at, of)| of == producer && *at >= from && *at <= end);
            for (at, _) in own {
                longest = longest.max(at.duration_since(last));
                last = *at;
            }
            let end = state.finished.get(producer).map_or(end, |finished| end.min(*finished));
            longest.max(end.min(now).saturating_duration_since(last))
        };
        producers.iter().map(gap_of).max().unwrap_or_default()
    }

    /// When the first confirm after `from` of any of `producers` was read.
    #[must_use]
    pub fn first_confirm_after(&self, from: Instant, producers: &[u32]) -> Option<Instant> {
        // They are in the order of their times: read from the end back.
        let state = self.lock();
        let after = state.confirms.iter().rev().take_while(|(at, _)| *at > from);
        after.filter(|(_, producer)| producers.contains(producer)).last().map(|(at, _)| *at)
    }

    /// Confirms that were read in this time.
    #[must_use]
    pub fn confirms_between(&self, from: Instant, to: Instant) -> usize {
        self.lock().confirms.iter().filter(|(at, _)| *at > from && *at <= to).count()
    }

    /// Messages that were confirmed before `at` and that no consumer has received yet.
    #[must_use]
    pub fn undelivered_since(&self, at: Instant) -> Vec<MessageId> {
        let state = self.lock();
        let before = state.latencies.iter().take_while(|(confirmed, ..)| *confirmed < at).map(|(_, id, _)| *id);
        before.filter(|id| !state.ledger.was_delivered(*id)).collect()
    }

    /// From the first sending to the confirm, of what these producers had confirmed in this time: the latency that
    /// `percent` of the messages did not exceed. `None` when nothing was confirmed.
    #[must_use]
    pub fn confirm_latency(&self, from: Instant, to: Instant, producers: &[u32], percent: usize) -> Option<Duration> {
        let state = self.lock();
        let within =
            state.latencies.iter().filter(|(at, id, _)| *at > from && *at <= to && producers.contains(&id.producer));
        let mut latencies: Vec<Duration> = within.map(|(_, _, latency)| *latency).collect();
        drop(state);
        latencies.sort_unstable();
        let rank = (latencies.len() * percent).div_ceil(100).max(1) - 1;
        latencies.get(rank).copied()
    }

    /// The verdict, to be asked when the queue has been drained.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.lock().ledger.verdict()
    }

    /// The first few confirmed messages that nobody received, for a report.
    #[must_use]
    pub fn some_lost(&self) -> Vec<MessageId> {
        self.lock().ledger.some_lost()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_until_the_end_of_the_window_is_a_gap() {
        let ledger = Ledger::default();
        let from = Instant::now() - Duration::from_secs(5);
        let gap = ledger.longest_confirm_gap(from, Duration::from_secs(2), &[1]);
        assert_eq!(gap, Duration::from_secs(2));
    }

    #[test]
    fn a_producer_that_has_all_of_its_confirms_is_silent_without_a_gap() {
        let ledger = Ledger::default();
        let from = Instant::now() - Duration::from_secs(5);
        ledger.lock().confirms.push((from + Duration::from_millis(300), 1));
        ledger.lock().finished.insert(1, from + Duration::from_millis(350));
        let gap = ledger.longest_confirm_gap(from, Duration::from_secs(2), &[1]);
        assert_eq!(gap, Duration::from_millis(300));
        assert_eq!(
            ledger.longest_confirm_gap(from + Duration::from_secs(1), Duration::from_secs(1), &[1]),
            Duration::ZERO
        );
    }

    #[test]
    fn latency_counts_from_the_first_sending_and_the_first_confirm_after_an_instant_is_found() {
        let ledger = Ledger::default();
        let from = Instant::now();
        assert_eq!(ledger.confirm_latency(from, from + Duration::from_secs(1), &[1], 99), None);
        for number in 1..=3 {
            let id = MessageId { producer: 1, number };
            ledger.sent(id);
            ledger.sent(id);
            ledger.confirmed(id);
        }
        let to = Instant::now();
        assert_eq!(ledger.confirms_between(from, to), 3);
        assert!(ledger.confirm_latency(from, to, &[1], 99).is_some_and(|latency| latency <= to - from));
        let first = ledger.first_confirm_after(from, &[1]).expect("a confirm");
        assert!(first > from && ledger.first_confirm_after(first, &[1, 2]) > Some(first));
        assert_eq!(ledger.first_confirm_after(from, &[2]), None);
        assert_eq!(ledger.first_confirm_after(to, &[1]), None);
        let id = |number| MessageId { producer: 1, number };
        ledger.delivered(0, &encode_body(id(2), 32), false);
        assert_eq!(ledger.undelivered_since(to), [id(1), id(3)]);
        assert_eq!(ledger.undelivered_since(from), []);
    }

    #[test]
    fn one_stuck_producer_is_not_hidden_by_the_others() {
        let ledger = Ledger::default();
        let from = Instant::now() - Duration::from_secs(5);
        let mut state = ledger.lock();
        for step in 0..40 {
            state.confirms.push((from + Duration::from_millis(step * 50), 1));
        }
        state.confirms.push((from + Duration::from_millis(10), 2));
        drop(state);
        let gap = |producers: &[u32]| ledger.longest_confirm_gap(from, Duration::from_secs(2), producers);
        assert_eq!(gap(&[1]), Duration::from_millis(50));
        assert_eq!(gap(&[1, 2]), Duration::from_millis(1990));
        assert_eq!(gap(&[]), Duration::ZERO);
    }
}
