//! Seeded simulator of a whole cluster: virtual time, network and disk; workload, ledger, invariants.
//!
//! One seed gives everything. Three machines run the production `Member` and `Journal`; only sockets, disks and the
//! clock are replaced. Clients speak real AMQP frames and keep the ledger. After every event the invariants are
//! checked; then the faults stop, and everything must come right by itself.
//!
//! | module | holds |
//! |---|---|
//! | `plan` | what a seed's run will be: clients, strikes, promises; can be cut down |
//! | `faults` | the fault list: for each fault its strikes and what is asserted |
//! | `run` | one seed: founding, faults, settling, verdict |
//! | `world` | the agenda of events in virtual time; links and client connections |
//! | `process`, `disk` | a machine: its process comes and goes, its disk keeps what was synced, and loses or tears the rest |
//! | `network`, `nemesis` | what lies between machines, and the strikes that befall them |
//! | `client`, `ledger` | AMQP clients, and what they were told |
//! | `invariants` | one promise in each file, with its source |
//! | `campaign`, `minimize` | many seeds over threads, with reports; a failing run made smaller |
//! | `membership` | members that come, go, are replaced and have damaged disks, under load and other faults |
//! | `backups` | barriers under load and other faults, and slow copies of what they hold |
//! | `restored` | a new cluster out of such copies, whose messages are consumed |
//! | `mutants` | planted bugs that the simulator must find |
//! | `replicas` | replication and journal alone, for many more leader changes in the same time |
//!
//! Invariant: nothing here or below reads a clock, a thread or a hasher's order; the same seed and the same code give the
//! same run, event by event. `tests/regressions.rs` keeps every bug that was found, by name.

pub mod backups;
pub mod campaign;
pub mod client;
pub mod disk;
pub mod faults;
pub mod holdings;
pub mod invariants;
pub mod ledger;
pub mod membership;
pub mod minimize;
pub mod mutants;
pub mod nemesis;
pub mod network;
pub mod plan;
pub mod process;
pub mod replicas;
pub mod restored;
pub mod rng;
pub mod run;
pub mod trace;
pub mod world;
