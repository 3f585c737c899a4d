//! Forced recovery, and the scenarios that mirrored queues are known for, each with its outcome.
//!
//! | what happened | two replicas | three replicas |
//! |---|---|---|
//! | stopped in order B, A (B, C, A), started in either order | nothing lost, nothing to do | the same |
//! | all stopped at once | the same | the same |
//! | A lost for good while B was down | forced; nothing that was confirmed is lost, since A confirmed nothing alone | with C lost too: forced; the plan says after what B may lack something, and that is lost |
//! | all members lost, A's disk copied to a new member | adopted by force; nothing lost | forced; the others could have confirmed without A, so the plan cannot say that nothing is lost |
//! | only the older disk B left | forced, nothing that was confirmed is lost | as A lost for good while B was down |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast_node::admin::client::AdminClient;
use holdfast_node::config::TlsFiles;
use holdfast_node::tls::Certificates;
use http::Method;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::cluster::{PATIENCE, eventually, program, uri};

pub(crate) const QUEUE: &str = "orders";
/// How long a publish without a majority is watched: several elections long.
const NO_CONFIRM_WITHIN: Duration = Duration::from_secs(3);

pub(crate) struct DiskOf {
    pub(crate) name: String,
    config: PathBuf,
    dir: PathBuf,
    amqp: SocketAddr,
    admin: SocketAddr,
    running: Option<Running>,
}

enum Running {
    /// By `dev`, which founded the cluster.
    OfDev(i32),
    Own(Child),
}

/// Members that are started and stopped one by one. Dropping it ends them all.
pub(crate) struct Members {
    dev: Child,
    pub(crate) members: Vec<DiskOf>,
    admin: TlsFiles,
    dir: tempfile::TempDir,
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
        let _ = kill_process(Pid::from_raw(self.dev.id() as i32).expect("a pid"), Signal::TERM);
        let _ = self.dev.wait();
    }
}

impl Members {
    pub(crate) async fn found(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["dev", "--port", "0", "--members", &count.to_string(), "--data-dir"]).arg(dir.path());
        let mut dev = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let description = dir.path().join("dev.json");
        let described = || async { serde_json::from_slice::<Value>(&std::fs::read(&description).ok()?).ok() };
        let described = eventually("dev.json", described).await;
        assert!(dev.try_wait().unwrap().is_none());
        let member = |member: &Value| DiskOf {
            name: member["name"].as_str().unwrap().into(),
            config: member["config"].as_str().unwrap().into(),
            dir: member["dataDir"].as_str().unwrap().into(),
            amqp: member["amqp"].as_str().unwrap().parse().unwrap(),
            admin: member["admin"].as_str().unwrap().parse().unwrap(),
            running: Some(Running::OfDev(member["pid"].as_i64().unwrap() as i32)),
        };
        let file = |key: &str| described["tls"][key].as_str().unwrap().into();
        let admin = TlsFiles { ca: file("ca"), cert: file("cert"), key: file("key") };
        Self { dev, admin, members: described["members"].as_array().unwrap().iter().map(member).collect(), dir }
    }

    /// As a crash does; returns when the process is gone.
    fn kill(&mut self, member: usize) {
        match self.members[member].running.take() {
            Some(Running::OfDev(pid)) => {
                let pid = Pid::from_raw(pid).expect("a pid");
                let _ = kill_process(pid, Signal::KILL);
                let end = Instant::now() + PATIENCE;
                while test_kill_process(pid).is_ok() {
                    assert!(Instant::now() < end, "{pid:?} does not end");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Some(Running::Own(mut child)) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {}
        }
    }

    pub(crate) fn start(&mut self, member: usize) {
        let mut command = program();
        command.args(["run", "--with-parent", "--config"]).arg(&self.members[member].config).env("RUST_LOG", "warn");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.members[member].running = Some(Running::Own(child));
    }

    /// The disk is gone; what was on it is moved to where it can come back from.
    pub(crate) fn lose(&mut self, member: usize) -> PathBuf {
        self.kill(member);
        let lost = self.dir.path().join(format!("lost-{}", self.members[member].name));
        std::fs::rename(&self.members[member].dir, &lost).unwrap();
        lost
    }

    fn recover(&self, what: &str, members: &[usize], more: &[&str]) -> Output {
        let mut command = program();
        command.args(["recover", what]);
        for member in members {
            command.arg("--data-dir").arg(&self.members[*member].dir);
        }
        command.args(more).stdin(Stdio::null()).output().unwrap()
    }

    /// The plan, and whether a recovery is needed.
    fn plan(&self, members: &[usize]) -> Value {
        println!("{}", text(&self.recover("plan", members, &[])));
        let output = self.recover("plan", members, &["--output", "json"]);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(output.status.code(), Some(i32::from(plan["needed"] == true)), "{plan:#}");
        plan
    }

    fn apply(&self, members: &[usize], plan: &Value) {
        let hash = plan["planHash"].as_str().unwrap();
        let output = self.recover("apply", members, &["--plan-hash", hash]);
        println!("{}", text(&output));
        assert!(output.status.success(), "{output:?}");
    }

    fn admin(&self, member: usize) -> AdminClient {
        let address = self.members[member].admin;
        let tls = Certificates::load(&self.admin).unwrap().client().unwrap();
        AdminClient { address, host: address.ip().to_string(), tls }
    }

    pub(crate) async fn get(&self, member: usize, path: &str) -> Option<Value> {
        self.admin(member).call(Method::GET, path, None, Duration::from_secs(5)).await.ok()
    }

    pub(crate) async fn post(&self, member: usize, path: &str, body: &Value) -> Result<Value, String> {
        let answer = self.admin(member).call(Method::POST, path, Some(body), PATIENCE).await;
        answer.map_err(|error| error.to_string())
    }

    async fn put(&self, member: usize, path: &str, body: &Value) {
        self.admin(member).call(Method::PUT, path, Some(body), PATIENCE).await.unwrap();
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn gone(&mut self, member: usize) {
        let Some(Running::OfDev(pid)) = self.members[member].running.take() else { panic!("not a member of dev") };
        let pid = Pid::from_raw(pid).expect("a pid");
        eventually("the process to end", || async { test_kill_process(pid).is_err().then_some(()) }).await;
    }

    /// Waits until these run, are ready, and have settled: every group has as many replicas as it should.
    async fn ready(&self, members: &[usize]) {
        eventually("every member ready, every replica in place", || async {
            for member in members {
                let health = self.get(*member, "/v1/health").await?;
                if health["ready"] != true || health["quorum"] != true {
                    return None;
                }
            }
            self.in_place(members.len()).await
        })
        .await;
    }

    /// Waits until every replica has all that there is.
    async fn wait_for_copies(&self) {
        eventually("every copy", || self.in_place(self.members.len())).await;
    }

    async fn in_place(&self, replicas: usize) -> Option<()> {
        let mut led = 0;
        for member in 0..self.members.len() {
            let answer = self.get(member, "/v1/groups").await?;
            for group in answer["groups"]
                .as_array()?
                .iter()
                .filter(|group| group["leader"] == self.members[member].name.as_str())
            {
                led += 1;
                let voters = group["replicas"].as_array()?.iter().filter(|it| it["voter"] == true && it["lag"] == 0);
                if voters.count() != replicas {
                    return None;
                }
            }
        }
        (led == 2).then_some(())
    }

    async fn channel(&self, member: usize) -> (Connection, Channel) {
        let address = uri(self.members[member].amqp);
        let connection = eventually("a connection", || async {
            tokio::time::timeout(Duration::from_secs(5), Connection::connect(&address, ConnectionProperties::default()))
                .await
                .ok()?
                .ok()
        })
        .await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        (connection, channel)
    }

    pub(crate) async fn declare(&self, member: usize, queue: &str, replicas: i32) {
        let (connection, channel) = self.channel(member).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-quorum-initial-group-size".into(), replicas.into());
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }

    /// Publishes and waits for every confirm.
    pub(crate) async fn publish(&self, member: usize, queue: &str, numbers: std::ops::Range<u32>) {
        let (connection, channel) = self.channel(member).await;
        for number in numbers {
            let confirm = send(&channel, queue, number).await;
            let confirmed = tokio::time::timeout(PATIENCE, confirm).await.expect("a confirm in time").unwrap();
            assert!(confirmed.is_ack(), "{confirmed:?}");
        }
        connection.close(200, "done".into()).await.unwrap();
    }

    /// Takes all messages out, in order.
    pub(crate) async fn drain(&self, member: usize, queue: &str) -> Vec<u32> {
        let (connection, channel) = self.channel(member).await;
        let mut found = Vec::new();
        loop {
            let get = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
            match tokio::time::timeout(PATIENCE, get).await.expect("an answer in time").unwrap() {
                Some(message) => found.push(String::from_utf8(message.delivery.data).unwrap().parse().unwrap()),
                None => break,
            }
        }
        connection.close(200, "done".into()).await.unwrap();
        found
    }

    /// Starts a member and waits for it to end by itself; its exit code and last words.
    async fn ends_by_itself(&mut self, member: usize) -> (Option<i32>, String) {
        let mut command = program();
        command.args(["run", "--with-parent", "--config"]).arg(&self.members[member].config).env("RUST_LOG", "warn");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = match tokio::time::timeout(PATIENCE, ended).await {
            Ok(output) => output.unwrap().unwrap(),
            Err(_) => {
                let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
                panic!("the stale member goes on");
            }
        };
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

async fn send(channel: &Channel, queue: &str, number: u32) -> lapin::PublisherConfirm {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let body = number.to_string();
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The plan's line on the queue's group.
pub(crate) fn group_of<'a>(plan: &'a Value, queue: &str) -> &'a Value {
    let groups = plan["plan"]["groups"].as_array().unwrap();
    let holds = |group: &&Value| group["queues"].as_array().unwrap().iter().any(|it| it["name"] == queue);
    groups.iter().find(holds).unwrap_or_else(|| panic!("{plan:#}"))
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

pub(crate) fn numbers(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

async fn stopped_and_started(count: usize) {
    let mut members = Members::found(count).await;
    let everybody: Vec<usize> = (0..count).collect();
    members.declare(0, QUEUE, count as i32).await;
    let mut published = 0;
    let orders: [(Vec<usize>, Vec<usize>); 3] = [
        // Stopped in order B, A (and C between them), started A, B or B, A; then all at once.
        (vec![1, 2, 0], vec![0, 1, 2]),
        (vec![1, 2, 0], vec![1, 0, 2]),
        (vec![0, 1, 2], vec![2, 1, 0]),
    ];
    for (stops, starts) in orders {
        members.publish(0, QUEUE, published..published + 20).await;
        published += 20;
        for member in stops.into_iter().filter(|member| *member < count) {
            members.kill(member);
        }
        let plan = members.plan(&everybody);
        assert_eq!(plan["needed"], false);
        assert_eq!(plan["mayLose"], false);
        assert_eq!(group_of(&plan, QUEUE)["outcome"], "whole");
        for member in starts.into_iter().filter(|member| *member < count) {
            members.start(member);
        }
    }
    assert_eq!(members.drain(1, QUEUE).await, numbers(0..published));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_were_stopped_and_started_in_any_order_lose_nothing_and_need_no_recovery() {
    stopped_and_started(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_that_were_stopped_and_started_in_any_order_lose_nothing_and_need_no_recovery() {
    stopped_and_started(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_the_one_that_was_down_has_all_that_was_confirmed_when_the_other_is_lost_for_good() {
    let mut members = Members::found(2).await;
    members.declare(0, QUEUE, 2).await;
    members.publish(0, QUEUE, 0..50).await;
    let (_connection, channel) = members.channel(0).await;
    members.kill(1);
    let confirm = send(&channel, QUEUE, 50).await;
    assert!(tokio::time::timeout(NO_CONFIRM_WITHIN, confirm).await.is_err(), "A alone confirms nothing");
    members.lose(0);
    let plan = members.plan(&[1]);
    assert_eq!((&plan["needed"], &plan["mayLose"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(plan["plan"]["absent"], serde_json::json!(["dev-0"]));
    let group = group_of(&plan, QUEUE);
    assert_eq!((&group["outcome"], &group["queues"][0]["messages"]), (&"whole".into(), &50.into()));
    let wrong = members.recover("apply", &[1], &["--plan-hash", "0123"]);
    assert_eq!(wrong.status.code(), Some(65), "{wrong:?}");
    members.apply(&[1], &plan);
    members.start(1);
    members.publish(1, QUEUE, 50..60).await;
    // The lost member joins with an empty disk, and the queue has two replicas again: without either it confirms nothing,
    // with both it does.
    members.start(0);
    members.ready(&[0, 1]).await;
    members.publish(0, QUEUE, 60..70).await;
    members.kill(0);
    members.kill(1);
    let after = members.plan(&[0, 1]);
    assert_eq!((&after["needed"], after["plan"]["epoch"].as_u64()), (&Value::Bool(false), Some(2)));
    members.start(0);
    members.start(1);
    assert_eq!(members.drain(0, QUEUE).await, numbers(0..70));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_replicas_the_older_disk_goes_on_by_force_and_the_lost_ones_are_refused_when_they_come_back() {
    let mut members = Members::found(3).await;
    members.declare(0, QUEUE, 3).await;
    members.publish(0, QUEUE, 0..30).await;
    members.wait_for_copies().await;
    members.kill(1);
    members.publish(0, QUEUE, 30..40).await;
    let (old_a, old_c) = (members.lose(0), members.lose(2));
    let plan = members.plan(&[1]);
    assert_eq!((&plan["needed"], &plan["mayLose"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(plan["plan"]["absent"], serde_json::json!(["dev-0", "dev-2"]));
    let group = group_of(&plan, QUEUE);
    assert_eq!((&group["outcome"], &group["queues"][0]["messages"]), (&"unknown".into(), &30.into()));
    assert!(text(&members.recover("plan", &[1], &[])).contains("MAY BE LOST: what was confirmed after entry"));
    members.apply(&[1], &plan);
    members.start(1);
    members.publish(1, QUEUE, 100..110).await;

    // Together the lost disks had a majority of the old life. Each that meets the new one stops, and serves nothing.
    for (member, old) in [(0, &old_a), (2, &old_c)] {
        std::fs::rename(old, &members.members[member].dir).unwrap();
        let (code, words) = members.ends_by_itself(member).await;
        assert_eq!(code, Some(65), "{words}");
        assert!(words.contains("was recovered without it and is at epoch 2"), "{words}");
    }
    // A configured epoch stops it before it meets anybody.
    members.kill(1);
    let config = std::fs::read_to_string(&members.members[0].config).unwrap();
    let line = config.lines().find(|line| line.starts_with("minClusterEpoch")).expect("it is written");
    std::fs::write(&members.members[0].config, config.replace(line, "minClusterEpoch: 2")).unwrap();
    let (code, words) = members.ends_by_itself(0).await;
    assert_eq!(code, Some(65), "{words}");
    assert!(words.contains("must be of epoch 2 or later"), "{words}");
    members.start(1);

    // With empty disks they are taken in again.
    for member in [0, 2] {
        members.lose(member);
        members.start(member);
    }
    members.ready(&[0, 1, 2]).await;
    members.publish(2, QUEUE, 110..120).await;
    let mut expected = numbers(0..30);
    expected.extend(numbers(100..120));
    assert_eq!(members.drain(0, QUEUE).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_one_of_two_disks_on_a_new_member_is_adopted_and_nothing_is_lost() {
    let mut members = Members::found(2).await;
    members.declare(0, QUEUE, 2).await;
    members.publish(0, QUEUE, 0..40).await;
    let (lost, _) = (members.lose(0), members.lose(1));
    copy_dir(&lost, &members.members[0].dir.clone());
    let plan = members.plan(&[0]);
    assert_eq!((&plan["needed"], &plan["mayLose"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(group_of(&plan, QUEUE)["outcome"], "whole");
    members.apply(&[0], &plan);
    // The old journal is there, and can be looked into.
    assert!(members.members[0].dir.join("journal-of-epoch-1").is_dir());
    members.start(0);
    assert_eq!(members.drain(0, QUEUE).await, numbers(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_one_of_three_disks_cannot_promise_that_nothing_is_lost_and_two_can() {
    let mut members = Members::found(3).await;
    members.declare(0, QUEUE, 3).await;
    members.publish(0, QUEUE, 0..40).await;
    members.wait_for_copies().await;
    let lost: Vec<PathBuf> = (0..3).map(|member| members.lose(member)).collect();
    copy_dir(&lost[0], &members.members[0].dir.clone());
    let one = members.plan(&[0]);
    assert_eq!((&one["needed"], &group_of(&one, QUEUE)["outcome"]), (&Value::Bool(true), &"unknown".into()));
    copy_dir(&lost[2], &members.members[2].dir.clone());
    let two = members.plan(&[0, 2]);
    assert_eq!((&two["needed"], &group_of(&two, QUEUE)["outcome"]), (&Value::Bool(false), &"whole".into()));
    members.apply(&[0], &one);
    members.start(0);
    assert_eq!(members.drain(0, QUEUE).await, numbers(0..40), "A had everything, which nobody could know");
    // The other copy is of the old life now, and a plan says so.
    members.kill(0);
    let mixed = members.plan(&[0, 2]);
    assert_eq!(mixed["plan"]["disks"][1]["role"], "stale", "{mixed:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_whose_parts_are_apart_serves_nothing_until_all_are_applied_and_can_be_gone_on_with() {
    let mut members = Members::found(4).await;
    // Each of these is on one disk alone.
    for (member, queue) in [(2, "on-2"), (3, "on-3")] {
        members.declare(member, queue, 1).await;
        members.publish(member, queue, 0..20).await;
    }
    (0..4).for_each(|member| members.kill(member));
    members.lose(0);
    members.lose(1);
    let survey_of = |members: &Members, member: usize| {
        let file = members.dir.path().join(format!("survey-{member}.json"));
        let output = program().args(["recover", "survey"]).arg(&members.members[member].dir).output().unwrap();
        std::fs::write(&file, output.stdout).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let plan = members.plan(&[2, 3]);
    assert_eq!((&plan["needed"], &plan["mayLose"]), (&Value::Bool(true), &Value::Bool(false)), "{plan:#}");
    let hash = plan["planHash"].as_str().unwrap();
    let source = &plan["plan"]["groups"][0]["source"];
    let disks = plan["plan"]["disks"].as_array().unwrap();
    let name = &disks.iter().find(|disk| disk["member"] == *source).unwrap()["name"];
    let metadata_on = members.members.iter().position(|member| name == member.name.as_str()).unwrap();
    let other = 5 - metadata_on;
    let (survey, others_survey) = (survey_of(&members, metadata_on), survey_of(&members, other));
    let args = ["--plan-hash", hash, "--survey", &survey, "--output", "json"];
    let output = members.recover("apply", &[other], &args);
    let applied: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(applied["elsewhere"].as_array().map(Vec::len), Some(1), "{applied:#}");
    // A plan that is made now goes on with the one that was begun.
    assert_eq!(members.plan(&[2, 3])["planHash"], hash);
    // The other place knows nothing of what the first one did.
    let args = ["--plan-hash", hash, "--survey", &others_survey];
    let output = members.recover("apply", &[metadata_on], &args);
    assert!(output.status.success(), "{output:?}");
    let again = members.recover("apply", &[2, 3], &["--plan-hash", hash]);
    assert!(again.status.success() && text(&again).contains("was done before"), "{again:?}");
    members.start(2);
    members.start(3);
    for queue in ["on-2", "on-3"] {
        assert_eq!(members.drain(2, queue).await, numbers(0..20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_runs_without_a_majority_is_recovered_through_its_admin_api() {
    let mut members = Members::found(3).await;
    members.declare(0, QUEUE, 3).await;
    members.publish(0, QUEUE, 0..30).await;
    members.wait_for_copies().await;
    let freeze = serde_json::json!({ "seconds": 300 });
    let policy = serde_json::json!({ "pattern": QUEUE, "definition": { "ha-promote-on-failure": "always" } });
    members.put(0, "/v1/policies/%2F/promote", &policy).await;
    let knows = || async {
        let queues = members.get(1, "/v1/queues").await?;
        (queues["queues"][0]["effectivePolicy"] == policy["definition"]).then_some(())
    };
    eventually("the policy on the member that will be left", knows).await;
    members.wait_for_copies().await;
    let healthy = members.post(1, "/v1/recovery/freeze", &freeze).await.expect_err("a majority is there");
    assert!(healthy.contains("409"), "{healthy}");
    members.lose(0);
    members.lose(2);
    // The lease of the metadata runs out first.
    let frozen = || async { members.post(1, "/v1/recovery/freeze", &freeze).await.ok() };
    eventually("the member to know that it has no majority", frozen).await;
    let surveyed = members.get(1, "/v1/recovery/survey").await.expect("a survey");
    let found = serde_json::json!({ "found": [surveyed] });
    let plan = members.post(1, "/v1/recovery/plan", &found).await.unwrap();
    let group = group_of(&plan, QUEUE);
    assert_eq!(
        (&plan["needed"], &group["outcome"], &group["queues"][0]["messages"]),
        (&true.into(), &"unknown".into(), &30.into())
    );
    let person = &plan["personNeeded"];
    assert_eq!(person["onFailure"], Value::Null, "the queue's policy lets the operator go ahead");
    assert!(person["onShutdown"].as_str().is_some_and(|why| why.contains(QUEUE)), "{person}");
    let part = |hash: &Value| serde_json::json!({ "planHash": hash, "nonce": "00000000000000a7", "found": [surveyed] });
    let other = members.post(1, "/v1/recovery/apply", &part(&"0123".into())).await.expect_err("another plan");
    assert!(other.contains("nothing was changed"), "{other}");
    let applied = members.post(1, "/v1/recovery/apply", &part(&plan["planHash"])).await.unwrap();
    assert_eq!((&applied["epoch"], &applied["doneBefore"]), (&2.into(), &false.into()));
    members.gone(1).await;
    members.start(1);
    members.publish(1, QUEUE, 30..40).await;
    assert_eq!(members.drain(1, QUEUE).await, numbers(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surveys_that_are_asked_for_at_once_leave_no_freeze_behind() {
    const SURVEY: &str = "/v1/recovery/survey";
    let mut members = Members::found(2).await;
    members.declare(0, QUEUE, 2).await;
    members.publish(0, QUEUE, 0..10).await;
    members.kill(1);
    eventually("the member to know that it has no majority", || members.get(0, SURVEY)).await;
    // As a caller does that gave up and asks again.
    let ask = || members.get(0, SURVEY);
    let (first, second, third, fourth) = tokio::join!(ask(), ask(), ask(), ask());
    assert!([first, second, third, fourth].iter().any(Option::is_some), "one of them is answered");
    // The next one is where a limit that was left behind came to count.
    eventually("a survey", || members.get(0, SURVEY)).await;
    members.start(1);
    members.publish(0, QUEUE, 10..20).await;
    assert_eq!(members.drain(1, QUEUE).await, numbers(0..20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_acknowledges_nothing_until_it_is_let_go() {
    let mut members = Members::found(2).await;
    members.declare(0, QUEUE, 2).await;
    members.publish(0, QUEUE, 0..10).await;
    members.kill(1);
    let freeze = |seconds: u64| serde_json::json!({ "seconds": seconds });
    let frozen = || async { members.post(0, "/v1/recovery/freeze", &freeze(600)).await.ok() };
    eventually("the member to know that it has no majority", frozen).await;
    // With the other member there would be a majority, if this one acknowledged anything.
    members.start(1);
    eventually("the other member to answer", || members.get(1, "/v1/health")).await;
    tokio::time::sleep(NO_CONFIRM_WITHIN).await;
    assert_eq!(members.get(1, "/v1/health").await.unwrap()["quorum"], false);
    members.post(0, "/v1/recovery/freeze", &freeze(0)).await.unwrap();
    members.publish(0, QUEUE, 10..20).await;
    assert_eq!(members.drain(1, QUEUE).await, numbers(0..20));
}
