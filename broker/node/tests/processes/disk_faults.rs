//! Disks that fail under real processes, by way of strace's fault injection. Without strace, or where tracing is not
//! allowed, these tests say so and pass.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_e2e::pika;
use holdfast_node::failure::ExitKind;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, DevMember, PATIENCE, eventually, uri};

/// Whether system calls can be made to fail here.
fn can_inject() -> bool {
    let probe = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"])
        .output();
    match probe {
        Ok(output) if output.status.success() => true,
        trouble => {
            println!("SKIPPED: strace cannot inject faults here: {trouble:?}");
            false
        }
    }
}

/// Makes a system call of a running member fail from now on, until the value is dropped.
struct Injection(Child);

impl Injection {
    fn into(member: &DevMember, inject: &str) -> Self {
        let (call, _) = inject.split_once(':').expect("call:what");
        let child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &format!("inject={inject}"), "-p"])
            .arg(member.pid.expect("a running member").to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        Self(child)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_raw(self.0.id() as i32).expect("a pid"), Signal::INT);
            let _ = self.0.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fdatasync_at_a_start_ends_the_process_with_a_clear_message() {
    if !can_inject() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_in(&temporary.path().join("cluster")).await;
    let config = cluster.members()[0].config.clone();
    assert_eq!(cluster.stop().await, Some(0));
    // `timeout` ends both of them if the disk's failure does not.
    let patience = format!("{}s", PATIENCE.as_secs());
    let output = Command::new("timeout")
        .args(["--kill-after=1s", &patience, "strace", "-f", "-o", "/dev/null"])
        .args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"])
        .arg(env!("CARGO_BIN_EXE_holdfast-broker"))
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(i32::from(ExitKind::Io.code())), "{told}");
    for words in ["sync of segment-", "Input/output error", "check the volume; nothing was deleted", "what to do: "] {
        assert!(told.contains(words), "`{words}` in: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_syncs_fail_ends_and_comes_back_with_everything_that_was_confirmed() {
    const COUNT: u32 = 300;
    if !can_inject() {
        return;
    }
    let cluster = Cluster::start().await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "orders", COUNT).await.unwrap();
    let leader = cluster.leader_of("orders").await;
    let injection = Injection::into(&leader, "fdatasync:error=EIO");
    // Through another member: the session lives, and its publishes wait for the next leader.
    let other = members.iter().find(|member| member.name != leader.name).unwrap();
    pika::publish(&uri(other.amqp), "orders-later", COUNT).await.unwrap();
    eventually("the failed member's end", || async {
        let now = cluster.members().into_iter().find(|member| member.name == leader.name)?;
        (now.pid != leader.pid).then_some(())
    })
    .await;
    drop(injection);
    cluster.ready().await;
    assert_eq!(pika::consume(&uri(other.amqp), "orders", COUNT).await.unwrap(), COUNT);
    assert_eq!(pika::consume(&uri(other.amqp), "orders-later", COUNT).await.unwrap(), COUNT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_read_a_message_leaves_the_queue_to_a_member_that_can() {
    const COUNT: u32 = 300;
    /// Payloads leave a member's memory after ten seconds without writes.
    const UNTIL_MEMORY_IS_COLD: Duration = Duration::from_secs(14);
    if !can_inject() {
        return;
    }
    let cluster = Cluster::start().await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "orders", COUNT).await.unwrap();
    tokio::time::sleep(UNTIL_MEMORY_IS_COLD).await;
    let leader = cluster.leader_of("orders").await;
    let _injection = Injection::into(&leader, "pread64:error=EIO");
    let other = members.iter().find(|member| member.name != leader.name).unwrap();
    assert_eq!(pika::consume(&uri(other.amqp), "orders", COUNT).await.unwrap(), COUNT, "in order, each once");
    assert_ne!(cluster.leader_of("orders").await.name, leader.name);
    let same = cluster.members().into_iter().find(|member| member.name == leader.name).unwrap();
    assert_eq!(same.pid, leader.pid, "a read that fails is the end of one replica, not of the process");
}
