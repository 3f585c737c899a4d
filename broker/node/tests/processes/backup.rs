//! A backup of a running cluster: a barrier under load, a copy of what a member holds, and copies that are not what they
//! should be.

use std::path::{Path, PathBuf};
use std::process::Output;

use holdfast_e2e::pika;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, DevMember, PATIENCE, eventually, program, uri};

const ID: &str = "nightly-1";

fn hold(dir: &Path) -> PathBuf {
    dir.join("journal/holds").join(ID)
}

/// Copies what a volume snapshot would have of a member: the held files under their names, and the others too.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // A file of the journal may go while it is copied; those of the hold do not.
            false => drop(std::fs::copy(entry.path(), target)),
        }
    }
}

fn verify(dir: &Path) -> (Option<i32>, String) {
    let manifest = hold(dir).join("manifest.json");
    let kept = dir.with_extension("manifest");
    std::fs::copy(manifest, &kept).unwrap();
    verify_by(dir, &kept)
}

fn verify_by(dir: &Path, manifest: &Path) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        program().args(["journal", "verify", "--manifest"]).arg(manifest).arg(dir).output().unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// The first segment that the manifest names for this member, and the bytes of it that count.
fn first_segment(dir: &Path, member: &str) -> (PathBuf, u64) {
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.with_extension("manifest")).unwrap()).unwrap();
    let member = manifest["members"].as_array().unwrap().iter().find(|one| one["name"] == member).unwrap();
    let segment = |file: &&Value| file["name"].as_str().unwrap().starts_with("segment-");
    let file = member["files"].as_array().unwrap().iter().find(segment).unwrap();
    (hold(dir).join(file["name"].as_str().unwrap()), file["length"].as_u64().unwrap())
}

async fn holds(cluster: &Cluster, member: &DevMember) -> Option<usize> {
    Some(cluster.get(member, "/v1/backup/barriers").await?["holds"].as_array()?.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_cluster_under_load_verifies_and_one_whose_files_are_not_whole_is_refused_with_their_names() {
    const BEFORE: u32 = 400;
    const DURING: u32 = 2_000;
    let cluster = Cluster::start().await;
    cluster.ready().await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "orders", BEFORE).await.unwrap();
    let body = json!({ "id": ID, "holdSeconds": 600 });
    let during = uri(members[1].amqp);
    let (published, answer) = tokio::join!(
        pika::publish(&during, "others", DURING),
        cluster.call(&members[2], Method::POST, "/v1/backup/barriers", Some(&body), PATIENCE),
    );
    published.unwrap();
    let answer = answer.unwrap();
    println!("the barrier: {answer}");
    assert!(answer["totals"]["messages"].as_u64().unwrap() >= u64::from(BEFORE), "{answer}");
    assert_eq!(answer["members"].as_array().map(Vec::len), Some(3), "{answer}");
    let sets = answer["holders"].as_array().unwrap();
    assert!(!sets.is_empty() && sets.iter().all(|set| set.as_array().unwrap().len() >= 2), "{answer}");
    for member in &members {
        let again = cluster.call(member, Method::POST, "/v1/backup/barriers", Some(&body), PATIENCE).await.unwrap();
        assert_eq!(again, answer, "whoever asked may have ended before it was answered");
    }

    let copies = tempfile::tempdir().unwrap();
    for member in &members {
        let copied = copies.path().join(&member.name);
        copy(&member.data_dir, &copied);
        let (code, told) = verify(&copied);
        assert_eq!(code, Some(0), "{told}");
    }
    damage_is_refused(&copies.path().join(&members[0].name), &members[0].name);

    // A hold outlives its process, can be renewed, and ends when it is told to or when its time has come.
    cluster.kill(&members[0]);
    cluster.ready().await;
    let members = cluster.members();
    let path = format!("/v1/backup/barriers/{ID}");
    assert_eq!(holds(&cluster, &members[0]).await, Some(1));
    for member in &members[..2] {
        let renewed = json!({ "holdSeconds": if member.name == members[0].name { 600 } else { 1 } });
        cluster.call(member, Method::PUT, &path, Some(&renewed), PATIENCE).await.unwrap();
    }
    eventually("the short hold ends", || async { (holds(&cluster, &members[1]).await? == 0).then_some(()) }).await;
    assert!(cluster.call(&members[1], Method::PUT, &path, Some(&json!({ "holdSeconds": 9 })), PATIENCE).await.is_err());
    for _ in 0..2 {
        cluster.call(&members[0], Method::DELETE, &path, None, PATIENCE).await.unwrap();
    }
    assert_eq!(holds(&cluster, &members[0]).await, Some(0));
    assert!(!hold(&members[0].data_dir).exists());
    assert_eq!(pika::consume(&uri(members[2].amqp), "orders", BEFORE).await.unwrap(), BEFORE);
}

fn damage_is_refused(dir: &Path, member: &str) {
    let manifest = dir.with_extension("manifest");
    let (path, length) = first_segment(dir, member);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let sound = std::fs::read(&path).unwrap();
    let refused = |what: &str| {
        let (code, told) = verify_by(dir, &manifest);
        assert_eq!(code, Some(65), "{told}");
        assert!(told.contains(&name) && told.contains(what), "`{what}` of {name} in: {told}");
    };
    let mut changed = sound.clone();
    changed[length as usize / 2] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    refused("changed");
    std::fs::write(&path, &sound[..length as usize - 1]).unwrap();
    refused("truncated");
    std::fs::remove_file(&path).unwrap();
    refused("missing");
    // What was written after the cut does not matter.
    let mut longer = sound[..length as usize].to_vec();
    longer.extend(vec![0xa5; 9_000]);
    std::fs::write(&path, &longer).unwrap();
    let (code, told) = verify_by(dir, &manifest);
    assert_eq!(code, Some(0), "{told}");
    std::fs::write(&manifest, "{}").unwrap();
    assert_eq!(verify_by(dir, &manifest).0, Some(65));
}
