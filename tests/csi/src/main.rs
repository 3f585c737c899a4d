//! `holdfast-csi`: the storage of the local test cluster, with VolumeSnapshots that really work, and tear on demand.
//!
//! One process runs as the controller, which owns the pool and provisions volumes; one on each node, which mounts them.

mod controller;
mod faults;
mod identity;
mod mounts;
mod node;
mod pool;
mod protocol;
mod provisioner;
mod rpc;
mod snapshots;
mod torn;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::controller::Controller;
use crate::faults::ControlFile;
use crate::node::Node;
use crate::pool::Pool;
use crate::rpc::{Methods, listen, serve};

/// The name under which kubelet and Kubernetes' objects know the driver.
const DRIVER: &str = "csi.holdfast.dev";
/// A volume belongs to the zone of the node that it was made for.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Parser)]
#[command(about = "The CSI driver of Holdfast's local test cluster")]
struct Arguments {
    /// Where CSI is served.
    #[arg(long)]
    socket: PathBuf,
    /// The mount of the btrfs file system that holds volumes and snapshots.
    #[arg(long)]
    pool: PathBuf,
    /// Serve the controller; one process only.
    #[arg(long)]
    controller: bool,
    /// Also make and remove PersistentVolumes, at the API server of KUBECONFIG.
    #[arg(long, requires = "controller")]
    provision: bool,
    /// A JSON file whose snapshot parameters go over those of every class while it is there.
    #[arg(long, requires = "controller")]
    control_file: Option<PathBuf>,
    /// Serve this node.
    #[arg(long, requires = "zone")]
    node: Option<String>,
    /// The node's zone.
    #[arg(long)]
    zone: Option<String>,
    /// A socket in kubelet's folder `plugins_registry`, by which it finds the driver. Its name must hold an `@`: kubelet
    /// sends the path as the authority of its call, and only what stands before an `@` may be a path there.
    #[arg(long, requires = "node")]
    registration: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,holdfast_csi=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("cannot go on: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let pool = Pool::open(&arguments.pool).await?;
    let mut methods = identity::methods(Methods::default());
    if arguments.controller {
        let controller = Controller::new(pool.clone(), ControlFile(arguments.control_file));
        controller.resume_copies().await.context("resume the copies that were broken off")?;
        methods = controller.methods(methods);
        if arguments.provision {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = Client::try_default().await.context("reach the API server of KUBECONFIG")?;
            tokio::spawn(provisioner::run(client, controller));
        }
    }
    if let (Some(name), Some(zone)) = (arguments.node, arguments.zone) {
        methods = Arc::new(Node { name, zone, pool }).methods(methods);
    }
    tokio::spawn(serve(listen(&arguments.socket)?, Arc::new(methods)));
    // kubelet calls the driver as soon as it sees this socket.
    if let Some(socket) = &arguments.registration {
        tokio::spawn(serve(listen(socket)?, Arc::new(node::registration(&arguments.socket))));
    }
    let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        _ = stop.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
