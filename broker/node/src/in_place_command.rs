//! `holdfast-broker restore queue|vhost`: one queue, or a virtual host with all in it, out of copies of what a backup's barrier held,
//! under a new name, in a cluster that runs. What is there already is not sent again, so it may be repeated after any end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use holdfast_engine::backup::{GroupEntry, Manifest, QueueEntry};
use holdfast_engine::restore::{HoldCopy, OpenCopy, OpenQueue, RestoreError, some_queues, usable};
use holdfast_journal::RealFileSystem;
use holdfast_queue::ids::QueueId;
use holdfast_queue::in_place::{RestoreStep, RestoreTarget};
use holdfast_queue::meta::{MetaMachine, Placement, Vhost};
use http::Method;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::admin::client::{AdminClient, CallError};
use crate::failure::{ExitKind, Failure};
use crate::hold_dirs::{hold_in, member_of, read_manifest};
use crate::push_command::{AccessArgs, admin_address};
use crate::restore_command::Format;

/// Messages travel in steps of about this size.
const STEP_BYTES: usize = 256 << 10;
/// A step that is not answered within this time is repeated; a member answers within ten seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// The progress is told this often.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What both commands need.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The backup's manifest.json.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// The SHA-256 that the barrier's answer gave of it.
    #[arg(long, value_name = "HEX")]
    manifest_sha256: Option<String>,
    /// A copy of a member's data directory, or of its hold.
    #[arg(long = "from", value_name = "DIR", required = true)]
    from: Vec<PathBuf>,
    /// Members whose copies are read by all loaders of this restore together: each queue is sent by one of them. Without it
    /// those given here.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    copies: Vec<String>,
    /// What the restore is called; without it after the backup and both names. Repeats go on under the same name.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print the end.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// The cluster that runs.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The admin API of a member of the cluster; give several, and the next one is asked where one does not answer.
    #[arg(long = "to", value_name = "https://HOST:PORT", required = true)]
    to: Vec<String>,
    #[command(flatten)]
    access: AccessArgs,
}

/// `restore queue`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The virtual host that the queue had.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// The name that it had.
    #[arg(long, value_name = "NAME")]
    queue: String,
    /// The virtual host that it gets, which is there; without it the same.
    #[arg(long, value_name = "NAME")]
    new_vhost: Option<String>,
    /// The name that it gets, which no queue has.
    #[arg(long, value_name = "NAME")]
    new_name: String,
}

/// `restore vhost`.
#[derive(Debug, Args)]
pub struct VhostArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The name that it had.
    #[arg(long, value_name = "NAME")]
    vhost: String,
    /// The name that it gets, which no virtual host has.
    #[arg(long, value_name = "NAME")]
    new_name: String,
}

/// `restore abandon`.
#[derive(Debug, Args)]
pub struct AbandonArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The virtual host that is being restored, or in which the queue is.
    #[arg(long, value_name = "NAME")]
    vhost: String,
    /// The queue that is being restored; without it the virtual host.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Only if the restore is called so.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
}

/// A queue and where it goes.
struct Wanted<'a> {
    group: &'a GroupEntry,
    queue: &'a QueueEntry,
    target: RestoreTarget,
}

/// What came of it, in this loader's share.
#[derive(Default)]
struct Brought {
    queues: u64,
    messages: u64,
}

/// Brings one queue.
///
/// # Errors
/// The copy is damaged or has it not (65), the cluster cannot be reached within the patience (69), or it refuses (78).
pub async fn restore_queue(args: &QueueArgs) -> Result<(), Failure> {
    let (manifest, mut loader) = Loader::new(&args.source)?;
    let new_vhost = args.new_vhost.clone().unwrap_or_else(|| args.vhost.clone());
    let names = format!("{}/{} as {new_vhost}/{}", args.vhost, args.queue, args.new_name);
    let id = args.source.id.clone().unwrap_or_else(|| format!("{}: queue {names}", manifest.id));
    let all = manifest.groups.iter().flat_map(|group| group.state.queues.iter().map(move |queue| (group, queue)));
    let found = all.clone().find(|(_, queue)| queue.vhost == args.vhost && queue.name == args.queue);
    let (group, queue) = found.ok_or_else(|| {
        let problem = format!("backup {} has no queue '{}' in vhost '{}'", manifest.id, args.queue, args.vhost);
        Failure::new(ExitKind::Data, problem, format!("it has {}", some_queues(&manifest)))
    })?;
    let target = RestoreTarget { vhost: new_vhost, name: args.new_name.clone(), id };
    let wanted = vec![Wanted { group, queue, target }];
    let metadata = loader.metadata(&manifest)?;
    if let Some(meta) = &metadata {
        loader.begin(meta, &wanted).await?;
    }
    loader.bring(&wanted).await?;
    loader.end(&args.source, &manifest);
    Ok(())
}

/// Brings a virtual host.
///
/// # Errors
/// As [`restore_queue`].
pub async fn restore_vhost(args: &VhostArgs) -> Result<(), Failure> {
    let (manifest, mut loader) = Loader::new(&args.source)?;
    let names = format!("{} as {}", args.vhost, args.new_name);
    let id = args.source.id.clone().unwrap_or_else(|| format!("{}: vhost {names}", manifest.id));
    let target = |name: &str| RestoreTarget { vhost: args.new_name.clone(), name: name.to_owned(), id: id.clone() };
    let prefix = format!("{}/", args.vhost);
    if let Some(lacking) = manifest.missing.iter().flat_map(|group| &group.queues).find(|it| it.starts_with(&prefix)) {
        let problem = format!("backup {} was made without queue {lacking}", manifest.id);
        return Err(Failure::new(
            ExitKind::Data,
            problem,
            "restore the other queues one by one, or use another backup",
        ));
    }
    let all = manifest.groups.iter().flat_map(|group| group.state.queues.iter().map(move |queue| (group, queue)));
    let wanted: Vec<Wanted<'_>> = all
        .filter(|(_, queue)| queue.vhost == args.vhost)
        .map(|(group, queue)| Wanted { group, queue, target: target(&queue.name) })
        .collect();
    let metadata = loader.metadata(&manifest)?;
    let content = metadata.as_ref().map(|meta| vhost_of(meta, &args.vhost, &manifest)).transpose()?;
    if let (Some(meta), Some(content)) = (&metadata, &content) {
        loader.step(&RestoreStep::BeginVhost { target: target(""), content: content.clone() }, false).await?;
        loader.begin(meta, &wanted).await?;
    }
    loader.bring(&wanted).await?;
    if let Some(content) = content {
        // Other loaders may still be at work on their queues.
        for one in &wanted {
            loader.wait_for(one).await?;
        }
        loader.step(&RestoreStep::CompleteVhost { target: target(""), content }, false).await?;
    }
    loader.end(&args.source, &manifest);
    Ok(())
}

/// Takes out what a restore has left in part.
///
/// # Errors
/// The cluster cannot be reached within the patience (69), or it refuses, since it is complete (78).
pub async fn abandon(args: &AbandonArgs) -> Result<(), Failure> {
    let mut loader = Loader::of(&args.cluster, BTreeMap::new(), BTreeSet::new())?;
    let (name, id) = (args.queue.clone().unwrap_or_default(), args.id.clone().unwrap_or_default());
    let target = RestoreTarget { vhost: args.vhost.clone(), name, id };
    loader.step(&RestoreStep::Abandon { target }, false).await.map(drop)
}

/// What the virtual host is, but for its queues.
fn vhost_of(meta: &MetaMachine, name: &str, manifest: &Manifest) -> Result<Vhost, Failure> {
    let mut found = meta.vhost(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = meta.vhosts().map(|(name, _)| name).take(20).collect();
        let problem = format!("backup {} has no vhost '{name}'", manifest.id);
        Failure::new(ExitKind::Data, problem, format!("it has {}", known.join(", ")))
    })?;
    found.queues.clear();
    Ok(found)
}

fn damaged(error: RestoreError) -> Failure {
    Failure::new(ExitKind::Data, error.to_string(), "use the copy of another member; what was sent is whole")
}

/// Which of some members' copies is read for a group.
fn reader_of<'a>(group: &'a GroupEntry, copies: &BTreeSet<String>) -> Option<&'a str> {
    group.holders.iter().map(String::as_str).find(|holder| copies.contains(*holder))
}

struct Loader {
    /// Its own copies, by member.
    own: BTreeMap<String, OpenCopy<RealFileSystem>>,
    /// All members whose copies are read, here or elsewhere.
    copies: BTreeSet<String>,
    to: Vec<(String, u16)>,
    /// The member that is asked.
    at: usize,
    tls: Arc<ClientConfig>,
    token: Option<u64>,
    patience: Duration,
    began: Instant,
    told: Option<Instant>,
    brought: Brought,
}

impl Loader {
    fn new(args: &SourceArgs) -> Result<(Manifest, Self), Failure> {
        let (manifest, _) = read_manifest(&args.manifest, args.manifest_sha256.as_deref())?;
        usable(&manifest).map_err(damaged)?;
        let mut own = BTreeMap::new();
        for dir in &args.from {
            let files = hold_in(dir, &manifest)?;
            let member = member_of(&manifest, None, &files)?.name.clone();
            let copy = OpenCopy::open(&manifest, HoldCopy { member: member.clone(), files }).map_err(damaged)?;
            own.insert(member, copy);
        }
        let copies = match args.copies.as_slice() {
            [] => own.keys().cloned().collect(),
            named => named.iter().cloned().collect(),
        };
        Ok((manifest, Self::of(&args.cluster, own, copies)?))
    }

    fn of(
        args: &ClusterArgs,
        own: BTreeMap<String, OpenCopy<RealFileSystem>>,
        copies: BTreeSet<String>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            own,
            copies,
            to: args.to.iter().map(|url| admin_address(url)).collect::<Result<_, _>>()?,
            at: 0,
            tls: args.access.tls()?,
            token: args.access.token,
            patience: args.access.patience(),
            began: Instant::now(),
            told: None,
            brought: Brought::default(),
        })
    }

    /// The metadata, if it is this loader that reads them.
    fn metadata(&mut self, manifest: &Manifest) -> Result<Option<MetaMachine>, Failure> {
        let group = &manifest.groups[0];
        let reader = reader_of(group, &self.copies).ok_or_else(|| self.unheld(group, "the metadata (group 0)"))?;
        let Some(copy) = self.own.get_mut(reader) else { return Ok(None) };
        copy.metadata(group).map(Some).map_err(damaged)
    }

    fn unheld(&self, group: &GroupEntry, what: &str) -> Failure {
        let copies: Vec<&str> = self.copies.iter().map(String::as_str).collect();
        let problem = format!("none of the copies of {} has {what}", copies.join(", "));
        Failure::new(ExitKind::Data, problem, format!("it takes that of {}", group.holders.join(" or ")))
    }

    /// Makes the queues, which nobody can use yet.
    async fn begin(&mut self, meta: &MetaMachine, wanted: &[Wanted<'_>]) -> Result<(), Failure> {
        for Wanted { group, queue, target } in wanted {
            let info = meta.queue(QueueId(queue.id));
            let is_it =
                |placement| matches!(placement, Placement::Replicated { group: at } if at.0 == group.place.group);
            let Some(info) = info.filter(|info| is_it(info.placement)) else {
                let problem = format!("queue '{}' in vhost '{}' was being deleted at the cut", queue.name, queue.vhost);
                return Err(Failure::new(ExitKind::Data, problem, "use another backup"));
            };
            let (target, arguments) = (target.clone(), info.arguments.clone());
            self.step(&RestoreStep::BeginQueue { target, auto_delete: info.auto_delete, arguments }, false).await?;
        }
        Ok(())
    }

    /// Brings the messages of those queues that are this loader's to bring.
    async fn bring(&mut self, wanted: &[Wanted<'_>]) -> Result<(), Failure> {
        for one in wanted {
            let what = || format!("queue '{}' in vhost '{}'", one.queue.name, one.queue.vhost);
            let reader = reader_of(one.group, &self.copies).ok_or_else(|| self.unheld(one.group, &what()))?;
            let Some(copy) = self.own.get_mut(reader) else { continue };
            let place = one.group.state.queues.iter().position(|queue| queue.id == one.queue.id).unwrap_or_default();
            let mut open = copy.queues(one.group).map_err(damaged)?;
            self.fill(one, open.swap_remove(place)).await?;
            self.brought.queues += 1;
            self.brought.messages += one.queue.messages;
        }
        Ok(())
    }

    async fn fill(&mut self, one: &Wanted<'_>, mut queue: OpenQueue<RealFileSystem>) -> Result<(), Failure> {
        let (target, total) = (&one.target, queue.len());
        let mut last = Instant::now();
        self.told = None;
        'asked: loop {
            let answer = self.step(&RestoreStep::Progress { target: target.clone() }, true).await?;
            let mut there = answer["messages"].as_u64().unwrap_or_default();
            while answer["complete"] != true && there < total {
                let messages = queue.read(there, STEP_BYTES).map_err(damaged)?;
                let step = RestoreStep::Messages { target: target.clone(), first: there, messages };
                match self.once(&step, true).await {
                    Ok(answer) if answer["complete"] == true => break,
                    Ok(answer) => there = answer["messages"].as_u64().unwrap_or_default(),
                    Err(Trouble::Refused(failure)) => return Err(failure),
                    Err(Trouble::Passing(why)) if last.elapsed() >= self.patience => {
                        return Err(self.out_of_patience(&why));
                    }
                    // How much of it was stored is asked first, of the next member.
                    Err(Trouble::Passing(_)) => {
                        sleep(RETRY_EVERY).await;
                        continue 'asked;
                    }
                }
                last = Instant::now();
                self.tell(target, there, total);
            }
            if answer["complete"] != true {
                self.step(&RestoreStep::CompleteQueue { target: target.clone(), messages: total }, true).await?;
            }
            return Ok(());
        }
    }

    async fn wait_for(&mut self, one: &Wanted<'_>) -> Result<(), Failure> {
        let (mut last, mut seen) = (Instant::now(), None);
        loop {
            let answer = self.step(&RestoreStep::Progress { target: one.target.clone() }, true).await?;
            if answer["complete"] == true {
                return Ok(());
            }
            let there = answer["messages"].as_u64();
            if seen != there {
                (last, seen) = (Instant::now(), there);
            }
            if last.elapsed() >= self.patience {
                let why = format!("queue '{}' does not get on, which another loader brings", one.target.name);
                return Err(self.out_of_patience(&why));
            }
            sleep(RETRY_EVERY).await;
        }
    }

    fn tell(&mut self, target: &RestoreTarget, there: u64, total: u64) {
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            println!("queue '{}' in vhost '{}': {there} of {total} messages", target.name, target.vhost);
            self.told = Some(Instant::now());
        }
    }

    fn end(&self, args: &SourceArgs, manifest: &Manifest) {
        let Brought { queues, messages } = &self.brought;
        let seconds = self.began.elapsed().as_secs_f64();
        match args.output {
            Format::Json => {
                println!(
                    "{}",
                    json!({ "backup": manifest.id, "queues": queues, "messages": messages, "seconds": seconds })
                );
            }
            Format::Text => println!(
                "{queues} queues with {messages} messages of backup {} are there, after {seconds:.1} s",
                manifest.id
            ),
        }
    }

    fn out_of_patience(&self, why: &str) -> Failure {
        let problem = format!("nothing got on for {} seconds: {why}", self.patience.as_secs());
        Failure::new(
            ExitKind::Unavailable,
            problem,
            "see that the cluster serves, then run it again: it goes on from there",
        )
    }

    /// Asks until it is answered. `begun_elsewhere`: another loader begins with it, so it may not be there yet.
    async fn step(&mut self, step: &RestoreStep, begun_elsewhere: bool) -> Result<Value, Failure> {
        let until = Instant::now() + self.patience;
        loop {
            match self.once(step, begun_elsewhere).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Refused(failure)) => return Err(failure),
                Err(Trouble::Passing(why)) if Instant::now() >= until => return Err(self.out_of_patience(&why)),
                Err(Trouble::Passing(_)) => sleep(RETRY_EVERY).await,
            }
        }
    }

    /// Asks one member; after trouble the next one is asked.
    async fn once(&mut self, step: &RestoreStep, begun_elsewhere: bool) -> Result<Value, Trouble> {
        let (host, port) = self.to[self.at].clone();
        let passing = |why: String| Trouble::Passing(format!("{host}:{port}: {why}"));
        let outcome = match tokio::net::lookup_host((host.as_str(), port)).await.map(|mut found| found.next()) {
            Ok(Some(address)) => {
                let client = AdminClient { address, host: host.clone(), tls: self.tls.clone() };
                client.send(Method::POST, "/v1/restore-in-place", (step.to_bytes(), self.token), ANSWER_WITHIN).await
            }
            Ok(None) => return Err(passing("it has no address".into())),
            Err(error) => Err(CallError::Unreachable(error.to_string())),
        };
        let refused = |error: &str, hint: &str| {
            let remedy = if hint.is_empty() { "see the cluster; nothing else was changed" } else { hint };
            Trouble::Refused(Failure::new(ExitKind::Config, format!("the cluster refuses: {error}"), remedy))
        };
        let trouble = match outcome {
            Ok(answer) => return Ok(answer),
            Err(CallError::Refused { status: 404, error, .. }) if begun_elsewhere => passing(error),
            Err(CallError::Refused { status, error, hint }) if status < 500 => refused(&error, &hint),
            Err(error) => passing(error.to_string()),
        };
        self.at = (self.at + 1) % self.to.len();
        Err(trouble)
    }
}

/// Why a step came to nothing.
enum Trouble {
    /// It may work later, or at another member.
    Passing(String),
    Refused(Failure),
}
