//! Several hosts, a network and disks under the test's control, on virtual time. It checks after every output what must
//! always hold: what is committed never changes, one leader a term, and every later leader has what was confirmed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use holdfast_journal::GroupKey;
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId, ReplicaId};
use holdfast_queue::time::Instant;
use holdfast_replica::{
    Envelope, GroupBirth, GroupStatus, Host, HostConfig, HostOutput, ProposalId, ProposeError, Role, group_key,
};

use crate::disk::{Disk, Reader};
use crate::ledger::{Ledger, put};

pub const GROUP: GroupId = GroupId(5);

pub fn key() -> GroupKey {
    group_key(GROUP, Incarnation { counter: 1, nonce: 77 })
}

/// Seeded numbers (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

pub struct Member {
    pub host: Option<Host<Ledger, Reader>>,
    pub disk: Disk,
    pub boot: u64,
    /// Frozen: neither reads, ticks nor sends.
    pub paused: bool,
    /// Batches stay unsynced.
    pub stalled: bool,
    inbox: VecDeque<(MemberId, Bytes)>,
    /// When the batch at the head of the queue is done.
    disk_due: Option<Instant>,
    pub quarantined: Vec<String>,
    /// How often its replica was mended.
    pub mended: usize,
    pub other_incarnations: Vec<u32>,
    pub snapshots_installed: u64,
    /// Terms in which it was announced as leading.
    pub led: Vec<u64>,
}

/// What must always hold, over all members and restarts.
#[derive(Default)]
pub struct Truth {
    /// Index to (term, payload), of every entry that any member applied.
    pub committed: BTreeMap<(GroupId, u64), (u64, Bytes)>,
    leaders: BTreeMap<(GroupId, u64), MemberId>,
    /// Numbers whose effect left on a leader.
    pub confirmed: BTreeMap<GroupId, BTreeSet<u64>>,
}

pub struct Cluster {
    pub now: Instant,
    pub members: BTreeMap<u64, Member>,
    pub truth: Truth,
    pub rng: Rng,
    pub config: HostConfig,
    /// Directed links that are cut.
    pub cut: BTreeSet<(u64, u64)>,
    /// One-way delay in microseconds.
    pub delay_us: (u64, u64),
    pub disk_us: (u64, u64),
    pub loss_percent: u64,
    /// A sync covers only a part of the batches that wait.
    pub split_writes: bool,
    pub sent: u64,
    /// Rejected appends that were sent since this was set.
    pub rejections: Option<Vec<(u64, u64, Bytes)>>,
    /// The generation of each member's present replica; 0 where it is a founder's.
    pub generations: BTreeMap<u64, u32>,
    /// A checksum of all that was sent.
    pub transcript: u32,
    /// Envelopes sent, by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    flights: BTreeMap<(Instant, u64), (u64, u64, Bytes)>,
    sequence: u64,
    seed: u64,
}

impl Cluster {
    pub fn new(members: u64, seed: u64) -> Self {
        Self::with_config(members, seed, HostConfig::default())
    }

    pub fn with_config(members: u64, seed: u64, config: HostConfig) -> Self {
        let mut cluster = Self {
            now: Instant(1_000_000),
            members: BTreeMap::new(),
            truth: Truth::default(),
            rng: Rng::new(seed),
            config,
            cut: BTreeSet::new(),
            delay_us: (500, 500),
            disk_us: (1_000, 1_000),
            loss_percent: 0,
            split_writes: false,
            sent: 0,
            rejections: None,
            generations: BTreeMap::new(),
            transcript: 0,
            kinds: BTreeMap::new(),
            flights: BTreeMap::new(),
            sequence: 0,
            seed,
        };
        for id in 1..=members {
            cluster.add_member(id);
        }
        cluster
    }

    /// A cluster of three whose group is born with member 1 as its leader, and is settled.
    pub fn settled(seed: u64) -> Self {
        let mut cluster = Self::new(3, seed);
        cluster.create(&[1, 2, 3], Some(1));
        cluster.run(Duration::from_millis(100));
        assert_eq!(cluster.leading(), Some(1));
        cluster
    }

    pub fn add_member(&mut self, id: u64) {
        let member = Member {
            host: None,
            disk: Disk::default(),
            boot: 0,
            paused: false,
            stalled: false,
            inbox: VecDeque::new(),
            disk_due: None,
            quarantined: Vec::new(),
            mended: 0,
            other_incarnations: Vec::new(),
            snapshots_installed: 0,
            led: Vec::new(),
        };
        self.members.insert(id, member);
        self.restart(id);
    }

    pub fn birth(&self, voters: &[u64], leader: Option<u64>) -> GroupBirth<Ledger> {
        GroupBirth {
            key: key(),
            voters: voters.iter().copied().map(MemberId).collect(),
            learners: Vec::new(),
            leader: leader.map(MemberId),
            machine: Ledger::default(),
        }
    }

    pub fn create(&mut self, voters: &[u64], leader: Option<u64>) {
        let birth = self.birth(voters, leader);
        let now = self.now;
        for id in voters {
            self.host(*id).create_group(birth.clone(), now).unwrap();
            self.pump(*id);
        }
    }

    /// The replica that a member has, or had last.
    pub fn current_replica(&self, id: u64) -> ReplicaId {
        ReplicaId { member: MemberId(id), generation: self.generations.get(&id).copied().unwrap_or(0) }
    }

    /// Gives a member a new replica that knows nothing, in place of the one it may have.
    pub fn rejoin(&mut self, id: u64) {
        let generation = self.current_replica(id).generation + 1;
        self.generations.insert(id, generation);
        self.with(id, |host, now| {
            host.destroy_group(key());
            host.join_group(key(), generation, Ledger::default(), now)
        })
        .unwrap();
    }

    pub fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    pub fn host(&mut self, id: u64) -> &mut Host<Ledger, Reader> {
        self.member(id).host.as_mut().unwrap()
    }

    pub fn status(&mut self, id: u64) -> GroupStatus {
        self.host(id).status(GROUP).unwrap()
    }

    /// Numbers whose effect left on a leader.
    pub fn confirmed(&self) -> usize {
        self.truth.confirmed.get(&GROUP).map_or(0, BTreeSet::len)
    }

    pub fn may_emit(&mut self, id: u64) -> bool {
        let now = self.now;
        self.host(id).may_emit(GROUP, now)
    }

    pub fn ledger(&mut self, id: u64) -> Ledger {
        self.host(id).machine(GROUP).unwrap().clone()
    }

    /// Calls a host and carries out what comes of it.
    pub fn with<T>(&mut self, id: u64, call: impl FnOnce(&mut Host<Ledger, Reader>, Instant) -> T) -> T {
        let now = self.now;
        self.host(id).set_time(now);
        let result = call(self.host(id), now);
        self.pump(id);
        result
    }

    pub fn propose(&mut self, id: u64, payload: Bytes) -> Result<ProposalId, ProposeError> {
        self.with(id, |host, _| host.propose(GROUP, payload))
    }

    pub fn put(&mut self, id: u64, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.propose(id, put(number)).unwrap();
        }
    }

    /// The one running member that is announced as leading, of the highest term.
    pub fn leading(&mut self) -> Option<u64> {
        let ids: Vec<_> = self.alive();
        let leading = ids.into_iter().filter(|id| self.host(*id).is_leading(GROUP));
        leading.collect::<Vec<_>>().into_iter().max_by_key(|id| self.status(*id).term)
    }

    pub fn alive(&self) -> Vec<u64> {
        let alive = |(id, member): (&u64, &Member)| (member.host.is_some() && !member.paused).then_some(*id);
        self.members.iter().filter_map(alive).collect()
    }

    pub fn crash(&mut self, id: u64) {
        let member = self.member(id);
        member.host = None;
        member.disk.crash();
        member.disk_due = None;
        member.inbox.clear();
        member.paused = false;
        self.flights.retain(|_, (_, to, _)| *to != id);
    }

    pub fn restart(&mut self, id: u64) {
        let (now, seed, config) = (self.now, self.seed, self.config.clone());
        let member = self.member(id);
        member.disk.check_mirror();
        member.boot += 1;
        let boot = BootId(id * 1000 + member.boot);
        let mut host = Host::new(config, MemberId(id), seed ^ boot.0, member.disk.reader.clone(), now);
        for group in member.disk.recovered() {
            host.restore_group(group, now).unwrap();
        }
        member.host = Some(host);
        self.pump(id);
        for other in self.alive() {
            if other != id {
                self.with(other, |host, now| host.member_returned(MemberId(id), boot, now));
                let boot = BootId(other * 1000 + self.members[&other].boot);
                self.with(id, |host, now| host.member_returned(MemberId(other), boot, now));
            }
        }
    }

    pub fn pause(&mut self, id: u64) {
        self.member(id).paused = true;
    }

    pub fn resume(&mut self, id: u64) {
        self.member(id).paused = false;
        let now = self.now;
        while let Some((from, bytes)) = self.member(id).inbox.pop_front() {
            self.host(id).handle_envelope(from, Envelope::decode(bytes).unwrap(), now);
        }
        self.pump(id);
    }

    /// The live members hold `id` for dead.
    pub fn suspect(&mut self, id: u64) {
        for other in self.alive() {
            if other != id {
                self.with(other, |host, now| host.member_suspected(MemberId(id), now));
            }
        }
    }

    /// The live members hear `id` again, in the same run.
    pub fn hear(&mut self, id: u64) {
        let boot = BootId(id * 1000 + self.members[&id].boot);
        for other in self.alive() {
            if other != id {
                self.with(other, |host, now| host.member_returned(MemberId(id), boot, now));
            }
        }
    }

    pub fn isolate(&mut self, id: u64) {
        for other in self.members.keys().copied().collect::<Vec<_>>() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Carries out what a host wants done.
    pub fn pump(&mut self, id: u64) {
        loop {
            let Some(host) = self.members.get_mut(&id).and_then(|member| member.host.as_mut()) else { return };
            let Some(output) = host.poll() else { return };
            self.carry_out(id, output);
        }
    }

    fn carry_out(&mut self, id: u64, output: HostOutput<Bytes>) {
        match output {
            HostOutput::Send { to, envelope } => {
                *self.kinds.entry(envelope.kind()).or_default() += 1;
                let bytes = envelope.encode();
                if let Some(rejections) = self.rejections.as_mut()
                    && format!("{envelope:?}").contains("reject: true")
                {
                    rejections.push((id, to.0, bytes.clone()));
                }
                self.send(id, to.0, bytes);
            }
            HostOutput::Write(batch) => {
                let due = self.disk_due();
                let member = self.member(id);
                member.disk.submit(batch);
                member.disk_due.get_or_insert(due);
            }
            HostOutput::Applied { group, index, term, leading, effects } => {
                for payload in effects {
                    self.truth.applied(group, index, term, leading, payload);
                }
            }
            HostOutput::LeaderChanged { group, term, me_leading, .. } => {
                if me_leading {
                    self.member(id).led.push(term);
                    self.check_new_leader(id, group, term);
                }
            }
            HostOutput::Mending { .. } => {}
            HostOutput::Mended { .. } => self.member(id).mended += 1,
            HostOutput::Quarantined { why, .. } => self.member(id).quarantined.push(why),
            HostOutput::OtherIncarnation { theirs, .. } => self.member(id).other_incarnations.push(theirs.counter),
            HostOutput::SnapshotInstalled { .. } => self.member(id).snapshots_installed += 1,
            HostOutput::MembershipChanged { .. } => {}
        }
    }

    fn check_new_leader(&mut self, id: u64, group: GroupId, term: u64) {
        let other = self.truth.leaders.insert((group, term), MemberId(id));
        assert!(other.is_none_or(|other| other.0 == id), "term {term} has the leaders {other:?} and {id}");
        let has: BTreeSet<_> = self.host(id).machine(group).unwrap().numbers().into_iter().collect();
        let confirmed = self.truth.confirmed.entry(group).or_default();
        let lost: Vec<_> = confirmed.difference(&has).collect();
        assert!(lost.is_empty(), "the leader {id} of term {term} lacks confirmed {lost:?}");
    }

    fn disk_due(&mut self) -> Instant {
        let (low, high) = self.disk_us;
        Instant(self.now.0 + low + self.rng.below(high - low + 1))
    }

    fn send(&mut self, from: u64, to: u64, bytes: Bytes) {
        self.sent += 1;
        self.transcript = crc32c::crc32c_append(self.transcript, &bytes);
        if self.cut.contains(&(from, to)) || self.rng.percent(self.loss_percent) {
            return;
        }
        let (low, high) = self.delay_us;
        let at = Instant(self.now.0 + low + self.rng.below(high - low + 1));
        self.sequence += 1;
        self.flights.insert((at, self.sequence), (from, to, bytes));
    }

    /// An envelope arrives.
    pub fn deliver(&mut self, from: u64, to: u64, bytes: Bytes) {
        let now = self.now;
        let cut = self.cut.contains(&(from, to));
        let Some(member) = self.members.get_mut(&to) else { return };
        if cut {
            return;
        }
        if member.paused {
            member.inbox.push_back((MemberId(from), bytes));
        } else if let Some(host) = &mut member.host {
            host.handle_envelope(MemberId(from), Envelope::decode(bytes).unwrap(), now);
            self.pump(to);
        }
    }

    /// The oldest batch of a member's disk is done.
    pub fn complete_write(&mut self, id: u64) {
        let due = self.disk_due();
        let now = self.now;
        let member = self.member(id);
        let Some((written, upkeep)) = member.disk.complete_one() else { return };
        member.disk_due = (!member.disk.is_idle()).then_some(due);
        if let Some(host) = &mut member.host {
            host.handle_written(&written, now);
            host.handle_upkeep(&upkeep, now);
            self.pump(id);
        }
    }

    /// Lets virtual time pass, doing everything that is due.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let flight = self.flights.first_key_value().map(|((at, _), _)| *at);
            let disk = self.busy_disks().map(|(due, _)| due).min();
            let tick = self.deadlines().map(|(due, _)| due).min();
            let Some(next) = flight.into_iter().chain(disk).chain(tick).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if flight == Some(next) {
                let (_, (from, to, bytes)) = self.flights.pop_first().unwrap();
                self.deliver(from, to, bytes);
            } else if disk == Some(next) {
                // One sync for whatever waits, or for a part of it.
                let id = self.busy_disks().min().unwrap().1;
                let waiting = self.members[&id].disk.queued();
                let count = if self.split_writes { 1 + self.rng.below(waiting) } else { waiting };
                for _ in 0..count {
                    self.complete_write(id);
                }
            } else {
                let id = self.deadlines().min().unwrap().1;
                self.with(id, |host, now| host.tick(now));
            }
        }
        self.now = end;
    }

    fn busy_disks(&self) -> impl Iterator<Item = (Instant, u64)> + '_ {
        let due = |(id, member): (&u64, &Member)| {
            (!member.stalled && !member.paused).then_some(())?;
            Some((member.disk_due?, *id))
        };
        self.members.iter().filter_map(due)
    }

    fn deadlines(&self) -> impl Iterator<Item = (Instant, u64)> + '_ {
        let due = |(id, member): (&u64, &Member)| {
            (!member.paused).then_some(())?;
            Some((member.host.as_ref()?.next_deadline()?, *id))
        };
        self.members.iter().filter_map(due)
    }

    pub fn run_us(&mut self, us: u64) {
        self.run(Duration::from_micros(us));
    }

    pub fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    /// Lets time pass until `done`, at most so many milliseconds.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..ms / 5 {
            if done(self) {
                return;
            }
            self.run_ms(5);
        }
        let done = done(self);
        assert!(done, "not reached within {ms} ms:\n{}", self.describe());
    }

    /// Every member's view, for messages of failed tests.
    pub fn describe(&mut self) -> String {
        let describe = |(id, member): (&u64, &Member)| {
            let status = member.host.as_ref().and_then(|host| host.status(GROUP));
            format!("{id}: {status:?}\n")
        };
        self.members.iter().map(describe).collect()
    }

    pub fn role(&mut self, id: u64) -> Role {
        self.status(id).role
    }

    /// All live replicas have applied the same.
    pub fn assert_converged(&mut self) {
        let alive = self.alive();
        let first = self.ledger(alive[0]);
        for id in alive {
            assert_eq!(self.ledger(id), first, "member {id}");
        }
    }
}

impl Truth {
    fn applied(&mut self, group: GroupId, index: u64, term: u64, leading: bool, payload: Bytes) {
        let number = (payload[0] == 1).then(|| u64::from_be_bytes(payload[1..9].try_into().unwrap()));
        let known = self.committed.entry((group, index)).or_insert_with(|| (term, payload.clone()));
        assert_eq!(known, &(term, payload), "what is committed at {index} changed");
        if let (true, Some(number)) = (leading, number) {
            self.confirmed.entry(group).or_default().insert(number);
        }
    }
}
