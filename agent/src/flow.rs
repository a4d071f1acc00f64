//! Credit of one direction of a stream, without I/O.

use alloc::collections::VecDeque;

/// Bytes that may be under way in each direction of a stream.
pub const WINDOW: u32 = 262_144;
/// Consumed bytes are reported in steps of at least this many.
pub const STEP: u32 = 65_536;

/// What a sender may still send.
#[derive(Debug)]
pub struct Sending {
    credit: u32,
}

impl Default for Sending {
    fn default() -> Self {
        Sending { credit: WINDOW }
    }
}

impl Sending {
    pub fn credit(&self) -> usize {
        self.credit as usize
    }

    /// `bytes` were sent; never more than [`Sending::credit`].
    pub fn sent(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_sub(bytes as u32);
    }

    /// The receiver consumed `bytes` more. Credit never exceeds the window, whatever is claimed.
    pub fn granted(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes).min(WINDOW);
    }
}

/// The other side sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// Bytes received but not yet written to their destination.
#[derive(Debug, Default)]
pub struct Receiving {
    pending: VecDeque<u8>,
    consumed: u32,
}

impl Receiving {
    /// Keeps `data` until it can be written.
    pub fn receive(&mut self, data: &[u8]) -> Result<(), Overrun> {
        if self.pending.len() + self.consumed as usize + data.len() > WINDOW as usize {
            return Err(Overrun);
        }
        self.pending.extend(data);
        Ok(())
    }

    /// The next bytes to write; empty if there are none.
    pub fn next(&self) -> &[u8] {
        let (front, back) = self.pending.as_slices();
        if front.is_empty() {
            back
        } else {
            front
        }
    }

    pub fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    /// The first `bytes` of [`Receiving::next`] were written (or thrown away).
    pub fn written(&mut self, bytes: usize) {
        let bytes = bytes.min(self.pending.len());
        self.pending.drain(..bytes);
        self.consumed += bytes as u32;
    }

    /// Credit to grant now: at least [`STEP`] bytes. Less is kept back: the sender has the rest of
    /// its window, and a frame for every small piece would cost more than the piece.
    pub fn grant(&mut self) -> Option<u32> {
        (self.consumed >= STEP).then(|| core::mem::take(&mut self.consumed))
    }
}

/// When output that comes in small pieces is read: a piece that follows another one closely waits
/// for those behind it, so that many of them make one frame. Times are in ns of one clock.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the last piece was read, and whether it was small.
    last: Option<(u64, bool)>,
    rest: Option<u64>,
}

/// Small pieces that follow each other within this time are a burst.
const BURST_NS: u64 = 2_000_000;
/// How long the pieces of a burst are gathered at most.
const REST_NS: u64 = 1_000_000;
/// A larger piece is worth a frame of its own.
const SMALL: usize = 16 * 1024;
/// Half of what a pipe holds: whoever writes quickly is not held up by a full pipe.
const HALF_A_PIPE: u64 = 32 * 1024;

impl Pace {
    /// `count` bytes were read at `now`; true if reading is to stop until [`Pace::rest`] is over.
    pub fn read(&mut self, count: usize, now: u64) -> bool {
        let is_small = count < SMALL;
        let taken = match self.last {
            Some((last, true)) if is_small => now.saturating_sub(last),
            _ => BURST_NS,
        };
        self.last = Some((now, is_small));
        self.rest = (taken < BURST_NS).then(|| {
            let until_half_full = HALF_A_PIPE * taken / count.max(1) as u64;
            now + until_half_full.min(REST_NS)
        });
        self.rest.is_some()
    }

    /// Until when nothing is to be read.
    pub fn rest(&self) -> Option<u64> {
        self.rest
    }

    /// Reads again, whatever the time.
    pub fn wake(&mut self) {
        self.rest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_stops_at_the_window_and_goes_on_after_a_grant() {
        let mut sending = Sending::default();
        sending.sent(WINDOW as usize);
        assert_eq!(sending.credit(), 0);
        sending.granted(10);
        assert_eq!(sending.credit(), 10);
        sending.granted(u32::MAX);
        assert_eq!(sending.credit(), WINDOW as usize);
    }

    #[test]
    fn credit_is_granted_in_steps() {
        let mut receiving = Receiving::default();
        receiving.receive(&vec![1; 100_000]).unwrap();
        receiving.written(1000);
        assert_eq!(receiving.grant(), None);
        receiving.written(65_000);
        assert_eq!(receiving.grant(), Some(66_000));
        receiving.written(34_000);
        assert!(receiving.is_drained());
        assert_eq!(receiving.grant(), None);
        receiving.receive(&vec![1; 40_000]).unwrap();
        receiving.written(40_000);
        assert_eq!(receiving.grant(), Some(74_000));
    }

    #[test]
    fn small_pieces_in_a_row_are_gathered() {
        let mut pace = Pace::default();
        assert!(!pace.read(10, 1_000_000_000), "the first is read at once");
        assert!(pace.read(10, 1_000_500_000));
        assert_eq!(pace.rest(), Some(1_001_500_000));
        pace.wake();
        assert_eq!(pace.rest(), None);
        assert!(pace.read(200, 1_001_500_000), "the burst goes on");
        assert!(!pace.read(10, 1_010_000_000), "it is over");
        assert_eq!(pace.rest(), None);
    }

    #[test]
    fn large_pieces_and_what_is_left_of_them_are_not_held_up() {
        let mut pace = Pace::default();
        for now in 0..10 {
            assert!(!pace.read(32_000, 1_000_000_000 + 2 * now));
            assert!(!pace.read(16, 1_000_000_001 + 2 * now));
        }
    }

    #[test]
    fn a_quick_writer_is_not_held_up_by_a_full_pipe() {
        let mut pace = Pace::default();
        pace.read(4096, 1_000_000_000);
        assert!(pace.read(4096, 1_000_010_000));
        assert_eq!(pace.rest(), Some(1_000_090_000), "8 pieces more");
    }

    #[test]
    fn more_than_the_window_is_an_overrun() {
        let mut receiving = Receiving::default();
        receiving.receive(&vec![0; WINDOW as usize]).unwrap();
        assert_eq!(receiving.receive(&[0]), Err(Overrun));
        receiving.written(1);
        // Written, but the sender has not been told yet.
        assert_eq!(receiving.receive(&[0]), Err(Overrun));
    }
}
