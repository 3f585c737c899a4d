//! Parts of the end-to-end cases: the outside ledger, the clients that keep it, and the cluster under test.

pub mod brokers;
pub mod cases;
pub mod demo;
pub mod failover;
pub mod forward;
pub mod install;
pub mod kubernetes;
pub mod ledger;
pub mod load;
pub mod pika;
pub mod report;
