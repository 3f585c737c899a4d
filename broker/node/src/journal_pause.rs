//! A journal that stands still: nothing becomes durable while its files are read or replaced by a recovery.
//!
//! A member whose journal stands still acknowledges nothing, votes for nobody and confirms nothing, since all of that waits
//! for its disk. So this is also how survivors are frozen between a plan and its apply; it ends by itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the journal may take over the write that is under way.
const ENTER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// The journal's thread stands still.
    is_still: bool,
    /// The files are another journal's: this process must never write to them again.
    is_replaced: bool,
}

/// Shared by the journal's thread and whoever pauses it.
#[derive(Clone, Debug, Default)]
pub struct JournalPause(Arc<(Mutex<State>, Condvar)>);

impl JournalPause {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for standstill for so long at least; `wake` makes the journal's thread look. False if it did not come to it in
    /// time. Blocks.
    pub fn hold(&self, at_least: Duration, wake: impl FnOnce()) -> bool {
        let mut state = self.state();
        let until = Instant::now() + at_least;
        state.until = Some(state.until.map_or(until, |before| before.max(until)));
        if !state.is_still {
            wake();
        }
        let entered = self.0.1.wait_timeout_while(state, ENTER_WITHIN, |state| !state.is_still);
        let (state, _) = entered.unwrap_or_else(PoisonError::into_inner);
        state.is_still
    }

    /// How much longer the standstill lasts, none without one.
    pub fn left(&self) -> Option<Duration> {
        self.state().until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// The standstill lasts this much longer and no more.
    pub fn shorten_to(&self, left: Option<Duration>) {
        self.state().until = left.map(|left| Instant::now() + left);
        self.0.1.notify_all();
    }

    /// From now on nothing is ever written again: the files are about to become another journal's.
    pub fn never_resume(&self) {
        self.state().is_replaced = true;
    }

    /// On the journal's thread: stands still as long as it is asked to.
    pub(crate) fn stand_still(&self) {
        let mut state = self.state();
        state.is_still = true;
        self.0.1.notify_all();
        while let Some(left) = remaining(&state) {
            let waited = self.0.1.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.is_still = false;
        state.until = None;
    }
}

fn remaining(state: &State) -> Option<Duration> {
    if state.is_replaced {
        return Some(Duration::from_secs(3600)); // The process is about to end.
    }
    let left = state.until?.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_stands_still_until_it_is_let_go_and_for_good_once_its_files_are_replaced() {
        let pause = JournalPause::default();
        let run = |pause: &JournalPause| {
            let (pause, (sender, ended)) = (pause.clone(), std::sync::mpsc::channel());
            std::thread::spawn(move || {
                pause.stand_still();
                let _ = sender.send(());
            });
            ended
        };
        let mut ended = None;
        assert!(pause.hold(Duration::from_secs(600), || ended = Some(run(&pause))));
        assert!(pause.left().is_some());
        pause.shorten_to(None);
        ended.take().unwrap().recv_timeout(Duration::from_secs(30)).expect("it goes on");
        assert!(pause.hold(Duration::from_secs(600), || ended = Some(run(&pause))));
        pause.never_resume();
        pause.shorten_to(None);
        assert!(ended.unwrap().recv_timeout(Duration::from_millis(300)).is_err(), "it must not go on");
    }
}
