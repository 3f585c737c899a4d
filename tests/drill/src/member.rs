//! One member: its process, in its network, with its disk.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use holdfast_node::config::{Advertise, Config, Limits, Listen, Listeners, MemberConfig, TlsFiles};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::network::{Place, namespace_file};
use crate::seclusion::find;
use crate::volume::Volume;

/// As `dev` has them: small disks should not be filled by reserved segments.
const SEGMENT_MIB: u64 = 16;
/// How long a process that was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// A member of the cluster under test.
pub struct Member {
    /// Its number, from 0.
    pub number: usize,
    /// Its name in the cluster.
    pub name: String,
    /// Its disk.
    pub volume: Volume,
    config: PathBuf,
    log: PathBuf,
    broker: PathBuf,
    process: Option<Child>,
    last_code: Option<i32>,
    /// Processes that were found dead where this program was about to end them, each with what it said last.
    found_dead: Vec<String>,
    /// Put before the broker's program, such as `prlimit …`.
    pub wrapper: Vec<String>,
    /// It was removed from the cluster: it is not started again, and nobody waits for it.
    pub retired: bool,
    /// Added to its environment.
    pub environment: Vec<(String, String)>,
}

impl Member {
    /// Writes its configuration; nothing runs yet.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(number: usize, dir: &Path, broker: &Path, volume: Volume, files: Files<'_>) -> Result<Self> {
        let name = name(number);
        let member = Self {
            number,
            volume,
            config: dir.join(format!("{name}.yaml")),
            log: dir.join(format!("{name}.log")),
            broker: broker.to_path_buf(),
            process: None,
            last_code: None,
            found_dead: Vec::new(),
            wrapper: Vec::new(),
            retired: false,
            environment: Vec::new(),
            name,
        };
        let at = |port| Listen::At(member.address(port));
        let config = Config {
            member: MemberConfig { name: member.name.clone(), zone: format!("zone-{number}") },
            data_dir: member.volume.path().to_path_buf(),
            cluster_id: Some(files.cluster_id.to_owned()),
            min_cluster_epoch: 0,
            listeners: Listeners {
                amqp: at(5672),
                amqps: Listen::Off,
                peer: at(5680),
                admin: at(5690),
                http: at(15692),
            },
            advertise: Advertise { peer: files.peer.to_string() },
            tls: files.tls,
            limits: Limits { journal_segment_mib: SEGMENT_MIB, lock_wait_seconds: 10, ..Limits::default() },
        };
        std::fs::write(&member.config, config.to_yaml())?;
        Ok(member)
    }

    fn address(&self, port: u16) -> SocketAddr {
        (Place::Member(self.number).address(), port).into()
    }

    /// Where its admin API is.
    pub fn admin(&self) -> SocketAddr {
        self.address(5690)
    }

    /// Where other members connect.
    pub fn peers(&self) -> SocketAddr {
        self.address(5680)
    }

    /// Where its probes and metrics are.
    pub fn probes(&self) -> SocketAddr {
        self.address(15692)
    }

    /// Where clients connect.
    pub fn clients(&self) -> SocketAddr {
        self.address(5672)
    }

    /// The same, as guest.
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.clients())
    }

    /// Starts its process; its log is appended to.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace_file(self.number))).arg("--").args(&self.wrapper);
        command.arg(&self.broker).args(["run", "--config"]).arg(&self.config);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("RUST_LOG", "info");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        self.process = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    /// The number of its process, if one was started and not killed by us.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.with_context(|| format!("{} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM: it is to end in order.
    ///
    /// # Errors
    /// When it does not run.
    pub fn ask_to_end(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGKILL, without waiting for its end. One that has ended by itself meanwhile is remembered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn strike(&mut self) -> Result<()> {
        self.look_whether_it_died();
        if self.process.is_none() && !self.found_dead.is_empty() {
            return Ok(());
        }
        self.signal(Signal::KILL)
    }

    fn look_whether_it_died(&mut self) {
        if let Some(code) = self.ended_by_itself() {
            let words = self.last_words();
            self.found_dead.push(format!("{} had ended by itself with {code:?}: {words}", self.name));
        }
    }

    /// Processes that nobody ended and that no fault expected to end, in words.
    pub fn died_unasked(&mut self) -> Vec<String> {
        self.look_whether_it_died();
        std::mem::take(&mut self.found_dead)
    }

    /// Waits for the end of its process, at most `limit`, and gives its exit code (none after a signal).
    ///
    /// # Errors
    /// When it still runs.
    pub async fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        let Some(process) = self.process.as_mut() else { return Ok(None) };
        match tokio::time::timeout(limit, process.wait()).await {
            Ok(status) => {
                self.process = None;
                Ok(status?.code())
            }
            Err(_) => bail!("{} has not ended after {} s", self.name, limit.as_secs()),
        }
    }

    /// Whether its process has ended by itself; its exit code then.
    pub fn ended_by_itself(&mut self) -> Option<Option<i32>> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        self.process = None;
        self.last_code = status.code();
        Some(status.code())
    }

    /// The exit code of the last process that ended by itself.
    pub fn last_code(&self) -> Option<i32> {
        self.last_code
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When it does not run, or does not go.
    pub async fn kill(&mut self) -> Result<()> {
        self.strike()?;
        self.ended(DEATH).await.map(|_| ())
    }

    /// The machine under it loses power: stopped in the middle of what it does, then what was not synced is gone.
    ///
    /// # Errors
    /// When it does not run, or the system refuses.
    pub async fn lose_power(&mut self) -> Result<()> {
        self.pause()?;
        self.volume.lose_power()?;
        self.kill().await?;
        self.volume.restore_power().await
    }

    /// The memory that its process takes, in MiB; 0 when it does not run.
    pub fn resident_mib(&self) -> u64 {
        let status = self.pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let resident = status.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("VmRSS:")));
        resident.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) >> 10
    }

    /// Everything its processes have logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log: what a process that ended has to say, and what to do.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().map(str::trim).collect();
        lines[lines.len().saturating_sub(2)..].join("; ")
    }
}

/// System calls of a member that fail or wait, by strace, until the value is dropped.
pub struct Injection {
    tracer: Child,
}

impl Injection {
    /// `call:what`, as strace's `inject` has it, from when this returns.
    ///
    /// # Errors
    /// When strace is missing, or may not trace.
    pub async fn into(member: &Member, inject: &str) -> Result<Self> {
        anyhow::ensure!(find("strace"), "`strace` is missing: install the package strace");
        let (calls, _) = inject.split_once(':').context("call:what")?;
        let pid = member.pid().with_context(|| format!("{} does not run", member.name))?;
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &format!("inject={inject}")]);
        command.args(["-p", &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tracer = command.kill_on_drop(true).spawn().context("start strace")?;
        let mut told = BufReader::new(tracer.stderr.take().context("stderr of strace")?).lines();
        let attached = async {
            while let Some(line) = told.next_line().await? {
                if line.contains("attached") {
                    return Ok(());
                }
            }
            bail!("strace ended without attaching to {}", member.name)
        };
        tokio::time::timeout(Duration::from_secs(10), attached).await.context("strace attaches")??;
        // It says more while it works: nobody reads that, and a full pipe must not stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = told.next_line().await {} });
        Ok(Self { tracer })
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Told to end, it detaches; killed, it would leave the member's threads in an odd state.
        if let Some(pid) = self.tracer.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::INT);
            for _ in 0..100 {
                if !matches!(self.tracer.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// What a member is given when it is made.
pub struct Files<'a> {
    /// The cluster that it belongs to.
    pub cluster_id: &'a str,
    /// Where the others reach it.
    pub peer: SocketAddr,
    /// Its certificate.
    pub tls: TlsFiles,
}

/// The name of a member.
pub fn name(number: usize) -> String {
    format!("drill-{number}")
}
