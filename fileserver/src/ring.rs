//! The bulk file: memory that the guest reads and writes as a disk, past its page cache.
//!
//! Its first half is a ring of what comes from the guest, its second one of what goes there. A
//! message lies in one piece: where the longest one would not fit before the end of its ring, it
//! begins anew at the start. Both sides count alike, so no message has to say where its data are.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mm::{mmap, MapFlags, ProtFlags};

use crate::wire::{Result, MAX_DATA};

/// Size of one ring (agent/src/share.rs has the same).
pub const RING: usize = 2 << 20;
/// Each message begins at a multiple of this: a sector's size, or a larger page.
const STEP: usize = 4096;

/// Where messages of one direction are.
#[derive(Default)]
pub struct Cursor {
    next: usize,
}

impl Cursor {
    /// The place of the next message of `size` bytes.
    pub fn advance(&mut self, size: usize) -> usize {
        let place = self.place();
        self.next = place + size.next_multiple_of(STEP);
        place
    }

    fn place(&self) -> usize {
        if self.next > RING - MAX_DATA {
            0
        } else {
            self.next
        }
    }
}

pub struct Rings {
    memory: *mut u8,
    incoming: Cursor,
    outgoing: Cursor,
    /// Messages that the guest has not taken yet: their places and sizes.
    lent: VecDeque<(usize, usize)>,
}

impl Rings {
    pub fn map(file: &OwnedFd) -> Result<Rings> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        if rustix::fs::fstat(file)?.st_size < 2 * RING as i64 {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address of the kernel's choice. The file is a memfd of its
        // final size, sealed against becoming shorter.
        let memory =
            unsafe { mmap(std::ptr::null_mut(), 2 * RING, protection, MapFlags::SHARED, file, 0)? };
        let (incoming, outgoing) = (Cursor::default(), Cursor::default());
        Ok(Rings { memory: memory.cast(), incoming, outgoing, lent: VecDeque::new() })
    }

    /// Begins anew, with a guest that has done so.
    pub fn clear(&mut self) {
        (self.incoming, self.outgoing) = (Cursor::default(), Cursor::default());
        self.lent.clear();
    }

    /// The next message from the guest, of `size` bytes, which the guest may change at any time: an
    /// address for the kernel to read from.
    pub fn incoming(&mut self, size: usize) -> Result<(*const u8, usize)> {
        if size > MAX_DATA {
            return Err(Errno::INVAL);
        }
        let place = self.incoming.advance(size);
        // SAFETY: place + size is within the first ring.
        Ok((unsafe { self.memory.add(place) }, size))
    }

    /// Where the next message to the guest, of at most `size` bytes, can be: None while the guest
    /// has not taken enough of those before it.
    pub fn outgoing(&self, size: usize) -> Option<(*mut u8, usize)> {
        let place = self.outgoing.place();
        let free = self
            .lent
            .iter()
            .all(|&(start, length)| place + size <= start || start + length <= place);
        // SAFETY: place + size is within the second ring, which begins at RING.
        free.then(|| (unsafe { self.memory.add(RING + place) }, size))
    }

    /// A message of `size` bytes has been put there.
    pub fn lend(&mut self, size: usize) {
        let place = self.outgoing.advance(size);
        self.lent.push_back((place, size.next_multiple_of(STEP)));
    }

    /// The guest has taken the oldest one.
    pub fn taken(&mut self) {
        self.lent.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

    fn rings() -> Rings {
        let file = memfd_create(c"bulk", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, 2 * RING as u64).expect("its size");
        Rings::map(&file).expect("its mapping")
    }

    #[test]
    fn a_message_begins_at_a_page_and_never_goes_round_the_end() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.advance(1), 0);
        assert_eq!(cursor.advance(MAX_DATA), STEP);
        assert_eq!(cursor.advance(MAX_DATA), 0);
        assert_eq!(cursor.advance(1), MAX_DATA);
        assert_eq!(cursor.advance(1), 0);
    }

    #[test]
    fn what_the_guest_has_not_taken_is_not_overwritten() {
        let mut rings = rings();
        for _ in 0..2 {
            assert!(rings.outgoing(MAX_DATA).is_some());
            rings.lend(MAX_DATA);
        }
        assert!(rings.outgoing(1).is_none());
        rings.taken();
        assert!(rings.outgoing(MAX_DATA).is_some());
        rings.clear();
        assert!(rings.outgoing(MAX_DATA).is_some());
    }

    #[test]
    fn a_request_is_no_longer_than_the_longest() {
        let mut rings = rings();
        assert!(rings.incoming(MAX_DATA).is_ok());
        assert!(rings.incoming(MAX_DATA + 1).is_err());
    }
}
