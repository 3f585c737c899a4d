//! A journal that stands still: nothing becomes durable while its files are read or replaced by a recovery.
//!
//! A member whose journal stands still acknowledges nothing, votes for nobody and confirms nothing, since all of that waits
//! for its disk. So this is also how survivors are frozen between a plan and its apply; it ends by itself.
//!
//! A freeze and the work of a survey or an apply are two reasons to stand still, with an end of its own each: the end of
//! one is never that of the other, nor makes it longer. Only one work is under way at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the journal may take over the write that is under way.
const ENTER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    frozen_until: Option<Instant>,
    /// Somebody works on the files; the journal waits for that until then at most.
    working_until: Option<Instant>,
    /// The journal's thread stands still.
    is_still: bool,
    /// So many times it has come to a standstill.
    standstills: u64,
    /// The files are another journal's: this process must never write to them again.
    is_replaced: bool,
}

impl State {
    /// How much longer the standstill lasts, none when nothing asks for it.
    fn left(&self) -> Option<Duration> {
        if self.is_replaced {
            return Some(Duration::from_secs(3600)); // The process is about to end.
        }
        let left = self.frozen_until.max(self.working_until)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// Why there is no standstill to work in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStandstill {
    /// Other work is under way.
    Busy,
    /// The journal did not come to it in time.
    Stuck,
}

/// Shared by the journal's thread and whoever pauses it.
#[derive(Clone, Debug, Default)]
pub struct JournalPause(Arc<(Mutex<State>, Condvar)>);

impl JournalPause {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for standstill for so long at least; `wake` makes the journal's thread look. False, and nothing is asked for,
    /// if it did not come to it in time. Blocks.
    pub fn freeze(&self, at_least: Duration, wake: impl FnOnce()) -> bool {
        let mut state = self.state();
        let before = state.frozen_until;
        let until = before.max(Some(Instant::now() + at_least));
        state.frozen_until = until;
        let (mut state, stood_still) = self.enter(state, wake);
        if !stood_still && state.frozen_until == until {
            state.frozen_until = before;
        }
        stood_still
    }

    /// A freeze is in force.
    pub fn is_frozen(&self) -> bool {
        self.state().frozen_until.is_some_and(|until| until > Instant::now())
    }

    /// Ends a freeze. False while work is under way: the journal goes on when that is done, or when the freeze ends.
    pub fn thaw(&self) -> bool {
        let mut state = self.state();
        if state.working_until.is_some() || state.is_replaced {
            return false;
        }
        state.frozen_until = None;
        self.0.1.notify_all();
        true
    }

    /// A standstill to work in, until it is dropped and for so long at most. Blocks.
    pub fn stand_still_for(&self, within: Duration, wake: impl FnOnce()) -> Result<Standstill, NoStandstill> {
        let mut state = self.state();
        if state.working_until.is_some() || state.is_replaced {
            return Err(NoStandstill::Busy);
        }
        state.working_until = Some(Instant::now() + within);
        let (mut state, stood_still) = self.enter(state, wake);
        if !stood_still {
            state.working_until = None;
            return Err(NoStandstill::Stuck);
        }
        Ok(Standstill { pause: self.clone(), number: state.standstills })
    }

    /// Waits for the journal. True when it came to a standstill, be that over already: a short one may have been by the time
    /// that this thread sees it.
    fn enter<'a>(&'a self, state: MutexGuard<'a, State>, wake: impl FnOnce()) -> (MutexGuard<'a, State>, bool) {
        let before = state.standstills;
        let has_come = |state: &State| state.is_still || state.standstills > before;
        if !state.is_still {
            wake();
        }
        let entered = self.0.1.wait_timeout_while(state, ENTER_WITHIN, |state| !has_come(state));
        let (state, _) = entered.unwrap_or_else(PoisonError::into_inner);
        let stood_still = has_come(&state);
        (state, stood_still)
    }

    /// On the journal's thread: stands still as long as it is asked to.
    pub(crate) fn stand_still(&self) {
        let mut state = self.state();
        state.is_still = true;
        state.standstills += 1;
        self.0.1.notify_all();
        while let Some(left) = state.left() {
            let waited = self.0.1.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.is_still = false;
        state.frozen_until = None;
    }
}

/// The journal stands still for work on its files. Dropping it ends that; a freeze goes on.
#[derive(Debug)]
pub struct Standstill {
    pause: JournalPause,
    /// Which standstill it is.
    number: u64,
}

impl Standstill {
    /// From now on nothing is ever written again: the files are about to become another journal's. False when the journal
    /// has gone on since the work began, because that took too long: then they are not what the work has read.
    #[must_use]
    pub fn never_resume(&self) -> bool {
        let mut state = self.pause.state();
        state.is_replaced = state.is_still && state.standstills == self.number;
        state.is_replaced
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        self.pause.state().working_until = None;
        self.pause.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const LONG: Duration = Duration::from_secs(600);
    const SOON: Duration = Duration::from_secs(30);

    /// A journal's thread that was told to look; what it gives tells when it goes on.
    fn journal(pause: &JournalPause) -> Receiver<()> {
        let (pause, (sender, ended)) = (pause.clone(), channel());
        std::thread::spawn(move || {
            pause.stand_still();
            let _ = sender.send(());
        });
        ended
    }

    fn frozen(pause: &JournalPause, at_least: Duration) -> Receiver<()> {
        let mut ended = None;
        assert!(pause.freeze(at_least, || ended = Some(journal(pause))));
        ended.expect("it was woken")
    }

    fn working(pause: &JournalPause, within: Duration) -> (Standstill, Receiver<()>) {
        let mut ended = None;
        let still = pause.stand_still_for(within, || ended = Some(journal(pause))).expect("a standstill");
        (still, ended.expect("it was woken"))
    }

    fn stands(ended: &Receiver<()>) -> bool {
        ended.recv_timeout(Duration::from_millis(200)).is_err()
    }

    #[test]
    fn a_journal_stands_still_until_it_is_let_go() {
        let pause = JournalPause::default();
        let ended = frozen(&pause, LONG);
        assert!(stands(&ended));
        assert!(pause.thaw());
        ended.recv_timeout(SOON).expect("it goes on");
    }

    /// An apply reads for minutes, and what was confirmed meanwhile would be lost with the journal that it replaces.
    #[test]
    fn the_end_of_a_freeze_does_not_let_the_journal_go_on_under_the_work_of_an_apply() {
        let pause = JournalPause::default();
        let ended = frozen(&pause, LONG);
        let work = pause.stand_still_for(LONG, || unreachable!("it stands still already")).expect("a standstill");
        assert!(!pause.thaw(), "work is under way");
        let second = pause.stand_still_for(LONG, || unreachable!("it stands still already"));
        assert_eq!(second.map(drop), Err(NoStandstill::Busy), "a repeated call is told to wait");
        assert!(stands(&ended));
        drop(work);
        assert!(stands(&ended), "the freeze goes on");
        assert!(pause.thaw());
        ended.recv_timeout(SOON).expect("it goes on");
    }

    #[test]
    fn work_makes_no_freeze_longer_and_leaves_none_behind() {
        let pause = JournalPause::default();
        let (work, ended) = working(&pause, LONG);
        assert!(pause.freeze(Duration::from_millis(1), || unreachable!("it stands still already")));
        drop(work);
        ended.recv_timeout(SOON).expect("the freeze was a short one");
        let (work, ended) = working(&pause, LONG);
        drop(work);
        ended.recv_timeout(SOON).expect("nobody asked for a freeze");
    }

    #[test]
    fn files_are_replaced_only_under_a_standstill_without_a_gap_and_nothing_is_written_to_them_again() {
        let pause = JournalPause::default();
        let (late, ended) = working(&pause, Duration::from_millis(1));
        ended.recv_timeout(SOON).expect("it waits no longer than it was to");
        assert!(!late.never_resume(), "what was read may be no more");
        let again = frozen(&pause, LONG);
        assert!(!late.never_resume(), "another standstill");
        drop(late);
        let work = pause.stand_still_for(LONG, || unreachable!("it stands still already")).expect("a standstill");
        assert!(work.never_resume());
        drop(work);
        assert!(!pause.thaw(), "never");
        assert!(stands(&again));
    }
}
