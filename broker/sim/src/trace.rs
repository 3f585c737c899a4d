//! What happened in a run, in words, for the person who replays a failing seed.

use std::collections::VecDeque;

/// Lines that are kept.
const KEPT: usize = 400;

/// The latest lines of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    lines: VecDeque<String>,
    /// Print every line at once.
    pub live: bool,
}

impl Trace {
    /// Adds a line.
    pub fn note(&mut self, now_us: u64, line: String) {
        let line = format!("{:>10.3} s  {line}", now_us as f64 / 1e6);
        if self.live {
            println!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
