//! The last recovery scenario: everything is lost but a backup. A new cluster of another size, whose members have other
//! names, is founded from copies of what two of the old members held.

use std::path::{Path, PathBuf};
use std::process::Output;

use holdfast_e2e::pika;
use http::Method;
use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::backup::copy;
use crate::cluster::{Cluster, PATIENCE, program, uri};
use crate::newcomers::Newcomers;

pub const ID: &str = "weekly-1";
pub const CLUSTER: &str = "5a8a1c3e-0000-4000-8000-restored0001";
/// Messages in the queue of which some are out at a consumer when the barrier comes, and in the other one.
pub const ORDERS: u32 = 400;
pub const OTHERS: u32 = 250;
const OUT: usize = 7;

/// What is left of a cluster.
pub struct Left {
    _dir: tempfile::TempDir,
    pub manifest: PathBuf,
    pub sha256: String,
    /// Copies of two members' data directories, and whose they are.
    pub copies: Vec<(String, PathBuf)>,
}

/// Three members are loaded and backed up; nothing is left of them but two copies.
pub async fn backed_up() -> Left {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start().await;
    cluster.ready().await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "orders", ORDERS).await.unwrap();
    pika::publish(&uri(members[1].amqp), "others", OTHERS).await.unwrap();
    let connection = Connection::connect(&uri(members[2].amqp), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for _ in 0..OUT {
        channel.basic_get("orders".into(), BasicGetOptions::default()).await.unwrap().expect("a message");
    }
    let body = json!({ "id": ID, "holdSeconds": 600 });
    let answer = cluster.call(&members[1], Method::POST, "/v1/backup/barriers", Some(&body), PATIENCE).await.unwrap();
    assert_eq!(answer["totals"]["messages"], ORDERS + OTHERS, "{answer}");
    pika::publish(&uri(members[0].amqp), "late", 5).await.unwrap();
    let mut copies = Vec::new();
    for member in &members[1..] {
        let copied = dir.path().join(&member.name);
        copy(&member.data_dir, &copied);
        copies.push((member.name.clone(), copied));
    }
    let manifest = dir.path().join("manifest.json");
    std::fs::copy(hold(&copies[0].1).join("manifest.json"), &manifest).unwrap();
    assert_eq!(cluster.stop().await, Some(0));
    Left { manifest, sha256: answer["manifestSha256"].as_str().unwrap().into(), copies, _dir: dir }
}

pub fn hold(dir: &Path) -> PathBuf {
    dir.join("journal/holds").join(ID)
}

fn build(left: &Left, to: &Path, from: &[&Path], more: &[&str]) -> Output {
    let mut command = program();
    command.args(["restore", "build", "--manifest"]).arg(&left.manifest);
    command.args(["--manifest-sha256", &left.sha256, "--cluster-id", CLUSTER, "--name", "new-0", "--data-dir"]);
    command.arg(to);
    for dir in from {
        command.arg("--from").arg(dir);
    }
    command.args(more).output().unwrap()
}

fn refused(output: &Output, code: i32, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "`{word}` in: {told}");
    }
}

/// The first segment of a copy that the manifest names.
pub fn a_segment(left: &Left, copy: usize) -> PathBuf {
    let manifest: Value = serde_json::from_slice(&std::fs::read(&left.manifest).unwrap()).unwrap();
    let (name, dir) = &left.copies[copy];
    let member = manifest["members"].as_array().unwrap().iter().find(|one| one["name"] == *name).unwrap();
    let segment = |file: &&Value| file["name"].as_str().unwrap().starts_with("segment-");
    let file = member["files"].as_array().unwrap().iter().find(segment).unwrap();
    hold(dir).join(file["name"].as_str().unwrap())
}

/// Changes one byte of a file; gives its name.
pub fn damage(path: &Path) -> String {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[9_000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_lost_but_a_backup_and_a_smaller_cluster_with_other_names_goes_on_with_every_message() {
    let left = backed_up().await;
    let mut new = Newcomers::prepare(CLUSTER, 2);
    let (first, second) = (left.copies[0].1.as_path(), left.copies[1].1.as_path());

    // One of the copies is damaged: alone it is refused by the name of the file, beside another one it is not needed.
    let name = damage(&a_segment(&left, 0));
    let target = new.members[0].dir.clone();
    refused(&build(&left, &target, &[first], &[]), 65, &[&name, "it is changed", "'orders'", "'others'"]);
    let member = format!("new-1={}", new.members[1].peer);
    let built = build(&left, &target, &[first, second], &["--member", &member, "--output", "json"]);
    assert_eq!(built.status.code(), Some(0), "{}", String::from_utf8_lossy(&built.stderr));
    let told: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!((&told["messages"], &told["queues"]), (&json!(ORDERS + OTHERS), &json!(2)), "{told:#}");
    assert!(told["damaged"][0].as_str().unwrap().contains(&name), "{told:#}");
    refused(&build(&left, &target, &[second], &[]), 65, &["is not blank", CLUSTER]);

    new.start(0);
    new.ready(1).await;
    new.start(1);
    new.ready(2).await;
    // Unsettled messages are back in their places, and what came after the barrier is not there.
    assert_eq!(pika::consume(&new.uri(1), "orders", ORDERS).await.unwrap(), ORDERS);
    assert_eq!(pika::consume(&new.uri(0), "others", OTHERS).await.unwrap(), OTHERS);
    assert!(pika::consume(&new.uri(0), "late", 1).await.is_err(), "it was declared after the cut");
    new.spread(0, 2).await;
    pika::publish(&new.uri(1), "orders", 20).await.unwrap();
    new.kill(1);
    new.start(1);
    new.ready(2).await;
    assert_eq!(pika::consume(&new.uri(1), "orders", 20).await.unwrap(), 20);
}
