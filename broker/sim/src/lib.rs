//! Seeded simulator of a whole cluster: virtual time, network and disk; workload, ledger, invariants.
