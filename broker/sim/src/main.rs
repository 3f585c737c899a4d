//! `holdfast-sim`: runs seeds, prints progress and a summary, and the command that replays a failing seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use holdfast_sim::mutants::Mutation;
use holdfast_sim::replicas;
use holdfast_sim::run::{Failure, Summary, Watch, run_seed};

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Whole members with AMQP clients.
    Cluster,
    /// Replication and journal alone: many more leader changes and snapshots in a second.
    Replicas,
}

#[derive(Parser)]
#[command(about = "Simulates a whole cluster under faults, one seed at a time")]
struct Arguments {
    /// Seeds to run, from `--first`.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only this seed, with a line for everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// With `--seed`: a group whose every change is printed too.
    #[arg(long)]
    watch: Option<u64>,
    /// Plant a bug; the run then succeeds when a seed finds it.
    #[arg(long)]
    mutation: Option<String>,
    /// What to simulate.
    #[arg(long, value_enum, default_value_t = Profile::Cluster)]
    profile: Profile,
    /// Threads; all cores when not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let mutation = match &arguments.mutation {
        None => None,
        Some(name) => match Mutation::ALL.iter().find(|mutation| &mutation.name() == name) {
            Some(mutation) => Some(*mutation),
            None => {
                let known: Vec<String> = Mutation::ALL.iter().map(|mutation| mutation.name()).collect();
                eprintln!("no mutation {name}; there are: {}", known.join(", "));
                return std::process::ExitCode::from(2);
            }
        },
    };
    if let Some(seed) = arguments.seed {
        return one(&arguments, seed, mutation);
    }
    many(&arguments, mutation)
}

fn one(arguments: &Arguments, seed: u64, mutation: Option<Mutation>) -> std::process::ExitCode {
    match run(arguments.profile, seed, mutation, Some(Watch { group: arguments.watch })) {
        Ok(summary) => {
            println!("seed {seed}: {summary:?}");
            std::process::ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {seed}: {}", failure.what);
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(profile: Profile, seed: u64, mutation: Option<Mutation>, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    if profile == Profile::Cluster {
        return run_seed(seed, mutation, live);
    }
    let outcome = replicas::run_seed(seed, live.is_some());
    let outcome = outcome.map_err(|(what, trace)| Box::new(Failure { seed, what, trace }))?;
    Ok(Summary {
        confirmed: outcome.confirmed,
        leaderships: outcome.leaderships,
        starts: outcome.starts,
        steps: outcome.steps,
        ..Summary::default()
    })
}

fn many(arguments: &Arguments, mutation: Option<Mutation>) -> std::process::ExitCode {
    let start = Instant::now();
    let next = AtomicU64::new(arguments.first);
    let end = arguments.first + arguments.seeds;
    let stop = AtomicBool::new(false);
    let done = Mutex::new(Vec::new());
    let failure: Mutex<Option<Box<Failure>>> = Mutex::new(None);
    let threads = arguments.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match run(arguments.profile, seed, mutation, None) {
                        Ok(summary) => note(&done, summary, start),
                        Err(found) => {
                            stop.store(true, Ordering::Relaxed);
                            let mut slot = failure.lock().expect("no thread panics while it holds this");
                            slot.get_or_insert(found);
                        }
                    }
                }
            });
        }
    });
    let done = done.into_inner().expect("no thread panics while it holds this");
    let failure = failure.into_inner().expect("no thread panics while it holds this");
    report(&done, failure.as_deref(), mutation, start)
}

fn note(done: &Mutex<Vec<Summary>>, summary: Summary, start: Instant) {
    let mut done = done.lock().expect("no thread panics while it holds this");
    done.push(summary);
    if done.len().is_multiple_of(20) {
        println!("sim: {} seeds in {:.0} s", done.len(), start.elapsed().as_secs_f64());
    }
}

fn report(
    done: &[Summary],
    failure: Option<&Failure>,
    mutation: Option<Mutation>,
    start: Instant,
) -> std::process::ExitCode {
    let seconds = start.elapsed().as_secs_f64();
    let sum = |field: fn(&Summary) -> u64| done.iter().map(field).sum::<u64>();
    println!(
        "sim: {} seeds passed in {seconds:.1} s; {} virtual seconds, {} events, {} starts, {} leaderships, {} confirmed, {} consumed, {} unknown",
        done.len(),
        sum(|summary| summary.virtual_us) / 1_000_000,
        sum(|summary| summary.steps),
        sum(|summary| summary.starts),
        sum(|summary| summary.leaderships as u64),
        sum(|summary| summary.confirmed),
        sum(|summary| summary.consumed),
        sum(|summary| summary.unknown),
    );
    write_report(done, failure, seconds);
    match (failure, mutation) {
        (None, None) => std::process::ExitCode::SUCCESS,
        (Some(failure), None) => {
            for line in &failure.trace {
                println!("  {line}");
            }
            println!("sim: seed {} failed: {}", failure.seed, failure.what);
            println!("sim: replay it with: make sim SEED={}", failure.seed);
            std::process::ExitCode::FAILURE
        }
        (Some(failure), Some(mutation)) => {
            println!("sim: {} was found by seed {}: {}", mutation.name(), failure.seed, failure.what);
            std::process::ExitCode::SUCCESS
        }
        (None, Some(mutation)) => {
            println!("sim: {} was NOT found", mutation.name());
            std::process::ExitCode::FAILURE
        }
    }
}

fn write_report(done: &[Summary], failure: Option<&Failure>, seconds: f64) {
    let failed = failure.map_or_else(|| "null".to_owned(), |failure| failure.seed.to_string());
    let sum = |field: fn(&Summary) -> u64| done.iter().map(field).sum::<u64>();
    let figures = [
        ("seeds_passed", done.len() as u64),
        ("virtual_s", sum(|summary| summary.virtual_us) / 1_000_000),
        ("events", sum(|summary| summary.steps)),
        ("starts", sum(|summary| summary.starts)),
        ("leaderships", sum(|summary| summary.leaderships as u64)),
        ("confirmed", sum(|summary| summary.confirmed)),
        ("consumed", sum(|summary| summary.consumed)),
        ("unknown", sum(|summary| summary.unknown)),
    ];
    let lines: String = figures.iter().map(|(name, value)| format!("  \"{name}\": {value},\n")).collect();
    let text = format!("{{\n{lines}  \"failed_seed\": {failed},\n  \"seconds\": {seconds:.1}\n}}\n");
    let written =
        std::fs::create_dir_all("target/reports").and_then(|()| std::fs::write("target/reports/sim.json", text));
    if let Err(error) = written {
        eprintln!("sim: target/reports/sim.json could not be written: {error}");
    }
}
