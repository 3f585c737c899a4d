//! `holdfast-broker dev`: a cluster on one machine, each member a process of its own.

pub mod certificates;
mod layout;
mod supervisor;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::data_dir::DataDir;
use crate::failure::{ExitKind, Failure};
use layout::Layout;
use supervisor::Supervisor;

/// Options of `dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Where the members keep their data; without it a temporary directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How many members.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    pub members: u16,
    /// AMQP port of the first member; the others follow. 0 chooses free ports.
    #[arg(long, default_value_t = 5672)]
    pub port: u16,
    /// Address to listen on.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub listen: IpAddr,
    /// Workers for the Raft groups of each member; without it one for every two cores, and at most four.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Start a member again when its process ends by itself.
    #[arg(long)]
    pub respawn: bool,
}

/// How long another `dev` may take to let go of the data directory.
const LOCK_WAIT: Duration = Duration::from_secs(15);

/// Starts the cluster, and ends with it.
pub fn dev(args: DevArgs) -> Result<(), Failure> {
    crate::logging::start("warn");
    // On this one thread: members end when the *thread* that started them does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitKind::Internal, format!("cannot start: {error}"), "try again"))?;
    let temporary = match args.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("holdfast-dev-").tempdir().map_err(no_temporary)?),
    };
    let dir = match (&args.data_dir, &temporary) {
        (Some(dir), _) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()),
        (None, Some(temporary)) => temporary.path().to_path_buf(),
        (None, None) => unreachable!("one of them is there"),
    };
    let lock = DataDir::open(&dir, LOCK_WAIT)?;
    let result = runtime.block_on(async {
        let layout = Layout::plan(&args, lock.path())?;
        Supervisor::new(layout, args.respawn)?.supervise().await
    });
    drop(temporary);
    result
}

fn no_temporary(error: std::io::Error) -> Failure {
    Failure::new(ExitKind::Io, format!("cannot make a temporary directory: {error}"), "give one with --data-dir")
}
