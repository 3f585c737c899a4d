//! Topic patterns of one exchange: words separated by dots, `*` stands for one word, `#` for any number of them (AMQP
//! 0-9-1 §3.1.3.3).

use super::Targets;
use super::targets::Target;
use std::collections::BTreeMap;

/// A trie of patterns, walked as a set of places at once: the cost of a match grows with the words times the places
/// reached, whatever the patterns (trying each way through several `#` one after the other would grow exponentially).
#[derive(Clone, Debug)]
pub(super) struct TopicTrie {
    places: Vec<Place>,
    free: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    words: BTreeMap<Box<[u8]>, usize>,
    star: Option<usize>,
    hash: Option<usize>,
    /// Reached by `#`: any further word leads back here.
    is_hash: bool,
    targets: Targets,
}

const ROOT: usize = 0;

impl Default for TopicTrie {
    fn default() -> TopicTrie {
        TopicTrie { places: vec![Place::default()], free: Vec::new() }
    }
}

/// The words of a key or pattern; an empty one has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|byte| *byte == b'.').filter(move |_| !key.is_empty())
}

impl TopicTrie {
    pub(super) fn add(&mut self, pattern: &[u8], target: Target) {
        let mut place = ROOT;
        for word in words(pattern) {
            place = match self.places[place].next(word) {
                Some(next) => next,
                None => self.grow(place, word),
            };
        }
        self.places[place].targets.add(target);
    }

    fn grow(&mut self, from: usize, word: &[u8]) -> usize {
        let place = Place { is_hash: word == b"#", ..Place::default() };
        let next = match self.free.pop() {
            Some(next) => {
                self.places[next] = place;
                next
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        };
        match word {
            b"*" => self.places[from].star = Some(next),
            b"#" => self.places[from].hash = Some(next),
            _ => {
                self.places[from].words.insert(word.into(), next);
            }
        }
        next
    }

    pub(super) fn remove(&mut self, pattern: &[u8], target: &Target) {
        let mut path = Vec::new();
        let mut place = ROOT;
        for word in words(pattern) {
            let Some(next) = self.places[place].next(word) else { return };
            path.push((place, word));
            place = next;
        }
        self.places[place].targets.remove(target);
        while let Some((from, word)) = path.pop() {
            if !self.places[place].is_bare() {
                return;
            }
            self.places[from].forget(word);
            self.free.push(place);
            place = from;
        }
    }

    /// Calls `found` for each target of each pattern that matches.
    pub(super) fn matches<'a>(&'a self, key: &[u8], mut found: impl FnMut(&'a Target)) {
        let mut reached = vec![ROOT];
        self.skip_hashes(&mut reached);
        for word in words(key) {
            let mut next = Vec::with_capacity(reached.len());
            for at in reached {
                let place = &self.places[at];
                next.extend(place.is_hash.then_some(at));
                next.extend(place.words.get(word));
                next.extend(place.star);
            }
            self.skip_hashes(&mut next);
            reached = next;
        }
        for place in reached {
            self.places[place].targets.iter().for_each(&mut found);
        }
    }

    /// `#` stands for no word too.
    fn skip_hashes(&self, reached: &mut Vec<usize>) {
        let mut at = 0;
        while at < reached.len() {
            reached.extend(self.places[reached[at]].hash);
            at += 1;
        }
        reached.sort_unstable();
        reached.dedup();
    }
}

impl Place {
    fn next(&self, word: &[u8]) -> Option<usize> {
        match word {
            b"*" => self.star,
            b"#" => self.hash,
            _ => self.words.get(word).copied(),
        }
    }

    fn forget(&mut self, word: &[u8]) {
        match word {
            b"*" => self.star = None,
            b"#" => self.hash = None,
            _ => {
                self.words.remove(word);
            }
        }
    }

    fn is_bare(&self) -> bool {
        self.words.is_empty() && self.star.is_none() && self.hash.is_none() && self.targets.is_empty()
    }
}
