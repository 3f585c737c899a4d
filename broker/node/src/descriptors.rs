//! File descriptors: what clients may take of them, so that the journal and the links never lack one. A journal that
//! cannot make its next segment ends the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept from everybody: listeners, links that stand, the runtime.
const KEPT: u64 = 64;
/// And this share of all, for the journal: one for each segment that is read or written.
const JOURNAL_SHARE: u64 = 4;
/// The share of all that connections to the admin API may take, and those to probes and metrics, and the most of each.
const HTTP_SHARE: u64 = 16;
const MOST_HTTP: u64 = 256;
/// The share of all that other members' links may take while it is not known yet who they are, and the most of it.
const UNPROVEN_SHARE: u64 = 32;
const MOST_UNPROVEN: u64 = 128;

/// How many connections of each kind there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of clients.
    pub clients: usize,
    /// To the admin API; and to probes and metrics as many.
    pub http: usize,
    /// To the peer port, before a certificate has shown that a member is behind it.
    pub unproven: usize,
}

impl Budget {
    /// Takes as many descriptors as the system allows this process, and divides them; `wanted` are the connections that
    /// clients are to have.
    pub fn take(wanted: usize) -> Self {
        let limits = getrlimit(Resource::Nofile);
        if limits.current != limits.maximum {
            let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                tracing::warn!("the limit of file descriptors stays at {:?}: {error}", limits.current);
            }
        }
        let budget = Self::of(getrlimit(Resource::Nofile).current, wanted);
        if budget.clients < wanted {
            tracing::warn!(
                "at most {} client connections instead of {wanted}: this process may have no more file descriptors; raise \
                 its limit (ulimit -n, LimitNOFILE)",
                budget.clients
            );
        }
        budget
    }

    /// None is no limit.
    fn of(descriptors: Option<u64>, wanted: usize) -> Self {
        let descriptors = descriptors.unwrap_or(u64::MAX);
        let http = (descriptors / HTTP_SHARE).clamp(1, MOST_HTTP);
        let unproven = (descriptors / UNPROVEN_SHARE).clamp(1, MOST_UNPROVEN);
        let kept = KEPT.saturating_add(descriptors / JOURNAL_SHARE).saturating_add(2 * http + unproven);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            clients: wanted.min(count(descriptors.saturating_sub(kept))).max(1),
            http: count(http),
            unproven: count(unproven),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_connects_leaves_descriptors_to_the_journal_and_the_links() {
        let most = |clients| Budget { clients, http: 256, unproven: 128 };
        assert_eq!(Budget::of(None, 20_000), most(20_000));
        assert_eq!(Budget::of(Some(1 << 20), 20_000), most(20_000));
        assert_eq!(Budget::of(Some(1024), 20_000), Budget { clients: 544, http: 64, unproven: 32 });
        assert_eq!(Budget::of(Some(256), 20_000), Budget { clients: 88, http: 16, unproven: 8 });
        assert_eq!(Budget::of(Some(256), 50).clients, 50);
        assert_eq!(Budget::of(Some(16), 20_000), Budget { clients: 1, http: 1, unproven: 1 });
    }
}
