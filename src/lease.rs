//! One operator at a time: leader election over a `coordination.k8s.io` Lease.
//!
//! A holder renews every few seconds; a stand-by takes the Lease when it has seen it unchanged for its whole duration,
//! by its own monotonic clock, so clocks need not agree. Each new holder gets a larger token, kept in an annotation,
//! which brokers check: a holder that was paused and wakes up late is refused by them, not only by the API server.
//! The token is never below the Unix time, so that it still grows when somebody deletes the Lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, api::PostParams};

const DURATION: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// A holder that could not renew for this long stops before anybody else can have taken over.
const GIVE_UP: Duration = Duration::from_secs(10);
const CALL_LIMIT: Duration = Duration::from_secs(5);
const TOKEN: &str = "holdfast.dev/token";

/// This process's candidacy.
pub struct Election {
    api: Api<Lease>,
    name: String,
    /// Unique among processes that can run at the same time: the pod's name.
    identity: String,
    token: Arc<AtomicU64>,
}

/// The Lease as last seen, and since when it has looked like that.
#[derive(Default)]
struct Watched {
    version: Option<String>,
    since: Option<Instant>,
}

/// What to do about the Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// It does not exist.
    Create(Box<Lease>),
    /// It is free, expired, or this process's own from before a restart.
    Take(Box<Lease>),
    /// Somebody else holds it.
    Wait,
}

impl Election {
    /// `token` is set when the Lease is taken.
    pub fn new(api: Api<Lease>, name: String, identity: String, token: Arc<AtomicU64>) -> Self {
        Self { api, name, identity, token }
    }

    /// Returns when this process holds the Lease. API failures are logged and tried again.
    pub async fn acquire(&self) {
        let mut watched = Watched::default();
        loop {
            match limited(self.try_acquire(&mut watched)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(lease = self.name, "cannot take the Lease: {error}"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    async fn try_acquire(&self, watched: &mut Watched) -> Result<bool, kube::Error> {
        let present = self.api.get_opt(&self.name).await?;
        let step = self.step(present, watched, Instant::now(), Timestamp::now());
        let written = match step {
            Step::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Step::Take(lease) => self.api.replace(&self.name, &PostParams::default(), &lease).await,
            Step::Wait => return Ok(false),
        };
        match written {
            Ok(lease) => {
                self.token.store(token_of(&lease), Ordering::Relaxed);
                tracing::info!(lease = self.name, token = token_of(&lease), "this process is the leader");
                Ok(true)
            }
            // Another candidate was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn step(&self, present: Option<Lease>, watched: &mut Watched, now: Instant, wall: Timestamp) -> Step {
        let Some(mut lease) = present else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            self.claim(&mut lease, wall);
            return Step::Create(Box::new(lease));
        };
        if watched.version != lease.metadata.resource_version || watched.since.is_none() {
            *watched = Watched { version: lease.metadata.resource_version.clone(), since: Some(now) };
        }
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let lasts = spec.lease_duration_seconds.map_or(DURATION, |s| Duration::from_secs(s.max(1) as u64));
        let expired = watched.since.is_some_and(|since| now.duration_since(since) >= lasts);
        if !(holder.is_empty() || holder == self.identity || expired) {
            return Step::Wait;
        }
        self.claim(&mut lease, wall);
        Step::Take(Box::new(lease))
    }

    fn claim(&self, lease: &mut Lease, wall: Timestamp) {
        let token = (token_of(lease) + 1).max(wall.as_second().max(0) as u64);
        lease.metadata.annotations.get_or_insert_default().insert(TOKEN.into(), token.to_string());
        let spec = lease.spec.get_or_insert_default();
        let transitions = spec.lease_transitions.map_or(0, |n| n + 1);
        *spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            lease_transitions: Some(transitions),
            acquire_time: Some(MicroTime(wall)),
            renew_time: Some(MicroTime(wall)),
            ..spec.clone()
        };
    }

    /// Renews the Lease, and returns only when it is lost: then this process must stop at once.
    pub async fn hold(&self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVE_UP {
            tokio::time::sleep(RENEW_EVERY.min(GIVE_UP.saturating_sub(renewed.elapsed()))).await;
            let asked = Instant::now();
            match limited(self.renew(|spec| spec.renew_time = Some(MicroTime(Timestamp::now())))).await {
                Ok(true) => renewed = asked,
                Ok(false) => {
                    tracing::error!(lease = self.name, "another process holds the Lease");
                    return;
                }
                Err(error) => tracing::warn!(lease = self.name, "cannot renew the Lease: {error}"),
            }
        }
        tracing::error!(lease = self.name, "the Lease could not be renewed in time");
    }

    /// Lets a stand-by take over at once.
    pub async fn release(&self) {
        if let Err(error) = limited(self.renew(|spec| spec.holder_identity = Some(String::new()))).await {
            tracing::warn!(lease = self.name, "cannot release the Lease: {error}");
        }
    }

    /// A conflict is no loss: somebody may have put a label on the Lease. It is read again, and is lost only if it says so.
    async fn renew(&self, change: impl Fn(&mut LeaseSpec)) -> Result<bool, kube::Error> {
        loop {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(false) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(false);
            }
            change(spec);
            match self.api.replace(&self.name, &PostParams::default(), &lease).await {
                Ok(_) => return Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn token_of(lease: &Lease) -> u64 {
    lease.metadata.annotations.as_ref().and_then(|a| a.get(TOKEN)?.parse().ok()).unwrap_or(0)
}

/// A call that hangs must not outlive the Lease.
async fn limited<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the API server does not answer within {} s", CALL_LIMIT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::{Client, client::Body};

    use super::*;

    fn candidate(identity: &str) -> Election {
        let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let api = Api::namespaced(Client::new(service, "ns"), "ns");
        Election::new(api, "holdfast".into(), identity.into(), Arc::default())
    }

    fn wall() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn taken(step: Step) -> Lease {
        match step {
            Step::Create(lease) | Step::Take(lease) => *lease,
            Step::Wait => panic!("the Lease was not taken"),
        }
    }

    #[tokio::test]
    async fn a_lease_that_stays_unchanged_for_its_duration_is_taken_and_its_token_grows() {
        let (one, two) = (candidate("one"), candidate("two"));
        let start = Instant::now();
        let held = taken(one.step(None, &mut Watched::default(), start, wall()));
        let mut watched = Watched::default();
        for (after, waits) in [(0, true), (14, true), (15, false)] {
            let now = start + Duration::from_secs(after);
            let step = two.step(Some(held.clone()), &mut watched, now, wall());
            assert_eq!(step == Step::Wait, waits, "{after} s");
        }
        let now = start + Duration::from_secs(15);
        let next = taken(two.step(Some(held.clone()), &mut watched, now, wall()));
        assert!(token_of(&next) > token_of(&held));
        assert_eq!(next.spec.expect("spec").lease_transitions, Some(1));
    }

    #[tokio::test]
    async fn a_renewal_starts_the_wait_anew() {
        let (one, two) = (candidate("one"), candidate("two"));
        let start = Instant::now();
        let mut held = taken(one.step(None, &mut Watched::default(), start, wall()));
        let mut watched = Watched::default();
        two.step(Some(held.clone()), &mut watched, start, wall());
        held.metadata.resource_version = Some("2".into());
        let later = start + Duration::from_secs(20);
        assert_eq!(two.step(Some(held), &mut watched, later, wall()), Step::Wait);
    }

    #[tokio::test]
    async fn a_released_lease_and_ones_own_after_a_restart_are_taken_at_once() {
        let (one, two) = (candidate("one"), candidate("two"));
        let held = taken(one.step(None, &mut Watched::default(), Instant::now(), wall()));
        let again = taken(one.step(Some(held.clone()), &mut Watched::default(), Instant::now(), wall()));
        assert!(token_of(&again) > token_of(&held), "a restarted process is another holder");
        let mut released = held;
        released.spec.get_or_insert_default().holder_identity = Some(String::new());
        taken(two.step(Some(released), &mut Watched::default(), Instant::now(), wall()));
    }

    #[tokio::test]
    async fn a_foreign_edit_does_not_cost_the_lease_and_another_holder_does() {
        for (holder, kept) in [("one", true), ("two", false)] {
            let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
            let one = Election::new(
                Api::namespaced(Client::new(service, "ns"), "ns"),
                "l".into(),
                "one".into(),
                Arc::default(),
            );
            let lease =
                |holder: &str| serde_json::json!({ "metadata": { "name": "l" }, "spec": { "holderIdentity": holder } });
            let conflict =
                serde_json::json!({ "kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409 });
            let answers = [(200, lease("one")), (409, conflict), (200, lease(holder)), (200, lease(holder))];
            let server = tokio::spawn(async move {
                for (status, body) in answers {
                    let Some((_, send)) = handle.next_request().await else { return };
                    let answer = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
                    send.send_response(answer.expect("a response"));
                }
            });
            assert_eq!(one.renew(|_| {}).await.expect("answered"), kept, "{holder}");
            server.abort();
        }
    }

    #[tokio::test]
    async fn a_deleted_lease_does_not_take_the_token_back() {
        let one = candidate("one");
        let fresh = taken(one.step(None, &mut Watched::default(), Instant::now(), wall()));
        assert_eq!(token_of(&fresh), 1_800_000_000);
    }
}
