//! `holdfast-broker journal inspect|verify DIR`: what a stopped member's data directory holds, in words or as JSON.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_engine::identity::Identity;
use holdfast_journal::{
    Corruption, Inspection, JournalError, RealFileSystem, RecoveredGroup, Scrutiny, SegmentReport, inspect,
};
use holdfast_queue::{AnyMachine, Machine};
use serde_json::{Value, json};

use crate::data_dir::DataDir;
use crate::failure::{ExitKind, Failure};

/// What to do with a journal.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Say what is in a stopped member's data directory. Nothing is changed.
    Inspect(JournalArgs),
    /// The same, after reading every byte of it; ends with code 1 when something is damaged. With --manifest it checks a
    /// copy of a backup instead, and ends with code 65 when any of it is not as the manifest says.
    Verify(VerifyArgs),
}

/// Which journal, and how to say it.
#[derive(Debug, Args)]
pub struct JournalArgs {
    /// The data directory (dataDir in the member's configuration).
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What to verify.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    journal: JournalArgs,
    /// A backup's manifest: the directory is a copy of a member's data directory that was made while its hold lived, and
    /// only the files that the manifest names are looked at.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Which member's copy it is, by name; the hold says so itself, unless that is damaged.
    #[arg(long, requires = "manifest")]
    member: Option<String>,
}

/// Carries the command out; false when `verify` found damage. The report goes to standard output.
pub fn journal(command: &JournalCommand) -> Result<bool, Failure> {
    let (args, scrutiny) = match command {
        JournalCommand::Inspect(args) => (args, Scrutiny::AsAtStart),
        JournalCommand::Verify(VerifyArgs { journal, manifest: Some(manifest), member }) => {
            return crate::backup_command::verify(&journal.dir, manifest, member.as_deref(), journal.json)
                .map(|()| true);
        }
        JournalCommand::Verify(args) => (&args.journal, Scrutiny::EveryByte),
    };
    let found = look(&args.dir, scrutiny)?;
    match args.json {
        true => println!("{:#}", as_json(&args.dir, &found)),
        false => print!("{}", in_words(&args.dir, &found)),
    }
    Ok(scrutiny == Scrutiny::AsAtStart || !found.is_damaged)
}

fn look(dir: &Path, scrutiny: Scrutiny) -> Result<Inspection, Failure> {
    let data_dir = DataDir::open_existing(dir, Duration::ZERO)?;
    let trouble = |kind, error: &dyn std::fmt::Display, remedy: &str| {
        Failure::new(
            kind,
            format!("{} cannot be read: {error}", dir.display()),
            format!("{remedy}; nothing was changed"),
        )
    };
    let files = RealFileSystem::new(&data_dir.journal())
        .map_err(|error| trouble(ExitKind::Io, &error, "check the volume and its owner"))?;
    inspect(&files, scrutiny).map_err(|error| match error {
        JournalError::IdentityDamaged => trouble(
            ExitKind::Data,
            &error,
            "replace this member's volume by an empty one, so that it joins anew; its data is on the other members",
        ),
        JournalError::UnknownVersion { .. } => {
            trouble(ExitKind::Data, &error, "use the version of holdfast-broker that wrote it")
        }
        _ => trouble(ExitKind::Io, &error, "check the volume"),
    })
}

/// One group, with what its checkpoint says of itself.
struct GroupText {
    /// What it is for.
    holds: String,
    /// The queue's messages as of the checkpoint.
    messages: Option<u64>,
}

impl GroupText {
    fn of(group: &RecoveredGroup) -> Self {
        let machine = group.checkpoint.as_ref().and_then(|checkpoint| AnyMachine::restore(&checkpoint.machine).ok());
        match machine {
            Some(AnyMachine::Meta(_)) => Self { holds: "the cluster's metadata".to_owned(), messages: None },
            Some(AnyMachine::Queue(queue)) => {
                let name = |id| queue.queue_name(id).map(|(vhost, name)| format!("{name} in {vhost}"));
                let names: Vec<String> = queue.queues().filter_map(|(id, _)| name(id)).collect();
                let messages = queue.queues().map(|(_, stats)| stats.ready + stats.unacked).sum();
                let holds =
                    if names.is_empty() { "no queue as of its checkpoint".to_owned() } else { names.join(", ") };
                Self { holds, messages: Some(messages) }
            }
            None => Self { holds: "its checkpoint cannot be read".to_owned(), messages: None },
        }
    }
}

fn identity_text(found: &Inspection) -> String {
    let Some(bytes) = &found.identity else { return "no identity: no member has started here".to_owned() };
    match Identity::decode(bytes) {
        Err(error) => error.to_string(),
        Ok(identity) => match &identity.membership {
            None => format!("member {}, in no cluster yet", identity.uuid),
            Some(membership) => format!(
                "member {} (Raft id {}) of cluster {}, epoch {}",
                identity.uuid, membership.member.0, membership.cluster_id, membership.cluster_epoch
            ),
        },
    }
}

fn mib(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn in_words(dir: &Path, found: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("{}: {}", dir.display(), identity_text(found)));
    let size = found.segments.iter().map(|segment| segment.size_bytes).sum();
    let live = found.segments.iter().map(|segment| segment.live_bytes).sum();
    line(format!("\n{} segments, {}, of which about {} are live", found.segments.len(), mib(size), mib(live)));
    found.segments.iter().for_each(|segment| line(segment_line(segment)));
    line(format!("\n{} groups", found.groups.len()));
    found.groups.iter().flat_map(group_lines).for_each(&mut line);
    match found.findings.is_empty() && !found.is_damaged {
        true => line("\nnothing unusual was found".to_owned()),
        false => line("\nfindings".to_owned()),
    }
    found.findings.iter().for_each(|finding| line(format!("  {finding}")));
    if found.is_damaged {
        let groups: Vec<String> = damaged(found).map(|(group, _)| group.key.group.to_string()).collect();
        let whose = match groups.is_empty() {
            true => "nothing that a replica needs is lost".to_owned(),
            false => format!("groups {} are damaged and would not serve", groups.join(", ")),
        };
        line(format!("DAMAGED: {whose}"));
    }
    out
}

fn damaged(found: &Inspection) -> impl Iterator<Item = (&RecoveredGroup, &Corruption)> {
    found.groups.iter().filter_map(|group| Some((group, group.corruption.as_ref()?)))
}

fn segment_line(segment: &SegmentReport) -> String {
    let SegmentReport { file, size_bytes, batches: (first, last), live_entries, live_bodies, live_bytes, .. } = segment;
    let state = match (segment.is_open, segment.has_footer) {
        (_, true) => "sealed",
        (true, false) => "open",
        (false, false) => "full, not sealed yet",
    };
    format!(
        "  {file}: {state}, {}, batches {first} to {last}, live: {live_entries} log entries and {live_bodies} bodies, \
         about {}",
        mib(*size_bytes),
        mib(*live_bytes)
    )
}

fn group_lines(group: &RecoveredGroup) -> Vec<String> {
    let text = GroupText::of(group);
    let mut lines = vec![format!("  {}: {}", group.key, text.holds)];
    let state = group.hard_state.map_or("no term or vote".to_owned(), |state| {
        let vote = if state.vote == 0 { "no vote".to_owned() } else { format!("vote for {}", state.vote) };
        format!("term {}, {vote}, committed to {}", state.term, state.commit)
    });
    let checkpoint = group.checkpoint.as_ref().map_or("no checkpoint".to_owned(), |checkpoint| {
        let messages = text.messages.map_or(String::new(), |messages| format!(" with {messages} messages"));
        format!("checkpoint at {}{messages}, {}", checkpoint.index, mib(checkpoint.machine.len() as u64))
    });
    lines.push(format!("    {state}; {checkpoint}"));
    let log = match (group.entries.first(), group.entries.last()) {
        (Some(first), Some(last)) => {
            format!("{} entries, {} to {} (term {})", group.entries.len(), first.index, last.index, last.term)
        }
        _ => "no entries".to_owned(),
    };
    lines.push(format!("    log after {}: {log}; {} bodies below", group.compacted, group.bodies.len()));
    if let Some(corruption) = &group.corruption {
        lines.push(format!("    DAMAGED: {}{}", corruption.why, lost(corruption)));
    }
    lines
}

fn lost(corruption: &Corruption) -> String {
    let mut lost = Vec::new();
    let range = |range: &std::ops::RangeInclusive<u64>| format!("{} to {}", range.start(), range.end());
    if !corruption.missing.is_empty() {
        lost.push(format!("entries {}", corruption.missing.iter().map(range).collect::<Vec<_>>().join(", ")));
    }
    let parts = [
        (corruption.hard_state, "term and vote"),
        (corruption.checkpoint, "the checkpoint"),
        (corruption.unknown, "records that nobody can name"),
    ];
    lost.extend(parts.into_iter().filter(|(is_lost, _)| *is_lost).map(|(_, what)| what.to_owned()));
    if lost.is_empty() { String::new() } else { format!("; lost: {}", lost.join("; ")) }
}

fn as_json(dir: &Path, found: &Inspection) -> Value {
    let segment = |segment: &SegmentReport| {
        json!({
            "file": segment.file, "open": segment.is_open, "sealed": segment.has_footer,
            "sizeBytes": segment.size_bytes, "firstBatch": segment.batches.0, "lastBatch": segment.batches.1,
            "liveEntries": segment.live_entries, "liveBodies": segment.live_bodies, "liveBytes": segment.live_bytes,
        })
    };
    let group = |group: &RecoveredGroup| {
        let text = GroupText::of(group);
        json!({
            "group": group.key.group,
            "incarnation": {
                "counter": group.key.incarnation.counter,
                "nonce": format!("{:016x}", group.key.incarnation.nonce),
            },
            "holds": text.holds,
            "hardState": group.hard_state.map(|state| {
                json!({"term": state.term, "vote": state.vote, "commit": state.commit})
            }),
            "checkpoint": group.checkpoint.as_ref().map(|checkpoint| {
                json!({
                    "index": checkpoint.index, "term": checkpoint.term, "messages": text.messages,
                    "sizeBytes": checkpoint.machine.len(),
                })
            }),
            "compacted": group.compacted,
            "firstEntry": group.entries.first().map(|entry| entry.index),
            "lastEntry": group.entries.last().map(|entry| entry.index),
            "entries": group.entries.len(),
            "bodies": group.bodies.len(),
            "damage": group.corruption.as_ref().map(|corruption| format!("{}{}", corruption.why, lost(corruption))),
        })
    };
    json!({
        "directory": dir.display().to_string(),
        "identity": identity_text(found),
        "damaged": found.is_damaged,
        "segments": found.segments.iter().map(segment).collect::<Vec<_>>(),
        "groups": found.groups.iter().map(group).collect::<Vec<_>>(),
        "findings": found.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
