//! Diagnostics: text for people, or one JSON object a line with `HOLDFAST_LOG_FORMAT=json`. `RUST_LOG` chooses what.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use holdfast_engine::{Event, Severity};
use tracing_subscriber::EnvFilter;

/// Starts logging to standard error, at `level` unless `RUST_LOG` says otherwise. A second call changes nothing.
pub fn start(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let _ = match std::env::var("HOLDFAST_LOG_FORMAT").as_deref() {
        Ok("json") => builder.json().try_init(),
        _ => builder.try_init(),
    };
}

/// A panic that ends one replica, and not the process, becomes a line of the log that says so; the engine goes on to replace
/// the replica from the others.
pub fn tell_of_guarded_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !holdfast_engine::is_guarded() {
            return usual(panic);
        }
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("it did not say why");
        tracing::error!("raft ended in one replica, which is to be replaced from the others: {what} ({place})");
    }));
}

/// A line that was written is left out for so long when it comes again, and its repeats are counted: a peer that is
/// refused dials again every second.
const REPEAT_AFTER: Duration = Duration::from_secs(30);
/// Lines that are remembered.
const REMEMBERED: usize = 64;

/// The member's events as log lines.
#[derive(Debug, Default)]
pub struct EventLog {
    written: VecDeque<Written>,
}

#[derive(Debug)]
struct Written {
    text: String,
    at: Instant,
    left_out: u32,
}

impl EventLog {
    /// Writes an event, unless the same was written a short time ago.
    pub fn write(&mut self, event: &Event, now: Instant) {
        let Some(text) = self.line(&event.text, now) else { return };
        match event.severity {
            Severity::Info => tracing::info!("{text}"),
            Severity::Warning => tracing::warn!("{text}"),
            Severity::Error => tracing::error!("{text}"),
        }
    }

    fn line(&mut self, text: &str, now: Instant) -> Option<String> {
        let Some(earlier) = self.written.iter_mut().find(|written| written.text == text) else {
            if self.written.len() == REMEMBERED {
                self.written.pop_front();
            }
            self.written.push_back(Written { text: text.to_owned(), at: now, left_out: 0 });
            return Some(text.to_owned());
        };
        if now.duration_since(earlier.at) < REPEAT_AFTER {
            earlier.left_out += 1;
            return None;
        }
        earlier.at = now;
        Some(match std::mem::take(&mut earlier.left_out) {
            0 => text.to_owned(),
            count => format!("{text} ({count} more times since the last such line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_is_written_now_and_then_with_a_count() {
        let mut log = EventLog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.line("refused", at(0)).as_deref(), Some("refused"));
        assert_eq!(log.line("another", at(0)).as_deref(), Some("another"));
        for second in 1..30 {
            assert_eq!(log.line("refused", at(second)), None);
        }
        assert_eq!(log.line("refused", at(30)).as_deref(), Some("refused (29 more times since the last such line)"));
        assert_eq!(log.line("another", at(31)).as_deref(), Some("another"));
    }
}
