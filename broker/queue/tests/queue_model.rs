//! A queue against a model that is too simple to be wrong: a list of all messages ever published and where each is.

mod support;

use holdfast_queue::Machine;
use holdfast_queue::codec::{Batch, Entry};
use holdfast_queue::ids::{BootId, ConsumerId, MessageRef};
use holdfast_queue::queue::{Delivery, Outcome, QueueCommand, QueueEffect, QueueMachine, QueueReply, Span};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Ready,
    With(ConsumerId, u64),
    Gone,
}

#[derive(Debug)]
struct Known {
    prefetch: u32,
    credit_to: u64,
    last: u64,
    active: bool,
}

/// Messages in the order of publishing, with how often each came back.
#[derive(Default)]
struct Model {
    messages: Vec<(MessageRef, Place, u32)>,
    consumers: BTreeMap<ConsumerId, Known>,
    /// The last command of each run, and the runs that ended.
    last: BTreeMap<BootId, u64>,
    ended: BTreeSet<BootId>,
}

impl Model {
    /// Whether a numbered command is to be applied; it is then.
    fn is_new(&mut self, boot: BootId, seq: u64) -> bool {
        let last = self.last.entry(boot).or_default();
        let new = !self.ended.contains(&boot) && seq == *last + 1;
        *last += u64::from(new);
        new
    }

    fn is_dead(&self, index: u64) -> bool {
        self.messages.iter().all(|(at, place, _)| at.index != index || *place == Place::Gone)
    }

    fn count(&self, wanted: impl Fn(&Place) -> bool) -> u64 {
        self.messages.iter().filter(|(_, place, _)| wanted(place)).count() as u64
    }

    fn held_by(&self, id: ConsumerId) -> u64 {
        self.count(|place| matches!(place, Place::With(holder, _) if *holder == id))
    }

    fn has_room(&self, id: ConsumerId) -> bool {
        let known = &self.consumers[&id];
        known.active
            && known.last < known.credit_to
            && (known.prefetch == 0 || self.held_by(id) < u64::from(known.prefetch))
    }

    fn requeue_all(&mut self, theirs: impl Fn(ConsumerId) -> bool) {
        for (_, place, returns) in &mut self.messages {
            if matches!(place, Place::With(id, _) if theirs(*id)) {
                *place = Place::Ready;
                *returns += 1;
            }
        }
    }

    fn end(&mut self, theirs: impl Fn(ConsumerId) -> bool) {
        self.requeue_all(&theirs);
        for (id, known) in &mut self.consumers {
            known.active &= !theirs(*id);
        }
    }

    /// A message went to a consumer: it must be the oldest one there is.
    fn hand_out(&mut self, delivery: &Delivery) {
        let oldest = self.messages.iter_mut().find(|(_, place, _)| *place == Place::Ready).expect("a ready message");
        assert_eq!(oldest.0, delivery.message, "messages go in order");
        assert_eq!(oldest.2, delivery.delivery_count);
        oldest.1 = Place::With(delivery.consumer, delivery.number);
    }

    fn deliver(&mut self, delivery: &Delivery) {
        assert!(self.has_room(delivery.consumer), "no more than the prefetch and the credit allow");
        let known = self.consumers.get_mut(&delivery.consumer).expect("a consumer");
        known.last += 1;
        assert_eq!(known.last, delivery.number, "numbers are consecutive");
        self.hand_out(delivery);
    }

    /// Follows a command that was applied, given the reply to it.
    fn follow(&mut self, at: MessageRef, command: &QueueCommand, reply: Option<&QueueReply>) {
        match command {
            QueueCommand::Publish { .. } => self.messages.push((at, Place::Ready, 0)),
            QueueCommand::Subscribe { consumer, prefetch, credit_to, .. } => {
                assert_eq!(reply, Some(&QueueReply::Subscribed));
                let known = Known { prefetch: *prefetch, credit_to: *credit_to, last: 0, active: true };
                self.consumers.insert(*consumer, known);
            }
            QueueCommand::Cancel { consumer, .. } => {
                if let Some(known) = self.consumers.get_mut(consumer) {
                    known.active = false;
                }
            }
            QueueCommand::Settle { consumer, spans, outcome, .. } => {
                for (_, place, returns) in &mut self.messages {
                    let Place::With(holder, number) = *place else { continue };
                    if holder != *consumer || !spans.iter().any(|span| (span.first..=span.last).contains(&number)) {
                        continue;
                    }
                    let requeue = *outcome == Outcome::Requeue;
                    *place = if requeue { Place::Ready } else { Place::Gone };
                    *returns += u32::from(requeue);
                }
            }
            QueueCommand::SetPrefetch { consumer, prefetch, .. } => {
                if let Some(known) = self.consumers.get_mut(consumer) {
                    known.prefetch = *prefetch;
                }
            }
            QueueCommand::Credit { consumer, up_to, .. } => {
                if let Some(known) = self.consumers.get_mut(consumer) {
                    known.credit_to = known.credit_to.max(*up_to);
                }
            }
            QueueCommand::Get { consumer, .. } => match reply {
                Some(QueueReply::Got { delivery, remaining }) => {
                    assert_eq!((delivery.consumer, delivery.number), (*consumer, 1));
                    self.hand_out(delivery);
                    assert_eq!(*remaining, self.count(|place| *place == Place::Ready));
                }
                Some(QueueReply::Empty) => assert_eq!(self.count(|place| *place == Place::Ready), 0),
                other => panic!("{other:?}"),
            },
            QueueCommand::Purge { .. } => {
                let messages = self.count(|place| *place == Place::Ready);
                assert_eq!(reply, Some(&QueueReply::Purged { messages }));
                self.messages.iter_mut().filter(|it| it.1 == Place::Ready).for_each(|it| it.1 = Place::Gone);
            }
            QueueCommand::Recover { channel } => self.requeue_all(|id| id.channel == *channel),
            QueueCommand::ChannelClosed { channel } => self.end(|id| id.channel == *channel),
            QueueCommand::SessionClosed { session } => self.end(|id| id.channel.session == *session),
            QueueCommand::BootEnded { boot } => {
                self.ended.insert(*boot);
                self.end(|id| id.boot() == *boot);
            }
            other => panic!("not in this test: {other:?}"),
        }
    }

    /// After an entry: the counts agree, and no consumer waits for a message that is there.
    fn check(&self, machine: &QueueMachine) {
        let stats = machine.stats(QUEUE).expect("the queue");
        let ready = self.count(|place| *place == Place::Ready);
        assert_eq!((stats.ready, stats.unacked), (ready, self.count(|place| matches!(place, Place::With(..)))));
        assert_eq!(stats.consumers, self.consumers.values().filter(|known| known.active).count() as u64);
        assert!(ready == 0 || !self.consumers.keys().any(|id| self.has_room(*id)), "a consumer with room is idle");
        let live: BTreeSet<u64> =
            self.messages.iter().filter(|(_, place, _)| *place != Place::Gone).map(|(at, ..)| at.index).collect();
        assert_eq!(machine.live_indexes(), live.into_iter().collect::<Vec<_>>());
        for (id, known) in self.consumers.iter().filter(|(id, known)| known.active || self.held_by(**id) > 0) {
            let all = machine.deliveries_after(QUEUE, *id, 0, usize::MAX).expect("a consumer");
            assert_eq!((all.deliveries.len() as u64, all.through), (self.held_by(*id), known.last));
        }
    }
}

/// A step of a test: which member it comes from, which of its channels and consumers, and what.
#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    Subscribe { prefetch: u32, credit: Option<u64> },
    Cancel(u8),
    Settle { consumer: u8, first: u64, len: u64, outcome: Outcome },
    Prefetch(u8, u32),
    Credit(u8, u64),
    Get,
    Purge,
    Recover,
    CloseChannel,
    CloseSession,
    EndBoot,
    Resend(u8),
    LateResend,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![4 => Just(Outcome::Ack), 2 => Just(Outcome::Requeue), 1 => Just(Outcome::Reject)];
    prop_oneof![
        12 => (1..6u8).prop_map(Step::Publish),
        4 => (0..4u32, prop::option::of(0..6u64)).prop_map(|(prefetch, credit)| Step::Subscribe { prefetch, credit }),
        1 => any::<u8>().prop_map(Step::Cancel),
        12 => (any::<u8>(), 0..10u64, 0..5u64, outcome)
            .prop_map(|(consumer, first, len, outcome)| Step::Settle { consumer, first, len, outcome }),
        1 => (any::<u8>(), 0..4u32).prop_map(|(consumer, prefetch)| Step::Prefetch(consumer, prefetch)),
        2 => (any::<u8>(), 0..20u64).prop_map(|(consumer, up_to)| Step::Credit(consumer, up_to)),
        3 => Just(Step::Get),
        1 => Just(Step::Purge),
        1 => Just(Step::Recover),
        1 => Just(Step::CloseChannel),
        1 => Just(Step::CloseSession),
        1 => Just(Step::EndBoot),
        4 => any::<u8>().prop_map(Step::Resend),
        1 => Just(Step::LateResend),
    ]
}

/// Where a step comes from: home, connection, channel.
type From = (u8, u8, u8);

struct Run {
    group: Group<QueueMachine>,
    model: Model,
    /// Present run of each home.
    runs: [u64; 2],
    /// All batches that each run sent.
    history: BTreeMap<BootId, Vec<Batch<QueueCommand>>>,
    consumers: Vec<ConsumerId>,
    dead: BTreeSet<u64>,
}

impl Run {
    fn new() -> Run {
        let mut group = Group::new(QueueMachine::new());
        group.lead(create());
        let history = BTreeMap::new();
        Run { group, model: Model::default(), runs: [1, 1], history, consumers: Vec::new(), dead: BTreeSet::new() }
    }

    fn boot(&self, home: u8) -> BootId {
        BootId(u64::from(home) << 32 | self.runs[usize::from(home)])
    }

    fn new_consumer(&mut self, from: From) -> ConsumerId {
        let channel = channel(self.boot(from.0), u64::from(from.1), u16::from(from.2));
        ConsumerId { channel, number: self.consumers.len() as u32 }
    }

    /// The commands of a step, `None` for those that send no new ones.
    fn commands(&mut self, from: From, step: &Step) -> Option<Vec<QueueCommand>> {
        let here = channel(self.boot(from.0), u64::from(from.1), u16::from(from.2));
        let pick = |at: u8| self.consumers.get(usize::from(at) % self.consumers.len().max(1)).copied();
        Some(match step {
            Step::Publish(count) => (0..*count).map(|_| publish("body")).collect(),
            Step::Subscribe { prefetch, credit } => {
                let id = self.new_consumer(from);
                self.consumers.push(id);
                let mut command = subscribe(id, *prefetch);
                if let QueueCommand::Subscribe { credit_to, .. } = &mut command {
                    *credit_to = credit.unwrap_or(u64::MAX);
                }
                vec![command]
            }
            Step::Cancel(at) => vec![QueueCommand::Cancel { queue: QUEUE, consumer: pick(*at)? }],
            Step::Settle { consumer, first, len, outcome } => {
                let spans = vec![Span { first: *first, last: first + len }, Span::one(first + len + 2)];
                vec![QueueCommand::Settle { queue: QUEUE, consumer: pick(*consumer)?, spans, outcome: *outcome }]
            }
            Step::Prefetch(at, prefetch) => {
                vec![QueueCommand::SetPrefetch { queue: QUEUE, consumer: pick(*at)?, prefetch: *prefetch }]
            }
            Step::Credit(at, up_to) => vec![QueueCommand::Credit { queue: QUEUE, consumer: pick(*at)?, up_to: *up_to }],
            Step::Get => {
                let consumer = self.new_consumer(from);
                self.consumers.push(consumer);
                vec![QueueCommand::Get { queue: QUEUE, consumer }]
            }
            Step::Purge => vec![QueueCommand::Purge { queue: QUEUE }],
            Step::Recover => vec![QueueCommand::Recover { channel: here }],
            Step::CloseChannel => vec![QueueCommand::ChannelClosed { channel: here }],
            Step::CloseSession => vec![QueueCommand::SessionClosed { session: here.session }],
            Step::EndBoot | Step::Resend(_) | Step::LateResend => return None,
        })
    }

    fn old_batch(&self, boot: BootId, back: u8) -> Option<Batch<QueueCommand>> {
        let history = self.history.get(&boot)?;
        history.iter().rev().nth(usize::from(back) % history.len()).cloned()
    }

    /// The batches of one entry; new commands are followed by the model once the entry is applied.
    fn batches(&mut self, steps: &[(From, Step)]) -> Vec<Batch<QueueCommand>> {
        let mut batches = Vec::new();
        for (from, step) in steps {
            let boot = self.boot(from.0);
            if let Some(commands) = self.commands(*from, step) {
                let batch = self.group.batch(boot, commands);
                self.history.entry(boot).or_default().push(batch.clone());
                batches.push(batch);
                continue;
            }
            match step {
                Step::Resend(back) => batches.extend(self.old_batch(boot, *back)),
                Step::LateResend => {
                    let ended = BootId(boot.0 - 1);
                    batches.extend(self.old_batch(ended, 0));
                }
                _ => {
                    batches.push(Batch { origin: None, commands: vec![QueueCommand::BootEnded { boot }] });
                    self.runs[usize::from(from.0)] += 1;
                }
            }
        }
        batches
    }

    fn entry(&mut self, steps: &[(From, Step)], reload: bool) {
        let batches = self.batches(steps);
        let payload = Group::<QueueMachine>::payload(&batches);
        let snapshot = self.group.machine.snapshot();
        let effects = self.group.apply_payload(&payload);
        let mut twin = Group::new(QueueMachine::restore(&snapshot).expect("a snapshot reads back"));
        twin.index = self.group.index - 1;
        assert_eq!(twin.apply_payload(&payload), effects, "a restored replica does the same");
        assert_eq!(twin.machine.digest(), self.group.machine.digest());

        self.follow(Entry::from_bytes(&payload).expect("an entry"), &effects);
        for index in self.group.machine.take_dead() {
            assert!(self.dead.insert(index), "an entry dies once");
            assert!(self.model.is_dead(index));
        }
        self.model.check(&self.group.machine);
        if reload {
            self.group.reload();
        }
    }

    /// Lets the model follow the commands that are new, then the deliveries, which come at the end of the entry.
    fn follow(&mut self, entry: Entry<QueueCommand>, effects: &[QueueEffect]) {
        let mut replies: BTreeMap<(BootId, u64), &QueueReply> = BTreeMap::new();
        for effect in effects {
            if let QueueEffect::Reply { boot, seq, reply } = effect {
                assert_eq!(replies.insert((*boot, *seq), reply).unwrap_or(reply), reply, "a repeat is answered alike");
            }
        }
        for batch in entry.batches {
            let Some(origin) = batch.origin else {
                for one in &batch.commands {
                    self.model.follow(self.at(one.sub), &one.command, None);
                }
                continue;
            };
            for (seq, one) in (origin.first..).zip(&batch.commands) {
                if self.model.is_new(origin.boot, seq) {
                    let reply = replies.get(&(origin.boot, seq)).copied();
                    self.model.follow(self.at(one.sub), &one.command, reply);
                }
            }
        }
        deliveries(effects).iter().for_each(|delivery| self.model.deliver(delivery));
    }

    fn at(&self, sub: u32) -> MessageRef {
        MessageRef { index: self.group.index, sub }
    }

    /// The queue goes on in another cluster: of all homes nothing is left, and every message is in its place.
    fn forget_homes(mut self) {
        self.group.machine.forget_homes();
        self.group.reload();
        let left = self.model.messages.iter().filter(|(_, place, _)| *place != Place::Gone);
        let expected: Vec<(MessageRef, u32)> =
            left.map(|(at, place, returns)| (*at, returns + u32::from(*place != Place::Ready))).collect();
        let stats = self.group.machine.stats(QUEUE).expect("the queue");
        assert_eq!((stats.ready, stats.unacked, stats.consumers), (expected.len() as u64, 0, 0));
        assert_eq!(self.group.machine.boots(), BTreeSet::new());
        let home = BootId(u64::MAX);
        let found = (0..=expected.len() as u32).filter_map(|number| {
            let consumer = ConsumerId { channel: channel(home, 1, 1), number };
            match replies(&self.group.send(home, vec![QueueCommand::Get { queue: QUEUE, consumer }])).first() {
                Some(QueueReply::Got { delivery, .. }) => Some((delivery.message, delivery.delivery_count)),
                _ => None,
            }
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_does_what_the_model_says(
        entries in prop::collection::vec(
            (prop::collection::vec(((0..2u8, 0..2u8, 0..2u8), step()), 1..6), any::<bool>()),
            1..40,
        ),
    ) {
        let mut run = Run::new();
        for (steps, reload) in &entries {
            run.entry(steps, *reload);
        }
        run.forget_homes();
    }
}
