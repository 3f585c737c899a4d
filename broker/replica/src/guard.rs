//! raft-rs panics where its state makes no sense, and where its storage cannot read an entry. One replica is out of service
//! then, and nothing else.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread would end one replica and not the process: for a panic hook, so that it can say so.
#[must_use]
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs `call`; what it said when it panicked.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_guard_is_told_and_the_guard_ends_with_it() {
        assert!(!is_guarded());
        assert_eq!(guarded(|| u32::from(is_guarded())), Ok(1));
        assert_eq!(guarded(|| panic!("no {}", "sense")).map(|(): ()| 0), Err("no sense".to_owned()));
        assert!(!is_guarded());
    }
}
