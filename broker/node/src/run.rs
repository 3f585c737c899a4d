//! `holdfast-broker run`: one member, from its configuration to its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_engine::identity::{Identity, MemberUuid};
use holdfast_engine::{Budgets, Input, Member, MemberConfig, Start};
use holdfast_journal::{Journal, JournalConfig, JournalError, RealFileSystem, Recovered};
use holdfast_queue::ids::BootId;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::admin;
use crate::clients::Clients;
use crate::clock::{Clock, random_u64, random_u128, wall_ms};
use crate::config::{Config, Listen, host_and_port};
use crate::core::{Core, Doors, Ended};
use crate::crew::{Threads, default_workers};
use crate::data_dir::DataDir;
use crate::descriptors::Budget;
use crate::failure::{ExitKind, Failure};
use crate::holds::HoldKeeper;
use crate::http_server;
use crate::inbox::{Arrival, Inbox, Lanes};
use crate::journal_thread::{self, JournalBrake};
use crate::listen::listen;
use crate::measured_files::{DiskMeter, MeasuredFiles};
use crate::memory;
use crate::metrics::NodeMetrics;
use crate::passwords::Passwords;
use crate::peers::Peers;
use crate::probes;
use crate::restored_journal;
use crate::tls::Certificates;

/// Threads that serve sockets.
const SOCKET_THREADS: usize = 2;
/// How long the last bytes to sockets may take after the member has ended.
const LAST_BYTES: Duration = Duration::from_millis(300);

/// With less room than for so many segments, publishers wait: two for what is on its way already (the open one and its
/// spare are reserved), two for what goes on meanwhile.
const LOW_SPACE_SEGMENTS: u64 = 4;
/// The reserve: one segment to move live bodies into, and one more.
const RESERVE_SEGMENTS: u64 = 2;

/// Runs a member until it is told to stop. Returns after an orderly end.
pub fn run(config: &Config) -> Result<(), Failure> {
    let data_dir = DataDir::open(&config.data_dir, Duration::from_secs(config.limits.lock_wait_seconds))?;
    let certificates = Certificates::load(&config.tls)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .max_blocking_threads(4)
        .thread_stack_size(512 << 10)
        .thread_name("sockets")
        .enable_all()
        .build()
        .map_err(|error| internal("cannot start threads", &error))?;
    let listeners = {
        let _entered = runtime.enter();
        Listeners::bind(config)?
    };
    let metrics = NodeMetrics::new();
    let (journal, recovered) = open_journal(&data_dir, config, metrics.disk.clone())?;
    for finding in &recovered.findings {
        tracing::warn!("journal: {finding}");
    }
    refuse_other_cluster(&data_dir, config, &recovered)?;
    refuse_old_epoch(&data_dir, config, &recovered)?;
    let is_blank = !belongs_to_a_cluster(&recovered);
    restored_journal::tidy_at_start(data_dir.path(), is_blank)?;
    let process = Process { config, data_dir: &data_dir, certificates: &certificates, runtime: &runtime, metrics };
    let ended = process.work(listeners, journal, recovered)?;
    runtime.shutdown_timeout(LAST_BYTES);
    match ended.clean {
        true => {
            tracing::info!("stopped: {}", ended.reason);
            Ok(())
        }
        false if ended.left_behind => Err(Failure::new(
            ExitKind::Data,
            ended.reason,
            "this member serves nothing from its directory; nothing in it was deleted, `holdfast-broker journal inspect` \
             says what it holds",
        )),
        false => Err(Failure::new(
            ExitKind::Internal,
            format!("this member had to stop: {}", ended.reason),
            "nothing confirmed is lost; the log lines before this one tell more",
        )),
    }
}

struct Listeners {
    amqp: Option<TcpListener>,
    amqps: Option<TcpListener>,
    peer: Option<TcpListener>,
    admin: Option<TcpListener>,
    http: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, Failure> {
        let at = |address: Listen, purpose: &str| match address.address() {
            Some(address) => listen(address, purpose).map(Some),
            None => Ok(None),
        };
        let l = &config.listeners;
        Ok(Self {
            amqp: at(l.amqp, "amqp")?,
            amqps: at(l.amqps, "amqps")?,
            peer: at(l.peer, "peer")?,
            admin: at(l.admin, "admin")?,
            http: at(l.http, "http")?,
        })
    }
}

fn disk_free_limit_bytes(config: &Config) -> u64 {
    let limits = &config.limits;
    limits.disk_free_limit_bytes.unwrap_or(LOW_SPACE_SEGMENTS * (limits.journal_segment_mib << 20))
}

type OpenJournal = Journal<MeasuredFiles>;

fn open_journal(data_dir: &DataDir, config: &Config, meter: DiskMeter) -> Result<(OpenJournal, Recovered), Failure> {
    let path = data_dir.journal();
    let trouble = |kind, error: &dyn std::fmt::Display, remedy: &str| {
        let problem = format!("the data directory {} cannot be used: {error}", data_dir.path().display());
        Failure::new(kind, problem, format!("{remedy}; nothing was deleted"))
    };
    let files =
        RealFileSystem::new(&path).map_err(|error| trouble(ExitKind::Io, &error, "check the volume and its owner"))?;
    let nonce = random_u64().map_err(|error| internal("no random numbers", &error))?;
    let segment_bytes = config.limits.journal_segment_mib << 20;
    let layout = JournalConfig {
        segment_bytes,
        nonce,
        low_space_bytes: disk_free_limit_bytes(config),
        reserve_bytes: RESERVE_SEGMENTS * segment_bytes,
        ..JournalConfig::default()
    };
    Journal::open(MeasuredFiles::new(files, meter), layout).map_err(|error| match error {
        JournalError::IdentityDamaged | JournalError::LogMissing => trouble(
            ExitKind::Data,
            &error,
            "replace this member's volume by an empty one, so that it joins anew; its data is on the other members",
        ),
        JournalError::UnknownVersion { .. } => {
            trouble(ExitKind::Data, &error, "start the version of holdfast-broker that wrote it")
        }
        JournalError::NoSpace { .. } => trouble(ExitKind::Io, &error, "free space on the volume, or make it larger"),
        _ => trouble(ExitKind::Io, &error, "check the volume"),
    })
}

fn belongs_to_a_cluster(recovered: &Recovered) -> bool {
    // An identity that cannot be read is one all the same.
    let is_blank = |bytes| Identity::decode(bytes).is_ok_and(|identity| identity.membership.is_none());
    recovered.identity.as_ref().is_some_and(|bytes| !is_blank(bytes)) || !recovered.groups.is_empty()
}

/// A directory of another cluster is left as it is: its members may still need it.
fn refuse_other_cluster(data_dir: &DataDir, config: &Config, recovered: &Recovered) -> Result<(), Failure> {
    let (Some(expected), Some(identity)) = (&config.cluster_id, &recovered.identity) else { return Ok(()) };
    // One that cannot be decoded is reported where the member starts.
    let Some(membership) = Identity::decode(identity).ok().and_then(|identity| identity.membership) else {
        return Ok(());
    };
    if membership.cluster_id == *expected {
        return Ok(());
    }
    Err(Failure::new(
        ExitKind::Data,
        format!(
            "the data directory {} holds data of another cluster: it belongs to {}, this member to {expected}",
            data_dir.path().display(),
            membership.cluster_id
        ),
        "give this member its own directory or volume, or an empty one, which joins anew; nothing was deleted",
    ))
}

/// A directory that a forced recovery went on without is left as it is, and never takes part again.
fn refuse_old_epoch(data_dir: &DataDir, config: &Config, recovered: &Recovered) -> Result<(), Failure> {
    let identity = recovered.identity.as_ref().and_then(|bytes| Identity::decode(bytes).ok());
    let Some(own) = identity.and_then(|identity| identity.membership) else { return Ok(()) };
    if own.cluster_epoch >= config.min_cluster_epoch {
        return Ok(());
    }
    Err(Failure::new(
        ExitKind::Data,
        format!(
            "the data directory {} is of epoch {} of cluster {}, and this member must be of epoch {} or later: the cluster \
             was recovered without this directory",
            data_dir.path().display(),
            own.cluster_epoch,
            own.cluster_id,
            config.min_cluster_epoch
        ),
        "move it away and start with an empty one, which joins anew; nothing was deleted",
    ))
}

/// What a running member stands on.
struct Process<'a> {
    config: &'a Config,
    data_dir: &'a DataDir,
    certificates: &'a Certificates,
    runtime: &'a Runtime,
    metrics: Arc<NodeMetrics>,
}

impl Process<'_> {
    fn work(&self, listeners: Listeners, journal: OpenJournal, recovered: Recovered) -> Result<Ended, Failure> {
        let (clock, metrics) = (Clock::start(), self.metrics.clone());
        metrics.disk_free_limit_bytes.store(disk_free_limit_bytes(self.config), Ordering::Relaxed);
        let (inbox, lanes) = Inbox::new();
        let reader = journal.reader();
        let start = Start {
            boot: BootId(random("boot id")? as u64),
            new_uuid: MemberUuid(random("member id")?),
            seed: random("seed")? as u64,
            recovered,
            reader,
            now: clock.now(),
            wall_ms: wall_ms(),
        };
        let member = Member::new(self.member_config(), start).map_err(|error| {
            let remedy = "start the version of holdfast-broker that wrote it; nothing was deleted";
            Failure::new(ExitKind::Data, format!("{}: {error}", self.data_dir.path().display()), remedy)
        })?;
        let threads = Threads::start(self.workers(), metrics.worker_rounds.clone())
            .map_err(|error| internal("cannot start the workers' threads", &error))?;
        let member = member.with_crew(Box::new(threads));
        let holds = HoldKeeper::start(journal.file_system().clone(), inbox.control.clone())
            .map_err(|error| internal("cannot start the thread of holds", &error))?;
        let (control, kept) = (inbox.control.clone(), holds.clone());
        let (journal, _thread) = journal_thread::start(journal, control, metrics.clone(), kept, end_process)
            .map_err(|error| internal("cannot start the journal's thread", &error))?;
        let (own_host, _) = host_and_port(&self.config.advertise.peer).unwrap_or_default();
        self.runtime.spawn(memory::watch(inbox.clone(), self.high_watermark_bytes()));
        let peers = Peers::new(inbox.clone(), self.certificates.client()?, own_host);
        self.serve(listeners, &inbox, &peers, &metrics, clock, (journal.brake(), holds))?;
        let doors = Doors {
            inbox: inbox.clone(),
            journal,
            peers,
            passwords: Passwords::new(random("secret")?),
            metrics,
            sockets: self.runtime.handle().clone(),
            clock,
        };
        tracing::info!("member {} runs, data in {}", self.config.member.name, self.data_dir.path().display());
        let ended = start_core(Core::new(member, doors), lanes)?;
        let patience = Duration::from_secs(self.config.limits.shutdown_seconds);
        self.runtime.block_on(until_ended(inbox, ended, patience))
    }

    fn high_watermark_bytes(&self) -> u64 {
        let configured = self.config.limits.memory_high_watermark_bytes;
        configured.unwrap_or_else(|| memory::default_high_watermark_bytes(memory::limit_bytes()))
    }

    fn workers(&self) -> usize {
        self.config.limits.workers.unwrap_or_else(default_workers)
    }

    fn member_config(&self) -> MemberConfig {
        let memory_bytes = match self.high_watermark_bytes() {
            0 => u64::MAX,
            bytes => bytes,
        };
        let mut replication = MemberConfig::default().replication;
        let eighth = usize::try_from(memory_bytes / 8).unwrap_or(usize::MAX);
        replication.cache_bytes = replication.cache_bytes.min(eighth);
        MemberConfig {
            name: self.config.member.name.clone(),
            zone: self.config.member.zone.clone(),
            advertise_peer: self.config.advertise.peer.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            budgets: Budgets::within(memory_bytes),
            workers: self.workers(),
            replication,
            ..MemberConfig::default()
        }
    }

    fn serve(
        &self,
        listeners: Listeners,
        inbox: &Inbox,
        peers: &Peers,
        metrics: &Arc<NodeMetrics>,
        clock: Clock,
        (brake, holds): (JournalBrake, HoldKeeper<MeasuredFiles>),
    ) -> Result<(), Failure> {
        let data_dir: PathBuf = self.data_dir.path().into();
        let budget = Budget::take(self.config.limits.connections);
        let clients = Clients::new(inbox.clone(), metrics.clone(), budget.clients);
        if let Some(listener) = listeners.amqp {
            self.runtime.spawn(clients.clone().serve(listener, None));
        }
        if let Some(listener) = listeners.amqps {
            self.runtime.spawn(clients.serve(listener, Some(self.certificates.server_for_clients()?)));
        }
        if let Some(listener) = listeners.peer {
            let tls = self.certificates.server_for_members(None)?;
            self.runtime.spawn(peers.clone().serve(listener, tls, budget.unproven));
        }
        if let Some(listener) = listeners.admin {
            let tls = self.certificates.server_for_members(Some(b"http/1.1"))?;
            let router = admin::routes::router(inbox.clone(), data_dir.clone()).merge(admin::recovery::router(
                inbox.clone(),
                data_dir.clone(),
                brake.clone(),
                end_process,
            ));
            let restore = admin::restore::router(inbox.clone(), data_dir.clone(), brake, end_process)?;
            let router = router.merge(restore);
            let router = router.merge(admin::in_place::router(inbox.clone(), data_dir.clone()));
            let router = router.merge(admin::backup::router(inbox.clone(), data_dir.clone(), holds));
            self.runtime.spawn(http_server::serve(listener, Some(tls), router, budget.http));
        }
        if let Some(listener) = listeners.http {
            let router = probes::router(metrics.clone(), clock, data_dir);
            self.runtime.spawn(http_server::serve(listener, None, router, budget.http));
        }
        Ok(())
    }
}

fn start_core<R: holdfast_journal::EntryReader>(
    core: Core<R>,
    lanes: Lanes,
) -> Result<oneshot::Receiver<std::io::Result<Ended>>, Failure>
where
    Core<R>: Send,
{
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("core".into())
        .spawn(move || {
            let _ = sender.send(core.run(lanes));
        })
        .map_err(|error| internal("cannot start the core thread", &error))?;
    Ok(receiver)
}

/// Waits for the core's end, and asks for it when the process is told to stop.
async fn until_ended(
    inbox: Inbox,
    mut ended: oneshot::Receiver<std::io::Result<Ended>>,
    patience: Duration,
) -> Result<Ended, Failure> {
    let listen_for = |kind| signal(kind).map_err(|error| internal("cannot listen for signals", &error));
    let (mut term, mut interrupt) = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let early = tokio::select! {
        ended = &mut ended => Some(ended),
        _ = term.recv() => None,
        _ = interrupt.recv() => None,
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            tracing::info!("told to stop");
            let _ = inbox.control.send(Arrival::Input(Input::Shutdown), 0).await;
            let late = || {
                Ok(Ok(Ended { clean: true, left_behind: false, reason: format!("not drained within {patience:?}") }))
            };
            tokio::time::timeout(patience, ended).await.unwrap_or_else(|_| late())
        }
    };
    match ended {
        Ok(Ok(ended)) => Ok(ended),
        Ok(Err(error)) => Err(internal("the core thread failed", &error)),
        Err(_) => Err(internal("the core thread panicked", &"see the message before this one")),
    }
}

/// Ends the process at once. For a journal that failed: nothing that would still happen could count.
fn end_process(failure: Failure) {
    tracing::error!("{failure}");
    std::process::exit(failure.kind.code().into());
}

fn random(what: &str) -> Result<u128, Failure> {
    random_u128().map_err(|error| internal(&format!("cannot draw a {what}"), &error))
}

fn internal(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ExitKind::Internal,
        format!("{what}: {error}"),
        "start this member again; if it happens again, report it",
    )
}
