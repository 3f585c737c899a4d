//! `holdfast.dev/v1alpha1`: the data of each kind in `<kind>.rs`, pure methods in `<kind>_ext.rs`.

mod bootstrap;
mod messagequeuebackup;
mod messagequeuebackup_ext;
mod messagequeuebackupschedule;
mod messagequeuecluster;
mod messagequeuecluster_ext;
mod reason;
mod schema;

pub use bootstrap::*;
pub use messagequeuebackup::*;
pub use messagequeuebackup_ext::*;
pub use messagequeuebackupschedule::*;
pub use messagequeuecluster::*;
pub use messagequeuecluster_ext::*;
pub use reason::{ConditionType, Reason};
pub use schema::{chart_template, custom_resource_definitions};
