//! Starts that must fail: each says what is wrong and what to do, with an exit code, and deletes nothing.

use std::net::TcpListener;
use std::process::Output;

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
    ends_with(&output, 69, &[&format!("port {port} (amqp) is in use")]);
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
    ends_with(&output, 65, &["another cluster", "nothing was deleted"]);
    assert!(member.data_dir.join("journal").read_dir().unwrap().count() > 0);
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let output = program().args(["dev", "--port", "0", "--data-dir"]).arg(dir.path()).output().unwrap();
    ends_with(&output, 65, &["notes.txt", "nothing was changed"]);
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);
}
