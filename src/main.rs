//! `holdfast-operator`: `run` looks after clusters, `crds` writes the CRDs.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use clap::{Parser, Subcommand};
use holdfast::{
    api::v1alpha1::{MessageQueueCluster, custom_resource_definitions},
    broker_admin::HttpAdmin,
    controllers::{
        Context, DEFAULT_CONTROLLER_NAME, Settings, messagequeuebackup, messagequeuebackupschedule, messagequeuecluster,
    },
    lease::Election,
    telemetry::{self, Telemetry},
};
use kube::{
    Api, Client, Config,
    api::ListParams,
    runtime::events::{Recorder, Reporter},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[derive(Parser)]
#[command(name = "holdfast-operator", version, about = "Runs replicated message-queue clusters on Kubernetes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look after MessageQueueClusters until told to stop.
    Run(RunOptions),
    /// Print the CRDs as YAML, or write them to a folder.
    Crds {
        /// One file for each CRD in this folder.
        #[arg(long)]
        output: Option<PathBuf>,
        /// Also the template of the Helm chart in this folder.
        #[arg(long)]
        chart: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct RunOptions {
    /// Broker image of clusters that name none.
    #[arg(long, env = "BROKER_IMAGE", default_value = "holdfast/broker:dev")]
    broker_image: String,
    /// Only look after objects with this spec.controllerName; objects without one belong to the default.
    #[arg(long, env = "CONTROLLER_NAME", default_value = DEFAULT_CONTROLLER_NAME)]
    controller_name: String,
    /// Watch this namespace only. Default: all.
    #[arg(long, env = "WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// Name of the Lease that the leader holds.
    #[arg(long, env = "LEASE_NAME", default_value = "holdfast")]
    lease_name: String,
    /// Namespace of the Lease. Default: the one of the kubeconfig or the pod.
    #[arg(long, env = "POD_NAMESPACE")]
    lease_namespace: Option<String>,
    /// This process's name in the election. Default: the host's name.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Where probes and metrics are served, without TLS.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "[::]:8080")]
    http_address: SocketAddr,
}

/// What is printed when the process cannot go on.
type Failure = String;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crds { output, chart } => write_crds(output, chart),
        Command::Run(options) => start(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("holdfast-operator: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn write_crds(output: Option<PathBuf>, chart: Option<PathBuf>) -> Result<(), Failure> {
    let documents = custom_resource_definitions()
        .iter()
        .map(|crd| {
            let name = format!("{}.{}.yaml", crd.spec.group, crd.spec.names.plural);
            serde_saphyr::to_string(crd).map(|text| (name, text)).map_err(|error| error.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let write = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    if let Some(folder) = &chart {
        write(folder.join("templates/crds.yaml"), &holdfast::api::v1alpha1::chart_template(&documents))?;
    }
    match output {
        Some(dir) => documents.iter().try_for_each(|(name, text)| write(dir.join(name), text)),
        None if chart.is_none() => {
            documents.iter().for_each(|(_, text)| print!("---\n{text}"));
            Ok(())
        }
        None => Ok(()),
    }
}

fn start(options: RunOptions) -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,kube=warn,kube_client::client::builder=off".into()),
        )
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout()))
        .init();
    // Every TLS user of the process shares it; a second installation cannot happen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread: the work is waiting for others, and memory stays small.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?
        .block_on(run(options))
}

async fn run(options: RunOptions) -> Result<(), Failure> {
    let config = Config::infer().await.map_err(|error| {
        format!(
            "no way to reach a Kubernetes API server is configured: {}\n  \
                 what to do: run in a pod with a service account, or set KUBECONFIG to a kubeconfig file",
            with_causes(&error)
        )
    })?;
    let lease_namespace = options.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let server = config.cluster_url.to_string();
    let client =
        Client::try_from(config).map_err(|error| format!("the configuration for {server} is unusable: {error}"))?;

    let telemetry = Arc::new(Telemetry::default());
    let listener = TcpListener::bind(options.http_address).await.map_err(|error| {
        format!("cannot listen on {}: {error}; choose another --http-address", options.http_address)
    })?;
    tokio::spawn(telemetry::serve(listener, telemetry.clone()));

    let mut stop = std::pin::pin!(stop_signal()?);
    tokio::select! {
        checked = check_api(&client, &server, options.watch_namespace.as_deref()) => checked?,
        () = &mut stop => return Ok(()),
    }
    telemetry.set_ready();

    let token = Arc::new(AtomicU64::new(0));
    let identity = options.identity.clone().unwrap_or_else(host_name);
    let leases = Api::namespaced(client.clone(), &lease_namespace);
    let election = Election::new(leases, options.lease_name.clone(), identity.clone(), token.clone());
    tokio::select! {
        () = election.acquire() => {}
        () = &mut stop => return Ok(()),
    }
    telemetry.set_leading(true);

    let reporter = Reporter { controller: "holdfast-operator".into(), instance: Some(identity) };
    let ctx = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        brokers: Arc::new(HttpAdmin::new(token)),
        settings: Settings { broker_image: options.broker_image, controller_name: options.controller_name },
        telemetry: telemetry.clone(),
        memory: Default::default(),
        applied: Default::default(),
        clock: Box::new(jiff::Timestamp::now),
    });
    let (stopping, stopped) = tokio::sync::watch::channel(());
    let until_stop = || {
        let mut stopped = stopped.clone();
        // The other end going means: stop.
        async move { while stopped.changed().await.is_ok() {} }
    };
    let namespace = options.watch_namespace;
    let controllers = futures::future::join3(
        messagequeuecluster::run(ctx.clone(), namespace.clone(), until_stop()),
        messagequeuebackup::run(ctx.clone(), namespace.clone(), until_stop()),
        messagequeuebackupschedule::run(ctx, namespace, until_stop()),
    );
    let mut controllers = std::pin::pin!(controllers);
    tokio::select! {
        _ = &mut controllers => Err("the controllers ended by themselves".to_owned()),
        // Passes in flight end with the process: another operator may be at work.
        () = election.hold() => Err(format!("the Lease {} was lost", options.lease_name)),
        () = &mut stop => {
            tracing::info!("stopping: passes in flight are finished first");
            drop(stopping);
            let _ = tokio::time::timeout(Duration::from_secs(20), &mut controllers).await;
            election.release().await;
            telemetry.set_leading(false);
            Ok(())
        }
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "holdfast-operator".into(), |n| n.trim().into())
}

fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let on = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Waits, saying what is missing, until the API server answers and knows our kinds.
async fn check_api(client: &Client, server: &str, namespace: Option<&str>) -> Result<(), Failure> {
    const TRIES: u32 = 24;
    const PAUSE: Duration = Duration::from_secs(5);
    let clusters: Api<MessageQueueCluster> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut said = String::new();
    for _ in 0..TRIES {
        let answer = tokio::time::timeout(PAUSE, clusters.list_metadata(&ListParams::default().limit(1))).await;
        said = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                "the CRD messagequeueclusters.holdfast.dev is not installed: kubectl apply --server-side -f crds/ (or set crds.enabled in the Helm chart)".into()
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                format!("the API server at {server} does not let this operator list MessageQueueClusters: {}", status.message)
            }
            Ok(Err(error)) => format!("the API server at {server} cannot be asked: {}", with_causes(&error)),
            Err(_) => format!("the API server at {server} does not answer within {} s", PAUSE.as_secs()),
        };
        tracing::error!("{said}; check that it runs and can be reached from here; trying again");
        tokio::time::sleep(PAUSE).await;
    }
    Err(said)
}

/// The error and what caused it: the last cause ("connection refused") is what helps.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
