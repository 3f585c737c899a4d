//! The memory that this process takes, and how much it may.

use std::path::Path;
use std::time::Duration;

use holdfast_engine::{Input, Memory};

use crate::inbox::{Arrival, Inbox};
use crate::metrics::resident_bytes;

/// How often the engine hears of the process's memory.
const EVERY: Duration = Duration::from_secs(1);
/// Where control groups are mounted.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// A limit from here on stands for none (version 1 writes a huge number).
const UNLIMITED_BYTES: u64 = 1 << 60;

/// The memory that this process may take: the least of the machine's and of the limits of its control groups. None where
/// neither can be read.
pub fn limit_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    machine_bytes(&machine).into_iter().chain(group_limit_bytes(Path::new(CONTROL_GROUPS), &groups)).min()
}

/// The watermark where the configuration names none: RabbitMQ's share of what the process may take, 0.6
/// (`vm_memory_high_watermark.relative`). 0, which is no limit, where that is not known.
pub fn default_high_watermark_bytes(limit_bytes: Option<u64>) -> u64 {
    limit_bytes.map_or(0, |limit| limit / 10 * 6)
}

/// `MemTotal` of `/proc/meminfo`.
fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// The least limit of the groups in `/proc/self/cgroup` and of those above them, as mounted at `root`.
fn group_limit_bytes(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (folder, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // In a namespace of its own the group is the root that is mounted, whatever its path says.
        Path::new(path.trim_start_matches('/')).ancestors().map(|group| folder.join(group).join(file)).collect()
    });
    let read = |file: std::path::PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    limits.filter_map(read).filter(|limit| *limit < UNLIMITED_BYTES).min()
}

/// Tells the engine of the process's memory for as long as it runs.
pub async fn watch(inbox: Inbox, high_watermark_bytes: u64) {
    loop {
        let memory = Memory { used_bytes: resident_bytes(), high_watermark_bytes };
        if inbox.control.send(Arrival::Input(Input::Memory(memory)), 0).await.is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_least_limit_of_a_control_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a/memory.max", "2000\n");
        write(root.path(), "a/b/memory.max", "max\n");
        assert_eq!(group_limit_bytes(root.path(), "0::/a/b\n"), Some(2000));
        write(root.path(), "a/b/memory.max", "1500\n");
        assert_eq!(group_limit_bytes(root.path(), "0::/a/b\n"), Some(1500));
        assert_eq!(group_limit_bytes(root.path(), "0::/elsewhere\n"), None);
    }

    #[test]
    fn a_container_finds_its_limit_at_the_root_that_it_sees_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory.max", "700\n");
        assert_eq!(group_limit_bytes(root.path(), "0::/kubepods/pod7/c\n"), Some(700));
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory/memory.limit_in_bytes", "9223372036854771712\n");
        let groups = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n";
        assert_eq!(group_limit_bytes(root.path(), groups), None, "that number stands for no limit");
        write(root.path(), "memory/memory.limit_in_bytes", "800\n");
        assert_eq!(group_limit_bytes(root.path(), groups), Some(800));
    }

    #[test]
    fn this_machine_has_memory_and_the_watermark_is_a_part_of_it() {
        let limit = limit_bytes().unwrap();
        let watermark = default_high_watermark_bytes(Some(limit));
        assert!(watermark > limit / 2 && watermark < limit);
        assert_eq!(default_high_watermark_bytes(None), 0);
        assert_eq!(machine_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
    }
}
