//! Makes a failing run smaller while it still fails: fewer strikes, fewer clients, less time. Strikes go in halves first
//! and one by one at last (delta debugging, Zeller and Hildebrandt 2002).

use crate::plan::Cut;
use crate::run::{Failure, Run};

/// Runs that are tried at most.
const TRIES: usize = 400;
/// Time is not cut finer than this.
const SHORTEST_STEP_US: u64 = 100_000;

/// The smallest failing run that was found, and how it fails; none when the run does not fail at all.
#[must_use]
pub fn minimize(run: &Run) -> Option<(Run, Failure)> {
    let mut search = Search { best: run.clone(), failure: *run.play(None).err()?, tries: 0 };
    println!(
        "minimize: {} strikes, {} clients: {}",
        search.strikes().len(),
        search.clients().len(),
        search.failure.what
    );
    loop {
        let before = search.best.cut.clone();
        search.shorten();
        search.drop_some(Search::strikes, |cut, kept| cut.strikes = Some(kept));
        search.drop_some(Search::clients, |cut, kept| cut.clients = Some(kept));
        if search.best.cut == before || search.tries >= TRIES {
            break;
        }
    }
    println!(
        "minimize: {} strikes, {} clients are left: {}",
        search.strikes().len(),
        search.clients().len(),
        search.failure.what
    );
    println!("minimize: replay it with: {}", command(&search.best));
    Some((search.best, search.failure))
}

/// The command that replays a run.
#[must_use]
pub fn command(run: &Run) -> String {
    let list = |kept: &[usize]| kept.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut words = vec!["holdfast-sim".to_owned(), run.profile.arguments(), format!("--seed {}", run.seed)];
    words.extend(run.mutation.map(|mutation| format!("--mutation {}", mutation.name())));
    words.extend(run.cut.strikes.as_ref().map(|kept| format!("--strikes {}", list(kept))));
    words.extend(run.cut.clients.as_ref().map(|kept| format!("--clients {}", list(kept))));
    words.extend(run.cut.faults_us.map(|us| format!("--faults-ms {}", us / 1000)));
    words.join(" ")
}

struct Search {
    best: Run,
    failure: Failure,
    tries: usize,
}

impl Search {
    /// Places of the strikes that are left.
    fn strikes(&self) -> Vec<usize> {
        let all = self.best.profile.plan(self.best.seed).strikes.len();
        self.best.cut.strikes.clone().unwrap_or_else(|| (0..all).collect())
    }

    /// Places of the clients that are left.
    fn clients(&self) -> Vec<usize> {
        let all = self.best.profile.plan(self.best.seed).clients.len();
        self.best.cut.clients.clone().unwrap_or_else(|| (0..all).collect())
    }

    /// Takes a smaller run if it fails too, in whatever way.
    fn try_cut(&mut self, cut: Cut) -> bool {
        self.tries += 1;
        let run = Run { cut, ..self.best.clone() };
        let Err(failure) = run.play(None) else { return false };
        (self.best, self.failure) = (run, *failure);
        true
    }

    /// Leaves out what comes after a time: half of the time that is left, again and again, while it still fails.
    fn shorten(&mut self) {
        let mut step = self.best.plan().faults_us / 2;
        while step >= SHORTEST_STEP_US && self.tries < TRIES {
            let end = self.best.plan().faults_us.saturating_sub(step);
            if !self.try_cut(Cut { faults_us: Some(end), ..self.best.cut.clone() }) {
                step /= 2;
            }
        }
    }

    fn drop_some(&mut self, places: fn(&Self) -> Vec<usize>, set: fn(&mut Cut, Vec<usize>)) {
        let mut size = places(self).len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < places(self).len() && self.tries < TRIES {
                let mut kept = places(self);
                kept.drain(start..(start + size).min(kept.len()));
                let mut cut = self.best.cut.clone();
                set(&mut cut, kept);
                if !self.try_cut(cut) {
                    start += size;
                }
            }
            size /= 2;
        }
    }
}
