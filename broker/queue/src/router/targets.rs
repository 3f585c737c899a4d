//! Where bindings lead.

use crate::ids::QueueId;
use std::collections::BTreeMap;

/// The far end of a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Queue(QueueId),
    /// Another exchange of the virtual host, by name.
    Exchange(String),
}

/// A set of targets that counts how many bindings lead to each: two may differ in their arguments alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets(BTreeMap<Target, u32>);

impl Targets {
    pub(super) fn add(&mut self, target: Target) {
        *self.0.entry(target).or_default() += 1;
    }

    pub(super) fn remove(&mut self, target: &Target) {
        if let Some(count) = self.0.get_mut(target) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(target);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Target> {
        self.0.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
