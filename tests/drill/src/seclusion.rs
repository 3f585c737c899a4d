//! Namespaces of the drill's own for networks, mounts and processes. With its last process the kernel removes all that
//! was made in them: bridges, addresses, rules, mounts, loop devices, brokers. Only control groups have to be removed
//! by hand, and only directories under the name given here.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The drill's control groups are named so, with the outer process's number.
const GROUP_PREFIX: &str = "holdfast-drill-";
/// The memory controller's hierarchy, version 1 or 2.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
/// Tells the inner process what the outer one named its control groups.
const GROUP_VARIABLE: &str = "HOLDFAST_DRILL_GROUP";

/// What every fault needs, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 8] = [
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
];

/// Runs this program again, with the same arguments, in namespaces of its own. True when that one passed everything.
///
/// # Errors
/// When the machine lacks what it takes: says what, and which package has it.
pub fn enter() -> Result<bool> {
    ensure!(rustix::process::geteuid().is_root(), "the drill makes networks and mounts disks: run it as root");
    for (program, package) in PROGRAMS {
        let there = find(program);
        ensure!(there, "`{program}` is missing: install the package {package}");
    }
    sweep_groups();
    let group = format!("{GROUP_PREFIX}{}", std::process::id());
    // However this process ends, the kernel then ends `unshare`, and with it everything inside.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .arg("--secluded")
        .args(std::env::args_os().skip(1))
        .env(GROUP_VARIABLE, &group)
        .status()
        .context("start `setpriv`")?;
    sweep_groups();
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => anyhow::bail!("the drill did not run to its end ({status})"),
    }
}

/// Whether a program is on the path.
pub fn find(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

/// The drill's own memory control group, made if need be.
///
/// # Errors
/// When this machine has no memory controller that can be used.
pub fn memory_group() -> Result<PathBuf> {
    let name = std::env::var(GROUP_VARIABLE).context("the name of the control groups")?;
    for hierarchy in HIERARCHIES.map(PathBuf::from) {
        let legacy = hierarchy.join("memory.limit_in_bytes").exists();
        let controllers = std::fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
        if legacy || controllers.contains("memory") {
            let group = hierarchy.join(&name);
            std::fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
            return Ok(group);
        }
    }
    anyhow::bail!("there is no memory controller here")
}

/// Removes control groups of drills that have ended; those that still have processes stay.
fn sweep_groups() {
    for hierarchy in HIERARCHIES {
        let Ok(entries) = std::fs::read_dir(hierarchy) else { continue };
        let ours = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(GROUP_PREFIX);
        entries.filter_map(Result::ok).filter(ours).for_each(|entry| remove_group(&entry.path()));
    }
}

fn remove_group(group: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        remove_group(&entry.path());
    }
    let _ = std::fs::remove_dir(group);
}
