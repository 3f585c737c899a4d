//! `holdfast-broker journal verify --manifest FILE DIR`: is this copy of a member's data directory what the manifest says?

use std::path::Path;

use holdfast_engine::backup::files::{Problem, verify as verify_hold};
use holdfast_engine::backup::{Manifest, MemberEntry};
use serde_json::json;

use crate::failure::{ExitKind, Failure};
use crate::hold_dirs::{hold_in, member_of, read_manifest};

/// Compares the copy in `dir` with the manifest; what is wrong goes to standard output, file by file.
///
/// # Errors
/// Something is wrong (code 65), or cannot be read.
pub fn verify(dir: &Path, manifest: &Path, member: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let (manifest, _) = read_manifest(manifest, None)?;
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
