//! Starting, watching and ending the members' processes.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::layout::{Layout, MemberPlan};
use crate::admin::client::{AdminClient, CallError};
use crate::failure::{ExitKind, Failure};
use crate::tls::Certificates;

/// How long the cluster may take to answer, and to become ready.
const START: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
const CALL: Duration = Duration::from_secs(10);
/// How long members may take to end after they were asked to.
const STOP: Duration = Duration::from_secs(12);
const RESPAWN_AFTER: Duration = Duration::from_millis(500);

/// A member's process ended.
struct Exit {
    number: usize,
    status: std::io::Result<ExitStatus>,
}

/// The members' processes.
pub struct Supervisor {
    layout: Layout,
    respawn: bool,
    pids: Vec<Option<u32>>,
    clients: Vec<AdminClient>,
    exits: mpsc::Receiver<Exit>,
    exited: mpsc::Sender<Exit>,
}

/// Why the watch over running members ended.
enum Told {
    /// By a signal.
    ToStop,
    /// By the end of the last member.
    AllEnded,
}

impl Supervisor {
    /// Nothing is started yet.
    pub fn new(layout: Layout, respawn: bool) -> Result<Self, Failure> {
        let tls = Certificates::load(&layout.admin)?.client()?;
        let client = |member: &MemberPlan| AdminClient {
            address: member.admin,
            host: member.admin.ip().to_string(),
            tls: tls.clone(),
        };
        let count = layout.members.len();
        let (exited, exits) = mpsc::channel(count);
        Ok(Self {
            clients: layout.members.iter().map(client).collect(),
            pids: vec![None; count],
            layout,
            respawn,
            exits,
            exited,
        })
    }

    /// Starts all members and stays until a signal, or until the last one ended. No process outlives this.
    pub async fn supervise(mut self) -> Result<(), Failure> {
        self.layout.remove_description();
        let result = self.start_and_watch().await;
        self.layout.remove_description();
        self.stop_all().await;
        result
    }

    async fn start_and_watch(&mut self) -> Result<(), Failure> {
        let listen_for = |kind| {
            signal(kind).map_err(|error| Failure::new(ExitKind::Internal, format!("no signals: {error}"), "try again"))
        };
        let (mut term, mut interrupt) = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
        println!("starting {} members, data in {}", self.layout.members.len(), self.layout.dir.display());
        for number in 0..self.layout.members.len() {
            self.spawn(number)?;
        }
        let told = tokio::select! {
            told = self.bring_up_and_watch() => told?,
            _ = term.recv() => Told::ToStop,
            _ = interrupt.recv() => Told::ToStop,
        };
        match told {
            Told::ToStop => {
                println!("stopping: leaderships are handed over, clients are told");
                Ok(())
            }
            Told::AllEnded => Err(Failure::new(
                ExitKind::Unavailable,
                "all members have ended",
                "look at their messages above; --respawn starts members again by itself",
            )),
        }
    }

    async fn bring_up_and_watch(&mut self) -> Result<Told, Failure> {
        tokio::select! {
            up = bring_up(&self.layout, &self.clients) => up?,
            Some(exit) = self.exits.recv() => return Err(self.early_end(&exit)),
        }
        self.layout.write_description(&self.pids)?;
        self.banner();
        self.watch().await
    }

    async fn watch(&mut self) -> Result<Told, Failure> {
        while let Some(Exit { number, status }) = self.exits.recv().await {
            let member = &self.layout.members[number];
            let pid = self.pids[number].take().unwrap_or_default();
            eprintln!("member {} (pid {pid}) ended: {}", member.name, in_words(&status));
            self.layout.write_description(&self.pids)?;
            if self.respawn {
                sleep(RESPAWN_AFTER).await;
                self.spawn(number)?;
                self.layout.write_description(&self.pids)?;
            } else if self.pids.iter().all(Option::is_none) {
                break;
            }
        }
        Ok(Told::AllEnded)
    }

    fn spawn(&mut self, number: usize) -> Result<(), Failure> {
        let member = &self.layout.members[number];
        let cannot = |error: std::io::Error| {
            let problem = format!("cannot start a process for {}: {error}", member.name);
            Failure::new(ExitKind::Internal, problem, "check that this program's file is still there")
        };
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.arg("run").arg("--with-parent").arg("--config").arg(&member.config_file);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        command.env_remove("HOLDFAST_MEMBER").env_remove("HOLDFAST_ZONE");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C reaches this process only, which then ends the members in order.
        command.process_group(0);
        let mut child = command.spawn().map_err(cannot)?;
        self.pids[number] = child.id();
        let log = child.stderr.take().map(|log| tokio::spawn(forward(log, member.name.clone())));
        let exited = self.exited.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            // Its last lines come before what is said of its end.
            if let Some(log) = log {
                let _ = timeout(CALL, log).await;
            }
            let _ = exited.send(Exit { number, status }).await;
        });
        Ok(())
    }

    /// A member that ends before the cluster is up is a failure to start.
    fn early_end(&mut self, exit: &Exit) -> Failure {
        self.pids[exit.number] = None;
        let code = exit.status.as_ref().ok().and_then(ExitStatus::code);
        Failure::new(
            code.and_then(ExitKind::of_code).unwrap_or(ExitKind::Unavailable),
            format!(
                "member {} ended while the cluster was starting ({})",
                self.layout.members[exit.number].name,
                in_words(&exit.status)
            ),
            "its lines above say why and what to do",
        )
    }

    /// Asks every member to end, and makes those end that do not.
    async fn stop_all(&mut self) {
        self.signal_all(Signal::TERM);
        if timeout(STOP, self.all_ended()).await.is_err() {
            eprintln!("some members did not end within {STOP:?} and are killed");
            self.signal_all(Signal::KILL);
            let _ = timeout(STOP, self.all_ended()).await;
        }
    }

    async fn all_ended(&mut self) {
        while self.pids.iter().any(Option::is_some) {
            match self.exits.recv().await {
                Some(exit) => self.pids[exit.number] = None,
                None => return,
            }
        }
    }

    /// By pid, and only those that are not known to have ended.
    fn signal_all(&self, signal: Signal) {
        for pid in self.pids.iter().flatten().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            let _ = kill_process(pid, signal);
        }
    }

    fn banner(&self) {
        println!("Holdfast cluster {} is ready: user guest, password guest", self.layout.cluster_id);
        for (member, pid) in self.layout.members.iter().zip(&self.pids) {
            println!(
                "  {}  amqp://{}  admin https://{}  metrics http://{}/metrics  pid {}",
                member.name,
                member.amqp,
                member.admin,
                member.http,
                pid.unwrap_or_default()
            );
        }
        println!("  data and dev.json in {}; Ctrl-C ends all", self.layout.dir.display());
    }
}

/// Waits until every member answers, bootstraps the cluster, and waits until every member is ready.
async fn bring_up(layout: &Layout, clients: &[AdminClient]) -> Result<(), Failure> {
    let until = Instant::now() + START;
    for (member, client) in layout.members.iter().zip(clients) {
        poll(until, &format!("member {} to answer", member.name), || async {
            client.call(Method::GET, "/v1/health", None, CALL).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
    }
    bootstrap(layout, clients, until).await?;
    for (member, client) in layout.members.iter().zip(clients) {
        poll(until, &format!("member {} to be ready", member.name), || async {
            match client.call(Method::GET, "/v1/health", None, CALL).await {
                Ok(health) if health["ready"] == true => Ok(()),
                Ok(health) => Err(format!("its state is {}", health["state"])),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    }
    Ok(())
}

/// Idempotent: a cluster that already has this id stays as it is.
async fn bootstrap(layout: &Layout, clients: &[AdminClient], until: Instant) -> Result<(), Failure> {
    let member = |m: &MemberPlan| json!({ "name": m.name, "address": m.peer, "zone": m.zone });
    let body: Value = json!({
        "clusterId": layout.cluster_id,
        "members": layout.members.iter().map(member).collect::<Vec<_>>(),
        "user": { "name": "guest", "password": "guest" },
        "defaultReplicationFactor": layout.members.len().min(3),
    });
    loop {
        match clients[0].call(Method::POST, "/v1/bootstrap", Some(&body), CALL).await {
            Ok(_) => return Ok(()),
            Err(CallError::Refused { status: 409, error, hint }) => {
                return Err(Failure::new(
                    ExitKind::Data,
                    format!("{} holds data of another cluster: {error} ({hint})", layout.dir.display()),
                    "give another --data-dir; nothing was deleted",
                ));
            }
            Err(error) if Instant::now() >= until => return Err(too_slow("the cluster to form", &error.to_string())),
            Err(_) => sleep(POLL).await,
        }
    }
}

async fn poll<F: Future<Output = Result<(), String>>>(
    until: Instant,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<(), Failure> {
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() >= until => return Err(too_slow(what, &why)),
            Err(_) => sleep(POLL).await,
        }
    }
}

fn too_slow(what: &str, why: &str) -> Failure {
    Failure::new(
        ExitKind::Temporary,
        format!("waited {START:?} in vain for {what}: {why}"),
        "start again with RUST_LOG=info to see more",
    )
}

async fn forward(log: impl AsyncRead + Unpin, name: String) {
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("[{name}] {line}");
    }
}

fn in_words(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
