//! Holds: what the driver does for backups, on simulated disks.

use holdfast_engine::Input;
use holdfast_engine::backup::files::{self, HoldNote};
use holdfast_engine::backup::{HoldNews, HoldOrder, Place};
use holdfast_journal::{FileSystem, HeldFile, HoldingFileSystem};

use super::{Event, World};
use crate::disk::SimDisk;

/// Held files that are about to be read.
#[derive(Debug)]
pub struct Described {
    barrier: u64,
    name: String,
    hold: SimDisk,
    files: Vec<HeldFile>,
    places: Vec<Place>,
}

/// The longest that it takes until they are.
const READ_WITHIN_US: u64 = 400_000;

impl World {
    /// Orders wait until all that was handed to the journal before is durable.
    pub(super) fn hold(&mut self, member: usize, order: HoldOrder) -> Result<(), String> {
        if let Some(running) = &mut self.processes[member].running {
            running.holds.push_back((running.handed, order));
        }
        self.carry_out_holds(member)
    }

    pub(super) fn carry_out_holds(&mut self, member: usize) -> Result<(), String> {
        while let Some(running) = &mut self.processes[member].running {
            if running.holds.front().is_none_or(|(after, _)| *after > running.written) {
                break;
            }
            let Some((_, order)) = running.holds.pop_front() else { break };
            self.carry_out_hold(member, order)?;
        }
        Ok(())
    }

    fn carry_out_hold(&mut self, member: usize, order: HoldOrder) -> Result<(), String> {
        let process = &mut self.processes[member];
        let Some(running) = &process.running else { return Ok(()) };
        let news = match order {
            HoldOrder::Make { barrier, hold, member: name, expires_at_ms, places } => {
                let note = HoldNote {
                    id: hold.clone(),
                    member: name.clone(),
                    barrier: format!("{barrier:016x}"),
                    expires_at_ms,
                };
                let held = running.journal.hold(&hold).map_err(|error| error.to_string());
                let noted = held.and_then(|(directory, files)| {
                    files::set_note(&directory, &note).map_err(|error| error.to_string())?;
                    Ok((directory, files))
                });
                match noted {
                    Ok((hold, files)) => {
                        let (at, life) = (self.now_us + self.disk_rng.range(100, READ_WITHIN_US), process.life);
                        let described = Box::new(Described { barrier, name, hold, files, places });
                        self.schedule(at, Event::HoldRead { member, life, described });
                        HoldNews::Held { barrier }
                    }
                    Err(why) => HoldNews::Described { barrier, part: Err(why) },
                }
            }
            HoldOrder::Store { barrier, hold, manifest } => {
                let stored = process.disk.open_hold(&hold);
                let stored = stored.and_then(|hold| files::write_file(&hold, files::MANIFEST, &manifest));
                HoldNews::Stored { barrier, outcome: stored.map_err(|error| error.to_string()) }
            }
            HoldOrder::Release { barrier, hold } => {
                // On a dying disk it ends when its time has come.
                let _ = files::release(&process.disk, &hold, barrier);
                return Ok(());
            }
        };
        self.give(member, Input::Hold(news))
    }

    pub(super) fn hold_read(&mut self, member: usize, life: u64, described: &Described) -> Result<(), String> {
        if self.processes[member].life != life || self.processes[member].running.is_none() {
            return Ok(());
        }
        let Described { barrier, name, hold, files, places } = described;
        let part = files::describe(name, hold, files, places).map(|part| part.to_bytes());
        if let Err(why) = &part
            && !self.troubled.contains(&member)
            && self.damaged != Some(member)
            && hold.list().is_ok_and(|names| !names.is_empty())
        {
            return Err(format!("m{member}'s hold cannot be read: {why}"));
        }
        self.give(member, Input::Hold(HoldNews::Described { barrier: *barrier, part }))
    }

    /// Removes the holds of a member whose time has come, and at a start those that were never finished.
    pub(super) fn look_at_holds(&mut self, member: usize, at_start: bool) {
        let wall = self.wall_ms(member);
        // On a dying disk they go at the next start.
        let _ = files::remove_expired(&self.processes[member].disk, wall, at_start);
    }
}
