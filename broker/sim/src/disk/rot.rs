//! Rot under a process that runs.

use super::{SECTOR_BYTES, SimDisk};
use crate::rng::Rng;

impl SimDisk {
    /// A record on the disk of a process that runs is not what was written any more: a bit flipped, or a sector cannot be
    /// read. False where that would reach what was written last: a disk that loses its last synced writes cannot be told from
    /// one that never got them, should the process start again.
    pub fn rot(&self, segment: u32, offset: u32, len: u32, rng: &mut Rng) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(inode) = state.names.get(&format!("segment-{segment:010}.log")) else { return false };
        let Some(file) = state.inodes.get_mut(inode) else { return false };
        let (start, end) = (offset as usize, offset as usize + len as usize);
        let sectors = start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
        if (sectors.end * SECTOR_BYTES) as u64 > file.recent_writes[0] || end > file.durable.len() {
            return false;
        }
        if rng.chance(20) {
            file.unreadable.insert(sectors.start + rng.index(sectors.len()), ());
            return true;
        }
        let at = rng.range(start as u64, end as u64) as usize;
        file.durable[at] ^= 1 << rng.index(8);
        file.bytes[at] = file.durable[at];
        true
    }
}
