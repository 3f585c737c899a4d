//! `holdfast-broker journal verify --manifest FILE DIR`: is this copy of a member's data directory what the manifest says?

use std::io;
use std::path::Path;

use holdfast_engine::backup::files::{Problem, note_of, verify as verify_hold};
use holdfast_engine::backup::{Manifest, MemberEntry};
use holdfast_journal::{HoldingFileSystem, RealFileSystem};
use serde_json::json;

use crate::data_dir::JOURNAL;
use crate::failure::{ExitKind, Failure};

/// Compares the copy in `dir` with the manifest; what is wrong goes to standard output, file by file.
///
/// # Errors
/// Something is wrong (code 65), or cannot be read.
pub fn verify(dir: &Path, manifest: &Path, member: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let bytes = std::fs::read(manifest).map_err(|error| {
        let problem = format!("the manifest {} cannot be read: {error}", manifest.display());
        Failure::new(ExitKind::Io, problem, "give the manifest.json of the backup")
    })?;
    let manifest = Manifest::from_file(&bytes).map_err(|why| {
        Failure::new(ExitKind::Data, format!("the manifest {}: {why}", manifest.display()), "use another copy of it")
    })?;
    let hold = hold_in(dir, &manifest)?;
    let member = member_of(&manifest, member, &hold)?;
    let problems = verify_hold(&manifest, member, &hold);
    report(&manifest, member, &problems, as_json);
    match problems.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(
            ExitKind::Data,
            format!("{} is not what was backed up of member {}: {first}", dir.display(), member.name),
            "use the copy of another member: every group is on two at least; nothing was changed",
        )),
    }
}

fn hold_in(dir: &Path, manifest: &Manifest) -> Result<RealFileSystem, Failure> {
    let journal = dir.join(JOURNAL);
    let open = || match journal.is_dir() {
        true => RealFileSystem::new(&journal)?.open_hold(&manifest.id),
        false => Err(io::ErrorKind::NotFound.into()),
    };
    open().map_err(|error| {
        let hold = journal.join("holds").join(&manifest.id);
        let kind = if error.kind() == io::ErrorKind::NotFound { ExitKind::Data } else { ExitKind::Io };
        Failure::new(
            kind,
            format!("{} cannot be opened: {error}", hold.display()),
            "give a copy of a data directory that was made while the backup's hold lived",
        )
    })
}

fn member_of<'a>(
    manifest: &'a Manifest,
    name: Option<&str>,
    hold: &RealFileSystem,
) -> Result<&'a MemberEntry, Failure> {
    let said = note_of(hold).map(|note| note.member);
    let Some(name) = name.map(str::to_owned).or(said) else {
        let problem = "the hold does not say which member's it is: its hold.json is missing or damaged";
        return Err(Failure::new(ExitKind::Data, problem, "say it with --member"));
    };
    manifest.members.iter().find(|member| member.name == name).ok_or_else(|| {
        let known: Vec<&str> = manifest.members.iter().map(|member| member.name.as_str()).collect();
        let problem = format!("the manifest has no files of member {name}");
        Failure::new(ExitKind::Data, problem, format!("it has those of {}", known.join(", ")))
    })
}

fn report(manifest: &Manifest, member: &MemberEntry, problems: &[Problem], as_json: bool) {
    let groups = manifest.groups.iter().filter(|group| group.holders.contains(&member.name));
    let queues: Vec<_> = groups.flat_map(|group| &group.state.queues).collect();
    let messages: u64 = queues.iter().map(|queue| queue.messages).sum();
    if as_json {
        let problem = |problem: &Problem| json!({ "of": problem.of, "what": problem.what });
        let report = json!({
            "backup": manifest.id,
            "member": member.name,
            "files": member.files.len(),
            "queues": queues.len(),
            "messages": messages,
            "problems": problems.iter().map(problem).collect::<Vec<_>>(),
        });
        return println!("{report:#}");
    }
    for problem in problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        let files = member.files.len();
        println!(
            "backup {}, member {}: {files} files, {} queues and {messages} messages are as the manifest says",
            manifest.id,
            member.name,
            queues.len()
        );
    }
}
