//! Real broker processes under real clients: kills, bad input, and data directories that must not be used.
//!
//! Every wait is bounded and polls a condition. `-- --nocapture` shows the progress.

mod backup;
mod bad_input;
mod cluster;
mod disk_faults;
mod full_disk;
mod in_place;
mod journal;
mod newcomers;
mod recovery;
mod recovery_of_a_queue;
mod restore;
mod restore_api;
mod starting;
mod survival;
