//! Links between members: dialled, delayed, cut, broken.

use bytes::Bytes;
use holdfast_engine::{FRAME_ROOM_BYTES, Input, LinkId, LinkOrigin};

use super::{Event, LINK_BREAKS_AFTER_US, World};
use crate::client::LARGEST_BODY_BYTES;
use crate::network::Link;

impl World {
    pub(super) fn link_of(&self, member: usize, link: LinkId) -> Option<u64> {
        self.processes[member].running.as_ref()?.links.get(&link).copied()
    }

    /// A link has one number for the world and for both members.
    pub(super) fn dial(&mut self, member: usize, life: u64, address: &str) -> Result<(), String> {
        let now = self.now_us;
        if self.processes[member].life != life {
            return Ok(());
        }
        let linked = self.links.values().any(|link| link.ends[0] == member && link.address == address);
        let Some(running) = &mut self.processes[member].running else { return Ok(()) };
        let Some(backoff) = running.dials.get_mut(address) else { return Ok(()) };
        if linked {
            return Ok(());
        }
        let wait = *backoff;
        *backoff = (*backoff * 2).min(1_000_000);
        let target = self.processes.iter().position(|process| process.address == address);
        let reachable = target.filter(|target| {
            self.processes[*target].running.is_some()
                && self.conditions.passes(member, *target, now)
                && self.conditions.passes(*target, member, now)
        });
        let Some(target) = reachable else {
            self.schedule(now + wait, Event::Dial { member, life, address: address.to_owned() });
            return Ok(());
        };
        if let Some(backoff) = self.processes[member].running.as_mut().and_then(|r| r.dials.get_mut(address)) {
            *backoff = 50_000;
        }
        let id = self.next_link;
        self.next_link += 1;
        self.links.insert(id, Link::new(member, target, address));
        for end in [member, target] {
            if let Some(running) = &mut self.processes[end].running {
                running.links.insert(LinkId(id), id);
            }
        }
        let origin = LinkOrigin::Dialled { address: address.to_owned() };
        self.give(member, Input::LinkUp { link: LinkId(id), origin })?;
        let from = self.processes[member].address.clone();
        if self.links.contains_key(&id) {
            self.give(target, Input::LinkUp { link: LinkId(id), origin: LinkOrigin::Accepted { from } })?;
        }
        Ok(())
    }

    /// The node drops a frame that is larger than its links carry, and whoever waits for it waits in vain: here that
    /// ends the run.
    pub(super) fn link_send(&mut self, member: usize, link: LinkId, bytes: Bytes) -> Result<(), String> {
        if bytes.len() > LARGEST_BODY_BYTES + FRAME_ROOM_BYTES {
            return Err(format!("m{member} sends a frame of {} bytes, more than a link carries", bytes.len()));
        }
        let now = self.now_us;
        let delay = self.conditions.delay_us(now, &mut self.network_rng);
        let Some(state) = self.links.get_mut(&link.0) else { return Ok(()) };
        let wire = self.conditions.wire_us(state.ends, bytes.len(), now);
        let at = state.arrival(member, now, wire, delay);
        self.schedule(at, Event::Frame { link: link.0, from: member, bytes });
        Ok(())
    }

    pub(super) fn frame(&mut self, id: u64, from: usize, bytes: Bytes) -> Result<(), String> {
        let now = self.now_us;
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let to = link.other(from);
        if link.is_silent {
            return Ok(());
        }
        if !self.conditions.passes(from, to, now) {
            let since = *link.stalled_since_us.get_or_insert(now);
            if now > since + LINK_BREAKS_AFTER_US {
                self.break_link(id, "no acknowledgement for too long");
                return Ok(());
            }
            // TCP tries again later; order within the link is kept, since all of them wait in order.
            let at = link.arrival(from, now, 0, 50_000);
            self.schedule(at, Event::Frame { link: id, from, bytes });
            return Ok(());
        }
        link.stalled_since_us = None;
        self.give(to, Input::LinkFrame { link: LinkId(id), bytes })
    }

    pub(super) fn break_link(&mut self, id: u64, reason: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        for end in link.ends {
            if let Some(running) = &mut self.processes[end].running {
                running.links.remove(&LinkId(id));
                let _ = self.give(end, Input::LinkDown { link: LinkId(id), reason: reason.to_owned() });
            }
        }
        let (member, address) = (link.ends[0], link.address);
        let life = self.processes[member].life;
        if let Some(running) = &self.processes[member].running
            && running.dials.contains_key(&address)
        {
            self.schedule(self.now_us + 1_000, Event::Dial { member, life, address });
        }
    }
}
