//! What an operator does: founding a cluster, adding machines, and asking the admin API.

use holdfast_engine::admin::{AdminAction, AdminRequest, ExpectedMember, UserCredentials};
use holdfast_engine::{AdminRequestId, Input};

use super::{MEMBERS, World};
use crate::mutants::Mutation;
use crate::process::Process;

impl World {
    /// Asks one member to found the cluster; the answer shows in [`World::founded`].
    ///
    /// # Errors
    /// When carrying out what the member wants fails.
    pub fn bootstrap(&mut self, member: usize) -> Result<(), String> {
        let members = (0..MEMBERS).map(|member| self.expected(member)).collect();
        let user = UserCredentials { name: "guest".into(), password_hash: "guest".into() };
        let is_broken = self.mutation == Some(Mutation::CopiesNotAwaited);
        let default_min_in_sync_replicas = if is_broken { 0 } else { self.min_in_sync };
        let action = AdminAction::Bootstrap {
            cluster_id: "simulated".into(),
            members,
            user,
            default_replication_factor: 3,
            default_min_in_sync_replicas,
        };
        let body = AdminRequest { token: None, action };
        self.give(member, Input::Admin { request: AdminRequestId(self.now_us), body })
    }

    /// A machine as a list of expected members names it.
    #[must_use]
    pub fn expected(&self, member: usize) -> ExpectedMember {
        let process = &self.processes[member];
        let (name, address, zone) = (process.name.clone(), process.address.clone(), process.zone.clone());
        ExpectedMember { name, address, zone }
    }

    /// Switches on another machine, blank, that nobody expects yet; gives its number.
    ///
    /// # Errors
    /// When its process cannot start.
    pub fn add_machine(&mut self) -> Result<usize, String> {
        let index = self.processes.len();
        let limits = self.processes[0].limits.clone();
        self.processes.push(Process { limits, ..Process::new(index) });
        self.wall_offset_ms.push(0);
        self.touched.push(false);
        self.start(index)?;
        Ok(index)
    }

    /// Asks a member's admin API; the answer shows in [`World::answer`] under the number given back.
    ///
    /// # Errors
    /// When carrying out what the member wants fails.
    pub fn ask(&mut self, member: usize, action: AdminAction) -> Result<u64, String> {
        self.trace.note(self.now_us, format!("m{member} is asked: {action:?}"));
        self.next_connection += 1;
        let number = 1 << 62 | self.next_connection;
        let body = AdminRequest { token: None, action };
        self.give(member, Input::Admin { request: AdminRequestId(number), body })?;
        Ok(number)
    }

    /// What an admin request came to, once it was answered.
    #[must_use]
    pub fn answer(&self, request: u64) -> Option<&Result<(), String>> {
        self.admin_answers.get(&request)
    }

    /// The answer to the last bootstrap request.
    #[must_use]
    pub fn founded(&self) -> bool {
        self.admin_answers.values().any(Result::is_ok)
    }
}
