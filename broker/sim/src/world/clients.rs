//! Clients and their connections to members.

use bytes::Bytes;
use holdfast_engine::{ConnId, Input};

use super::{Attached, CLIENT_TICK_US, Event, World};
use crate::client::{Client, Role};
use crate::process::Process;

impl World {
    pub(super) fn end_clients_of(&mut self, member: usize) {
        for client in 0..self.clients.len() {
            if let Some(attached) = self.attached[client].filter(|attached| attached.member == member) {
                let at = self.now_us + self.network_rng.range(100, 5_000);
                let connection = attached.connection;
                self.schedule(at, Event::ClientEnd { client, connection });
            }
        }
    }

    /// Adds a client.
    pub fn add_client(&mut self, queue: &str, role: Role) -> usize {
        self.add_client_as(self.clients.len() as u32 + 1, queue, role)
    }

    /// Adds a client under a number of its own, which decides all that it does.
    pub fn add_client_as(&mut self, id: u32, queue: &str, role: Role) -> usize {
        let client = self.clients.len();
        let rng = self.client_rng.clone().split(100 + u64::from(id));
        self.clients.push(Client::new(id, queue, role, rng));
        self.attached.push(None);
        self.ledgers.entry(queue.to_owned()).or_default();
        self.schedule(self.now_us, Event::ClientTick { client });
        client
    }

    /// Breaks every connection of a client; one that was cut out of the plan has none.
    pub fn cut_client(&mut self, id: usize) {
        let Some(client) = self.clients.iter().position(|client| client.id as usize == id + 1) else { return };
        if let Some(attached) = self.attached[client] {
            self.schedule(self.now_us, Event::ClientEnd { client, connection: attached.connection });
        }
    }

    pub(super) fn send_to_client(&mut self, member: usize, conn: ConnId, bytes: Option<Bytes>) {
        let found = self.attached.iter().position(|attached| {
            attached.is_some_and(|attached| attached.connection == conn.0 && attached.member == member)
        });
        let Some(client) = found else { return };
        let at = self.client_arrival(conn.0, false);
        match bytes {
            Some(bytes) => {
                self.schedule(at, Event::ClientBytes { client, connection: conn.0, to_member: false, bytes });
            }
            None => self.schedule(at, Event::ClientEnd { client, connection: conn.0 }),
        }
    }

    pub(super) fn client_arrival(&mut self, connection: u64, to_member: bool) -> u64 {
        let at = self.now_us + self.network_rng.range(50, 500);
        let last = self.last_client_arrival.entry((connection, to_member)).or_default();
        *last = at.max(*last + 1);
        *last
    }

    pub(super) fn client_bytes(
        &mut self,
        client: usize,
        connection: u64,
        to_member: bool,
        bytes: Bytes,
    ) -> Result<(), String> {
        let Some(attached) = self.attached[client].filter(|attached| attached.connection == connection) else {
            return Ok(());
        };
        if to_member {
            if self.processes[attached.member].life != attached.life {
                return Ok(());
            }
            return self.give(attached.member, Input::ClientBytes { conn: ConnId(connection), bytes });
        }
        let total = bytes.len() as u64;
        self.end_sessions_of_ended_runs();
        let state = &mut self.clients[client];
        if let Some(ledger) = self.ledgers.get_mut(&state.queue) {
            state.received(self.now_us, bytes, ledger);
            for id in std::mem::take(&mut state.confirms) {
                if self.min_in_sync > 1 && !ledger.was_delivered(id) {
                    self.invariants.copies.confirmed(id, usize::from(self.min_in_sync))?;
                }
            }
        }
        self.client_written(attached, connection, total)?;
        self.client_sends(client);
        self.check_client(client)
    }

    pub(super) fn client_written(&mut self, attached: Attached, connection: u64, bytes: u64) -> Result<(), String> {
        let total = self.client_read.entry(connection).or_default();
        *total += bytes;
        let total = *total;
        if self.processes[attached.member].life != attached.life {
            return Ok(());
        }
        self.give(attached.member, Input::ClientWritten { conn: ConnId(connection), total })
    }

    pub(super) fn take_notes(&mut self, client: usize) {
        let id = self.clients[client].id;
        for note in std::mem::take(&mut self.clients[client].notes) {
            self.trace.note(self.now_us, format!("c{id} {note}"));
        }
    }

    pub(super) fn client_sends(&mut self, client: usize) {
        self.take_notes(client);
        let Some(attached) = self.attached[client] else { return };
        let connection = attached.connection;
        if let Some(bytes) = self.clients[client].take_outgoing() {
            let at = self.client_arrival(connection, true);
            self.schedule(at, Event::ClientBytes { client, connection, to_member: true, bytes });
        }
        if self.clients[client].wants_to_close() {
            let at = self.client_arrival(connection, true);
            self.schedule(at, Event::ClientEnd { client, connection });
        }
    }

    pub(super) fn client_end(&mut self, client: usize, connection: u64) -> Result<(), String> {
        let Some(attached) = self.attached[client].filter(|attached| attached.connection == connection) else {
            return Ok(());
        };
        self.attached[client] = None;
        self.session_ended(client);
        self.clients[client].disconnected();
        if self.processes[attached.member].life == attached.life {
            self.give(attached.member, Input::ClientClosed { conn: ConnId(connection) })?;
        }
        Ok(())
    }

    fn session_ended(&mut self, client: usize) {
        let state = &self.clients[client];
        if let Some(ledger) = self.ledgers.get_mut(&state.queue) {
            ledger.session_ended(state.session());
        }
    }

    /// A run that was declared over, by a committed command, ended its sessions, whether its clients know yet or not.
    fn end_sessions_of_ended_runs(&mut self) {
        for client in 0..self.clients.len() {
            let Some(boot) = self.attached[client].map(|attached| attached.boot) else { continue };
            let shows = |process: &Process| process.running.as_ref().is_some_and(|running| running.has_ended(boot));
            if self.processes.iter().any(shows) {
                self.session_ended(client);
            }
        }
    }

    pub(super) fn client_tick(&mut self, client: usize) -> Result<(), String> {
        let jitter = self.rng.range(0, CLIENT_TICK_US);
        self.schedule(self.now_us + CLIENT_TICK_US + jitter, Event::ClientTick { client });
        if self.attached[client].is_none() {
            return self.connect_client(client);
        }
        let state = &mut self.clients[client];
        if let Some(ledger) = self.ledgers.get_mut(&state.queue) {
            state.tick(self.now_us, ledger);
        }
        self.client_sends(client);
        Ok(())
    }

    pub(super) fn connect_client(&mut self, client: usize) -> Result<(), String> {
        let member = self.homes[self.rng.index(self.homes.len())];
        let process = &self.processes[member];
        if process.running.is_none() || process.is_paused(self.now_us) {
            return Ok(());
        }
        let connection = self.next_connection;
        self.next_connection += 1;
        let Some(boot) = process.running.as_ref().map(|running| running.member.boot()) else { return Ok(()) };
        self.attached[client] = Some(Attached { connection, member, life: process.life, boot });
        let peer = format!("client-{client}");
        let conn = ConnId(connection);
        self.give(member, Input::ClientConnected { conn, peer, tls_subject: None, plain_port: true })?;
        self.clients[client].connected(self.now_us);
        self.client_sends(client);
        Ok(())
    }
}
