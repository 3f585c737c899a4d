//! Which members' volumes a backup needs. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Copies of each queue that a backup holds where there are as many: one may turn out to be damaged.
const COPIES: usize = 2;

/// As few members as hold every queue [`COPIES`] times, or as often as it is held at all. `holders` are the distinct sets of
/// members that hold a queue complete. Of members that help equally, one in a zone that has none yet is taken, then the
/// first by name, so that a repetition chooses the same ones.
pub fn cover(holders: &[BTreeSet<String>], zones: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    let missing = |set: &BTreeSet<String>, chosen: &BTreeSet<String>| {
        set.len().min(COPIES).saturating_sub(set.intersection(chosen).count())
    };
    loop {
        let open: Vec<&BTreeSet<String>> = holders.iter().filter(|set| missing(set, &chosen) > 0).collect();
        let candidates: BTreeSet<&String> =
            open.iter().flat_map(|set| set.iter()).filter(|member| !chosen.contains(*member)).collect();
        let used: BTreeSet<&String> = chosen.iter().filter_map(|member| zones.get(member)).collect();
        let worth = |member: &&String| {
            let helps = open.iter().filter(|set| set.contains(*member)).count();
            (helps, zones.get(*member).is_some_and(|zone| !used.contains(zone)))
        };
        // `max_by_key` takes the last of equals.
        match candidates.into_iter().rev().max_by_key(worth) {
            Some(member) => chosen.insert(member.clone()),
            None => return chosen,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn zones(pairs: &str) -> BTreeMap<String, String> {
        pairs.split_whitespace().filter_map(|p| p.split_once('=')).map(|(m, z)| (m.to_owned(), z.to_owned())).collect()
    }

    #[test]
    fn every_queue_is_held_twice_by_as_few_members_as_will_do() {
        let table: [(&[&str], &str, &str); 6] = [
            (&["a b c"], "a=1 b=2 c=3", "a b"),
            (&["a b c"], "a=1 b=1 c=3", "a c"),
            (&["a b c", "a b c d e", "c d e"], "a=1 b=2 c=3 d=1 e=2", "a c d"),
            (&["a"], "a=1", "a"),
            (&["a", "b c", "a b"], "a=1 b=2 c=3", "a b c"),
            (&[], "a=1", ""),
        ];
        for (holders, zone_list, expected) in table {
            let holders: Vec<BTreeSet<String>> = holders.iter().map(|names| set(names)).collect();
            let chosen = cover(&holders, &zones(zone_list));
            for held_by in &holders {
                assert!(held_by.intersection(&chosen).count() >= held_by.len().min(COPIES), "{held_by:?}: {chosen:?}");
            }
            assert_eq!(chosen.len(), set(expected).len(), "{holders:?}: {chosen:?}");
            if holders.len() < 2 {
                assert_eq!(chosen, set(expected));
            }
        }
    }
}
