//! A `holdfast-broker dev` cluster of real processes, for one test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_e2e::load::Endpoints;
use holdfast_node::admin::client::{AdminClient, CallError};
use holdfast_node::config::TlsFiles;
use holdfast_node::tls::Certificates;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The bound on everything that should take a second or two: debug builds on a busy machine are slow.
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// The program under test.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_holdfast-broker"))
}

/// Waits until `attempt` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// One member, as `dev.json` tells.
#[derive(Clone, Debug)]
pub struct DevMember {
    pub name: String,
    pub pid: Option<i32>,
    pub amqp: SocketAddr,
    pub admin: SocketAddr,
    pub config: PathBuf,
    pub data_dir: PathBuf,
}

/// A running `dev`. Dropping it ends it and its members.
pub struct Cluster {
    dir: PathBuf,
    child: Child,
    admin: TlsFiles,
    /// Removed after the members have ended.
    temporary: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Starts three members on free ports, with data in a new directory; members that are killed come back.
    pub async fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("cluster");
        let mut cluster = Self::start_in(&dir).await;
        cluster.temporary = Some(temporary);
        cluster
    }

    /// As [`Cluster::start`], on a file system in memory of this size, which only the cluster sees.
    pub async fn start_on_small_disk(size_mib: u64) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("cluster");
        std::fs::create_dir(&dir).unwrap();
        let mut command = Command::new("unshare");
        let mount = r#"mount -t tmpfs -o size="$1"m tmpfs "$2" && shift 2 && exec "$@""#;
        command.args(["--map-root-user", "--mount", "sh", "-c", mount, "sh", &size_mib.to_string()]);
        command.arg(&dir).arg(program().get_program());
        // Its own processes see the mount; the test goes through their root.
        let data = dir.join("data");
        let child = spawn_dev(command, &data);
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        let mut cluster = Self::wait_for(child, root, &data).await;
        cluster.temporary = Some(temporary);
        cluster
    }

    /// Takes the room on a small disk, but for so much. Removing the file that is returned gives it back.
    pub fn fill_disk(&self, left_mib: u64) -> PathBuf {
        let path = self.dir.parent().expect("a mount point above the data").join("filler");
        let free = rustix::fs::statvfs(&self.dir).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let taken = free.checked_sub(left_mib << 20).expect("more room than is to be left");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
        path
    }

    /// As [`Cluster::start`], in `dir`, which stays.
    pub async fn start_in(dir: &Path) -> Self {
        let child = spawn_dev(program(), dir);
        Self::wait_for(child, PathBuf::from("/"), dir).await
    }

    /// `dir` is as the cluster sees it, `root` what it sees as the root.
    async fn wait_for(child: Child, root: PathBuf, dir: &Path) -> Self {
        let began = Instant::now();
        let outside = |path: &Path| root.join(path.strip_prefix("/").expect("an absolute path"));
        let mut cluster = Self {
            dir: outside(dir),
            child,
            admin: TlsFiles { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() },
            temporary: None,
        };
        let end = Instant::now() + PATIENCE;
        let description = loop {
            if let Some(description) = cluster.description() {
                break description;
            }
            let ended = cluster.child.try_wait().unwrap();
            assert!(ended.is_none(), "dev ended while it was starting: {ended:?}");
            assert!(Instant::now() < end, "dev was not ready within {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        };
        let file = |key: &str| outside(Path::new(description["tls"][key].as_str().unwrap()));
        cluster.admin = TlsFiles { ca: file("ca"), cert: file("cert"), key: file("key") };
        println!("cluster ready after {:.1} s", began.elapsed().as_secs_f64());
        cluster
    }

    fn description(&self) -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(self.dir.join("dev.json")).ok()?).ok()
    }

    /// The members now.
    pub fn members(&self) -> Vec<DevMember> {
        let description = self.description().expect("dev.json");
        let text = |member: &Value, key: &str| member[key].as_str().unwrap().to_string();
        let member = |member: &Value| DevMember {
            name: text(member, "name"),
            pid: member["pid"].as_i64().map(|pid| pid as i32),
            amqp: text(member, "amqp").parse().unwrap(),
            admin: text(member, "admin").parse().unwrap(),
            config: text(member, "config").into(),
            data_dir: text(member, "dataDir").into(),
        };
        description["members"].as_array().unwrap().iter().map(member).collect()
    }

    /// AMQP addresses for the load of the end-to-end cases.
    pub fn endpoints(&self) -> Endpoints {
        let uris = self.members().iter().map(|member| uri(member.amqp)).collect();
        holdfast_e2e::load::fixed_endpoints(uris)
    }

    /// What a caller of the admin API shows and trusts.
    pub fn admin_files(&self) -> &TlsFiles {
        &self.admin
    }

    /// Kills a member as a crash does; it comes back by itself.
    pub fn kill(&self, member: &DevMember) {
        println!("kill -9 {} (pid {:?})", member.name, member.pid);
        signal(member.pid.expect("a running member"), Signal::KILL);
    }

    /// `GET path` of a member's admin API.
    pub async fn get(&self, member: &DevMember, path: &str) -> Option<Value> {
        self.call(member, Method::GET, path, None, Duration::from_secs(5)).await.ok()
    }

    /// Any call of a member's admin API.
    pub async fn call(
        &self,
        member: &DevMember,
        method: Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<Value, CallError> {
        let client = AdminClient {
            address: member.admin,
            host: member.admin.ip().to_string(),
            tls: Certificates::load(&self.admin).unwrap().client().unwrap(),
        };
        client.call(method, path, body, patience).await
    }

    /// The member that leads a queue of vhost `/`, once any member knows.
    pub async fn leader_of(&self, queue: &str) -> DevMember {
        let queue = format!("//{queue}");
        eventually(&format!("a leader of {queue}"), || async {
            for member in self.members() {
                let Some(answer) = self.get(&member, "/v1/groups").await else { continue };
                let groups = answer["groups"].as_array().cloned().unwrap_or_default();
                let group =
                    groups.iter().find(|g| g["queues"].as_array().is_some_and(|q| q.contains(&queue.as_str().into())));
                let leader = group.and_then(|g| g["leader"].as_str().map(str::to_string));
                let members = self.members();
                if let Some(leader) = members.into_iter().find(|m| Some(&m.name) == leader.as_ref() && m.pid.is_some())
                {
                    return Some(leader);
                }
            }
            None
        })
        .await
    }

    /// Waits until every member runs and is ready.
    pub async fn ready(&self) {
        eventually("every member ready", || async {
            for member in self.members() {
                member.pid?;
                let health = self.get(&member, "/v1/health").await?;
                if health["ready"] != true || health["quorum"] != true {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Ends it in order and gives its exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        signal(self.child.id() as i32, Signal::TERM);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "dev did not end within {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id() as i32, Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// `command` runs the program, `dev` and what follows are added.
fn spawn_dev(mut command: Command, dir: &Path) -> Child {
    command.args(["dev", "--respawn", "--port", "0", "--data-dir"]).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), signal);
}

/// The URI of guest at `address`.
pub fn uri(address: SocketAddr) -> String {
    format!("amqp://guest:guest@{address}/%2f")
}
