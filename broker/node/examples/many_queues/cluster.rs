//! Three broker processes: founded by `holdfast-broker dev`, then run, killed and started by this program itself, so
//! that a start is measured from the start of the process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use holdfast_node::admin::client::AdminClient;
use holdfast_node::config::TlsFiles;
use holdfast_node::tls::Certificates;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::clients;

const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

struct Member {
    config: PathBuf,
    uri: String,
    admin: SocketAddr,
    process: Option<Child>,
}

/// The members. Dropping it ends them.
pub struct Cluster {
    program: PathBuf,
    members: Vec<Member>,
    admin: TlsFiles,
}

/// What a process has used.
pub struct Usage {
    resident_bytes: u64,
    /// User and system time.
    pub cpu_seconds: f64,
}

impl Usage {
    pub fn resident_mib(&self) -> f64 {
        self.resident_bytes as f64 / (1 << 20) as f64
    }
}

impl Cluster {
    /// Founds a cluster in `dir`, which must not be there yet.
    pub async fn found(program: PathBuf, dir: PathBuf) -> Result<Self> {
        let mut dev = Command::new(&program);
        dev.args(["dev", "--port", "0", "--data-dir"]).arg(&dir);
        let mut dev = dev.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start dev")?;
        let described = wait_for_description(&mut dev, &dir).await;
        signal(&dev, Signal::TERM);
        dev.wait()?;
        let described = described?;
        let mut members = Vec::new();
        for member in described["members"].as_array().into_iter().flatten() {
            let text = |key: &str| member[key].as_str().map(str::to_owned).with_context(|| format!("no {key}"));
            let uri = format!("amqp://guest:guest@{}/%2f", text("amqp")?);
            let admin = text("admin")?.parse()?;
            members.push(Member { config: text("config")?.into(), uri, admin, process: None });
        }
        let file = |key: &str| described["tls"][key].as_str().map(PathBuf::from).with_context(|| format!("no {key}"));
        let admin = TlsFiles { ca: file("ca")?, cert: file("cert")?, key: file("key")? };
        let mut cluster = Self { program, members, admin };
        for number in 0..cluster.members.len() {
            cluster.start(number)?;
        }
        for member in &cluster.members {
            clients::wait_until_served(&member.uri, 0, Instant::now() + PATIENCE).await?;
        }
        Ok(cluster)
    }

    /// AMQP URIs, in member order.
    pub fn uris(&self) -> Vec<String> {
        self.members.iter().map(|member| member.uri.clone()).collect()
    }

    fn start(&mut self, number: usize) -> Result<()> {
        let member = &mut self.members[number];
        let mut command = Command::new(&self.program);
        command.args(["run", "--with-parent", "--config"]).arg(&member.config);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        member.process = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start")?);
        Ok(())
    }

    /// Kills these members, starts them at once, and gives for each the seconds until it served.
    pub async fn kill_and_start(&mut self, numbers: &[usize], queues: u64, patience: Duration) -> Result<Vec<f64>> {
        for number in numbers {
            if let Some(mut process) = self.members[*number].process.take() {
                signal(&process, Signal::KILL);
                process.wait()?;
            }
        }
        let began = Instant::now();
        for number in numbers {
            self.start(*number)?;
        }
        let serve = numbers.iter().map(|number| {
            let uri = self.members[*number].uri.clone();
            async move {
                clients::wait_until_served(&uri, queues, began + patience).await?;
                Ok(began.elapsed().as_secs_f64())
            }
        });
        futures::future::try_join_all(serve).await
    }

    /// Asks for a backup's barrier, and ends the holds again: how long confirms stood still, ms, and the seconds until all
    /// of it was held and read.
    pub async fn barrier(&self) -> Result<(f64, f64)> {
        let tls = Certificates::load(&self.admin)?.client()?;
        let client = |member: &Member| AdminClient {
            address: member.admin,
            host: member.admin.ip().to_string(),
            tls: tls.clone(),
        };
        let (began, body) = (Instant::now(), json!({ "id": "bench" }));
        let first = client(&self.members[0]);
        let answer = first.call(Method::POST, "/v1/backup/barriers", Some(&body), PATIENCE).await?;
        let seconds = began.elapsed().as_secs_f64();
        for member in &self.members {
            client(member).call(Method::DELETE, "/v1/backup/barriers/bench", None, PATIENCE).await?;
        }
        Ok((answer["pauseMs"].as_f64().context("no pauseMs")?, seconds))
    }

    /// What each member has used so far.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        self.members.iter().filter_map(|member| member.process.as_ref()).map(|process| usage(process.id())).collect()
    }

    /// Ends the members in order.
    pub fn end(&mut self) {
        for process in self.members.iter().filter_map(|member| member.process.as_ref()) {
            signal(process, Signal::TERM);
        }
        for mut process in self.members.iter_mut().filter_map(|member| member.process.take()) {
            let _ = process.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

async fn wait_for_description(dev: &mut Child, dir: &Path) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(text) = std::fs::read_to_string(dir.join("dev.json")) {
            return Ok(serde_json::from_str(&text)?);
        }
        if let Some(status) = dev.try_wait()? {
            bail!("dev ended while it was starting: {status}");
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("dev was not ready within {PATIENCE:?}")
}

fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let (status, stat) = (read("status")?, read("stat")?);
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident_kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    // The second field is the program's name in parentheses; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let cpu_seconds = (ticks(14) + ticks(15)) as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage { resident_bytes: resident_kib << 10, cpu_seconds })
}

fn signal(process: &Child, signal: Signal) {
    if let Some(pid) = Pid::from_raw(process.id() as i32) {
        let _ = kill_process(pid, signal);
    }
}
