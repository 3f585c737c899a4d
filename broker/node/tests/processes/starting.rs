//! Starts that must fail: each says what is wrong and what to do, with an exit code, and deletes nothing.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::cluster::{Cluster, program};

fn ends_with(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words.iter().chain(&["what to do: "]) {
        assert!(text.contains(word), "`{word}` in: {text}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = program().args(["dev", "--port", &port.to_string()]).output().unwrap();
    ends_with(&output, 69, &[&format!("port {port} (amqp) is in use"), "--port"]);
}

#[test]
fn a_misspelt_key_is_named_with_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "dataDri: /tmp\nadvertise: {peer: 'a:1'}\ntls: {ca: a, cert: b, key: c}\n").unwrap();
    let output = program().arg("run").arg("--config").arg(&file).output().unwrap();
    ends_with(&output, 78, &["unknown key `dataDri`", "did you mean `dataDir`?", file.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_in_use_is_refused_with_its_holders_pid_and_one_of_another_cluster_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cluster");
    let mut cluster = Cluster::start_in(&dir).await;
    let member = &cluster.members()[0];
    let text = std::fs::read_to_string(&member.config).unwrap();
    let impatient = dir.join("impatient.yaml");
    std::fs::write(&impatient, text.replace("lockWaitSeconds: 60", "lockWaitSeconds: 1")).unwrap();
    let output = program().arg("run").arg("--config").arg(&impatient).output().unwrap();
    ends_with(&output, 75, &["in use by process", &member.pid.unwrap().to_string(), member.data_dir.to_str().unwrap()]);

    assert_eq!(cluster.stop().await, Some(0));
    std::fs::write(dir.join("cluster-id"), "another\n").unwrap();
    let output = program().args(["dev", "--port", "0", "--data-dir"]).arg(&dir).output().unwrap();
    ends_with(&output, 65, &["another cluster", "nothing was deleted", dir.to_str().unwrap()]);
    assert!(member.data_dir.join("journal").read_dir().unwrap().count() > 0);

    println!("the same as pods see it: `run` with the id of the cluster that the volume should belong to");
    let config = dir.join("another.yaml");
    std::fs::write(&config, text.replace("clusterId: dev-", "clusterId: not-")).unwrap();
    let output = program().arg("run").arg("--config").arg(&config).output().unwrap();
    ends_with(&output, 65, &["another cluster", "belongs to dev-", "nothing was deleted"]);
}

/// Root may read everything, so another user is tried, with a copy of the program where that user can reach it.
#[test]
fn a_data_directory_that_may_not_be_read_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("HOLDFAST"), "kept").unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("holdfast-broker");
    std::fs::copy(program().get_program(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.args(["dev", "--port", "0", "--data-dir"]).arg(&data);
    if rustix::process::geteuid().is_root() {
        command.uid(65534);
    } else {
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    let output = command.output().unwrap();
    ends_with(&output, 74, &["cannot be", data.to_str().unwrap(), "this user owns it", "nothing was changed"]);
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(std::fs::read_to_string(data.join("HOLDFAST")).unwrap(), "kept");
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let output = program().args(["dev", "--port", "0", "--data-dir"]).arg(dir.path()).output().unwrap();
    ends_with(&output, 65, &["notes.txt", "nothing was changed"]);
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);
}
