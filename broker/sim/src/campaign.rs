//! Many seeds, over threads: each run is single-threaded, so any seed gives the same wherever it runs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::faults::{FAULTS, How};
use crate::mutants::Mutation;
use crate::plan::{Cut, Profile};
use crate::run::{Failure, Run, Summary};
use crate::{backups, membership, replicas};

/// Which seeds, and over how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// Threads.
    pub threads: usize,
}

/// What came of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of each seed that passed.
    pub passed: Vec<Summary>,
    /// The failures that were found before it stopped.
    pub failures: Vec<Failure>,
    /// Real time, seconds.
    pub seconds: f64,
    /// Time of processors, seconds: other work on the machine does not show in it.
    pub cpu_seconds: f64,
}

/// Time of processors that this process has taken, seconds; 0 where `/proc` does not tell.
fn cpu_seconds() -> f64 {
    // Fields 14 and 15 of proc_pid_stat(5), the 12th and 13th after the name in parentheses; in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

impl Outcome {
    fn sum(&self, field: fn(&Summary) -> u64) -> u64 {
        self.passed.iter().map(field).sum()
    }

    /// The time that the given share of strikes stayed under, until something published after them was confirmed.
    #[must_use]
    pub fn service_gap_us(&self, percent: usize) -> u64 {
        let mut gaps: Vec<u64> =
            self.passed.iter().flat_map(|summary| summary.service_gaps_us.iter().copied()).collect();
        gaps.sort_unstable();
        gaps.get((gaps.len() * percent / 100).min(gaps.len().saturating_sub(1))).copied().unwrap_or(0)
    }

    /// Of the replicas that were damaged at least this share got back what they had lost, in hundredths.
    const LEAST_MENDED_PERCENT: u64 = 80;

    /// True if most replicas that were damaged were mended, and not copied anew as a whole.
    #[must_use]
    pub fn is_mended_in_place(&self) -> bool {
        let (mended, copied) = (self.sum(|one| one.healed.mended), self.sum(|one| one.healed.copied_anew));
        let is_good = mended * 100 >= (mended + copied) * Self::LEAST_MENDED_PERCENT && mended > 0;
        if !is_good {
            println!("sim: {mended} replicas were mended in place and {copied} copied anew");
        }
        is_good
    }

    fn seeds_per_minute(&self) -> u64 {
        (self.passed.len() as f64 * 60.0 / self.seconds.max(0.001)) as u64
    }
}

impl Campaign {
    /// Plays every seed, until one fails or all passed. `play` gets the seed.
    pub fn play(&self, play: impl Fn(u64) -> Result<Summary, Box<Failure>> + Sync, tells: bool) -> Outcome {
        let (start, cpu_before) = (Instant::now(), cpu_seconds());
        let next = AtomicU64::new(self.first);
        let stop = AtomicBool::new(false);
        let outcome = Mutex::new(Outcome::default());
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.first + self.seeds {
                            return;
                        }
                        let played = play(seed);
                        let mut outcome = outcome.lock().expect("no thread panics while it holds this");
                        match played {
                            Ok(summary) => outcome.passed.push(summary),
                            Err(failure) => {
                                stop.store(true, Ordering::Relaxed);
                                outcome.failures.push(*failure);
                            }
                        }
                        let done = outcome.passed.len();
                        if tells && done > 0 && done.is_multiple_of(100) {
                            println!("sim: {done} seeds in {:.0} s", start.elapsed().as_secs_f64());
                        }
                    }
                });
            }
        });
        let mut outcome = outcome.into_inner().expect("no thread panics while it holds this");
        outcome.failures.sort_by_key(|failure| failure.seed);
        outcome.seconds = start.elapsed().as_secs_f64();
        outcome.cpu_seconds = cpu_seconds() - cpu_before;
        outcome
    }

    /// Plays one profile; where disks rot, most of it must be mended in place. True when all seeds passed, or the planted bug was found.
    #[must_use]
    pub fn go(&self, run: &Run) -> bool {
        let outcome = self.play(|seed| Run { seed, ..run.clone() }.play(None), true);
        report(&outcome, "sim");
        let Some(failure) = outcome.failures.first() else {
            if let Some(mutation) = run.mutation {
                println!("sim: {} was NOT found", mutation.name());
            }
            return run.mutation.is_none() && (run.profile != Profile::Rot || outcome.is_mended_in_place());
        };
        if let Some(mutation) = run.mutation {
            println!("sim: {} was found by seed {}: {}", mutation.name(), failure.seed, failure.what);
            return true;
        }
        tell_failure(failure, run.profile);
        false
    }

    /// Plays replication alone.
    #[must_use]
    pub fn go_replicas(&self) -> bool {
        self.go_named("replicas", |seed| play_replicas(seed, None))
    }

    /// Plays clusters whose members come and go.
    #[must_use]
    pub fn go_membership(&self) -> bool {
        self.go_named("membership", |seed| membership::run_seed(seed, None))
    }

    /// Plays clusters whose replication policies change under faults.
    #[must_use]
    pub fn go_policies(&self) -> bool {
        self.go_named("policies", |seed| membership::run_policies_seed(seed, None))
    }

    /// Plays backups under load and faults.
    #[must_use]
    pub fn go_backups(&self) -> bool {
        self.go_named("backups", |seed| backups::run_seed(seed, None))
    }

    fn go_named(&self, profile: &str, play: impl Fn(u64) -> Result<Summary, Box<Failure>> + Sync) -> bool {
        let outcome = self.play(play, true);
        report(&outcome, &format!("sim-{profile}"));
        let Some(failure) = outcome.failures.first() else { return true };
        for line in &failure.trace {
            println!("  {line}");
        }
        println!("sim: seed {} failed: {}", failure.seed, failure.what);
        println!("sim: replay it with: holdfast-sim --profile {profile} --seed {}", failure.seed);
        false
    }
}

fn play_replicas(seed: u64, mutation: Option<Mutation>) -> Result<Summary, Box<Failure>> {
    let outcome = replicas::run_seed(seed, mutation, false);
    let outcome = outcome.map_err(|(what, trace)| Box::new(Failure { seed, what, trace }))?;
    Ok(Summary {
        confirmed: outcome.confirmed,
        leaderships: outcome.leaderships,
        starts: outcome.starts,
        steps: outcome.steps,
        ..Summary::default()
    })
}

fn tell_failure(failure: &Failure, profile: Profile) {
    for line in &failure.trace {
        println!("  {line}");
    }
    println!("sim: seed {} failed: {}", failure.seed, failure.what);
    println!("sim: replay it with: holdfast-sim {} --seed {}", profile.arguments(), failure.seed);
    println!("sim: make it smaller with: holdfast-sim {} --minimize {}", profile.arguments(), failure.seed);
}

fn report(outcome: &Outcome, name: &str) {
    let figures = [
        ("seeds_passed", outcome.passed.len() as u64),
        ("seeds_per_minute", outcome.seeds_per_minute()),
        ("seeds_per_cpu_minute", (outcome.passed.len() as f64 * 60.0 / outcome.cpu_seconds.max(0.01)) as u64),
        ("virtual_s", outcome.sum(|summary| summary.virtual_us) / 1_000_000),
        ("events", outcome.sum(|summary| summary.steps)),
        ("starts", outcome.sum(|summary| summary.starts)),
        ("leaderships", outcome.sum(|summary| summary.leaderships as u64)),
        ("confirmed", outcome.sum(|summary| summary.confirmed)),
        ("consumed", outcome.sum(|summary| summary.consumed)),
        ("unknown", outcome.sum(|summary| summary.unknown)),
        ("found_damaged", outcome.sum(|summary| summary.healed.found)),
        ("mended", outcome.sum(|summary| summary.healed.mended)),
        ("copied_anew", outcome.sum(|summary| summary.healed.copied_anew)),
    ];
    let words: Vec<String> =
        figures.iter().map(|(name, value)| format!("{value} {}", name.replace('_', " "))).collect();
    println!("{name}: {:.1} s: {}", outcome.seconds, words.join(", "));
    let lines: String = figures.iter().map(|(name, value)| format!("  \"{name}\": {value},\n")).collect();
    let failed = outcome.failures.first().map_or_else(|| "null".to_owned(), |failure| failure.seed.to_string());
    write(name, &format!("{{\n{lines}  \"failed_seed\": {failed},\n  \"seconds\": {:.1}\n}}\n", outcome.seconds));
}

fn write(name: &str, text: &str) {
    let path = format!("target/reports/{name}.json");
    let written = std::fs::create_dir_all("target/reports").and_then(|()| std::fs::write(&path, text));
    if let Err(error) = written {
        eprintln!("sim: {path} could not be written: {error}");
    }
}

/// Plays every planted bug until a seed finds it; true when all are found within the campaign's seeds.
#[must_use]
pub fn mutants(campaign: &Campaign) -> bool {
    let mut rows = Vec::new();
    for mutation in Mutation::ALL {
        let found = find(campaign, *mutation);
        match &found {
            Some(failure) => println!("{:28} found by seed {:3}: {}", mutation.name(), failure.seed, failure.what),
            None => println!("{:28} NOT found within {} seeds", mutation.name(), campaign.seeds),
        }
        rows.push((mutation.name(), found));
    }
    let survivors = rows.iter().filter(|(_, found)| found.is_none()).count();
    let lines: Vec<String> = rows
        .iter()
        .map(|(name, found)| {
            let seed = found.as_ref().map_or_else(|| "null".to_owned(), |failure| failure.seed.to_string());
            let what = found.as_ref().map_or_else(|| "null".to_owned(), |failure| format!("{:?}", failure.what));
            format!("    {{\"mutant\": \"{name}\", \"found_by_seed\": {seed}, \"because\": {what}}}")
        })
        .collect();
    write(
        "mutants",
        &format!("{{\n  \"limit\": {},\n  \"mutants\": [\n{}\n  ]\n}}\n", campaign.seeds, lines.join(",\n")),
    );
    println!("mutants: {} planted, {survivors} survived {} seeds each", rows.len(), campaign.seeds);
    survivors == 0
}

/// The first failure that a planted bug causes, in the runs that look for bugs of its kind.
#[must_use]
pub fn find(campaign: &Campaign, mutation: Mutation) -> Option<Failure> {
    let profile = mutation.profile();
    let play = |seed| match mutation.is_of_replication_alone() {
        true => play_replicas(seed, Some(mutation)),
        false => Run { profile, seed, cut: Cut::default(), mutation: Some(mutation) }.play(None),
    };
    campaign.play(play, false).failures.into_iter().next()
}

/// Plays every fault that can be simulated; true when all runs of all of them passed.
#[must_use]
pub fn sim_faults(campaign: &Campaign) -> bool {
    println!("| fault | runs | passed | next confirm after it, p95 | asserted |");
    println!("|---|---|---|---|---|");
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for fault in &FAULTS {
        let (number, what) = (fault.number, fault.what);
        let (asserted, outcome) = match fault.how {
            How::Simulated(asserted, _) => {
                (asserted, campaign.play(|seed| Run::new(Profile::Fault(number), seed).play(None), false))
            }
            How::OfMembership(asserted) => (asserted, campaign.play(|seed| membership::run_seed(seed, None), false)),
            How::Elsewhere(why) => {
                println!("| {number}. {what} | – | – | – | {why} |");
                rows.push(format!("    {{\"fault\": {number}, \"runs\": 0, \"passed\": 0, \"elsewhere\": {why:?}}}"));
                continue;
            }
        };
        let (passed, failed) = (outcome.passed.len(), outcome.failures.len());
        let gap_ms = outcome.service_gap_us(95) / 1000;
        let late = fault.next_confirm_us.filter(|most| outcome.service_gap_us(95) > *most);
        println!("| {number}. {what} | {} | {passed} | {gap_ms} ms | {asserted} |", passed + failed);
        rows.push(format!(
            "    {{\"fault\": {number}, \"runs\": {}, \"passed\": {passed}, \"next_confirm_p95_ms\": {gap_ms}}}",
            passed + failed
        ));
        failures.extend(outcome.failures.into_iter().map(|failure| {
            format!(
                "fault {number}, seed {}: {} (holdfast-sim --fault {number} --seed {})",
                failure.seed, failure.what, failure.seed
            )
        }));
        if let Some(most) = late {
            failures
                .push(format!("fault {number}: next confirm after {gap_ms} ms (p95), {} ms are promised", most / 1000));
        }
    }
    write("sim-faults", &format!("{{\n  \"faults\": [\n{}\n  ]\n}}\n", rows.join(",\n")));
    for failure in &failures {
        println!("sim-faults: {failure}");
    }
    failures.is_empty()
}
