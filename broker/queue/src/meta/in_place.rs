//! Restores in place (design §3.6): a queue or a virtual host out of a backup, under a new name, in the cluster that runs.
//!
//! What is being restored has its name at once, so nobody else can take it, but until all of it is there nobody can use it:
//! it is on no route, and sessions are refused. The mark stays when it is complete, so that a restore that is repeated
//! finds its own work; it goes with what it marks.

use super::command::Destination;
use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::state::{Owner, Placement, QueueInfo, Vhost};
use crate::arguments::Arguments;
use crate::codec::codec_struct;
use crate::ids::{BootId, MemberId, SessionId};
use crate::machine::ApplyMeta;
use crate::router::Router;

/// Which restore brings a queue or a virtual host, and whether all of it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restoring {
    /// The restore's name, chosen by whoever asks for it; the same for every repeat.
    pub id: String,
    /// It is there whole, and may be used.
    pub complete: bool,
}

codec_struct! {
    Restoring { id, complete }
}

/// In the place of a queue's name: the virtual host as a whole.
const WHOLE: &str = "";

fn exists(what: &str) -> Refusal {
    Refusal { code: 406, text: format!("{what} exists already, and not by this restore") }
}

fn not_begun(what: &str) -> Refusal {
    Refusal { code: 404, text: format!("no restore of {what} has begun") }
}

fn described(vhost: &str, name: &str) -> String {
    match name {
        WHOLE => format!("vhost '{vhost}'"),
        _ => format!("queue '{name}' in vhost '{vhost}'"),
    }
}

impl MetaMachine {
    /// The restore that brings, or has brought, a queue; with an empty name, the virtual host.
    pub fn restoring(&self, vhost: &str, name: &str) -> Option<&Restoring> {
        self.restores.get(vhost)?.get(name)
    }

    /// Whether a queue is there in part only, or in a virtual host that is.
    pub(super) fn is_being_restored(&self, vhost: &str, name: &str) -> bool {
        let Some(marks) = self.restores.get(vhost) else { return false };
        [name, WHOLE].iter().any(|name| marks.get(*name).is_some_and(|mark| !mark.complete))
    }

    /// Whether this very restore has begun with it.
    fn has_begun(&self, vhost: &str, name: &str, id: &str) -> Result<bool, Refusal> {
        match self.restoring(vhost, name) {
            Some(mark) if mark.id == id => Ok(true),
            Some(_) => Err(exists(&described(vhost, name))),
            None => Ok(false),
        }
    }

    /// A virtual host with the exchanges and policies of the backup's, which nobody may enter yet.
    pub(super) fn begin_vhost_restore(
        &mut self,
        vhost: String,
        id: String,
        content: Vhost,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if self.has_begun(&vhost, WHOLE, &id)? {
            return Ok(MetaReply::Done);
        }
        if self.vhost(&vhost).is_some() {
            return Err(exists(&described(&vhost, WHOLE)));
        }
        self.put_vhost(&vhost, changes)?;
        for (name, info) in &content.exchanges {
            self.router.add_exchange(&vhost, name, info);
        }
        let new = self.vhost_mut(&vhost)?;
        new.exchanges.extend(content.exchanges);
        new.policies = content.policies;
        new.operator_policies = content.operator_policies;
        self.restores.entry(vhost).or_default().insert(WHOLE.to_owned(), Restoring { id, complete: false });
        Ok(MetaReply::Done)
    }

    /// A queue with a group of its own, which nobody can use yet.
    pub(super) fn begin_queue_restore(
        &mut self,
        meta: &ApplyMeta,
        (vhost, name, id): (String, String, String),
        auto_delete: bool,
        arguments: Arguments,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if self.has_begun(&vhost, &name, &id)? {
            return Ok(MetaReply::Done);
        }
        if name.is_empty() || self.vhost_mut(&vhost)?.queues.contains_key(&name) {
            return Err(exists(&described(&vhost, &name)));
        }
        if self.restoring(&vhost, WHOLE).is_some_and(|mark| !mark.complete && mark.id != id) {
            return Err(exists(&described(&vhost, WHOLE)));
        }
        let owner = Owner { member: MemberId(0), boot: BootId(0) };
        let asked = QueueInfo {
            vhost: vhost.clone(),
            name: name.clone(),
            durable: true,
            exclusive: None,
            auto_delete,
            arguments,
            placement: Placement::Transient { owner },
        };
        self.declare_queue(meta, asked, SessionId::default(), changes)?;
        self.router.remove_queue(&vhost, &name);
        self.restores.entry(vhost).or_default().insert(name, Restoring { id, complete: false });
        Ok(MetaReply::Done)
    }

    /// Every message of the queue is there: it is a queue like any other from now on.
    pub(super) fn complete_queue_restore(&mut self, vhost: &str, name: &str, id: &str) -> Outcome {
        if name.is_empty() || !self.has_begun(vhost, name, id)? {
            return Err(not_begun(&described(vhost, name)));
        }
        self.mark_complete(vhost, name);
        let queue = self.vhost(vhost).and_then(|vhost| vhost.queues.get(name)).copied();
        if let Some(queue) = queue.filter(|_| !self.is_being_restored(vhost, name)) {
            self.router.add_queue(vhost, name, queue);
        }
        Ok(MetaReply::Done)
    }

    /// Every queue is there: the bindings and the permissions of users that this cluster has come last, at once.
    pub(super) fn complete_vhost_restore(
        &mut self,
        vhost: &str,
        id: &str,
        content: Vhost,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if !self.has_begun(vhost, WHOLE, id)? {
            return Err(not_begun(&described(vhost, WHOLE)));
        }
        if self.restoring(vhost, WHOLE).is_some_and(|mark| mark.complete) {
            return Ok(MetaReply::Done);
        }
        let marks = self.restores.get(vhost).into_iter().flatten();
        if let Some((name, _)) = marks.into_iter().find(|(name, mark)| *name != WHOLE && !mark.complete) {
            let text = format!("queue '{name}' in vhost '{vhost}' is not there whole yet");
            return Err(Refusal { code: 406, text });
        }
        let users: Vec<String> = content.grants.keys().filter(|user| self.users.contains_key(*user)).cloned().collect();
        let new = self.vhost_mut(vhost)?;
        let (queues, exchanges) = (&new.queues, &new.exchanges);
        let mut bindings = content.bindings;
        bindings.retain(|destination, _| match destination {
            Destination::Queue { name } => queues.contains_key(name),
            Destination::Exchange { name } => exchanges.contains_key(name),
        });
        new.bindings = bindings;
        // Permissions that somebody has set meanwhile stay.
        for (user, grant) in content.grants.into_iter().filter(|(user, _)| users.contains(user)) {
            new.grants.entry(user).or_insert(grant);
        }
        self.mark_complete(vhost, WHOLE);
        self.derive_routes();
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    /// Takes what is there in part out again, of any restore where none is named. What is complete stays.
    pub(super) fn abandon_restore(&mut self, vhost: &str, name: &str, id: &str, changes: &mut Vec<Change>) -> Outcome {
        let Some(mark) = self.restoring(vhost, name) else { return Ok(MetaReply::Done) };
        if !id.is_empty() && mark.id != id {
            return Err(exists(&described(vhost, name)));
        }
        if mark.complete {
            let text = format!("{} is complete: delete it as any other", described(vhost, name));
            return Err(Refusal { code: 406, text });
        }
        if name == WHOLE {
            return self.delete_vhost(vhost, changes);
        }
        if let Some(queue) = self.vhost(vhost).and_then(|vhost| vhost.queues.get(name)).copied() {
            self.drop_queue(queue, changes);
        }
        Ok(MetaReply::Done)
    }

    fn mark_complete(&mut self, vhost: &str, name: &str) {
        if let Some(mark) = self.restores.get_mut(vhost).and_then(|marks| marks.get_mut(name)) {
            mark.complete = true;
        }
    }

    /// The queue is gone, so its name is free.
    pub(super) fn forget_restore(&mut self, vhost: &str, name: &str) {
        if let Some(marks) = self.restores.get_mut(vhost) {
            marks.remove(name);
            if marks.is_empty() {
                self.restores.remove(vhost);
            }
        }
    }

    /// Builds the routes, without the queues that nobody can use yet.
    pub(super) fn derive_routes(&mut self) {
        let mut router = Router::of(&self.vhosts);
        for (vhost, marks) in &self.restores {
            for name in marks.keys().filter(|name| self.is_being_restored(vhost, name)) {
                router.remove_queue(vhost, name);
            }
        }
        self.router = router;
    }
}
