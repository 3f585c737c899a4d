//! Directories of holds on a simulated disk: further names of the same files, each directory synced by itself.

use std::io;

use holdfast_journal::HoldingFileSystem;

use super::{NameChange, SimDisk};

impl NameChange {
    pub(super) fn is_in(&self, directory: &str) -> bool {
        let (Self::Set { name, .. } | Self::Remove { name } | Self::Rename { from: name, .. }) = self;
        directory_of(name) == directory
    }
}

/// The part of a name that is its directory's.
pub(super) fn directory_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

impl SimDisk {
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.directory)
    }

    fn hold_directory(hold: &str) -> String {
        format!("holds/{hold}/")
    }
}

impl HoldingFileSystem for SimDisk {
    fn holds(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().holds.iter().cloned().collect())
    }

    fn make_hold(&self, hold: &str) -> io::Result<Self> {
        let mut state = self.lock();
        state.spend()?;
        match state.holds.insert(hold.to_owned()) {
            true => Ok(Self { state: self.state.clone(), directory: Self::hold_directory(hold) }),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn open_hold(&self, hold: &str) -> io::Result<Self> {
        match self.lock().holds.contains(hold) {
            true => Ok(Self { state: self.state.clone(), directory: Self::hold_directory(hold) }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn link(&self, name: &str, hold: &Self) -> io::Result<()> {
        let mut state = self.lock();
        state.spend()?;
        let inode = *state.names.get(&self.path(name)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.change(NameChange::Set { name: hold.path(name), inode });
        Ok(())
    }

    fn remove_hold(&self, hold: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.spend()?;
        let directory = Self::hold_directory(hold);
        state.names.retain(|name, _| !name.starts_with(&directory));
        state.durable_names.retain(|name, _| !name.starts_with(&directory));
        state.pending.retain(|change| !change.is_in(&directory));
        state.holds.remove(hold);
        Ok(())
    }
}
