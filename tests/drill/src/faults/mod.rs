//! The faults, by their numbers in the fault list; and the drills of the figures, by name.

mod churn;
mod disks;
mod journals;
mod membership;
mod partitions;
mod pressure;
mod processes;

use anyhow::{Result, bail};
use futures::future::BoxFuture;

use crate::cluster::Shape;
use crate::run::Run;

/// A process that is killed: the longest time without a confirm, 95th percentile.
const KILLED_MS: u64 = 1000;
/// A process that is paused, or a link that is cut: the same.
const CUT_MS: u64 = 2000;

/// Service is back so long after a majority can talk again.
const BACK_MS: u64 = 3000;

/// One fault.
pub struct Fault {
    /// Its number in the list, or the name of the figure that it measures.
    pub name: &'static str,
    /// What must survive.
    pub title: &'static str,
    /// What is done.
    pub how: &'static str,
    /// The most that the 95th percentile of gaps may be.
    pub gap_limit_ms: Option<u64>,
    /// The most that the time from a fault's end to the next confirms may be.
    pub back_limit_ms: u64,
    /// The cluster that it is done to.
    pub shape: Shape,
    /// Messages a second to the queue with consumers.
    pub live_rate: u64,
    /// Messages a second to the queue that is read at the end.
    pub kept_rate: u64,
    /// Does it.
    pub run: for<'a> fn(&'a mut Run) -> BoxFuture<'a, Result<()>>,
}

/// What most have in common.
const PLAIN: Fault = Fault {
    name: "",
    title: "",
    how: "",
    gap_limit_ms: None,
    back_limit_ms: BACK_MS,
    shape: Shape { members: 3, disk_mib: 1024 },
    live_rate: 600,
    kept_rate: 300,
    run: |_| Box::pin(async { Ok(()) }),
};

/// Every fault that is drilled, in the order in which they run.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "1",
        title: "kill -9 the leader under load",
        how: "SIGKILL to the leader of the live queue, started again 2 s later; 12 strikes a run",
        gap_limit_ms: Some(KILLED_MS),
        run: |run| Box::pin(processes::kill_leaders(run)),
        ..PLAIN
    },
    Fault {
        name: "2",
        title: "kill -9 a random node every 5 s",
        how: "SIGKILL to any member, started again at once; 8 strikes a run",
        gap_limit_ms: Some(KILLED_MS),
        run: |run| Box::pin(processes::kill_anyone(run)),
        ..PLAIN
    },
    Fault {
        name: "3",
        title: "kill all three, restart in any order",
        how: "SIGKILL to all at once, started again in a drawn order up to 2 s apart; 5 strikes a run",
        run: |run| Box::pin(processes::kill_everyone(run)),
        ..PLAIN
    },
    Fault {
        name: "4",
        title: "power loss of one node",
        how: "cable out, then the file system shut down without a flush under the stopped process; 5 strikes a run",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(disks::power_loss_of_one(run)),
        ..PLAIN
    },
    Fault {
        name: "5",
        title: "power loss of all nodes at once",
        how: "the same for all three, started again at once; 4 strikes a run",
        run: |run| Box::pin(disks::power_loss_of_all(run)),
        ..PLAIN
    },
    Fault {
        name: "6",
        title: "power loss of one while the others are paused in turn",
        how: "one paused for 3 s, power loss of a second, both back; 4 strikes a run",
        run: |run| Box::pin(disks::power_loss_while_others_pause(run)),
        ..PLAIN
    },
    Fault {
        name: "7",
        title: "pause the leader 30 s, resume",
        how: "SIGSTOP for 30 s once and for 6 s three times, then SIGCONT",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(processes::pause_leaders(run)),
        ..PLAIN
    },
    Fault {
        name: "8",
        title: "pause a majority",
        how: "SIGSTOP to two of three for 10 s; nothing may be confirmed meanwhile; twice",
        run: |run| Box::pin(processes::pause_majority(run)),
        ..PLAIN
    },
    Fault {
        name: "8-dead",
        title: "one is paused when another dies",
        how: "SIGSTOP to one, SIGKILL to the leader 3 s later, SIGCONT after 30 s; the dead one stays away for 40 s more",
        run: |run| Box::pin(processes::pause_one_lose_another(run)),
        ..PLAIN
    },
    Fault {
        name: "9",
        title: "partition: the leader, and the rest",
        how: "all packets between the leader and the others dropped for 8 s; clients reach everyone; 4 strikes a run",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(partitions::cut_leader_off(run)),
        ..PLAIN
    },
    Fault {
        name: "10",
        title: "one-way cuts, both ways",
        how: "packets from the leader to the others dropped for 8 s, then those to it; twice",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(partitions::cut_one_way(run)),
        ..PLAIN
    },
    Fault {
        name: "11",
        title: "non-transitive links",
        how: "each pair in turn cut off from one another for 8 s, both in touch with the third",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(partitions::cut_pairs(run)),
        ..PLAIN
    },
    Fault {
        name: "12",
        title: "a link that flaps every second",
        how: "leader to one follower: a second away, a second there, 12 times; the term may climb by 2 at most",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(partitions::flap(run)),
        ..PLAIN
    },
    Fault {
        name: "13",
        title: "the publisher is cut off between send and confirm",
        how: "packets from a member to its clients dropped for 8 s; every second time the member dies meanwhile; 4 strikes a run",
        run: |run| Box::pin(partitions::cut_publishers_off(run)),
        ..PLAIN
    },
    Fault {
        name: "14-loss",
        title: "20 % loss",
        how: "a fifth of the packets between members dropped for 25 s",
        live_rate: 300,
        kept_rate: 150,
        run: |run| Box::pin(partitions::lossy_links(run)),
        ..PLAIN
    },
    Fault {
        name: "14-thin",
        title: "one follower at 1 Mbit/s",
        how: "for 25 s, while 3 Mbit/s are published",
        gap_limit_ms: Some(CUT_MS),
        live_rate: 250,
        kept_rate: 120,
        run: |run| Box::pin(partitions::thin_link(run)),
        ..PLAIN
    },
    Fault {
        name: "15",
        title: "torn tail at any byte of the last batch",
        how: "SIGKILL while a sync is under way, the unsynced batch cut at a drawn byte; 6 strikes a run",
        run: |run| Box::pin(journals::torn_at_a_byte(run)),
        ..PLAIN
    },
    Fault {
        name: "16",
        title: "torn with later sectors present and earlier ones missing",
        how: "the same, with sectors of the unsynced batch zeroed before others; 6 strikes a run",
        run: |run| Box::pin(journals::torn_out_of_order(run)),
        ..PLAIN
    },
    Fault {
        name: "17",
        title: "a bit flip in the middle of one journal, which then tries to campaign",
        how: "a durable bit of a stopped follower's open segment; it starts as the leader dies for 6 s; 3 strikes a run",
        run: |run| Box::pin(journals::flip_and_campaign(run)),
        ..PLAIN
    },
    Fault {
        name: "18",
        title: "a bit flip in a sealed segment, a checkpoint, the metadata, the identity",
        how: "one member after the other; mended by itself, or by an empty volume where it asks for one",
        run: |run| Box::pin(journals::flips(run)),
        live_rate: 600,
        kept_rate: 900,
        ..PLAIN
    },
    Fault {
        name: "19",
        title: "a truncated or missing segment; no segments under a known identity",
        how: "one member after the other; mended by itself, or by an empty volume where it asks for one",
        run: |run| Box::pin(journals::missing_files(run)),
        live_rate: 600,
        kept_rate: 900,
        ..PLAIN
    },
    Fault {
        name: "20",
        title: "a stale or misdirected block",
        how: "a block of one batch over that of another, in the open and in a sealed segment, and from one to the other",
        run: |run| Box::pin(journals::misdirected_blocks(run)),
        live_rate: 600,
        kept_rate: 900,
        ..PLAIN
    },
    Fault {
        name: "21",
        title: "EIO on fdatasync; EIO on read",
        how: "strace injection into the leader, into a follower, and into reads of a leader for 8 s",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(disks::failing_disk(run)),
        ..PLAIN
    },
    Fault {
        name: "22",
        title: "disk full under load",
        how: "all three disks filled to 40 MiB, 1 MiB and nothing, for 17 s each; meanwhile log in, ack, purge, delete",
        shape: Shape { members: 3, disk_mib: 512 },
        run: |run| Box::pin(disks::full_disk(run)),
        ..PLAIN
    },
    Fault {
        name: "25",
        title: "add, remove, replace a node under load while another dies",
        how: "a fourth joins while the leader dies; a leader leaves while another dies",
        run: |run| Box::pin(membership::replace_while_another_dies(run)),
        ..PLAIN
    },
    Fault {
        name: "26",
        title: "the same node removed and added, the same queue deleted and made, while a node is down",
        how: "the member that was away and another serve the new queue; then it leaves and comes back blank",
        run: |run| Box::pin(membership::again_under_the_same_name(run)),
        ..PLAIN
    },
    Fault {
        name: "27",
        title: "snapshot transfer cut three times, and a leader change in the middle",
        how: "a blank member behind 10 Mbit/s, 150,000 messages in the backlog; then another member dies",
        run: |run| Box::pin(membership::cut_snapshot(run)),
        ..PLAIN
    },
    Fault {
        name: "28",
        title: "rolling restart",
        how: "SIGTERM to each in turn, started again when it has ended; twice round",
        gap_limit_ms: Some(KILLED_MS),
        run: |run| Box::pin(processes::roll(run)),
        ..PLAIN
    },
    Fault {
        name: "23",
        title: "a 10 s disk stall on the leader, and on a follower",
        how: "one fdatasync of the leader takes 10 s, then one of a follower; twice",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(pressure::stall_disks(run)),
        ..PLAIN
    },
    Fault {
        name: "29",
        title: "a blank volume under an old ordinal",
        how: "the leader's disk formatted anew; then another member dies",
        gap_limit_ms: Some(CUT_MS),
        run: |run| Box::pin(disks::blank_volume(run)),
        ..PLAIN
    },
    Fault {
        name: "31",
        title: "connection and queue churn through a failover",
        how: "16 clients connect and leave, 4 declare and delete, for 20 s; the leader dies meanwhile",
        gap_limit_ms: Some(KILLED_MS),
        run: |run| Box::pin(churn::churn_through_a_failover(run)),
        ..PLAIN
    },
    Fault {
        name: "34",
        title: "file descriptors exhausted",
        how: "a member with 256 descriptors, 512 idle connections for 8 s",
        run: |run| Box::pin(churn::no_descriptors(run)),
        ..PLAIN
    },
    Fault {
        name: "35",
        title: "two of three gone",
        how: "SIGKILL to two for 10 s: no confirms, and what a client is told; twice",
        run: |run| Box::pin(processes::lose_majority(run)),
        ..PLAIN
    },
    Fault {
        name: "30",
        title: "memory pressure with a million queued; a consumer that never acks",
        how: "256 MiB for each member, a million messages of 100 bytes, a prefetch of 65535 unacked for 10 s",
        run: |run| Box::pin(pressure::little_memory(run)),
        live_rate: 300,
        kept_rate: 150,
        ..PLAIN
    },
    Fault {
        name: "slow-follower",
        title: "a paused or slow follower, and its catching up: the publisher's 99th percentile",
        how: "15 s undisturbed, paused, catching up, at 1 Mbit/s, catching up; at most 3 times the first",
        run: |run| Box::pin(pressure::slow_follower(run)),
        ..PLAIN
    },
    Fault {
        name: "restart",
        title: "three members restarted at once under load, a million queued",
        how: "SIGKILL to all three, started again at once; the next confirms within 5 s; twice",
        back_limit_ms: 5000,
        run: |run| Box::pin(pressure::restart_with_backlog(run)),
        live_rate: 300,
        kept_rate: 150,
        ..PLAIN
    },
];

/// The faults of these names, or all.
///
/// # Errors
/// When a name is unknown.
pub fn choose(names: &[String]) -> Result<Vec<&'static Fault>> {
    if names.is_empty() {
        return Ok(FAULTS.iter().collect());
    }
    let named = |name: &String| match FAULTS.iter().find(|fault| fault.name == *name) {
        Some(fault) => Ok(fault),
        None => bail!("there is no drill `{name}`; `make drill FAULT=list` lists them"),
    };
    names.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own_and_says_what_it_does() {
        for (at, fault) in FAULTS.iter().enumerate() {
            assert!(!fault.title.is_empty() && !fault.how.is_empty(), "{}", fault.name);
            assert!(FAULTS[..at].iter().all(|other| other.name != fault.name), "{}", fault.name);
        }
        assert_eq!(choose(&[]).unwrap().len(), FAULTS.len());
        assert_eq!(choose(&["7".into()]).unwrap()[0].title, "pause the leader 30 s, resume");
        assert!(choose(&["x".into()]).is_err());
    }
}
