//! Members with configurations and certificates of their own that begin with whatever their directories hold: empty ones, or
//! such as a restore has made.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_node::admin::client::{AdminClient, CallError};
use holdfast_node::config::{Advertise, Config, Limits, Listen, Listeners, MemberConfig, TlsFiles};
use holdfast_node::dev::certificates::Authority;
use holdfast_node::tls::Certificates;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{PATIENCE, eventually, program, uri};

/// One member; its process, if it runs.
pub struct Newcomer {
    pub name: String,
    pub dir: PathBuf,
    pub amqp: SocketAddr,
    pub peer: SocketAddr,
    pub admin: SocketAddr,
    config: PathBuf,
    child: Option<Child>,
}

/// Dropping it ends them all.
pub struct Newcomers {
    pub members: Vec<Newcomer>,
    pub tls: TlsFiles,
    _dir: tempfile::TempDir,
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}

/// Free ports; they stay taken until all are chosen.
fn ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

impl Newcomers {
    /// So many members of one cluster to be, none of which runs yet.
    pub fn prepare(cluster_id: &str, count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(&dir.path().join("certificates")).unwrap();
        let addresses = ports(3 * count);
        let member = |number: usize| {
            let name = format!("new-{number}");
            let [amqp, peer, admin] = [addresses[3 * number], addresses[3 * number + 1], addresses[3 * number + 2]];
            let config = Config {
                member: MemberConfig { name: name.clone(), zone: format!("zone-{number}") },
                data_dir: dir.path().join(&name),
                cluster_id: Some(cluster_id.into()),
                min_cluster_epoch: 0,
                listeners: Listeners {
                    amqp: Listen::At(amqp),
                    amqps: Listen::Off,
                    peer: Listen::At(peer),
                    admin: Listen::At(admin),
                    http: Listen::Off,
                },
                advertise: Advertise { peer: peer.to_string() },
                tls: authority.issue(&name, &["127.0.0.1", "localhost"]).unwrap(),
                limits: Limits { journal_segment_mib: 16, ..Limits::default() },
            };
            let file = dir.path().join(format!("{name}.yaml"));
            std::fs::write(&file, config.to_yaml()).unwrap();
            Newcomer { dir: config.data_dir, name, amqp, peer, admin, config: file, child: None }
        };
        let members = (0..count).map(member).collect();
        let tls = authority.issue("admin", &["admin.localhost"]).unwrap();
        Self { members, tls, _dir: dir }
    }

    pub fn start(&mut self, member: usize) {
        let mut command = self.command(member);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.members[member].child = Some(child);
    }

    /// Its program, with nothing said of where its output goes.
    pub fn command(&self, member: usize) -> Command {
        let mut command = program();
        command.args(["run", "--with-parent", "--config"]).arg(&self.members[member].config).env("RUST_LOG", "warn");
        command
    }

    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The code that a member's process ends with by itself.
    pub fn ended(&mut self, member: usize) -> Option<i32> {
        let mut child = self.members[member].child.take().expect("it runs");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "{} does not end", self.members[member].name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn client(&self, member: usize) -> AdminClient {
        AdminClient {
            address: self.members[member].admin,
            host: "127.0.0.1".into(),
            tls: Certificates::load(&self.tls).unwrap().client().unwrap(),
        }
    }

    pub async fn call(
        &self,
        member: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        self.client(member).call(method, path, body, PATIENCE).await
    }

    pub async fn get(&self, member: usize, path: &str) -> Option<Value> {
        self.call(member, Method::GET, path, None).await.ok()
    }

    /// Waits until a member answers at all.
    pub async fn answers(&self, member: usize) -> Value {
        eventually("the member answers", || self.get(member, "/v1/health")).await
    }

    /// Waits until so many members are ready.
    pub async fn ready(&self, count: usize) {
        eventually("the members are ready", || async {
            for member in 0..count {
                let health = self.get(member, "/v1/health").await?;
                if health["ready"] != true || health["quorum"] != true {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// All of them, as requests list members.
    pub fn listed(&self) -> Value {
        let listed = |(number, member): (usize, &Newcomer)| json!({ "name": member.name, "address": member.peer.to_string(), "zone": format!("zone-{number}") });
        self.members.iter().enumerate().map(listed).collect()
    }

    pub fn uri(&self, member: usize) -> String {
        uri(self.members[member].amqp)
    }

    /// Waits until every queue's group has so many voters on this member's account.
    pub async fn spread(&self, member: usize, voters: usize) {
        eventually("the queues have spread", || async {
            let answer = self.get(member, "/v1/groups").await?;
            let groups = answer["groups"].as_array()?;
            let count = |group: &Value| {
                let replicas = group["replicas"].as_array()?;
                Some(replicas.iter().filter(|replica| replica["voter"] == true).count())
            };
            groups.iter().all(|group| count(group) == Some(voters)).then_some(())
        })
        .await;
    }
}
