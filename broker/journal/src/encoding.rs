//! Numbers and index sets as bytes. Fixed-width numbers are little-endian; variable ones are LEB128.

use crate::runs::Runs;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// As runs: the gap since the last run, and the run's length.
pub(crate) fn put_indexes(out: &mut Vec<u8>, indexes: impl IntoIterator<Item = u64>) {
    let mut next = 0;
    let mut run: Option<(u64, u64)> = None;
    for index in indexes {
        match &mut run {
            Some((start, len)) if *start + *len == index => *len += 1,
            _ => {
                flush_run(out, &mut next, run);
                run = Some((index, 1));
            }
        }
    }
    flush_run(out, &mut next, run);
}

fn flush_run(out: &mut Vec<u8>, next: &mut u64, run: Option<(u64, u64)>) {
    if let Some((start, len)) = run {
        put_varint(out, start - *next);
        put_varint(out, len);
        *next = start + len;
    }
}

/// Takes values off the front of a slice. Every method is `None` when the bytes do not hold what was asked for.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// The rest, as [`put_indexes`] wrote it.
    pub(crate) fn indexes(&mut self) -> Option<Runs> {
        let mut set = Runs::default();
        let mut next = 0u64;
        while !self.0.is_empty() {
            let start = next.checked_add(self.varint()?)?;
            let end = start.checked_add(self.varint()?)?;
            set.push(start, end);
            next = end;
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_lists_survive_the_round_trip() {
        for list in [vec![], vec![0], vec![1, 2, 3, 7, 8, 100_000, u64::MAX - 1], (1..500).collect()] {
            let mut bytes = Vec::new();
            put_indexes(&mut bytes, list.iter().copied());
            let set = Cursor(&bytes).indexes().expect("what was written reads back");
            assert_eq!(set.iter().collect::<Vec<_>>(), list);
        }
    }

    #[test]
    fn cut_or_absurd_bytes_are_refused() {
        assert!(Cursor(&[0x80]).varint().is_none());
        assert!(Cursor(&[0xff; 11]).varint().is_none());
        assert!(Cursor(&[5]).indexes().is_none());
        let mut overflow = Vec::new();
        put_varint(&mut overflow, u64::MAX);
        put_varint(&mut overflow, 2);
        assert!(Cursor(&overflow).indexes().is_none());
    }
}
