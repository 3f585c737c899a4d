//! Members that come and go under load (faults 18, 19, 25, 26, 29): added, removed, replaced by an empty disk under the
//! old name, and damaged on disk, while others are killed, stopped or cut off.
//!
//! One rule keeps it fair: a disk is only taken away or damaged while the cluster is whole, for what two of three disks
//! have lost at the same time nobody can give back. Anything else may happen at any time.
//!
//! Runs of another kind change replication policies instead of disks, see `policies`.

mod policies;

use holdfast_engine::admin::AdminAction;
use holdfast_queue::ids::GroupId;
use holdfast_queue::meta::{GroupInfo, MetaMachine, Standing};

use crate::client::{Client, Role};
use crate::disk::Damage;
use crate::ledger::Ledger;
use crate::plan::Profile;
use crate::rng::Rng;
use crate::run::{Failure, Summary, Watch, found};
use crate::world::{Event, MEMBERS, World};

const SECOND_US: u64 = 1_000_000;
/// Virtual time in which members come and go.
const CHANGES_US: u64 = 90 * SECOND_US;
/// Everything has come right this long after the last change.
const SETTLES_WITHIN_US: u64 = 90 * SECOND_US;
/// In so many runs of a hundred the first member founds the cluster before the others are there.
const FOUNDED_ALONE_PERCENT: u64 = 30;
/// Machines beside the three of the beginning.
const SPARES: usize = 2;
/// Damage that a process has not run into after this long is not where it looks.
const DAMAGE_SHOWS_US: u64 = 3 * SECOND_US;

/// What is wanted of the members, until it is done.
#[derive(Clone, Debug)]
enum Wish {
    /// This machine should join.
    Add { member: usize, asked: Option<u64> },
    /// This one should leave.
    Remove { member: usize, asked: Option<u64> },
}

struct Play<'a> {
    world: &'a mut World,
    rng: &'a mut Rng,
    /// Machines that are members, or are about to be.
    members: Vec<usize>,
    /// Machines that are not.
    spares: Vec<usize>,
    wish: Option<Wish>,
    /// Since when a disk may hold damage that its process has not run into.
    damaged_at_us: u64,
    /// Replication policies change, and no disk is lost.
    changes_policies: bool,
}

/// Runs one seed; with `live`, before the eyes of a person.
///
/// # Errors
/// The broken invariant with the trace that led to it.
pub fn run_seed(seed: u64, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    run(seed, false, live)
}

/// The same with replication policies that change, and disks that stay.
///
/// # Errors
/// The broken invariant with the trace that led to it.
pub fn run_policies_seed(seed: u64, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    run(seed, true, live)
}

fn run(seed: u64, changes_policies: bool, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    crate::mutants::plant(None);
    let mut rng = Rng::new(seed ^ 0x006d_656d_6265_7273);
    let fail = |what: String, world: Option<&World>| {
        let trace = world.map(|world| world.trace.lines().map(str::to_owned).collect()).unwrap_or_default();
        Box::new(Failure { seed, what, trace })
    };
    let mut plan = Profile::Mixed.plan(seed);
    // Copies are counted on disks, and here disks go while a confirm is on its way.
    plan.min_in_sync = 0;
    plan.promises.replicas_stay = false;
    let mut world = World::new(&mut rng, &plan, None).map_err(|what| fail(what, None))?;
    world.trace.live = live.is_some();
    world.watched = live.and_then(|watch| watch.group);
    let outcome = play(&mut world, &mut rng, changes_policies);
    outcome.map_err(|what| fail(what, Some(&world)))
}

fn play(world: &mut World, rng: &mut Rng, changes_policies: bool) -> Result<Summary, String> {
    if rng.chance(FOUNDED_ALONE_PERCENT) {
        found_alone(world, rng)?
    } else {
        found(world)?
    }
    let mut spares = Vec::new();
    for _ in 0..SPARES {
        spares.push(world.add_machine()?);
    }
    add_workload(world, rng);
    let members = (0..MEMBERS).collect();
    let mut play = Play { world, rng, members, spares, wish: None, damaged_at_us: 0, changes_policies };
    play.change_members()?;
    play.settle()?;
    play.judge()
}

/// Founds the cluster on the first machine while the others are off: they join once clients have declared their queues.
fn found_alone(world: &mut World, rng: &mut Rng) -> Result<(), String> {
    for member in 1..MEMBERS {
        world.crash(member, true);
        let at = world.now_us + rng.range(3 * SECOND_US, 15 * SECOND_US);
        world.schedule(at, Event::Restart { member });
    }
    world.bootstrap(0)?;
    let end = world.now_us + SETTLES_WITHIN_US;
    let serves = |world: &World| world.processes[0].running.as_ref().is_some_and(|running| running.member.ready());
    while !(world.founded() && serves(world)) {
        if !world.step(end)? {
            return Err("the cluster was not founded by its first member alone".to_owned());
        }
    }
    Ok(())
}

fn add_workload(world: &mut World, rng: &mut Rng) {
    for queue in ["orders", "events"] {
        for _ in 0..2 {
            world.add_client(queue, Role::Producer { total: rng.range(2_000, 6_000), eagerness: 20, confirms: 90 });
        }
        world.add_client(queue, Role::Consumer { prefetch: rng.range(1, 50) as u16 });
    }
    // Queues that are deleted and made again while members are away (fault 26).
    world.add_client("churn", Role::Churner { same_name: true });
    if rng.chance(50) {
        world.add_client("orders", Role::Getter);
    }
}

impl Play<'_> {
    fn change_members(&mut self) -> Result<(), String> {
        let end = self.world.now_us + CHANGES_US;
        let mut next_change = self.world.now_us + self.rng.range(SECOND_US, 4 * SECOND_US);
        let mut next_fault = self.world.now_us + self.rng.range(3 * SECOND_US, 8 * SECOND_US);
        while self.world.now_us < end {
            let until = next_change.min(next_fault).min(end);
            while self.world.step(until)? {}
            let now = self.world.now_us;
            if now >= next_fault {
                self.strike();
                next_fault = now + self.rng.range(SECOND_US, 6 * SECOND_US);
            }
            if now >= next_change {
                self.pursue_wish()?;
                let pause_us = match self.wish.is_none() && (self.changes_policies || self.is_whole()) {
                    true if self.changes_policies => self.change_policy()?,
                    true => self.change()?,
                    false => SECOND_US / 2,
                };
                next_change = now + pause_us;
            }
        }
        Ok(())
    }

    /// A fault that costs no disk.
    fn strike(&mut self) {
        let victim = self.members[self.rng.index(self.members.len())];
        let other = self.members[self.rng.index(self.members.len())];
        match self.rng.range(0, 100) {
            0..40 => {
                let power_loss = self.rng.chance(40);
                self.die(victim, power_loss);
            }
            40..60 => {
                let for_us = self.rng.range(100_000, 3_000_000);
                self.world.pause(victim, for_us);
            }
            60..80 if victim != other => {
                let now = self.world.now_us;
                self.world.conditions.cut(victim, other, now, now + self.rng.range(SECOND_US / 2, 4 * SECOND_US));
            }
            _ => {
                let client = self.rng.index(self.world.clients.len());
                self.world.cut_client(client);
            }
        }
    }

    fn die(&mut self, member: usize, power_loss: bool) {
        self.world.crash(member, power_loss);
        let at = self.world.now_us + self.rng.range(100_000, 3_000_000);
        self.world.schedule(at, Event::Restart { member });
    }

    /// Begins a change and gives the time until the next look.
    fn change(&mut self) -> Result<u64, String> {
        let member = self.members[self.rng.index(self.members.len())];
        match self.rng.range(0, 100) {
            0..25 if !self.spares.is_empty() => {
                let member = self.spares.remove(self.rng.index(self.spares.len()));
                self.members.push(member);
                self.wish = Some(Wish::Add { member, asked: None });
            }
            25..50 if self.members.len() > MEMBERS => {
                self.wish = Some(Wish::Remove { member, asked: None });
            }
            50..70 => {
                self.world.crash(member, true);
                self.world.wipe_disk(member);
                let at = self.world.now_us + self.rng.range(100_000, 2_000_000);
                self.world.schedule(at, Event::Restart { member });
                self.damaged_at_us = at;
            }
            70..100 => {
                let power_loss = self.rng.chance(30);
                self.world.crash(member, power_loss);
                let kinds = Damage::ALL.map(|kind| (kind, kind == Damage::IdentityBits));
                let kinds: Vec<Damage> = kinds.iter().filter(|(_, fatal)| !fatal).map(|(kind, _)| *kind).collect();
                let kind = kinds[self.rng.index(kinds.len())];
                self.world.damage_disk(member, kind);
                let at = self.world.now_us + self.rng.range(100_000, 1_000_000);
                self.world.schedule(at, Event::Restart { member });
                self.damaged_at_us = at;
            }
            _ => {}
        }
        self.pursue_wish()?;
        Ok(self.rng.range(SECOND_US, 3 * SECOND_US))
    }

    /// Asks for what is wanted until it is so.
    fn pursue_wish(&mut self) -> Result<(), String> {
        let Some(wish) = self.wish.clone() else { return Ok(()) };
        let (Wish::Add { asked, .. } | Wish::Remove { asked, .. }) = &wish;
        let is_open = asked.is_some_and(|request| self.world.answer(request).is_none());
        let is_taken = asked.is_some_and(|request| self.world.answer(request).is_some_and(Result::is_ok));
        match wish {
            Wish::Add { member, .. } if is_taken && self.is_listed(member) => {
                self.world.homes.push(member);
                self.wish = None;
            }
            Wish::Remove { member, .. } if is_taken && !self.is_listed(member) => {
                // Nobody misses it: its machine is switched off, and its disk goes.
                self.members.retain(|other| *other != member);
                self.world.homes.retain(|home| *home != member);
                self.world.crash(member, true);
                self.world.wipe_disk(member);
                self.world.start(member)?;
                self.spares.push(member);
                self.wish = None;
            }
            _ if is_taken || is_open && self.rng.chance(90) => {}
            Wish::Add { member, .. } => {
                let members = self.members.iter().map(|member| self.world.expected(*member)).collect();
                let asked = self.ask(AdminAction::PutMembers { members })?;
                self.wish = Some(Wish::Add { member, asked });
            }
            Wish::Remove { member, .. } => {
                let name = self.world.processes[member].name.clone();
                let asked = self.ask(AdminAction::RemoveMember { name })?;
                self.wish = Some(Wish::Remove { member, asked });
            }
        }
        Ok(())
    }

    fn ask(&mut self, action: AdminAction) -> Result<Option<u64>, String> {
        let member = self.members[self.rng.index(self.members.len())];
        if self.world.processes[member].running.is_none() {
            return Ok(None);
        }
        self.world.ask(member, action).map(Some)
    }

    /// The metadata as the leader of group 0 has applied it.
    fn metadata(&self) -> Option<&MetaMachine> {
        let host = |member: &usize| self.world.processes[*member].running.as_ref()?.member.host();
        let leading = self.members.iter().filter_map(host).find(|host| host.is_leading(GroupId::META));
        leading?.machine(GroupId::META)?.meta()
    }

    fn is_listed(&self, member: usize) -> bool {
        let name = &self.world.processes[member].name;
        self.metadata().is_some_and(|meta| meta.members().any(|(_, info)| info.name == *name))
    }

    fn is_whole(&self) -> bool {
        self.what_is_missing().is_none()
    }

    /// Why the cluster is not whole: every member is there and ready, has all its replicas undamaged, and every group is
    /// where it should be.
    fn what_is_missing(&self) -> Option<String> {
        if self.world.now_us < self.damaged_at_us + DAMAGE_SHOWS_US {
            return Some("damage may not have shown yet".into());
        }
        let Some(meta) = self.metadata() else { return Some("nobody leads group 0".into()) };
        if let Some((_, gone)) = meta.members().find(|(_, info)| info.standing != Standing::Present) {
            let left: Vec<GroupId> = meta.groups().filter(|(_, info)| !info.is_settled()).map(|(id, _)| id).collect();
            return Some(format!("member {} is on its way out, {left:?} are not settled", gone.name));
        }
        if meta.members().count() != self.members.len() {
            return Some(format!("{} members instead of {}", meta.members().count(), self.members.len()));
        }
        if let Some((group, info)) = meta.groups().find(|(_, info)| !info.is_settled()) {
            return Some(format!("group {group} is not settled: {info:?}"));
        }
        for member in &self.members {
            if let Some(why) = self.what_is_missing_on(*member, meta) {
                return Some(format!("m{member}: {why}"));
            }
        }
        None
    }

    fn what_is_missing_on(&self, member: usize, meta: &MetaMachine) -> Option<String> {
        let process = &self.world.processes[member];
        let Some(running) = process.running.as_ref().filter(|_| !process.is_paused(self.world.now_us)) else {
            return Some("it does not run".into());
        };
        let Some(host) = running.member.host().filter(|_| running.member.ready()) else {
            return Some("it is not ready".into());
        };
        let own = running.member.identity().membership.as_ref().map(|own| own.member);
        let wanted = |(group, info): (GroupId, &GroupInfo)| {
            let replica = info.replicas().find(|replica| Some(replica.member) == own)?;
            Some((group, replica))
        };
        for (group, replica) in meta.groups().filter_map(wanted) {
            let Some(status) = host.status(group) else { return Some(format!("no replica of group {group}")) };
            if status.quarantined.is_some() {
                return Some(format!("group {group} is quarantined"));
            }
            if status.generation != Some(replica.generation) || status.leader.is_none() || status.applied == 0 {
                return Some(format!("replica {replica} of group {group} is not there yet: {status:?}"));
            }
        }
        None
    }

    fn settle(&mut self) -> Result<(), String> {
        self.world.conditions.heal();
        for client in &mut self.world.clients {
            client.drain();
        }
        let end = self.world.now_us + SETTLES_WITHIN_US;
        let mut next_look = self.world.now_us;
        loop {
            if self.world.now_us >= next_look {
                self.pursue_wish()?;
                if self.wish.is_none() && self.is_served() && self.is_whole() && self.nobody_waits() {
                    break;
                }
                next_look = self.world.now_us + SECOND_US / 4;
            }
            while self.world.step(next_look)? {}
            if self.world.now_us >= end {
                let missing = self.what_is_missing();
                let busy: Vec<u32> =
                    self.world.clients.iter().filter(|client| !client.is_done()).map(|client| client.id).collect();
                return Err(format!(
                    "not settled {} s after the last change: {missing:?}, {:?} is wanted, clients {busy:?} not done",
                    SETTLES_WITHIN_US / SECOND_US,
                    self.wish
                ));
            }
        }
        // What comes after the last delivery must not be a delivery.
        let end = self.world.now_us + 3 * SECOND_US;
        while self.world.step(end)? {}
        Ok(())
    }

    fn is_served(&self) -> bool {
        self.world.clients.iter().all(Client::is_done)
            && self.world.ledgers.values().all(Ledger::all_confirmed_were_delivered)
    }

    fn judge(&self) -> Result<Summary, String> {
        let mut summary = Summary {
            leaderships: self.world.invariants.leaderships(),
            starts: self.world.processes.iter().map(|process| process.life).sum(),
            steps: self.world.steps,
            virtual_us: self.world.now_us,
            ..Summary::default()
        };
        for (queue, ledger) in &self.world.ledgers {
            let verdict = ledger.verdict();
            if !verdict.is_clean() {
                return Err(format!("queue {queue}: {verdict:?}; some of the lost: {:?}", ledger.some_lost()));
            }
            summary.confirmed += verdict.confirmed;
            summary.consumed += verdict.consumed;
            summary.unknown += verdict.unknown;
        }
        Ok(summary)
    }
}
