//! A blank member is given a backup through its admin API, as the operator and its loader pods do it, and founds a cluster.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use holdfast_e2e::pika;
use holdfast_node::admin::client::CallError;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{eventually, program};
use crate::newcomers::Newcomers;
use crate::restore::{CLUSTER, ID, Left, ORDERS, OTHERS, a_segment, backed_up, damage};

fn push(left: &Left, from: &Path, new: &Newcomers, member: usize) -> Output {
    let mut command = program();
    command.args(["restore", "push", "--manifest"]).arg(&left.manifest).args(["--manifest-sha256", &left.sha256]);
    command.arg("--from").arg(from).args(["--to", &format!("https://{}", new.members[member].admin)]);
    command.arg("--ca").arg(&new.tls.ca).arg("--cert").arg(&new.tls.cert).arg("--key").arg(&new.tls.key);
    command.args(["--patience", "20"]).output().unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn status_of(refused: Result<Value, CallError>) -> (u16, String) {
    match refused {
        Err(CallError::Refused { status, error, .. }) => (status, error),
        other => panic!("{other:?} instead of a refusal"),
    }
}

async fn state(new: &Newcomers, member: usize) -> Value {
    eventually("the state of the restore", || new.get(member, "/v1/restore")).await
}

fn apply_body(new: &Newcomers) -> Value {
    json!({ "clusterId": CLUSTER, "members": new.listed(), "user": { "name": "chief", "password": "pw" } })
}

async fn apply(new: &Newcomers, body: &Value) -> Result<Value, CallError> {
    new.call(0, Method::POST, &format!("/v1/restore/{ID}/apply"), Some(body)).await
}

/// What makes no sense is refused, and changes nothing.
async fn refusals(new: &Newcomers, left: &Left) {
    let path = |name: &str, sum: &str| format!("/v1/restore/{name}/manifest?sha256={sum}");
    let manifest: Value = serde_json::from_slice(&std::fs::read(&left.manifest).unwrap()).unwrap();
    for (path, status) in [
        (path(ID, &"0".repeat(64)), 400),
        (path("..%2f", &left.sha256), 400),
        (format!("/v1/restore/{ID}/manifest"), 400),
        (format!("/v1/restore/{ID}/members/dev-1/files/identity-a"), 404),
    ] {
        let answer = new.call(1, Method::PUT, &path, Some(&manifest)).await;
        assert_eq!(status_of(answer).0, status, "{path}");
    }
    assert_eq!(state(new, 1).await["state"], "none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blank_member_that_was_sent_a_backup_founds_a_cluster_out_of_it_and_a_crash_at_any_time_is_gone_on_with() {
    let left = backed_up().await;
    let mut new = Newcomers::prepare(CLUSTER, 3);
    for member in 0..3 {
        new.start(member);
    }
    for member in 0..3 {
        new.answers(member).await;
    }
    refusals(&new, &left).await;

    let name = damage(&a_segment(&left, 0));
    let output = push(&left, &left.copies[0].1, &new, 0);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(told(&output).contains(&name) && told(&output).contains("it is changed"), "{}", told(&output));
    let received = state(&new, 0).await;
    assert_eq!((&received["state"], &received["backup"]), (&json!("receiving"), &json!(ID)), "{received}");
    assert!(received["uncoveredGroups"].as_u64() > Some(0), "{received}");
    let (status, why) = status_of(apply(&new, &apply_body(&new)).await);
    assert!(status == 409 && why.contains("orders"), "{status}: {why}");
    let bootstrap = new.call(0, Method::POST, "/v1/bootstrap", Some(&apply_body(&new))).await;
    assert_eq!(status_of(bootstrap).0, 409, "a restore is under way");

    // The other copy has all of it; what is left of the first one is not needed then.
    let output = push(&left, &left.copies[1].1, &new, 0);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let output = push(&left, &left.copies[0].1, &new, 0);
    assert!(
        output.status.code() == Some(0) && told(&output).contains("nothing more of it is needed"),
        "{}",
        told(&output)
    );
    let complete = state(&new, 0).await;
    assert_eq!((&complete["state"], &complete["uncoveredGroups"]), (&json!("complete"), &json!(0)), "{complete}");
    let alone = json!({ "clusterId": CLUSTER, "members": [], "user": { "name": "chief", "password": "pw" } });
    assert_eq!(status_of(apply(&new, &alone).await).0, 400, "it is not among the members");

    // Killed in the middle of it, again and again: it is blank with all that it was sent, or the founder.
    let mut done = false;
    for after_ms in [0, 15, 40, 80, 130, 200] {
        if apply(&new, &apply_body(&new)).await.is_ok_and(|answer| answer["state"] == "done") {
            done = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        new.kill(0);
        new.start(0);
        new.answers(0).await;
        let found = state(&new, 0).await;
        println!("killed after {after_ms} ms: {}", found["state"]);
        assert!(found["state"] == "complete" || found["state"] == "done", "after {after_ms} ms: {found}");
    }
    if !done {
        let building = apply(&new, &apply_body(&new)).await.unwrap();
        if building["state"] != "done" {
            assert_eq!(new.ended(0), Some(75));
            new.start(0);
        }
    }
    new.ready(3).await;
    assert_eq!(apply(&new, &apply_body(&new)).await.unwrap()["state"], "done", "a repeat");
    let mut other = apply_body(&new);
    other["clusterId"] = json!("another");
    assert_eq!(status_of(apply(&new, &other).await).0, 409);
    let again = push(&left, &left.copies[1].1, &new, 0);
    assert_eq!(again.status.code(), Some(75), "a member of a cluster takes nothing: {}", told(&again));
    assert!(!new.members[0].dir.join("restore").exists() && !new.members[0].dir.join("journal-restored").exists());

    assert_eq!(pika::consume(&new.uri(2), "orders", ORDERS).await.unwrap(), ORDERS);
    let chief = new.uri(1).replace("guest:guest", "chief:pw");
    assert_eq!(pika::consume(&chief, "others", OTHERS).await.unwrap(), OTHERS);
    new.spread(0, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_can_be_given_up_and_another_one_begun() {
    let left = backed_up().await;
    let mut new = Newcomers::prepare(CLUSTER, 1);
    new.start(0);
    new.answers(0).await;
    let output = push(&left, &left.copies[1].1, &new, 0);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let manifest: Value = serde_json::from_slice(&std::fs::read(&left.manifest).unwrap()).unwrap();
    let path = format!("/v1/restore/other/manifest?sha256={}", left.sha256);
    let (status, why) = status_of(new.call(0, Method::PUT, &path, Some(&manifest)).await);
    assert!(status == 409 && why.contains(ID), "{status}: {why}");
    // Whoever knows of a later operator's token listens to no earlier one.
    let client = new.client(0);
    let give_up = format!("/v1/restore/{ID}");
    assert!(client.call(Method::DELETE, "/v1/restore/other", None, Duration::from_secs(9)).await.is_err());
    for _ in 0..2 {
        client.call(Method::DELETE, &give_up, None, Duration::from_secs(9)).await.unwrap();
    }
    assert_eq!(state(&new, 0).await["state"], "none");
    assert!(!new.members[0].dir.join("restore").exists());
    let body = apply_body(&new);
    new.call(0, Method::POST, "/v1/bootstrap", Some(&body)).await.unwrap();
    new.ready(1).await;
}
