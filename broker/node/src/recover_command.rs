//! `holdfast-broker recover survey|plan|apply`: a majority of the members' disks is gone for good, and the cluster is to go
//! on from those that are left. What the plan is and why it is safe: [`holdfast_engine::recovery`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use holdfast_engine::recovery::{GroupPlan, Outcome, Plan, PlanError, Role};
use serde_json::{Value, json};

use crate::clock::random_u64;
use crate::failure::{ExitKind, Failure};
use crate::recovery_dirs::{StoppedDir, Surveyed};
use crate::recovery_plan::{HashedPlan, nonce_of};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RecoverCommand {
    /// Print, as JSON, what a stopped member's data directory holds of each group, for a plan that is made elsewhere.
    Survey {
        /// The data directory (dataDir in the member's configuration).
        dir: PathBuf,
    },
    /// Say what a recovery from these disks would do and what would be lost. Changes nothing; ends with code 1 when a
    /// recovery is needed.
    Plan(RecoverArgs),
    /// Carry a plan out: the members of these disks go on in a new epoch of the cluster, and all others are refused.
    Apply {
        #[command(flatten)]
        args: RecoverArgs,
        /// The hash that `plan` printed. Nothing happens if the disks come to another plan now.
        #[arg(long, value_name = "HASH")]
        plan_hash: String,
        /// The number that tells this recovery from any other, the same for all of its parts. Without it one is drawn; where
        /// disks of the plan are elsewhere, it follows from the plan, so that every place comes to the same.
        #[arg(long, value_name = "HEX", value_parser = parse_hex)]
        nonce: Option<u64>,
    },
}

/// The disks that are left.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The data directory of a stopped member; give every one that is left.
    #[arg(long = "data-dir", value_name = "DIR", required = true)]
    data_dirs: Vec<PathBuf>,
    /// What `recover survey` printed of a disk that is elsewhere.
    #[arg(long = "survey", value_name = "FILE")]
    surveys: Vec<PathBuf>,
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

fn parse_hex(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| error.to_string())
}

/// Carries the command out. False when a plan says that a recovery is needed.
pub fn recover(command: &RecoverCommand) -> Result<bool, Failure> {
    match command {
        RecoverCommand::Survey { dir } => {
            let stopped = StoppedDir::open(dir)?.ok_or_else(|| nothing_there(dir))?;
            println!("{}", to_json(&stopped.surveyed)?);
            Ok(true)
        }
        RecoverCommand::Plan(args) => {
            let planned = Planned::make(args, None)?;
            match args.output {
                Format::Json => println!("{:#}", planned.as_json()),
                Format::Text => print!("{}", planned.in_words(args)),
            }
            Ok(!planned.plan.is_needed)
        }
        RecoverCommand::Apply { args, plan_hash, nonce } => {
            let planned = Planned::make(args, Some(plan_hash))?;
            let applied = planned.apply(plan_hash, *nonce)?;
            match args.output {
                Format::Json => println!("{:#}", applied.as_json(&planned)),
                Format::Text => print!("{}", applied.in_words(&planned)),
            }
            Ok(true)
        }
    }
}

fn nothing_there(dir: &Path) -> Failure {
    Failure::new(
        ExitKind::Data,
        format!("{} belongs to no cluster: there is nothing in it to recover", dir.display()),
        "leave it out; a member with an empty directory joins anew by itself",
    )
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::new(ExitKind::Internal, format!("cannot be written as JSON: {error}"), "report it"))
}

/// A plan, and the directories that it was made from.
struct Planned {
    plan: Plan,
    hash: String,
    dirs: Vec<StoppedDir>,
    /// The number that the plan was begun under, as one of the disks or surveys tells.
    begun_under: Option<u64>,
    /// Directories that belong to no cluster.
    blank: Vec<PathBuf>,
}

impl Planned {
    /// `begun` is the hash of a plan that may have been carried out in some of the directories already.
    fn make(args: &RecoverArgs, begun: Option<&str>) -> Result<Self, Failure> {
        let (mut dirs, mut blank) = (Vec::new(), Vec::new());
        for path in &args.data_dirs {
            match StoppedDir::open(path)? {
                Some(dir) => dirs.push(dir),
                None => blank.push(path.clone()),
            }
        }
        let mut found: Vec<Surveyed> = dirs.iter().map(|dir| dir.surveyed.clone()).collect();
        for path in &args.surveys {
            found.push(read_survey(path)?);
        }
        let HashedPlan { plan, hash } = HashedPlan::make(&found, begun).map_err(no_plan)?;
        let begun_under = found.iter().find_map(|one| Some(one.before(&hash)?.nonce));
        Ok(Self { plan, hash, dirs, begun_under, blank })
    }

    fn goes_on(&self, dir: &StoppedDir) -> bool {
        self.plan.parts().any(|uuid| uuid == dir.surveyed.survey.uuid)
    }

    fn apply(&self, plan_hash: &str, nonce: Option<u64>) -> Result<Applied, Failure> {
        if self.hash != plan_hash {
            return Err(Failure::new(
                ExitKind::Data,
                format!("the plan for these disks is {}, not {plan_hash}: nothing was changed", self.hash),
                "read what `holdfast-broker recover plan` says now, and apply that if it is what you want",
            ));
        }
        if !self.plan.is_needed {
            return Ok(Applied::default());
        }
        let done = |uuid: &str| self.dirs.iter().any(|dir| dir.surveyed.survey.uuid == uuid);
        let elsewhere = self.plan.disks.iter().filter(|disk| disk.role == Role::GoesOn && !done(&disk.uuid));
        let elsewhere: Vec<String> = elsewhere.map(|disk| name_of(disk.name.as_deref(), disk.member)).collect();
        let nonce = self.nonce(nonce, !elsewhere.is_empty())?;
        let mut applied = Applied { nonce, elsewhere, ..Applied::default() };
        let mut todo: Vec<&StoppedDir> = self.dirs.iter().filter(|dir| self.goes_on(dir)).collect();
        // The metadata last: without it nothing of the new epoch can serve before every other part is there.
        todo.sort_by_key(|dir| dir.surveyed.survey.member == self.plan.metadata().source);
        for dir in todo {
            let aside = match dir.surveyed.before(plan_hash) {
                Some(_) => None,
                None => {
                    let aside = dir.prepare(&self.plan, plan_hash, nonce)?;
                    dir.exchange(&aside)?;
                    Some(aside)
                }
            };
            applied.dirs.push((dir.path().to_path_buf(), aside));
        }
        Ok(applied)
    }

    /// The number that all parts of this recovery share. Where all of them are here it is drawn, so that the same plan
    /// carried out on copies of these disks, as an exercise may do, makes another recovery, and the two refuse each other.
    /// Where parts are elsewhere, whoever carries them out must come to the same number without being told.
    fn nonce(&self, given: Option<u64>, parts_are_elsewhere: bool) -> Result<u64, Failure> {
        match (self.begun_under, given) {
            (Some(begun), Some(given)) if begun != given => {
                let problem = format!("this recovery was begun under --nonce {begun:016x}, not {given:016x}");
                Err(Failure::new(ExitKind::Config, problem, "give that one"))
            }
            (Some(known), _) | (None, Some(known)) => Ok(known),
            (None, None) if parts_are_elsewhere => Ok(nonce_of(&self.hash)),
            (None, None) => {
                random_u64().map_err(|error| Failure::new(ExitKind::Internal, error.to_string(), "try again"))
            }
        }
    }

    fn as_json(&self) -> Value {
        let mut plan = HashedPlan { plan: self.plan.clone(), hash: self.hash.clone() }.as_json();
        plan["blank"] = self.blank.iter().map(|path| path.display().to_string()).collect();
        plan
    }

    fn in_words(&self, args: &RecoverArgs) -> String {
        let plan = &self.plan;
        let mut out = format!("cluster {}, epoch {}\n\ndisks that are here\n", plan.cluster_id, plan.epoch);
        for disk in &plan.disks {
            let what = match disk.role {
                Role::GoesOn if plan.is_needed => "goes on in the new epoch".to_owned(),
                Role::GoesOn => "up to date enough to start".to_owned(),
                Role::Stale => format!("STALE: of epoch {}, left behind by an earlier recovery; not used", disk.epoch),
                Role::Unknown => "not used: the metadata that are left do not know this member".to_owned(),
            };
            let _ = writeln!(out, "  {}: {what}", name_of(disk.name.as_deref(), disk.member));
        }
        for path in &self.blank {
            let _ = writeln!(out, "  {}: blank; its member joins anew", path.display());
        }
        if !plan.absent.is_empty() {
            let _ = writeln!(out, "\nmembers whose disks are not here: {}", plan.absent.join(", "));
        }
        out.push_str("\ngroups\n");
        plan.groups.iter().for_each(|group| out.push_str(&group_in_words(group, &plan.names, plan.is_needed)));
        out.push_str(&self.what_to_do(args));
        out
    }

    fn what_to_do(&self, args: &RecoverArgs) -> String {
        let plan = &self.plan;
        if !plan.is_needed {
            return "\nNothing to do: a majority of every group is here. Start the members.\n".into();
        }
        let losing = plan.groups.iter().filter(|group| group.may_lose()).count();
        let loss = match losing {
            0 => "Nothing that was confirmed is lost.".to_owned(),
            1 => "In 1 group confirmed messages are lost, or may be.".to_owned(),
            more => format!("In {more} groups confirmed messages are lost, or may be."),
        };
        let absent = match plan.absent.is_empty() {
            true => String::new(),
            false => format!(
                "Make sure that {} never run again on their old disks: a majority of them would go on\nconfirming what this \
                 cluster never hears of. ",
                plan.absent.join(", ")
            ),
        };
        let dirs: String = args.data_dirs.iter().map(|dir| format!(" --data-dir {}", dir.display())).collect();
        let files: String = args.surveys.iter().map(|file| format!(" --survey {}", file.display())).collect();
        format!(
            "\nRecovery is needed: a majority is not here. {loss}\n{absent}Then:\n\n  holdfast-broker recover apply \
             --plan-hash {}{dirs}{files}\n",
            self.hash
        )
    }
}

fn read_survey(path: &Path) -> Result<Surveyed, Failure> {
    let trouble = |error: &dyn std::fmt::Display| {
        let problem = format!("{} is not what `recover survey` prints: {error}", path.display());
        Failure::new(ExitKind::Data, problem, "make it again with `holdfast-broker recover survey DIR`")
    };
    let bytes = std::fs::read(path).map_err(|error| trouble(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| trouble(&error))
}

fn no_plan(error: PlanError) -> Failure {
    let remedy = match error {
        PlanError::NoMetadata(_) => "give more of the members' directories; nothing was changed",
        _ => "give the data directories of all members that are left, each once; nothing was changed",
    };
    Failure::new(ExitKind::Data, error.to_string(), remedy)
}

fn name_of(name: Option<&str>, member: u64) -> String {
    name.map_or_else(|| format!("member {member}"), str::to_owned)
}

fn group_in_words(group: &GroupPlan, names: &BTreeMap<u64, String>, is_needed: bool) -> String {
    let queues: Vec<String> = group
        .queues
        .iter()
        .map(|queue| format!("{} in {} ({} messages)", queue.name, queue.vhost, queue.messages))
        .collect();
    let what = match (group.group, queues.is_empty()) {
        (0, _) => "the cluster's metadata".to_owned(),
        (_, true) => "no queue that the metadata knows".to_owned(),
        _ => queues.join(", "),
    };
    let mut out = format!("  {}: {what}\n", group.group);
    let member = |id: u64| names.get(&id).cloned().unwrap_or_else(|| format!("member {id}"));
    let mut line = |text: String| {
        let _ = writeln!(out, "     {text}");
    };
    let position = group.position.unwrap_or_default();
    let until = format!("entry {} of term {}, of {}", position.index, position.term, utc(position.stamped_ms));
    let away: Vec<String> = group.absent.iter().map(|replica| member(replica.member)).collect();
    line(match &group.outcome {
        Outcome::Whole if group.has_majority => "nothing lost: a majority of its voters is here".to_owned(),
        Outcome::Whole => {
            "nothing lost: no majority is here, but nothing can have been confirmed without those that are".into()
        }
        Outcome::Unborn => "never came to be: there is nothing to lose".to_owned(),
        Outcome::Unknown => format!(
            "MAY BE LOST: what was confirmed after {until}. The voters that could have confirmed more are not here ({})",
            away.join(", ")
        ),
        Outcome::Behind { committed } => format!(
            "LOST: entries {} to {committed}, which were committed; the best copy that can be used ends with {until}",
            position.index + 1
        ),
        Outcome::NoCopy => "LOST: no copy that can be used is here; the queues begin anew, empty".to_owned(),
        Outcome::Deleted => "deleted, as the metadata knows: not carried over".to_owned(),
    });
    if is_needed && group.may_lose() && group.group != 0 {
        line(match (group.needs_a_person(false), group.needs_a_person(true)) {
            (None, None) => "its policy lets the operator go ahead without a person".into(),
            (None, Some(_)) => "its policy lets the operator go ahead without a person when members have failed".into(),
            (Some(_), None) => {
                "its policy lets the operator go ahead without a person when members were stopped".into()
            }
            (Some(why), Some(_)) => format!("a person decides: {why}"),
        });
    }
    if is_needed && group.position.is_some() && group.outcome != Outcome::Deleted {
        line(format!("goes on from the copy of {}, which ends with {until}", member(group.source)));
    }
    for (id, why) in &group.damaged {
        line(format!("the copy of {} cannot be used: {why}", member(*id)));
    }
    for queue in &group.adopted {
        line(format!(
            "adopted: {} in {} ({} messages), which is newer than the metadata: declare its bindings again",
            queue.name, queue.vhost, queue.messages
        ));
    }
    out
}

/// A time as people write it: `2026-11-22 23:40:12Z`.
fn utc(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "no known time".into();
    }
    let seconds = unix_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Days since 0000-03-01, in eras of 400 years of 146,097 days, so that leap days come last in a year.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z", era * 400 + year + later)
}

/// What was done.
#[derive(Default)]
struct Applied {
    nonce: u64,
    /// Directories that go on, and where their old journals are; none where that was done before.
    dirs: Vec<(PathBuf, Option<PathBuf>)>,
    /// Members that go on and whose directories were not given.
    elsewhere: Vec<String>,
}

impl Applied {
    fn as_json(&self, planned: &Planned) -> Value {
        let dir = |(dir, aside): &(PathBuf, Option<PathBuf>)| {
            json!({
                "directory": dir.display().to_string(),
                "oldJournal": aside.as_ref().map(|aside| aside.display().to_string()),
            })
        };
        json!({
            "planHash": planned.hash,
            "needed": planned.plan.is_needed,
            "epoch": if planned.plan.is_needed { planned.plan.next_epoch() } else { planned.plan.epoch },
            "nonce": format!("{:016x}", self.nonce),
            "directories": self.dirs.iter().map(dir).collect::<Vec<_>>(),
            "elsewhere": self.elsewhere,
        })
    }

    fn in_words(&self, planned: &Planned) -> String {
        if !planned.plan.is_needed {
            return "nothing was done: a majority of every group is here. Start the members.\n".into();
        }
        let epoch = planned.plan.next_epoch();
        let mut out = format!("the cluster is at epoch {epoch}\n");
        for (dir, aside) in &self.dirs {
            let _ = match aside {
                Some(aside) => writeln!(out, "  {}: done; the old journal is {}", dir.display(), aside.display()),
                None => writeln!(out, "  {}: was done before", dir.display()),
            };
        }
        if self.elsewhere.is_empty() {
            let _ = writeln!(
                out,
                "Start these members. All others join with empty directories, under their old names; set minClusterEpoch: \
                 {epoch}\nin their configurations, so that none starts on an old disk."
            );
        } else {
            let _ = writeln!(
                out,
                "Not finished: apply the same plan where the disks of {} are, with --nonce {:016x}, before you start any.",
                self.elsewhere.join(", "),
                self.nonce
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_795_390_812_999), "2026-11-22 23:40:12Z");
        assert_eq!(utc(0), "no known time");
    }
}
