//! The journal on the file system of the machine that runs the tests.

use bytes::Bytes;
use holdfast_journal::conformance::{check_all, check_full_disk, check_holds, test_key};
use holdfast_journal::{Batch, BatchId, Journal, JournalConfig, Op, RealFileSystem};
use std::cell::RefCell;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn the_real_file_system_keeps_the_promises_of_its_trait() {
    let roots = RefCell::new(Vec::new());
    let blank = || {
        let root = tempfile::tempdir().expect("a temporary directory");
        let fs = RealFileSystem::new(root.path()).expect("a file system");
        roots.borrow_mut().push(root);
        fs
    };
    check_all(blank);
    check_holds(blank);
}

/// A file system of its own, in memory, as long as the value lives.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// None where mounting is not allowed.
    fn new(options: &str) -> Option<Self> {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(root.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(root))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_announced_spends_the_reserve_and_loses_nothing() {
    let Some(disk) = Mounted::new("size=3m") else {
        println!("SKIPPED: this user may not mount a small file system");
        return;
    };
    check_full_disk(&RealFileSystem::new(disk.0.path()).expect("a file system"));
}

/// `cargo test -p holdfast-journal --release -- --ignored --nocapture` prints the figure.
#[test]
#[ignore = "measures; run it in a release build"]
fn a_hundred_thousand_small_entries_a_second_apart_from_the_sync() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let fs = RealFileSystem::new(root.path()).expect("a file system");
    let (mut journal, _) = Journal::open(fs, JournalConfig::default()).expect("open");
    let payload = Bytes::from(vec![7; 1024]);
    let started = Instant::now();
    let batches = 2_000;
    for batch in 0..batches {
        let ops = (1..=100)
            .map(|entry| Op::Entry { key: test_key(1), index: batch * 100 + entry, term: 1, payload: payload.clone() })
            .collect();
        journal.write(&Batch { id: BatchId(batch), ops }).expect("write");
    }
    let spent: Duration = started.elapsed();
    println!("{:.0} entries/s, syncs included", (batches * 100) as f64 / spent.as_secs_f64());
}
