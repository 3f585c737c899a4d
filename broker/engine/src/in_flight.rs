//! What a channel published or settled and has not ended: what barriers wait for.

use std::collections::VecDeque;

/// Things in flight, numbered 0, 1, 2 …, that end in any order: has everything before one of them ended?
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    /// Number of the first slot.
    base: u64,
    /// How much each still waits for.
    slots: VecDeque<u32>,
}

impl InFlight {
    /// The next thing, which waits for `parts`; its number.
    pub(crate) fn begin(&mut self, parts: u32) -> u64 {
        self.slots.push_back(parts);
        let number = self.next() - 1;
        self.pop_ended();
        number
    }

    fn pop_ended(&mut self) {
        while self.slots.front() == Some(&0) {
            self.slots.pop_front();
            self.base += 1;
        }
    }

    /// A thing failed, however many parts it still waits for; true if it had not ended before.
    pub(crate) fn fail(&mut self, number: u64) -> bool {
        let slot = number.checked_sub(self.base).and_then(|at| self.slots.get_mut(at as usize));
        let Some(slot) = slot.filter(|slot| **slot > 0) else { return false };
        *slot = 0;
        self.pop_ended();
        true
    }

    /// One part of a thing ended; true when it was the last.
    pub(crate) fn end_part(&mut self, number: u64) -> bool {
        let Some(at) = number.checked_sub(self.base) else { return false };
        let Some(slot) = self.slots.get_mut(at as usize).filter(|slot| **slot > 0) else { return false };
        *slot -= 1;
        let done = *slot == 0;
        self.pop_ended();
        done
    }

    /// The number of the next thing.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// True when everything numbered below `number` has ended.
    pub(crate) fn ended_below(&self, number: u64) -> bool {
        self.base >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_in_flight_end_in_any_order_and_a_barrier_waits_for_all_before_it() {
        let mut flight = InFlight::default();
        let (first, second, third) = (flight.begin(2), flight.begin(1), flight.begin(2));
        let barrier = third;
        assert!(flight.end_part(second));
        assert!(!flight.end_part(first));
        assert!(!flight.ended_below(barrier));
        assert!(flight.end_part(first));
        assert!(flight.ended_below(barrier));
        assert!(!flight.ended_below(flight.next()));
        assert!(!flight.end_part(first), "what has ended stays so");
        assert!(!flight.fail(first));
        assert!(flight.fail(third), "it fails with its first part");
        assert!(!flight.end_part(third));
        assert!(flight.ended_below(flight.next()));
    }
}
