//! Users, and what they may do.

use super::command::NewUser;
use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::pattern::Pattern;
use super::state::UserInfo;
use crate::codec::{Codec, DecodeError, Reader, Writer};

/// What a user wants to do with a queue or an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Declare or delete it.
    Configure,
    /// Publish or bind into it.
    Write,
    /// Consume, get, purge or bind from it.
    Read,
}

/// What a user may do in a virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    configure: Pattern,
    write: Pattern,
    read: Pattern,
}

impl Grant {
    /// Of three patterns.
    ///
    /// # Errors
    /// A sentence about the first pattern that is no regular expression.
    pub(super) fn new(configure: &str, write: &str, read: &str) -> Result<Grant, String> {
        let pattern = Pattern::of_permission;
        Ok(Grant { configure: pattern(configure)?, write: pattern(write)?, read: pattern(read)? })
    }

    /// Everything.
    pub(super) fn full() -> Grant {
        let all = Pattern::everything;
        Grant { configure: all(), write: all(), read: all() }
    }

    fn pattern(&self, permission: Permission) -> &Pattern {
        match permission {
            Permission::Configure => &self.configure,
            Permission::Write => &self.write,
            Permission::Read => &self.read,
        }
    }
}

impl Codec for Grant {
    fn encode(&self, out: &mut Writer) {
        for pattern in [&self.configure, &self.write, &self.read] {
            pattern.text().to_owned().encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let mut pattern = || -> Result<Pattern, DecodeError> {
            Pattern::of_permission(&String::decode(input)?)
                .map_err(|_| DecodeError::Invalid("a permission is no regular expression"))
        };
        Ok(Grant { configure: pattern()?, write: pattern()?, read: pattern()? })
    }
}

impl MetaMachine {
    /// A user.
    pub fn user(&self, name: &str) -> Option<&UserInfo> {
        self.users.get(name)
    }

    /// All users by name.
    pub fn users(&self) -> impl Iterator<Item = (&str, &UserInfo)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// The virtual hosts in which a user has permissions, by name.
    pub fn vhosts_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a str> {
        let vhosts = self.vhosts.iter().filter(move |(_, vhost)| vhost.grants.contains_key(user));
        vhosts.map(|(name, _)| name.as_str())
    }

    /// Whether a user may open connections to a virtual host: it has permissions there.
    pub fn may_enter(&self, user: &str, vhost: &str) -> bool {
        self.vhost(vhost).is_some_and(|vhost| vhost.grants.contains_key(user))
    }

    /// Whether a user may do something with a queue or an exchange. The default exchange counts as `amq.default`.
    pub fn may(&self, user: &str, vhost: &str, permission: Permission, resource: &str) -> bool {
        let Some(grant) = self.vhost(vhost).and_then(|vhost| vhost.grants.get(user)) else { return false };
        grant.pattern(permission).matches(if resource.is_empty() { "amq.default" } else { resource })
    }

    /// A user's patterns in a virtual host: configure, write, read.
    pub fn permissions(&self, user: &str, vhost: &str) -> Option<[&str; 3]> {
        let grant = self.vhost(vhost)?.grants.get(user)?;
        Some([grant.configure.text(), grant.write.text(), grant.read.text()])
    }

    pub(super) fn put_user(&mut self, user: NewUser, changes: &mut Vec<Change>) -> Outcome {
        self.users.insert(user.name, UserInfo { hash: user.hash, tags: user.tags });
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    pub(super) fn delete_user(&mut self, name: &str, changes: &mut Vec<Change>) -> Outcome {
        self.users.remove(name);
        for vhost in self.vhosts.values_mut() {
            vhost.grants.remove(name);
        }
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    pub(super) fn grant(&mut self, vhost: &str, user: &str, grant: Grant, changes: &mut Vec<Change>) -> Outcome {
        if !self.users.contains_key(user) {
            return Err(Refusal { code: 404, text: format!("no user '{user}'") });
        }
        self.vhost_mut(vhost)?.grants.insert(user.to_owned(), grant);
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    pub(super) fn set_permissions(
        &mut self,
        vhost: &str,
        user: &str,
        patterns: [&str; 3],
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let [configure, write, read] = patterns;
        let grant = Grant::new(configure, write, read).map_err(|text| Refusal { code: 406, text })?;
        self.grant(vhost, user, grant, changes)
    }

    pub(super) fn clear_permissions(&mut self, vhost: &str, user: &str, changes: &mut Vec<Change>) -> Outcome {
        self.vhost_mut(vhost)?.grants.remove(user);
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }
}
