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

    /// Credit to grant now: at least [`STEP`] bytes, or all once nothing is left to write.
    pub fn grant(&mut self) -> Option<u32> {
        let due = self.consumed >= STEP || (self.consumed > 0 && self.pending.is_empty());
        due.then(|| core::mem::take(&mut self.consumed))
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
    fn credit_is_granted_in_steps_or_when_drained() {
        let mut receiving = Receiving::default();
        receiving.receive(&vec![1; 100_000]).unwrap();
        receiving.written(1000);
        assert_eq!(receiving.grant(), None);
        receiving.written(65_000);
        assert_eq!(receiving.grant(), Some(66_000));
        receiving.written(34_000);
        assert_eq!(receiving.grant(), Some(34_000));
        assert_eq!(receiving.grant(), None);
        assert!(receiving.is_drained());
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
