//! Members die, come back on damaged disks, and lose touch.

use bytes::Bytes;
use holdfast_engine::identity::{IdentityError, MemberUuid};
use holdfast_engine::{Budgets, Input, Member, MemberConfig, Start};
use holdfast_journal::{Batch, Damage, Op, Recovered};
use holdfast_queue::ids::BootId;
use holdfast_queue::time::Instant;
use holdfast_replica::HostConfig;

use holdfast_engine::backup::{HoldNews, HoldOrder, MemberEntry, MemberPart, PlaceEntry, StateEntry};

use super::{Client, Cluster, MemoryDisk, Running, address};

/// Starts a member; checkpoints come early, so that logs are compacted within a test.
pub fn start(
    at: usize,
    boot: u64,
    recovered: Recovered,
    disk: &MemoryDisk,
    now: Instant,
    budgets: Budgets,
) -> Result<Member<MemoryDisk>, IdentityError> {
    let config = MemberConfig {
        name: format!("m{at}"),
        zone: format!("zone-{at}"),
        advertise_peer: address(at),
        replication: HostConfig { checkpoint_entries: 100, ..HostConfig::default() },
        budgets,
        // Members of one cluster need not have equally many.
        workers: 1 + at % 3,
        ..MemberConfig::default()
    };
    let start = Start {
        boot: BootId(boot),
        new_uuid: MemberUuid(1000 + at as u128),
        seed: 7 * boot,
        recovered,
        reader: disk.clone(),
        now,
        wall_ms: now.0 / 1000,
    };
    Member::new(config, start)
}

impl Cluster {
    /// What a driver does about holds, without files: a member says that it holds what it has applied.
    pub fn hold(&mut self, at: usize, order: HoldOrder) {
        match &order {
            HoldOrder::Make { barrier, member, places, .. } => {
                let host = self.member(at).host().expect("it is in a cluster");
                let state = StateEntry { machine_sha256: "sum".into(), queues: Vec::new() };
                let applied = places.iter().filter(|place| host.applied(place.group) >= place.index);
                let whole = applied.map(|place| (PlaceEntry::from(place), state.clone())).collect();
                let entry = MemberEntry { name: member.clone(), ..MemberEntry::default() };
                let part = MemberPart { entry, whole };
                let able = !self.unable_to_hold.contains(&at);
                let part = if able { Ok(part.to_bytes()) } else { Err("its disk has no room".to_owned()) };
                let news = [HoldNews::Held { barrier: *barrier }, HoldNews::Described { barrier: *barrier, part }];
                self.inputs.extend(news.map(|news| (at, Input::Hold(news))));
            }
            HoldOrder::Store { barrier, .. } => {
                let stored = HoldNews::Stored { barrier: *barrier, outcome: Ok(()) };
                self.inputs.push_back((at, Input::Hold(stored)));
            }
            HoldOrder::Release { .. } => {}
        }
        self.holds.push((at, order));
    }

    /// Ends a member at once; its links break, its clients too.
    pub fn kill(&mut self, at: usize) {
        self.members[at] = None;
        self.inputs.retain(|(to, _)| *to != at);
        let ends: Vec<_> = self.links.iter().filter(|((member, _), _)| *member == at).map(|(_, far)| *far).collect();
        for (member, link) in ends {
            self.links.remove(&(member, link));
            self.inputs.push_back((member, Input::LinkDown { link, reason: "reset".into() }));
        }
        self.links.retain(|(member, _), _| *member != at);
    }

    /// The client's socket takes what it did not take so far.
    pub fn unstall(&mut self, client: &Client) {
        self.stalled.retain(|conn| *conn != client.conn);
        let total = self.written.get(&(client.at, client.conn)).copied().unwrap_or(0);
        self.inputs.push_back((client.at, Input::ClientWritten { conn: client.conn, total }));
    }

    /// Breaks the links of two members, for good.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.cuts.extend([(one, other), (other, one)]);
        let cut = |near: usize, far: usize| (near == one && far == other) || (near == other && far == one);
        let ends: Vec<_> =
            self.links.iter().filter(|((near, _), (far, _))| cut(*near, *far)).map(|(end, _)| *end).collect();
        for (member, link) in ends {
            self.links.remove(&(member, link));
            self.inputs.push_back((member, Input::LinkDown { link, reason: "cut".into() }));
        }
    }

    /// What one member has sent to another meanwhile arrives, and so does what follows.
    pub fn let_through(&mut self, from: usize, to: usize) {
        self.stopped.retain(|link| *link != (from, to));
        let all = std::mem::take(&mut self.waiting);
        let (through, waiting): (Vec<_>, Vec<_>) = all.into_iter().partition(|(link, _)| *link == (from, to));
        self.waiting = waiting;
        self.inputs.extend(through.into_iter().map(|((_, to), input)| (to, input)));
    }

    /// Lets all members reach each other again.
    pub fn mend(&mut self) {
        self.cuts.clear();
        for at in 0..self.members.len() {
            self.dial(at);
        }
    }

    /// Starts a killed member again on what its disk holds, after `damage` had its way with that.
    pub fn restart(&mut self, at: usize, damage: impl FnOnce(&mut Recovered)) {
        self.try_restart(at, damage).expect("a disk that it can go on with");
    }

    /// The same, where the member may refuse what the disk holds.
    pub fn try_restart(&mut self, at: usize, damage: impl FnOnce(&mut Recovered)) -> Result<(), IdentityError> {
        let disk = self.disks[at].clone();
        let mut recovered = disk.recover();
        damage(&mut recovered);
        self.starts += 1;
        let member = start(at, 1_000 + self.starts, recovered, &disk, self.now, self.budgets)?;
        self.members[at] = Some(Running { member, dialled: Vec::new() });
        self.settle();
        for other in 0..self.members.len() {
            self.dial(other);
        }
        self.settle();
        Ok(())
    }

    /// Who the member on this disk is.
    pub fn stored_identity(&self, at: usize) -> Bytes {
        self.disks[at].recover().identity.expect("it has one")
    }

    /// Writes that to the disk of a killed member.
    pub fn store_identity(&self, at: usize, identity: Bytes) {
        let _ = self.disks[at].write(Batch { ops: vec![Op::Identity(identity)], ..Batch::default() });
    }

    /// Messages with this text rot on a member's disk: which entries they are.
    pub fn rot(&mut self, at: usize, text: &str) -> Vec<Damage> {
        let damage = |(key, index)| Damage { key, index, why: "a rotten sector".to_owned() };
        self.disks[at].rot(text).into_iter().map(damage).collect()
    }

    /// Writes of this member's disk take until [`Cluster::resume_disk`].
    pub fn stall_disk(&mut self, at: usize) {
        self.disks[at].stall();
    }

    pub fn resume_disk(&mut self, at: usize) {
        for batch in self.disks[at].resume() {
            self.inputs.extend(self.disks[at].write(batch).map(|input| (at, input)));
        }
        self.settle();
    }
}
