//! `holdfast-broker restore build|push|queue|vhost|abandon`: a new cluster is founded from copies of what a backup's barrier held, or a
//! part of it comes back under a new name. What it keeps, and
//! why the copy is never taken for the original: [`holdfast_engine::restore`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use holdfast_engine::backup::Manifest;
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::restore::{HoldCopy, NewCluster, Restored};
use holdfast_journal::RealFileSystem;
use holdfast_queue::meta::ExpectedMember;
use serde_json::json;

use crate::clock::{random_u64, random_u128};
use crate::data_dir::DataDir;
use crate::failure::{ExitKind, Failure};
use crate::hold_dirs::{hold_in, member_of, read_manifest, sha256_hex};
use crate::in_place_command::{AbandonArgs, QueueArgs, VhostArgs, abandon, restore_queue, restore_vhost};
use crate::push_command::{PushArgs, push};
use crate::restored_journal::{RestoreRecord, prepare, put_in_place, refuse_used, tidy};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Make the data directory of a new cluster's first member, out of copies of what a barrier held.
    Build(Box<BuildArgs>),
    /// Send a copy of what a barrier held on a member to a blank member, whose admin API then founds the cluster. What is
    /// there already is not sent again.
    Push(PushArgs),
    /// Bring one queue into a cluster that runs, under a new name. Nobody can use it before it is whole. Run again, it goes on.
    Queue(Box<QueueArgs>),
    /// Bring a virtual host with its queues, exchanges, bindings, policies and permissions, under a new name.
    Vhost(Box<VhostArgs>),
    /// Take out of a cluster what an unfinished `restore queue` or `restore vhost` has left in it.
    Abandon(AbandonArgs),
}

/// `restore build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The backup's manifest.json.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// The SHA-256 that the barrier's answer gave of it.
    #[arg(long, value_name = "HEX")]
    manifest_sha256: Option<String>,
    /// A copy of a member's data directory, or of its hold; give as many as there are, or two.
    #[arg(long = "from", value_name = "DIR", required = true)]
    from: Vec<PathBuf>,
    /// The new member's data directory, empty or not there yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The new cluster's id: any text that no other cluster has, such as a UUID.
    #[arg(long, value_name = "ID")]
    cluster_id: String,
    /// The new member's name, as in its configuration.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Its failure zone.
    #[arg(long, value_name = "ZONE", default_value = "")]
    zone: String,
    /// Where its peers reach it, as in its configuration (advertise.peer).
    #[arg(long, value_name = "HOST:PORT", default_value = "")]
    address: String,
    /// Another member that is to join, with an empty directory of its own.
    #[arg(long = "member", value_name = "NAME=HOST:PORT[,ZONE]", value_parser = parse_member)]
    members: Vec<ExpectedMember>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

fn parse_member(text: &str) -> Result<ExpectedMember, String> {
    let malformed = || format!("`{text}` is not NAME=HOST:PORT or NAME=HOST:PORT,ZONE");
    let (name, rest) = text.split_once('=').ok_or_else(malformed)?;
    let (address, zone) = rest.split_once(',').unwrap_or((rest, ""));
    match !name.is_empty() && address.contains(':') {
        true => Ok(ExpectedMember { name: name.into(), address: address.into(), zone: zone.into() }),
        false => Err(malformed()),
    }
}

/// Carries the command out.
///
/// # Errors
/// By what stands in its way; see [`ExitKind`].
pub fn restore(command: &RestoreCommand) -> Result<(), Failure> {
    match command {
        RestoreCommand::Build(args) => build(args),
        RestoreCommand::Push(args) => small_runtime()?.block_on(push(args)),
        RestoreCommand::Queue(args) => small_runtime()?.block_on(restore_queue(args)),
        RestoreCommand::Vhost(args) => small_runtime()?.block_on(restore_vhost(args)),
        RestoreCommand::Abandon(args) => small_runtime()?.block_on(abandon(args)),
    }
}

fn small_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitKind::Internal, format!("cannot start: {error}"), "try again"))
}

fn build(args: &BuildArgs) -> Result<(), Failure> {
    if args.cluster_id.is_empty() || args.cluster_id.len() > 255 || args.name.is_empty() {
        let problem = "the cluster's id must have 1 to 255 bytes, and the member a name";
        return Err(Failure::new(ExitKind::Config, problem, "give --cluster-id and --name"));
    }
    let (manifest, bytes) = read_manifest(&args.manifest, args.manifest_sha256.as_deref())?;
    let copies = copies_in(&args.from, &manifest)?;
    let dir = DataDir::open(&args.data_dir, Duration::ZERO)?;
    let admin_token = refuse_used(dir.path())?;
    let drawn = |error: std::io::Error| Failure::new(ExitKind::Internal, error.to_string(), "try again");
    let new = NewCluster {
        cluster_id: args.cluster_id.clone(),
        name: args.name.clone(),
        zone: args.zone.clone(),
        address: args.address.clone(),
        uuid: MemberUuid(random_u128().map_err(drawn)?),
        admin_token,
        expected: args.members.clone(),
        defaults: None,
        user: None,
        nonce: random_u64().map_err(drawn)?,
    };
    let record = RestoreRecord {
        backup: manifest.id.clone(),
        manifest_sha256: sha256_hex(&bytes),
        cluster_id: new.cluster_id.clone(),
    };
    let restored = prepare(dir.path(), &manifest, &copies, &new, &record)?;
    put_in_place(dir.path())?;
    tidy(dir.path())?;
    match args.output {
        Format::Json => println!("{:#}", as_json(&restored, &manifest, &new)),
        Format::Text => print!("{}", in_words(&restored, &manifest, &new, dir.path())),
    }
    Ok(())
}

fn copies_in(dirs: &[PathBuf], manifest: &Manifest) -> Result<Vec<HoldCopy<RealFileSystem>>, Failure> {
    let mut copies: Vec<HoldCopy<RealFileSystem>> = Vec::new();
    for dir in dirs {
        let files = hold_in(dir, manifest)?;
        let member = member_of(manifest, None, &files)?.name.clone();
        copies.push(HoldCopy { member, files });
    }
    Ok(copies)
}

fn as_json(restored: &Restored, manifest: &Manifest, new: &NewCluster) -> serde_json::Value {
    json!({
        "backup": manifest.id,
        "clusterId": new.cluster_id,
        "memberUuid": new.uuid.to_string(),
        "groups": restored.groups,
        "queues": restored.queues,
        "messages": restored.messages,
        "messageBytes": restored.message_bytes,
        "read": restored.read,
        "damaged": restored.damaged,
        "dropped": restored.dropped,
        "missing": restored.missing,
    })
}

fn in_words(restored: &Restored, manifest: &Manifest, new: &NewCluster, dir: &Path) -> String {
    let mut out = format!(
        "{} queues with {} messages ({} bytes) of backup {} are in {}, from the copies of {}\n",
        restored.queues,
        restored.messages,
        restored.message_bytes,
        manifest.id,
        dir.display(),
        restored.read.join(", ")
    );
    for problem in &restored.damaged {
        out.push_str(&format!("not used, since it is damaged: {problem}\n"));
    }
    for queue in &restored.missing {
        out.push_str(&format!("empty, since the backup was made without it: {queue}\n"));
    }
    if !restored.dropped.is_empty() {
        out.push_str(&format!("not kept, since they belonged to sessions: {} queues\n", restored.dropped.len()));
    }
    out.push_str(&format!(
        "\nStart member {} on it; it is cluster {}, alone at first. Members with empty directories join when they are\n\
         expected (--member here, or PUT /v1/members at the admin API).\n",
        new.name, new.cluster_id
    ));
    out
}
