//! `holdfast-broker`: the broker's program.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use holdfast_node::config::Config;
use holdfast_node::failure::{ExitKind, Failure};
use holdfast_node::journal_command::{self, JournalCommand};
use holdfast_node::recover_command::{self, RecoverCommand};
use holdfast_node::restore_command::{self, RestoreCommand};
use holdfast_node::{dev, logging, passwords, pre_stop, run};

/// Messages are taken in by one thread and let go by another, which leaves the C library's allocator with more than
/// 100 MiB that it never gives back after a minute of load; this one does.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A replicated AMQP 0-9-1 broker.
#[derive(Parser)]
#[command(name = "holdfast-broker", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one member of a cluster.
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// End when the parent process ends.
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// Start a cluster on this machine, for trying it and for tests (user guest, password guest).
    Dev(dev::DevArgs),
    /// Hand this member's leaderships over before it is stopped.
    PreStop {
        #[command(flatten)]
        config: ConfigArgs,
        /// How long it may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        timeout: u64,
    },
    /// Look into a stopped member's data directory.
    Journal {
        #[command(subcommand)]
        command: JournalCommand,
    },
    /// Go on from the disks that are left when a majority is gone for good.
    Recover {
        #[command(subcommand)]
        command: RecoverCommand,
    },
    /// Found a new cluster from a backup, or bring a part of one back into a cluster that runs.
    Restore {
        #[command(subcommand)]
        command: RestoreCommand,
    },
    /// Print the version.
    Version,
    /// Read a password from standard input and print its hash.
    HashPassword,
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG", default_value = "/etc/holdfast/config/config.yaml")]
    config: PathBuf,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config, &|name| std::env::var(name).ok())
    }
}

fn main() -> ExitCode {
    match carry_out(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("holdfast-broker: {failure}");
            ExitCode::from(failure.kind.code())
        }
    }
}

fn carry_out(command: Command) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Run { config, with_parent } => {
            logging::start("info");
            logging::tell_of_guarded_panics();
            if with_parent {
                end_with_parent()?;
            }
            run::run(&config.load()?)
        }
        Command::Dev(args) => dev::dev(args),
        Command::PreStop { config, timeout } => {
            let config = config.load()?;
            small_runtime()?.block_on(pre_stop::drain(&config, Duration::from_secs(timeout)))
        }
        Command::Journal { command } => {
            return journal_command::journal(&command).map(|sound| ExitCode::from(u8::from(!sound)));
        }
        Command::Recover { command } => {
            return recover_command::recover(&command).map(|healthy| ExitCode::from(u8::from(!healthy)));
        }
        Command::Restore { command } => restore_command::restore(&command),
        Command::Version => {
            println!("holdfast-broker {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::HashPassword => hash_password(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// `dev` may be killed in a way that leaves it no time to end its members.
fn end_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|error| Failure::new(ExitKind::Internal, format!("--with-parent: {error}"), "leave the option out"))
}

fn small_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitKind::Internal, format!("cannot start: {error}"), "try again"))
}

fn hash_password() -> Result<(), Failure> {
    let trouble = |text: String| Failure::new(ExitKind::Data, text, "write the password to standard input");
    let mut password = String::new();
    std::io::stdin().read_to_string(&mut password).map_err(|error| trouble(error.to_string()))?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(trouble("the password is empty".into()));
    }
    println!("{}", passwords::hash(password.as_bytes()).map_err(trouble)?);
    Ok(())
}
