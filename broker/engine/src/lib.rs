//! One member of a cluster without its I/O: sessions, routing, replicas, effects.
