//! Ports, files and configurations of a cluster on one machine.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::DevArgs;
use super::certificates::Authority;
use crate::clock::random_u64;
use crate::config::{Advertise, Config, Limits, Listen, Listeners, MemberConfig, TlsFiles};
use crate::failure::{ExitKind, Failure};
use crate::listen::port_in_use;

/// From the AMQP ports to those of links, admin API and probes. Fewer than ten members, so they do not meet.
const PEER_OFFSET: u16 = 100;
const ADMIN_OFFSET: u16 = 110;
const HTTP_OFFSET: u16 = 120;
/// Ports of one cluster, from its first on.
const BLOCK_PORTS: u16 = 130;
/// Where `--port 0` looks for a free block: below the ports that systems give to outgoing connections, which could take
/// one between this check and the member's start.
const FREE_PORTS: std::ops::Range<u16> = 10_000..32_000;
/// Small machines and test suites should not fill a disk with reserved segments.
const SEGMENT_MIB: u64 = 16;

/// One planned member.
#[derive(Clone, Debug)]
pub struct MemberPlan {
    pub name: String,
    pub zone: String,
    pub amqp: SocketAddr,
    pub peer: SocketAddr,
    pub admin: SocketAddr,
    pub http: SocketAddr,
    pub config_file: PathBuf,
    pub data_dir: PathBuf,
}

/// The planned cluster; its files are written.
#[derive(Debug)]
pub struct Layout {
    pub dir: PathBuf,
    pub cluster_id: String,
    pub members: Vec<MemberPlan>,
    /// Certificate and key for the admin API.
    pub admin: TlsFiles,
}

impl Layout {
    /// Chooses ports (all checked to be free) and writes certificates and configurations into `dir`.
    pub fn plan(args: &DevArgs, dir: &Path) -> Result<Self, Failure> {
        refuse_other_count(args.members, dir)?;
        let members = plan_members(args, dir)?;
        let cluster_id = cluster_id(dir)?;
        let authority = Authority::load_or_create(&dir.join("certificates"))?;
        let ip = args.listen.to_string();
        let hosts = ["localhost", "127.0.0.1", "::1", &ip];
        for member in &members {
            let tls = authority.issue(&member.name, &hosts)?;
            write(&member.config_file, &member.config(tls, &cluster_id, args.workers).to_yaml())?;
        }
        let admin = authority.issue("admin", &["admin.localhost"])?;
        Ok(Self { dir: dir.into(), cluster_id, members, admin })
    }

    /// What `dev.json` says; `pids` are those of the members' processes, in order.
    pub fn describe(&self, pids: &[Option<u32>]) -> Value {
        let members: Vec<Value> = self.members.iter().zip(pids).map(|(member, pid)| member.describe(*pid)).collect();
        json!({
            "clusterId": self.cluster_id,
            "pid": std::process::id(),
            "user": "guest",
            "password": "guest",
            "tls": { "ca": self.admin.ca, "cert": self.admin.cert, "key": self.admin.key },
            "members": members,
        })
    }

    /// Writes `dev.json`, whole or not at all.
    pub fn write_description(&self, pids: &[Option<u32>]) -> Result<(), Failure> {
        let (target, fresh) = (self.dir.join("dev.json"), self.dir.join("dev.json.new"));
        write(&fresh, &format!("{:#}\n", self.describe(pids)))?;
        std::fs::rename(&fresh, &target).map_err(|error| cannot_write(&target, &error))
    }

    /// Takes `dev.json` away: the cluster is not there, or not yet.
    pub fn remove_description(&self) {
        let _ = std::fs::remove_file(self.dir.join("dev.json"));
    }
}

impl MemberPlan {
    fn config(&self, tls: TlsFiles, cluster_id: &str, workers: Option<usize>) -> Config {
        Config {
            member: MemberConfig { name: self.name.clone(), zone: self.zone.clone() },
            data_dir: self.data_dir.clone(),
            cluster_id: Some(cluster_id.to_owned()),
            min_cluster_epoch: 0,
            listeners: Listeners {
                amqp: Listen::At(self.amqp),
                amqps: Listen::Off,
                peer: Listen::At(self.peer),
                admin: Listen::At(self.admin),
                http: Listen::At(self.http),
            },
            advertise: Advertise { peer: self.peer.to_string() },
            tls,
            limits: Limits { journal_segment_mib: SEGMENT_MIB, workers, ..Limits::default() },
        }
    }

    fn describe(&self, pid: Option<u32>) -> Value {
        json!({
            "name": self.name,
            "zone": self.zone,
            "pid": pid,
            "amqp": self.amqp,
            "peer": self.peer,
            "admin": self.admin,
            "http": self.http,
            "config": self.config_file,
            "dataDir": self.data_dir,
        })
    }
}

fn plan_members(args: &DevArgs, dir: &Path) -> Result<Vec<MemberPlan>, Failure> {
    let at = |first: u16| (0..args.members).map(|number| plan_member(args, first, dir, number)).collect();
    if args.port != 0 {
        return at(args.port);
    }
    let start = random_u64().map_err(|error| cannot_write(dir, &error))?;
    let blocks = u64::from((FREE_PORTS.end - FREE_PORTS.start) / BLOCK_PORTS);
    let mut last = None;
    for step in 0..blocks {
        let first = FREE_PORTS.start + BLOCK_PORTS * (start.wrapping_add(step) % blocks) as u16;
        match at(first) {
            Err(failure) if failure.kind == ExitKind::Unavailable => last = Some(failure),
            planned => return planned,
        }
    }
    Err(last.unwrap_or_else(|| Failure::new(ExitKind::Unavailable, "there are no free ports", "give one with --port")))
}

/// A member whose ports count from `first`; each is checked to be free.
fn plan_member(args: &DevArgs, first: u16, dir: &Path, number: u16) -> Result<MemberPlan, Failure> {
    let name = member_name(number);
    let config_file = config_file(dir, number);
    let port = |offset: u16, purpose: &str| {
        let wanted = first.checked_add(offset + number).ok_or_else(|| {
            let problem = format!("--port {first} leaves no room for the other ports above it");
            Failure::new(ExitKind::Config, problem, "choose a port below 65000")
        })?;
        free(SocketAddr::new(args.listen, wanted), purpose)
    };
    Ok(MemberPlan {
        amqp: port(0, "amqp")?,
        peer: match bootstrapped_peer(&config_file) {
            Some(address) => free(address, "peer")?,
            None => port(PEER_OFFSET, "peer")?,
        },
        admin: port(ADMIN_OFFSET, "admin")?,
        http: port(HTTP_OFFSET, "http")?,
        zone: format!("zone-{}", number + 1),
        config_file,
        data_dir: dir.join(&name),
        name,
    })
}

fn member_name(number: u16) -> String {
    format!("dev-{number}")
}

fn config_file(dir: &Path, number: u16) -> PathBuf {
    dir.join(format!("{}.yaml", member_name(number)))
}

/// The peer address under which an earlier `dev` made this member known to the others: it is theirs for good.
fn bootstrapped_peer(config_file: &Path) -> Option<SocketAddr> {
    Config::load(config_file, &|_| None).ok()?.listeners.peer.address()
}

/// A cluster keeps the members that it was made with.
fn refuse_other_count(wanted: u16, dir: &Path) -> Result<(), Failure> {
    let there = (0..u16::MAX).take_while(|number| config_file(dir, *number).exists()).count();
    if there == 0 || there == usize::from(wanted) {
        return Ok(());
    }
    let problem = format!("the cluster in {} has {there} members, not {wanted}", dir.display());
    Err(Failure::new(ExitKind::Config, problem, format!("write --members {there}, or give another --data-dir")))
}

/// The address, if nobody listens on it.
fn free(address: SocketAddr, purpose: &str) -> Result<SocketAddr, Failure> {
    match TcpListener::bind(address).and_then(|listener| listener.local_addr()) {
        Ok(address) => Ok(address),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(port_in_use(address, purpose, "with --port (0 takes free ones)"))
        }
        Err(error) => Err(Failure::new(
            ExitKind::Unavailable,
            format!("cannot listen on {address} ({purpose}): {error}"),
            "choose another --port or --listen",
        )),
    }
}

/// The id that this directory's cluster was, or will be, bootstrapped under.
fn cluster_id(dir: &Path) -> Result<String, Failure> {
    let path = dir.join("cluster-id");
    if let Ok(id) = std::fs::read_to_string(&path) {
        return Ok(id.trim().to_string());
    }
    let random = random_u64().map_err(|error| cannot_write(&path, &error))?;
    let id = format!("dev-{random:016x}");
    write(&path, &format!("{id}\n"))?;
    Ok(id)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    let problem = format!("cannot write {}: {error}", path.display());
    Failure::new(ExitKind::Io, problem, "check the directory given with --data-dir")
}
