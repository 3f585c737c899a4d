//! What the runs of a fault come to: a line, a row of the table, and `target/reports/drill.json`.

use anyhow::Result;
use holdfast_e2e::report;
use serde::Serialize;

use crate::faults::Fault;
use crate::run::Outcome;

/// All runs of one fault.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    fault: &'static str,
    title: &'static str,
    how: &'static str,
    gap_limit_ms: Option<u64>,
    back_limit_ms: u64,
    runs: Vec<Outcome>,
}

/// Of some times in ms: half, 95 of 100, and all were at most so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    p50: u64,
    p95: u64,
    max: u64,
}

impl Spread {
    fn of(times: impl Iterator<Item = u64>) -> Option<Self> {
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable();
        let rank = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: rank(50)?, p95: rank(95)?, max: rank(100)? })
    }

    fn in_words(spread: Option<Self>) -> String {
        spread.map_or_else(|| "–".to_owned(), |s| format!("{} / {} / {}", s.p50, s.p95, s.max))
    }
}

impl Row {
    /// No run yet.
    pub fn new(fault: &Fault) -> Self {
        let Fault { name, title, how, gap_limit_ms, back_limit_ms, .. } = *fault;
        Self { fault: name, title, how, gap_limit_ms, back_limit_ms, runs: Vec::new() }
    }

    /// One more run.
    pub fn add(&mut self, outcome: Outcome) {
        self.runs.push(outcome);
    }

    fn gaps(&self) -> Option<Spread> {
        Spread::of(self.runs.iter().flat_map(|run| run.gaps_ms.iter().copied()))
    }

    fn returns(&self) -> Option<Spread> {
        Spread::of(self.runs.iter().flat_map(|run| run.returns_ms.iter().copied()))
    }

    /// Whether the stated times were kept: gaps by their 95th percentile, returns by all of them.
    fn in_time(&self) -> bool {
        let gap = self.gap_limit_ms.zip(self.gaps()).is_none_or(|(limit, gaps)| gaps.p95 <= limit);
        let back = self.returns().is_none_or(|back| back.max <= self.back_limit_ms);
        gap && back && self.runs.iter().all(|run| run.late.is_empty())
    }

    fn safe_runs(&self) -> usize {
        self.runs.iter().filter(|run| run.safe).count()
    }

    /// Every run was safe, and in time.
    pub fn passed(&self) -> bool {
        self.safe_runs() == self.runs.len() && self.in_time()
    }

    fn sum(&self, of: impl Fn(&Outcome) -> u64) -> u64 {
        self.runs.iter().map(of).sum()
    }

    /// One line.
    pub fn summary(&self) -> String {
        let limit = self.gap_limit_ms.map_or_else(|| "–".to_owned(), |limit| limit.to_string());
        format!(
            "{}/{} runs safe{}; confirmed {}, lost {}, acked redelivered {}, order broken {}; longest gap p50/p95/max {} ms (p95 at most {limit}); back {} ms (at most {})",
            self.safe_runs(),
            self.runs.len(),
            if self.in_time() { ", in time" } else { ", LATE" },
            self.sum(|run| run.findings.confirmed),
            self.sum(|run| run.findings.lost),
            self.sum(|run| run.findings.acked_redelivered),
            self.sum(|run| run.findings.order_broken),
            Spread::in_words(self.gaps()),
            Spread::in_words(self.returns()),
            self.back_limit_ms,
        )
    }
}

/// The table, in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| fault | | runs | confirmed | lost | acked redelivered | order broken | longest gap p50 / p95 / max, ms | limit | back p50 / p95 / max, ms |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        text.push_str(&format!(
            "| {} | {} | {} of {}{} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.fault,
            row.title,
            row.safe_runs(),
            row.runs.len(),
            if row.in_time() { "" } else { " (late)" },
            row.sum(|run| run.findings.confirmed),
            row.sum(|run| run.findings.lost),
            row.sum(|run| run.findings.acked_redelivered),
            row.sum(|run| run.findings.order_broken),
            Spread::in_words(row.gaps()),
            row.gap_limit_ms.map_or_else(|| "–".to_owned(), |limit| limit.to_string()),
            Spread::in_words(row.returns()),
        ));
    }
    text
}

/// Writes `target/reports/drill.json`.
///
/// # Errors
/// When that cannot be written.
pub fn write(rows: &[Row]) -> Result<()> {
    report::write("drill", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let spread = Spread::of(1..=20);
        assert_eq!(spread, Some(Spread { p50: 10, p95: 19, max: 20 }));
        assert_eq!(Spread::of([7].into_iter()), Some(Spread { p50: 7, p95: 7, max: 7 }));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn a_row_passes_only_with_every_run_safe_and_in_time() {
        let mut row =
            Row { fault: "1", title: "", how: "", gap_limit_ms: Some(1000), back_limit_ms: 3000, runs: Vec::new() };
        row.add(Outcome { safe: true, gaps_ms: vec![900], returns_ms: vec![3000], ..Outcome::default() });
        assert!(row.passed());
        row.add(Outcome { safe: true, gaps_ms: vec![1100], ..Outcome::default() });
        assert!(!row.passed() && row.summary().contains("LATE"));
        row.gap_limit_ms = None;
        row.add(Outcome { returns_ms: vec![100], ..Outcome::default() });
        assert!(!row.passed() && row.summary().contains("2/3 runs safe, in time"), "{}", row.summary());
    }
}
