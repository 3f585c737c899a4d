//! Which members' copies have which groups.

use std::collections::BTreeSet;

use holdfast_journal::FileSystem;

use crate::backup::files::{Problem, damage_in};
use crate::backup::{GroupEntry, Manifest, MemberEntry};

/// A copy of one member's hold.
#[derive(Clone, Debug)]
pub struct HoldCopy<F> {
    /// The member's name.
    pub member: String,
    /// Its files, under the names that the manifest gives them.
    pub files: F,
}

/// Which groups can be had from some members' copies.
#[derive(Debug)]
pub struct Coverage<'a> {
    manifest: &'a Manifest,
}

impl<'a> Coverage<'a> {
    pub fn of(manifest: &'a Manifest) -> Self {
        Self { manifest }
    }

    /// Groups of which none of these members has all.
    pub fn lacking(&self, whole: &BTreeSet<String>) -> Vec<&'a GroupEntry> {
        let lacks = |group: &&GroupEntry| !group.holders.iter().any(|holder| whole.contains(holder));
        self.manifest.groups.iter().filter(lacks).collect()
    }

    /// Whether a member's copy has a group that none of these members has.
    pub fn is_needed(&self, member: &str, whole: &BTreeSet<String>) -> bool {
        self.lacking(whole).iter().any(|group| group.holders.iter().any(|holder| holder == member))
    }

    /// The members whose copies are read, in order, out of these: as few as possible, each with most of what those before it
    /// lack.
    pub fn chosen(&self, whole: &BTreeSet<String>) -> Vec<&'a MemberEntry> {
        let (mut chosen, mut have) = (Vec::new(), BTreeSet::new());
        loop {
            let lacking = self.lacking(&have);
            let gain =
                |member: &&MemberEntry| lacking.iter().filter(|group| group.holders.contains(&member.name)).count();
            let candidates = self.manifest.members.iter().filter(|member| whole.contains(&member.name));
            // Of equal ones the first.
            let best = candidates.rev().max_by_key(gain).filter(|member| gain(member) > 0);
            let Some(member) = best else { return chosen };
            have.insert(member.name.clone());
            chosen.push(member);
        }
    }
}

/// What is wrong with each copy: its member, and the problems of its files.
pub(super) fn damages<F: FileSystem>(manifest: &Manifest, copies: &[HoldCopy<F>]) -> Vec<(String, Vec<Problem>)> {
    let look = |copy: &HoldCopy<F>| {
        let problems = match manifest.members.iter().find(|member| member.name == copy.member) {
            Some(member) => damage_in(member, &copy.files),
            None => vec![Problem { of: copy.member.clone(), what: "the manifest has no files of this member".into() }],
        };
        (copy.member.clone(), problems)
    };
    copies.iter().map(look).collect()
}
