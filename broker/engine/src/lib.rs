//! One member of a cluster without its I/O: sessions, routing, replicas, effects.
//!
//! Drivers (the node with sockets and files, the simulator with fakes) code against [`seam`] and [`Member`].

pub mod admin;
mod admin_requests;
mod arguments;
mod calls;
mod clients;
mod consuming;
mod groups;
pub mod identity;
mod join;
mod leases;
mod links;
pub mod member;
mod metadata;
mod metrics;
mod peer_message;
mod peers;
mod publishing;
mod requests;
mod rng;
pub mod seam;
mod stream;
mod transient;

pub use member::{Member, MemberConfig, Start};
pub use metrics::Metrics;
pub use seam::{AdminRequestId, ConnId, Event, Input, LinkId, LinkOrigin, Output, PasswordToken, Severity};
