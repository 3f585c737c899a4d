//! Hosts many Raft groups over one journal.
