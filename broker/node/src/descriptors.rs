//! File descriptors: what clients may take of them, so that the journal and the links never lack one. A journal that
//! cannot make its next segment ends the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept from clients: listeners, links, the runtime, and calls of the admin API and of probes.
const KEPT: u64 = 64;
/// And this share of all, for the journal: one for each segment that is read or written.
const JOURNAL_SHARE: u64 = 4;

/// Takes as many descriptors as the system allows this process, and says how many connections of `wanted` its clients
/// may have.
pub fn connections_allowed(wanted: usize) -> usize {
    let limits = getrlimit(Resource::Nofile);
    if limits.current != limits.maximum {
        let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("the limit of file descriptors stays at {:?}: {error}", limits.current);
        }
    }
    let allowed = for_clients(getrlimit(Resource::Nofile).current, wanted);
    if allowed < wanted {
        tracing::warn!(
            "at most {allowed} client connections instead of {wanted}: this process may have no more file descriptors; \
             raise its limit (ulimit -n, LimitNOFILE)"
        );
    }
    allowed
}

/// None is no limit.
fn for_clients(descriptors: Option<u64>, wanted: usize) -> usize {
    let Some(descriptors) = descriptors else { return wanted };
    let left = descriptors.saturating_sub(KEPT + descriptors / JOURNAL_SHARE);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_to_the_journal_and_the_links() {
        assert_eq!(for_clients(None, 20_000), 20_000);
        assert_eq!(for_clients(Some(1 << 20), 20_000), 20_000);
        assert_eq!(for_clients(Some(256), 20_000), 128);
        assert_eq!(for_clients(Some(256), 100), 100);
        assert_eq!(for_clients(Some(16), 20_000), 1);
    }
}
