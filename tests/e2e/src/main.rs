//! `holdfast-e2e demo` and `holdfast-e2e cases`: both talk to the API server of `KUBECONFIG`, which the Makefile
//! sets to the project's own local cluster unless another one is asked for by name.

use clap::{Parser, Subcommand};
use holdfast_e2e::cases::{CASES, run_cases};
use holdfast_e2e::demo::{api_server_answers, run_demo};
use holdfast_e2e::install::Images;

#[derive(Parser)]
#[command(about = "The demo and the end-to-end cases of Holdfast")]
struct Arguments {
    /// Image of the operator, when not the chart's default.
    #[arg(long, global = true)]
    operator_image: Option<String>,
    /// Image of the broker, when not the chart's default.
    #[arg(long, global = true)]
    broker_image: Option<String>,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Installs, publishes, kills leaders and prints the ledger; leaves the cluster up.
    Demo {
        /// The cluster is somebody else's: its processes and nodes are left alone.
        #[arg(long)]
        existing: bool,
    },
    /// Runs the end-to-end cases.
    Cases {
        /// Cases to run; without any, all but those that run only by name.
        names: Vec<String>,
        /// How often `leader-kill` takes a leader away.
        #[arg(long, default_value_t = 20)]
        strikes: u32,
    },
    /// Lists the end-to-end cases.
    List,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match carry_out(Arguments::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn carry_out(arguments: Arguments) -> anyhow::Result<()> {
    let images = Images { operator: arguments.operator_image, broker: arguments.broker_image };
    if let Action::List = arguments.command {
        for case in CASES {
            let when = if case.by_name_only { " (only by name)" } else { "" };
            println!("{:16} {}{when}", case.name, case.shows);
        }
        return Ok(());
    }
    anyhow::ensure!(
        api_server_answers().await,
        "the API server does not answer: start the local cluster with `make cluster-up` and use `make demo` or `make e2e`, which enter its network"
    );
    match arguments.command {
        Action::Demo { existing } => run_demo(&images, existing).await,
        Action::Cases { names, strikes } => run_cases(&images, &names, strikes).await,
        Action::List => Ok(()),
    }
}
