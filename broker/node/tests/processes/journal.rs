//! What `holdfast-broker journal` says of data directories that real members left, sound and damaged.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Output;

use holdfast_e2e::pika;
use serde_json::Value;

use crate::cluster::{Cluster, program, uri};

fn journal(verb: &str, dir: &Path, more: &[&str]) -> Output {
    program().args(["journal", verb]).arg(dir).args(more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The first segment that holds these bytes, and where.
fn find(dir: &Path, needle: &[u8]) -> (PathBuf, u64) {
    for entry in std::fs::read_dir(dir.join("journal")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let is_segment = path.file_name().unwrap().to_string_lossy().starts_with("segment");
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle).filter(|_| is_segment) {
            return (path, at as u64);
        }
    }
    panic!("no segment of {} holds it", dir.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_members_journal_is_told_in_words_and_damage_is_named_with_its_file_and_group() {
    const COUNT: u32 = 300;
    let temporary = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_in(&temporary.path().join("cluster")).await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "orders", COUNT).await.unwrap();
    let running = journal("inspect", &members[0].data_dir, &[]);
    let complaint = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(complaint.contains(&format!("in use by process {}", members[0].pid.unwrap())), "{complaint}");
    assert_eq!(cluster.stop().await, Some(0));

    for member in &members {
        let told = journal("inspect", &member.data_dir, &[]);
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        for words in ["of cluster", "segment-", "the cluster's metadata", "log after", "nothing unusual was found"] {
            assert!(text(&told).contains(words), "`{words}` in: {}", text(&told));
        }
        let verified = journal("verify", &member.data_dir, &["--json"]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        let found = json(&verified);
        assert_eq!((&found["damaged"], found["findings"].as_array().map(Vec::len)), (&Value::Bool(false), Some(0)));
    }
    damage_is_found(&members[1].data_dir);
    let nowhere = journal("verify", temporary.path(), &[]);
    assert_eq!(nowhere.status.code(), Some(65), "{nowhere:?}");
    assert!(!temporary.path().join("LOCK").exists(), "a directory that is not ours is left as it is");
}

fn damage_is_found(dir: &Path) {
    // The name of the queue stands in the entry that declared it, with durable batches behind it.
    let (path, at) = find(dir, b"orders");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x20]).unwrap();
    drop(file);
    let verified = journal("verify", dir, &[]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let told = text(&verified);
    assert!(told.contains("DAMAGED"), "{told}");
    assert!(told.contains(path.file_name().unwrap().to_str().unwrap()), "{told}");
    let found = json(&journal("verify", dir, &["--json"]));
    assert_eq!(found["damaged"], true);
    let damaged: Vec<&Value> =
        found["groups"].as_array().unwrap().iter().filter(|group| !group["damage"].is_null()).collect();
    assert_eq!(damaged.len(), 1, "{told}");
    assert!(told.contains(&format!("groups {} are damaged and would not serve", damaged[0]["group"])), "{told}");
}
