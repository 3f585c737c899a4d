//! Brokers in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use futures::FutureExt;
use serde_json::{Value, json};

use super::{
    AdminError, Barrier, BarrierRequest, Bootstrap, BrokerAdmin, Call, Credentials, Door, ExpectedMember, Group,
    Health, KnownMember, MemberState, RecoveryPlan, Replica, RestoreProgress,
};

/// Brokers that exist only in memory, for tests of the operator.
///
/// Founding, joining, users and leaders behave as the admin API promises; a member without an entry does not answer.
#[derive(Default)]
pub struct FakeBrokers {
    inner: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    members: BTreeMap<String, Health>,
    users: BTreeMap<String, String>,
    calls: Vec<String>,
    groups: BTreeMap<String, Vec<Group>>,
    refuse: Option<(String, AdminError)>,
    plan: RecoveryPlan,
    barrier: Barrier,
    restore: RestoreProgress,
    /// The ids of lines whose files each member holds.
    holds: BTreeMap<String, BTreeSet<String>>,
}

impl FakeState {
    fn found(&mut self, founder: &str, request: &Bootstrap) {
        self.users.insert(request.user.name.clone(), request.user.password.clone());
        let known: Vec<KnownMember> = (1..)
            .zip(&request.members)
            .map(|(id, m)| KnownMember {
                name: m.name.clone(),
                id: Some(id),
                zone: m.zone.clone(),
                live: true,
                ready: true,
            })
            .collect();
        for member in &request.members {
            if let Some(health) = self.members.get_mut(&member.name) {
                health.cluster_id = Some(request.cluster_id.clone());
                health.zone = member.zone.clone();
                health.state = MemberState::Started;
                health.ready = true;
                health.quorum = true;
                health.metadata_leader = Some(founder.to_owned());
                health.zone_fault_tolerant = true;
                health.groups.total = 1;
                health.groups.leading = u64::from(member.name == founder);
                health.members = known.clone();
            }
        }
    }
}

impl FakeBrokers {
    /// What every broker's plan for a forced recovery is.
    pub fn set_recovery_plan(&self, plan: RecoveryPlan) {
        self.lock().plan = plan;
    }

    /// How far a blank member is in receiving a backup.
    pub fn set_restore(&self, progress: RestoreProgress) {
        self.lock().restore = progress;
    }

    /// What a line brings that is drawn from now on.
    pub fn set_barrier(&self, barrier: Barrier) {
        self.lock().barrier = barrier;
    }

    /// Members that hold files, with the ids of the lines.
    pub fn holds(&self) -> BTreeMap<String, BTreeSet<String>> {
        let holds = self.lock().holds.clone();
        holds.into_iter().filter(|(_, ids)| !ids.is_empty()).collect()
    }

    /// A hold ends by itself.
    pub fn end_holds(&self, member: &str) {
        self.lock().holds.remove(member);
    }

    /// Lets a broker answer, or changes what it says.
    pub fn set(&self, member: &str, health: Health) {
        self.lock().members.insert(member.into(), health);
    }

    /// The broker answers no more.
    pub fn silence(&self, member: &str) {
        self.lock().members.remove(member);
    }

    /// The groups that the broker lists; without this, the metadata group, where it leads it.
    pub fn set_groups(&self, member: &str, groups: Vec<Group>) {
        self.lock().groups.insert(member.into(), groups);
    }

    /// What the broker says at present.
    pub fn get(&self, member: &str) -> Option<Health> {
        self.lock().members.get(member).cloned()
    }

    /// Calls that failed succeed again.
    pub fn accept(&self) {
        self.lock().refuse = None;
    }

    /// Calls of the kind named (`bootstrap`, …) fail.
    pub fn refuse(&self, kind: &str, error: AdminError) {
        self.lock().refuse = Some((kind.into(), error));
    }

    /// Every call that changes something, in order: `bootstrap demo-0-0`, ….
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The password of a user, as the brokers know it.
    pub fn password(&self, user: &str) -> Option<String> {
        self.lock().users.get(user).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change<'a, T: Send + 'a>(
        &self,
        kind: &str,
        door: &Door,
        apply: impl FnOnce(&mut FakeState) -> T,
    ) -> Call<'a, T> {
        let mut state = self.lock();
        state.calls.push(format!("{kind} {}", door.member));
        let refused = state.refuse.as_ref().filter(|(what, _)| what == kind).map(|(_, error)| error.clone());
        let silent = !state.members.contains_key(&door.member);
        let result = match refused {
            Some(error) => Err(error),
            None if silent => Err(silence(door)),
            None => Ok(apply(&mut state)),
        };
        futures::future::ready(result).boxed()
    }
}

fn silence(door: &Door) -> AdminError {
    AdminError::NoAnswer { member: door.member.clone(), why: "connection refused".into() }
}

impl BrokerAdmin for FakeBrokers {
    fn health<'a>(&'a self, door: &'a Door) -> Call<'a, Health> {
        let answer = self.lock().members.get(&door.member).cloned().ok_or_else(|| silence(door));
        futures::future::ready(answer).boxed()
    }

    fn bootstrap<'a>(&'a self, door: &'a Door, request: &'a Bootstrap) -> Call<'a, ()> {
        self.change("bootstrap", door, |state| state.found(&door.member, request))
    }

    fn put_members<'a>(&'a self, door: &'a Door, members: &'a [ExpectedMember]) -> Call<'a, ()> {
        self.change("put_members", door, |state| {
            for health in state.members.values_mut() {
                for wanted in members {
                    match health.members.iter_mut().find(|m| m.name == wanted.name) {
                        Some(known) => known.zone = wanted.zone.clone(),
                        None => health.members.push(KnownMember {
                            name: wanted.name.clone(),
                            zone: wanted.zone.clone(),
                            ..KnownMember::default()
                        }),
                    }
                }
            }
        })
    }

    fn put_user<'a>(&'a self, door: &'a Door, user: &'a Credentials) -> Call<'a, ()> {
        self.change("put_user", door, |state| {
            state.users.insert(user.name.clone(), user.password.clone());
        })
    }

    fn put_min_in_sync<'a>(&'a self, door: &'a Door, copies: i32) -> Call<'a, ()> {
        self.change(&format!("put_min_in_sync {copies}"), door, |_| ())
    }

    fn groups<'a>(&'a self, door: &'a Door) -> Call<'a, Vec<Group>> {
        let state = self.lock();
        let answer = state.members.get(&door.member).ok_or_else(|| silence(door)).map(|health| {
            let replica = |m: &KnownMember| Replica { name: m.name.clone(), voter: true };
            let metadata = || Group {
                leading: health.metadata_leader.as_deref() == Some(&door.member),
                in_sync_replicas: Some(health.members.len()),
                replicas: health.members.iter().map(replica).collect(),
                ..Group::default()
            };
            state.groups.get(&door.member).cloned().unwrap_or_else(|| vec![metadata()])
        });
        futures::future::ready(answer).boxed()
    }

    fn drain_leaders<'a>(&'a self, door: &'a Door, _deadline: Duration) -> Call<'a, u64> {
        self.change("drain_leaders", door, |state| {
            let Some(from) = state.members.get_mut(&door.member) else { return 0 };
            let moved = std::mem::take(&mut from.groups.leading);
            if let Some((_, to)) = state.members.iter_mut().find(|(name, _)| **name != door.member) {
                to.groups.leading += moved;
            }
            0
        })
    }

    fn recovery_freeze<'a>(&'a self, door: &'a Door, time: Duration) -> Call<'a, ()> {
        self.change(&format!("freeze {}", time.as_secs()), door, |_| ())
    }

    fn recovery_survey<'a>(&'a self, door: &'a Door) -> Call<'a, Value> {
        self.change("survey", door, |_| json!({ "survey": { "uuid": door.member }, "record": null }))
    }

    fn recovery_plan<'a>(&'a self, door: &'a Door, found: &'a [Value]) -> Call<'a, RecoveryPlan> {
        self.change(&format!("plan of {}", found.len()), door, |state| state.plan.clone())
    }

    fn recovery_apply<'a>(
        &'a self,
        door: &'a Door,
        plan_hash: &'a str,
        _nonce: u64,
        found: &'a [Value],
    ) -> Call<'a, ()> {
        self.change(&format!("apply {plan_hash} of {}", found.len()), door, |state| {
            // The process ends, and is silent until the kubelet has started it again.
            state.members.remove(&door.member);
        })
    }

    fn restore_progress<'a>(&'a self, door: &'a Door) -> Call<'a, RestoreProgress> {
        let state = self.lock();
        let answer = state.members.get(&door.member).ok_or_else(|| silence(door)).map(|_| state.restore.clone());
        futures::future::ready(answer).boxed()
    }

    fn restore_apply<'a>(&'a self, door: &'a Door, backup: &'a str, request: &'a Bootstrap) -> Call<'a, ()> {
        self.change(&format!("restore {backup}"), door, |state| state.found(&door.member, request))
    }

    fn restore_discard<'a>(&'a self, door: &'a Door, backup: &'a str) -> Call<'a, ()> {
        self.change(&format!("discard {backup}"), door, |state| state.restore = RestoreProgress::default())
    }

    fn draw_barrier<'a>(&'a self, door: &'a Door, request: &'a BarrierRequest) -> Call<'a, Barrier> {
        self.change("draw_barrier", door, |state| {
            let line = state.barrier.clone();
            for member in &line.members {
                state.holds.entry(member.clone()).or_default().insert(request.id.clone());
            }
            line
        })
    }

    fn renew_hold<'a>(&'a self, door: &'a Door, barrier: &'a str, _time: Duration) -> Call<'a, ()> {
        let answer = self
            .change("renew_hold", door, |state| state.holds.get(&door.member).is_some_and(|ids| ids.contains(barrier)));
        let refused = move || AdminError::Refused {
            member: door.member.clone(),
            status: 404,
            error: format!("nothing is held for {barrier}"),
            hint: String::new(),
        };
        answer.map(move |held| held.and_then(|held| held.then_some(()).ok_or_else(refused))).boxed()
    }

    fn release_hold<'a>(&'a self, door: &'a Door, barrier: &'a str) -> Call<'a, ()> {
        self.change("release_hold", door, |state| {
            if let Some(ids) = state.holds.get_mut(&door.member) {
                ids.remove(barrier);
            }
        })
    }
}
