//! Sets of Raft indexes that are mostly neighbours, as the records of the journal list them.

/// Ascending, disjoint ranges, each with its end excluded. The live indexes of a long queue are often one of them, so
/// comparing ten million indexes with such a set costs next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(Vec<(u64, u64)>);

impl FromIterator<u64> for Runs {
    /// From ascending indexes.
    fn from_iter<I: IntoIterator<Item = u64>>(indexes: I) -> Self {
        let mut runs = Self::default();
        indexes.into_iter().for_each(|index| runs.push(index, index + 1));
        runs
    }
}

impl Runs {
    /// Adds `start..end`, which begins at or behind the end of what is there.
    pub(crate) fn push(&mut self, start: u64, end: u64) {
        match self.0.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ if start < end => self.0.push((start, end)),
            _ => {}
        }
    }

    /// The number of indexes.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    fn run_from(&self, index: u64) -> Option<(u64, u64)> {
        let at = self.0.partition_point(|(_, end)| *end <= index);
        self.0.get(at).copied()
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.run_from(index).is_some_and(|(start, _)| start <= index)
    }

    /// Whether all of `start..end` is in it.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        self.run_from(start).is_some_and(|run| run.0 <= start && run.1 >= end)
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_indexes_that_it_was_made_of() {
        let indexes: Vec<u64> = (0..400).filter(|index| index % 7 < 4 && index / 30 % 3 != 1).collect();
        let runs: Runs = indexes.iter().copied().collect();
        assert!(runs.iter().eq(indexes.iter().copied()));
        assert_eq!(runs.len(), indexes.len() as u64);
        for start in 0..410 {
            assert_eq!(runs.contains(start), indexes.contains(&start));
            for end in start + 1..start + 9 {
                assert_eq!(runs.covers(start, end), (start..end).all(|index| indexes.contains(&index)));
            }
        }
    }
}
