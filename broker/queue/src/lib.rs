//! The deterministic machines: queues, and the cluster's metadata.
