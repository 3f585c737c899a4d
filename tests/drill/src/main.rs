//! `holdfast-drill`: the fault list, where it can be, against real `holdfast-broker` processes on this machine. Three
//! members, each in a network of its own and with its data on a file system of its own, are broken in the ways of the
//! list while clients load them; what those clients were told ([`holdfast_e2e::ledger`]) judges.
//!
//! Everything is done inside namespaces that the kernel takes down with the program, however it ends ([`seclusion`]).

mod client;
mod cluster;
mod damage;
mod faults;
mod figures;
mod member;
mod network;
mod run;
mod seclusion;
mod volume;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::faults::FAULTS;
use crate::figures::Row;
use crate::run::Settings;

#[derive(Parser)]
#[command(about = "The fault list against real broker processes, judged by the outside ledger")]
struct Arguments {
    /// The broker's program.
    #[arg(long)]
    broker: PathBuf,
    /// The faults to run, by their numbers or names; all when none is given.
    faults: Vec<String>,
    /// How often each is run.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Strikes in one run of the faults that strike several times; each fault has its own default.
    #[arg(long)]
    strikes: Option<u32>,
    /// What is left to chance is drawn from this; each run takes the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where disks and logs of the runs are; those of a run that failed stay there.
    #[arg(long, default_value = "target/drill")]
    work: PathBuf,
    /// Lists the faults.
    #[arg(long)]
    list: bool,
    /// Set by the program itself, once it is in namespaces of its own.
    #[arg(long, hide = true)]
    secluded: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("holdfast-drill: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True when every run passed.
fn carry_out(arguments: Arguments) -> Result<bool> {
    if arguments.list {
        for fault in FAULTS {
            println!("{:14} {}", fault.name, fault.title);
        }
        return Ok(true);
    }
    let chosen = faults::choose(&arguments.faults)?;
    if !arguments.secluded {
        return seclusion::enter();
    }
    let settings = Settings {
        broker: std::path::absolute(&arguments.broker)?,
        work: std::path::absolute(&arguments.work)?,
        strikes: arguments.strikes,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // As the first process of its namespace, this one is not ended by a signal that it has not asked for.
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = drill(&settings, &chosen, arguments.runs, arguments.seed) => done,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("told to end"),
        }
    })
}

async fn drill(settings: &Settings, chosen: &[&'static faults::Fault], runs: u32, seed: u64) -> Result<bool> {
    std::fs::create_dir_all(&settings.work)?;
    let network = std::sync::Arc::new(network::Network::build().await?);
    println!("power loss on this machine: {}", volume::prove_power_loss(&settings.work).await?);
    let mut rows: Vec<Row> = Vec::new();
    for fault in chosen {
        let mut row = Row::new(fault);
        println!("\n{} {}: {}", fault.name, fault.title, fault.how);
        for number in 0..runs {
            let outcome = run::run_once(settings, &network, fault, seed + u64::from(number)).await;
            println!("   run {}: {}", number + 1, outcome.in_words());
            row.add(outcome);
        }
        println!("   {}", row.summary());
        rows.push(row);
        figures::write(&rows)?;
    }
    println!("\n{}", figures::table(&rows));
    Ok(rows.iter().all(Row::passed))
}
