//! The kinds of the group `holdfast.dev`, one module a version. Changes within a version are additive.

pub mod v1alpha1;
