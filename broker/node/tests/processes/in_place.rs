//! A queue and a virtual host come back out of a backup into the cluster that runs, under new names, while loaders and
//! members are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use holdfast_e2e::pika;
use http::Method;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;

use crate::backup::copy;
use crate::cluster::{Cluster, PATIENCE, eventually, program, uri};

const ID: &str = "hourly-7";
/// Messages of a few kilobytes each, so that a loader has many steps to go.
const ORDERS: u32 = 1_200;
const BODY_BYTES: usize = 4_000;
/// How many of them are out at a consumer when the barrier comes.
const OUT: u32 = 5;

async fn channel(cluster: &Cluster, vhost: &str) -> (Connection, Channel) {
    let uri = uri(cluster.members()[0].amqp).replace("/%2f", &format!("/{vhost}"));
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

fn body(number: u32) -> Vec<u8> {
    let mut body = vec![number as u8; BODY_BYTES];
    body[..4].copy_from_slice(&number.to_le_bytes());
    body
}

/// A queue with numbered messages, the first of which are out at a consumer.
async fn load(channel: &Channel) {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("orders".into(), durable, FieldTable::default()).await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut confirms = Vec::new();
    for number in 0..ORDERS {
        let mut headers = FieldTable::default();
        headers.insert("number".into(), AMQPValue::LongUInt(number));
        let properties = BasicProperties::default().with_headers(headers).with_priority((number % 7) as u8);
        let options = BasicPublishOptions::default();
        confirms
            .push(channel.basic_publish("".into(), "orders".into(), options, &body(number), properties).await.unwrap());
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
    for _ in 0..OUT {
        channel.basic_get("orders".into(), BasicGetOptions::default()).await.unwrap().expect("a message");
    }
}

/// Takes everything out, and compares it with what was put in before the barrier.
async fn take_all(channel: &Channel, queue: &str) {
    for number in 0..ORDERS {
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let got = got.unwrap_or_else(|| panic!("message {number} of {queue}"));
        assert!(got.data == body(number), "message {number} of {queue} is another");
        let headers = got.properties.headers().as_ref().expect("headers");
        assert_eq!(headers.inner().get("number"), Some(&AMQPValue::LongUInt(number)));
        assert_eq!(*got.properties.priority(), Some((number % 7) as u8));
        assert_eq!(got.redelivered, number < OUT, "message {number}");
        got.ack(BasicAckOptions::default()).await.unwrap();
    }
    assert!(channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().is_none(), "invented");
}

struct Backup {
    _dir: tempfile::TempDir,
    copy: PathBuf,
}

impl Backup {
    async fn of(cluster: &Cluster) -> Self {
        let body = json!({ "id": ID, "holdSeconds": 600 });
        let member = &cluster.members()[1];
        cluster.call(member, Method::POST, "/v1/backup/barriers", Some(&body), PATIENCE).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copied = dir.path().join("copy");
        copy(&member.data_dir, &copied);
        Self { _dir: dir, copy: copied }
    }

    fn hold(&self) -> PathBuf {
        self.copy.join("journal/holds").join(ID)
    }
}

fn restore(cluster: &Cluster, from: &Path, manifest: &Path, args: &[&str]) -> Command {
    let mut command = towards(cluster, args);
    command.arg("--from").arg(from).arg("--manifest").arg(manifest);
    command
}

fn towards(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = program();
    command.arg("restore").args(args);
    for member in cluster.members() {
        command.arg("--to").arg(format!("https://{}", member.admin));
    }
    let tls = cluster.admin_files();
    command.arg("--ca").arg(&tls.ca).arg("--cert").arg(&tls.cert).arg("--key").arg(&tls.key);
    command.args(["--patience", "90"]);
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn ended(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", told(output));
    for word in words {
        assert!(told(output).contains(word), "`{word}` in: {}", told(output));
    }
}

/// Runs a loader until it has told of its first messages; then `what` happens, and it goes on.
fn at_its_first_step(command: &mut Command) -> std::process::Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert!(line.contains(&format!("of {ORDERS} messages")), "{line}");
    // The pipe stays open, and what comes is read.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_comes_back_under_a_new_name_exactly_once_while_loaders_and_its_leader_are_killed() {
    let cluster = Cluster::start().await;
    cluster.ready().await;
    let (first, amqp) = channel(&cluster, "%2f").await;
    load(&amqp).await;
    let backup = Backup::of(&cluster).await;
    // The original goes on.
    pika::publish(&uri(cluster.members()[2].amqp), "orders", 30).await.unwrap();
    let manifest = backup.hold().join("manifest.json");
    let queue = |name: &'static str| ["queue", "--queue", "orders", "--new-name", name];

    // A loader is killed in the middle, and nobody can use what it has left; another one goes on.
    let mut killed = at_its_first_step(&mut restore(&cluster, &backup.copy, &manifest, &queue("again")));
    killed.kill().unwrap();
    println!("the first loader: {}", killed.wait().unwrap());
    let (_refused, other) = channel(&cluster, "%2f").await;
    let early = other.basic_get("again".into(), BasicGetOptions::default()).await;
    assert!(early.is_err_and(|error| error.to_string().contains("being restored")), "it is not whole");
    let output = restore(&cluster, &backup.copy, &manifest, &queue("again")).output().unwrap();
    ended(&output, 0, &[&format!("1 queues with {ORDERS} messages")]);
    // A repeat changes nothing.
    ended(&restore(&cluster, &backup.copy, &manifest, &queue("again")).output().unwrap(), 0, &[]);
    take_all(&amqp, "again").await;
    abandoned(&cluster, &backup, &amqp).await;

    // The new queue's leader is killed in the middle.
    let mut loader = at_its_first_step(&mut restore(&cluster, &backup.copy, &manifest, &queue("third")));
    let leader = cluster.leader_of("third").await;
    cluster.kill(&leader);
    let status = eventually("the loader's end", || {
        let status = loader.try_wait().unwrap();
        async move { status }
    })
    .await;
    assert_eq!(status.code(), Some(0));
    cluster.ready().await;
    let (_connection, amqp) = channel(&cluster, "%2f").await;
    take_all(&amqp, "third").await;

    refusals(&cluster, &backup).await;
    // What is out at its consumers is back then; a member that was killed has closed it already.
    let _ = first.close(200, "done".into()).await;
    let (_connection, amqp) = channel(&cluster, "%2f").await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    eventually("the original with all of its messages", || async {
        let found = amqp.queue_declare("orders".into(), passive, FieldTable::default()).await.unwrap();
        (found.message_count() == ORDERS + 30).then_some(())
    })
    .await;
}

/// What is given up in the middle leaves its name free, and what is complete is not given up.
async fn abandoned(cluster: &Cluster, backup: &Backup, amqp: &Channel) {
    let manifest = backup.hold().join("manifest.json");
    let queue = ["queue", "--queue", "orders", "--new-name", "half"];
    let mut killed = at_its_first_step(&mut restore(cluster, &backup.copy, &manifest, &queue));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let abandon = |name: &str| towards(cluster, &["abandon", "--vhost", "/", "--queue", name]).output().unwrap();
    ended(&abandon("half"), 0, &[]);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = amqp.queue_declare("half".into(), durable, FieldTable::default()).await.unwrap();
    assert_eq!(declared.message_count(), 0);
    ended(&abandon("again"), 78, &["is complete"]);
}

/// What cannot be is refused by name, and leaves nothing.
async fn refusals(cluster: &Cluster, backup: &Backup) {
    let manifest = backup.hold().join("manifest.json");
    let run = |args: &[&str]| restore(cluster, &backup.copy, &manifest, args).output().unwrap();
    ended(&run(&["queue", "--queue", "orders", "--new-name", "orders"]), 78, &["'orders'", "exists already"]);
    ended(&run(&["queue", "--queue", "none", "--new-name", "fifth"]), 65, &["has no queue 'none'", "//orders"]);
    ended(&run(&["vhost", "--vhost", "/", "--new-name", "/"]), 78, &["exists already"]);
    ended(&run(&["vhost", "--vhost", "none", "--new-name", "x"]), 65, &["has no vhost 'none'"]);
    let segments = std::fs::read_dir(backup.hold()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segments.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-"));
    let name = crate::restore::damage(&segment.expect("a segment"));
    ended(&run(&["queue", "--queue", "orders", "--new-name", "fourth"]), 65, &[&name, "it is changed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_host_comes_back_under_a_new_name_with_its_bindings_and_permissions() {
    let cluster = Cluster::start().await;
    cluster.ready().await;
    let (_connection, amqp) = channel(&cluster, "%2f").await;
    load(&amqp).await;
    pika::publish(&uri(cluster.members()[1].amqp), "others", 40).await.unwrap();
    amqp.queue_bind("orders".into(), "amq.topic".into(), "eu.*".into(), Default::default(), FieldTable::default())
        .await
        .unwrap();
    let backup = Backup::of(&cluster).await;
    let manifest = backup.hold().join("manifest.json");
    let vhost = ["vhost", "--vhost", "/", "--new-name", "copy"];
    let mut killed = at_its_first_step(&mut restore(&cluster, &backup.copy, &manifest, &vhost));
    killed.kill().unwrap();
    println!("the first loader: {}", killed.wait().unwrap());
    let output = restore(&cluster, &backup.copy, &manifest, &vhost).output().unwrap();
    ended(&output, 0, &[&format!("2 queues with {} messages", ORDERS + 40)]);
    let (_second, copied) = channel(&cluster, "copy").await;
    take_all(&copied, "orders").await;
    copied.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions::default();
    let sent = copied.basic_publish("amq.topic".into(), "eu.west".into(), options, b"routed", Default::default()).await;
    assert!(sent.unwrap().await.unwrap().is_ack());
    let got = copied.basic_get("orders".into(), BasicGetOptions::default()).await.unwrap().expect("by its binding");
    assert_eq!(got.data, b"routed");
}
