//! The Holdfast operator.
