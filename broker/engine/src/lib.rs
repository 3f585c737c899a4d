//! One member of a cluster without its I/O: sessions, routing, replicas, effects.
//!
//! Drivers (the node with sockets and files, the simulator with fakes) code against [`seam`] and [`Member`].
//!
//! | module | holds |
//! |---|---|
//! | `seam`, `member` | what goes in and out; the round: handle many, flush once, poll |
//! | `clients`, `in_flight`, `calls`, `endings` | AMQP sessions: log-in, barriers, synchronous methods, ends of channels and connections |
//! | `publishing`, `consuming` | routes and confirms; deliveries, credit, settlements |
//! | `copies` | `min-in-sync-replicas`: confirms that wait for more disks than a majority |
//! | `stream`, `requests` | what this member, as a home, tells each group, and who waits for the answers |
//! | `groups`, `transient` | the leader's side: entries out of batches, effects back to homes; queues without Raft |
//! | `hosts`, `workers` | all replicas, spread over workers that can work side by side |
//! | `metadata`, `leases` | this member's view of group 0, and the proof that it is fresh |
//! | `join` | bootstrap, invitation, registration, and the care for who is in the cluster |
//! | `replicas` | which replicas this member makes, destroys and has replaced |
//! | `mover`, `rebalance` | a group's way to the replicas that it should have; which groups may go it at a time |
//! | `synchronising` | replicas that wait for `sync` (`ha-sync-mode: manual`) |
//! | `recovery`, `epochs` | forced recovery from the disks that are left; members that it left behind |
//! | `peers`, `links`, `peer_message` | links, heartbeats, suspicion, relays; the peer protocol |
//! | `backup` | barriers: a cut through all groups that is consistent |
//! | `restore` | a new cluster out of a backup; what of a backup a restore in place reads |
//! | `in_place` | a queue or virtual host out of a backup, under a new name, in the cluster that runs |
//! | `alarms`, `flow` | memory and disk alarms; byte budgets that all connections share |
//! | `admin`, `admin_requests`, `queue_reports`, `metrics`, `identity` | the operator's door; counters; who this disk is |
//!
//! Invariants:
//! - All that a home tells a group is one numbered row per run, sent again until the group has it; so nothing that
//!   travels between members needs to arrive, arrive once, or arrive in order of links.
//! - A client hears of a change (confirm, reply) only after the group that made it has committed it; of a change to
//!   routing only once every member with a live lease has applied it.
//! - A member routes and confirms only while its own view of group 0 is proven fresh, and only in a registered run.
//! - A synchronous reply leaves after all that its channel settled before is durable, a close after all it published.
//! - Deliveries are numbered by the group: a home drops what it has seen and asks for what it has not.
//! - An identity is durable before anybody else hears of it.

pub mod admin;
mod admin_requests;
mod alarms;
mod arguments;
pub mod backup;
mod calls;
mod clients;
mod consuming;
mod copies;
mod endings;
mod epochs;
mod flow;
mod groups;
mod hosts;
pub mod identity;
mod in_flight;
mod in_place;
mod join;
mod leases;
mod links;
pub mod member;
mod metadata;
mod metrics;
mod mover;
mod peer_message;
mod peers;
mod publishing;
mod queue_reports;
mod rebalance;
pub mod recovery;
mod replicas;
mod requests;
pub mod restore;
mod rng;
pub mod seam;
mod stream;
mod streams;
mod synchronising;
mod transient;
mod workers;

pub use alarms::Alarms;
pub use flow::Budgets;
pub use holdfast_replica::is_guarded;
pub use hosts::{Hosts, MOST_WORKERS};
pub use member::{Member, MemberConfig, Start};
pub use metrics::Metrics;
pub use seam::{
    AdminRequestId, ConnId, Event, FRAME_ROOM_BYTES, Input, LinkId, LinkOrigin, Memory, Output, PasswordToken, Severity,
};
pub use workers::{Crew, InTurn, Worker};
