//! Several hosts together, on virtual time.

mod chaos;
mod disk;
mod durability;
mod elections;
mod harness;
mod healing;
mod ledger;
mod membership;
mod probes;
mod quiescence;
mod repair;
mod snapshots;
