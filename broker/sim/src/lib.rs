//! Seeded simulator of a whole cluster: virtual time, network and disk; workload, ledger, invariants.
//!
//! One seed gives everything. Three machines run the production `Member` and `Journal`; only sockets, disks and the
//! clock are replaced. Clients speak real AMQP frames and keep the ledger. After every event the invariants are
//! checked; then the faults stop, and everything must come right by itself.

pub mod client;
pub mod disk;
pub mod invariants;
pub mod ledger;
pub mod mutants;
pub mod nemesis;
pub mod network;
pub mod process;
pub mod replicas;
pub mod rng;
pub mod run;
pub mod trace;
pub mod world;
