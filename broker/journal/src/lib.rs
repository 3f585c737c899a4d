//! One group-commit log per member: records, segments, recovery.
