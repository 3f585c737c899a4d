//! The admin API: the operator's only door to a running broker. HTTP with certificates on both sides; JSON both ways.

pub mod backup;
pub mod client;
pub mod in_place;
pub mod json;
mod policies;
pub mod recovery;
pub mod restore;
pub mod routes;
