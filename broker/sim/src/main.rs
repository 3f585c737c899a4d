//! `holdfast-sim`: runs seeds, prints progress and a summary, and the command that replays a failing seed.

use clap::{Parser, ValueEnum};
use holdfast_sim::campaign::{Campaign, mutants, sim_faults};
use holdfast_sim::faults::{self, How};
use holdfast_sim::minimize::minimize;
use holdfast_sim::mutants::Mutation;
use holdfast_sim::plan::{Cut, Profile};
use holdfast_sim::run::{Run, Watch};
use holdfast_sim::{backups, membership, replicas};
use std::process::ExitCode;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Named {
    /// One queue, a few seconds of faults: many seeds a minute.
    Small,
    /// Everything together.
    Mixed,
    /// Replication and journal alone: many more leader changes and snapshots in a second.
    Replicas,
    /// Whole members that come, go, lose their disks and find them damaged.
    Membership,
    /// The disk of one member rots while it runs: most of that is to be mended in place.
    Rot,
    /// Barriers under load and faults; what is copied of each is judged by the ledger.
    Backups,
    /// Whole members whose replication policies change while they die and are cut off.
    Policies,
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
    #[arg(long, value_enum, default_value_t = Named::Mixed)]
    profile: Named,
    /// Simulate one fault of the fault list, by its number.
    #[arg(long)]
    fault: Option<u8>,
    /// Every fault of the list that can be simulated, `--seeds` runs each; writes target/reports/sim-faults.json.
    #[arg(long)]
    faults: bool,
    /// Every planted bug, up to `--seeds` seeds each; writes target/reports/mutants.json.
    #[arg(long)]
    mutants: bool,
    /// Make a failing run smaller while it still fails, and print how to replay what is left.
    #[arg(long)]
    minimize: Option<u64>,
    /// Of the run's strikes only these (places in its plan).
    #[arg(long, value_delimiter = ',')]
    strikes: Option<Vec<usize>>,
    /// Of the run's clients only these (places in its plan).
    #[arg(long, value_delimiter = ',')]
    clients: Option<Vec<usize>>,
    /// Virtual time under faults, milliseconds.
    #[arg(long)]
    faults_ms: Option<u64>,
    /// Threads; all cores when not given.
    #[arg(long)]
    threads: Option<usize>,
}

impl Arguments {
    fn mutation(&self) -> Result<Option<Mutation>, String> {
        let Some(name) = &self.mutation else { return Ok(None) };
        let found = Mutation::ALL.iter().find(|mutation| &mutation.name() == name);
        found.copied().map(Some).ok_or_else(|| {
            let known: Vec<String> = Mutation::ALL.iter().map(|mutation| mutation.name()).collect();
            format!("no mutation {name}; there are: {}", known.join(", "))
        })
    }

    fn run(&self, seed: u64, mutation: Option<Mutation>) -> Run {
        let profile = match (self.fault, self.profile) {
            (Some(number), _) => Profile::Fault(number),
            (None, Named::Small) => Profile::Small,
            (None, Named::Rot) => Profile::Rot,
            (None, _) => Profile::Mixed,
        };
        let cut = Cut {
            strikes: self.strikes.clone(),
            clients: self.clients.clone(),
            faults_us: self.faults_ms.map(|ms| ms * 1000),
        };
        Run { profile, seed, cut, mutation }
    }

    fn is_of_membership(&self) -> bool {
        let fault = self.fault.and_then(faults::find);
        self.profile == Named::Membership || fault.is_some_and(|fault| matches!(fault.how, How::OfMembership(_)))
    }

    fn campaign(&self) -> Campaign {
        let threads = self.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
        Campaign { first: self.first, seeds: self.seeds, threads }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mutation = match arguments.mutation() {
        Ok(mutation) => mutation,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    let is_good = if arguments.mutants {
        mutants(&arguments.campaign())
    } else if arguments.faults {
        sim_faults(&arguments.campaign())
    } else if let Some(seed) = arguments.minimize {
        minimize(&arguments.run(seed, mutation)).is_some()
    } else if arguments.profile == Named::Replicas {
        replicas_only(&arguments)
    } else if arguments.profile == Named::Policies {
        policies_only(&arguments)
    } else if arguments.profile == Named::Backups {
        backups_only(&arguments)
    } else if arguments.is_of_membership() {
        membership_only(&arguments)
    } else if let Some(seed) = arguments.seed {
        one(&arguments, seed, mutation)
    } else {
        let run = arguments.run(0, mutation);
        arguments.campaign().go(&run)
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(arguments: &Arguments, seed: u64, mutation: Option<Mutation>) -> bool {
    let run = arguments.run(seed, mutation);
    let plan = run.plan();
    for (place, client) in plan.clients.iter().enumerate() {
        println!("client {place}: {client:?}");
    }
    for (place, timed) in plan.strikes.iter().enumerate() {
        println!("strike {place} at {} ms: {:?}", timed.at_us / 1000, timed.strike);
    }
    match run.play(Some(Watch { group: arguments.watch })) {
        Ok(summary) => println!("seed {seed}: {summary:?}"),
        Err(failure) => {
            println!("seed {seed}: {}", failure.what);
            return false;
        }
    }
    true
}

fn membership_only(arguments: &Arguments) -> bool {
    let Some(seed) = arguments.seed else { return arguments.campaign().go_membership() };
    let outcome = membership::run_seed(seed, Some(Watch { group: arguments.watch }));
    println!("seed {seed}: {:?}", outcome.as_ref().map_err(|failure| &failure.what));
    outcome.is_ok()
}

fn backups_only(arguments: &Arguments) -> bool {
    let Some(seed) = arguments.seed else { return arguments.campaign().go_backups() };
    let outcome = backups::run_seed(seed, Some(Watch { group: arguments.watch }));
    println!("seed {seed}: {:?}", outcome.as_ref().map_err(|failure| &failure.what));
    outcome.is_ok()
}

fn policies_only(arguments: &Arguments) -> bool {
    let Some(seed) = arguments.seed else { return arguments.campaign().go_policies() };
    let outcome = membership::run_policies_seed(seed, Some(Watch { group: arguments.watch }));
    println!("seed {seed}: {:?}", outcome.as_ref().map_err(|failure| &failure.what));
    outcome.is_ok()
}

fn replicas_only(arguments: &Arguments) -> bool {
    if let Some(seed) = arguments.seed {
        let outcome = replicas::run_seed(seed, None, true);
        println!("seed {seed}: {:?}", outcome.as_ref().map_err(|(what, _)| what));
        return outcome.is_ok();
    }
    arguments.campaign().go_replicas()
}
