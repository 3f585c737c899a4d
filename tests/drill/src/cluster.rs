//! The cluster under test: its members, and what is asked of their admin API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_e2e::kubernetes::eventually;
use holdfast_e2e::load::{Endpoints, fixed_endpoints};
use holdfast_node::admin::client::AdminClient;
use holdfast_node::config::TlsFiles;
use holdfast_node::dev::certificates::Authority;
use holdfast_node::tls::Certificates;
use http::Method;
use serde_json::{Value, json};

use crate::member::{Files, Member, name};
use crate::network::{MEMBERS, Place};
use crate::volume::Volume;

/// How long a cluster may take to form, or to be whole again.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(2);
const CLUSTER_ID: &str = "drill";

/// What differs between clusters.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Members that are started and bootstrapped.
    pub members: usize,
    /// Size of each disk.
    pub disk_mib: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { members: 3, disk_mib: 1024 }
    }
}

/// Members, by number.
pub struct Cluster {
    /// The members.
    pub members: Vec<Member>,
    dir: PathBuf,
    broker: PathBuf,
    authority: Authority,
    admin: TlsFiles,
}

impl Cluster {
    /// Makes disks, certificates and configurations in `dir`, starts the members and bootstraps the cluster.
    ///
    /// # Errors
    /// What failed, or that it did not form in time.
    pub async fn form(dir: &Path, broker: &Path, shape: Shape) -> Result<Self> {
        let authority = Authority::load_or_create(&dir.join("certificates"))?;
        let admin = authority.issue("admin", &["admin.localhost"])?;
        let mut cluster =
            Self { members: Vec::new(), dir: dir.to_path_buf(), broker: broker.to_path_buf(), authority, admin };
        for _ in 0..shape.members {
            cluster.add_member(shape.disk_mib).await?;
        }
        for member in &mut cluster.members {
            member.start()?;
        }
        cluster.bootstrap().await?;
        cluster.ready(PATIENCE).await?;
        Ok(cluster)
    }

    /// Makes one more member, which is not started and which the cluster does not know.
    ///
    /// # Errors
    /// What the system said.
    pub async fn add_member(&mut self, disk_mib: u64) -> Result<()> {
        let number = self.members.len();
        let address = Place::Member(number).address();
        let volume = Volume::create(&self.dir, &format!("disk-{number}"), disk_mib).await?;
        // A blank member takes links from those who could be itself, as with the one name of all pods in Kubernetes.
        let hosts: Vec<String> = (0..MEMBERS).map(|number| Place::Member(number).address().to_string()).collect();
        let tls = self.authority.issue(&name(number), &hosts.iter().map(String::as_str).collect::<Vec<_>>())?;
        let files = Files { cluster_id: CLUSTER_ID, peer: (address, 5680).into(), tls };
        self.members.push(Member::new(number, &self.dir, &self.broker, volume, files)?);
        Ok(())
    }

    async fn bootstrap(&self) -> Result<()> {
        let member = |m: &Member| {
            let peer = format!("{}:5680", m.admin().ip());
            json!({ "name": m.name, "address": peer, "zone": format!("zone-{}", m.number) })
        };
        let body = json!({
            "clusterId": CLUSTER_ID,
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
            "user": { "name": "guest", "password": "guest" },
            "defaultReplicationFactor": self.members.len().min(3),
        });
        for number in 0..self.members.len() {
            eventually("every member answers", PATIENCE, || self.call(number, Method::GET, "/v1/health", None)).await?;
        }
        let bootstrap = || self.call(0, Method::POST, "/v1/bootstrap", Some(&body));
        eventually("the cluster is founded", PATIENCE, bootstrap).await.map(|_| ())
    }

    /// One request to a member's admin API.
    ///
    /// # Errors
    /// When it refuses or does not answer within two seconds.
    pub async fn call(&self, member: usize, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let address = self.members[member].admin();
        let tls = Certificates::load(&self.admin)?.client()?;
        let client = AdminClient { address, host: address.ip().to_string(), tls };
        client.call(method, path, body, CALL).await.with_context(|| format!("{path} of {}", self.members[member].name))
    }

    /// Clients' addresses of the members that belong to it now.
    pub fn endpoints(&self) -> Endpoints {
        fixed_endpoints(self.members.iter().map(Member::uri).collect())
    }

    /// What some member says of a queue's group. Members that do not run are not asked.
    ///
    /// # Errors
    /// When none of them knows it.
    pub async fn group_of(&self, queue: &str) -> Result<Value> {
        let queue = Value::from(format!("//{queue}"));
        let mut found = None;
        let running = self.members.iter().filter(|member| member.pid().is_some());
        let answers = running.map(|member| self.call(member.number, Method::GET, "/v1/groups", None));
        for answer in futures::future::join_all(answers).await.into_iter().filter_map(Result::ok) {
            let groups = answer["groups"].as_array().cloned().unwrap_or_default();
            let of_queue = |group: &Value| group["queues"].as_array().is_some_and(|queues| queues.contains(&queue));
            // Of several opinions the one of the highest term is the latest, and its leader's knows of the others.
            let rank = |group: &Value| (group["term"].as_u64(), group["leading"] == true);
            let known = groups.into_iter().find(of_queue).filter(|group| group["leader"].is_string());
            if let Some(known) = known
                && found.as_ref().is_none_or(|other| rank(other) < rank(&known))
            {
                found = Some(known);
            }
        }
        found.with_context(|| format!("no member knows who leads {queue}"))
    }

    /// The number of the member that leads a queue.
    ///
    /// # Errors
    /// When nobody leads it, for longer than a start or an election takes.
    pub async fn leader_of(&self, queue: &str) -> Result<usize> {
        eventually("a leader", Duration::from_secs(20), || async {
            let group = self.group_of(queue).await?;
            let named = |member: &&Member| group["leader"] == member.name.as_str() && member.pid().is_some();
            self.members.iter().find(named).map(|member| member.number).context("the leader named does not run")
        })
        .await
    }

    /// Waits until every member that runs is ready and in touch with a majority.
    ///
    /// # Errors
    /// When one is not in time: says what it answered.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        for member in self.members.iter().filter(|member| member.pid().is_some()) {
            eventually(&format!("{} is ready", member.name), limit, || async {
                let health = self.call(member.number, Method::GET, "/v1/health", None).await?;
                ensure!(health["ready"] == true && health["quorum"] == true, "its state is {}", health["state"]);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Ends every process and unmounts every disk.
    pub async fn end(&mut self) {
        for member in &mut self.members {
            let _ = member.resume();
            let _ = member.kill().await;
            if let Err(error) = member.volume.unmount().await {
                eprintln!("{}: {error:#}", member.name);
            }
        }
    }
}
