//! Credit of one direction of a stream, without I/O.

use alloc::collections::VecDeque;

/// Bytes of input that may be under way to a process.
pub const WINDOW: u32 = 262_144;
/// Bytes of output that may be under way to the host: more, for they take none of the agent's memory.
pub const OUTPUT_WINDOW: u32 = 1 << 20;
/// Consumed bytes are reported in steps of at least this many.
pub const STEP: u32 = 65_536;

/// What a sender may still send.
#[derive(Debug)]
pub struct Sending {
    credit: u32,
}

impl Default for Sending {
    fn default() -> Self {
        Sending { credit: OUTPUT_WINDOW }
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
        self.credit = self.credit.saturating_add(bytes).min(OUTPUT_WINDOW);
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

/// When output is read: what follows other output closely waits for what comes behind it, so that
/// all of it is brought at once. The writer runs on meanwhile: under TCG the way to the agent and
/// back costs as much as hundreds of small writes. Times are in ns of one clock.
#[derive(Debug)]
pub struct Pace {
    /// How much can be written before it is read.
    room: usize,
    /// When all that was there had been read, and what has been read since then.
    emptied: Option<u64>,
    taken: usize,
    /// How long pieces are gathered at most; 0 outside of a burst.
    patience: u64,
    /// Bytes in a ms of the burst.
    rate: u64,
    rest: Option<u64>,
    /// When the last rest ended: the writer has run until then.
    rested: Option<u64>,
}

/// What a pipe holds as Linux makes it, and a terminal.
pub const PIPE: usize = 64 * 1024;
pub const TERMINAL: usize = 8 * 1024;
const MS: u64 = 1_000_000;
/// Pieces that follow each other within this time are a burst.
const BURST_NS: u64 = 2 * MS;
/// How long the first pieces of a burst are gathered, and those of a long one.
const FIRST_REST: u64 = MS;
const LAST_REST: u64 = 8 * MS;

impl Pace {
    pub fn new(room: usize) -> Pace {
        Pace { room, taken: 0, emptied: None, patience: 0, rate: 0, rest: None, rested: None }
    }

    /// So much can be written from now on before it is read.
    pub fn grown(&mut self, room: usize) {
        self.room = room;
    }

    /// `count` bytes were read.
    pub fn read(&mut self, count: usize) {
        self.taken += count;
    }

    /// All that was there had been read at `now`; true if nothing is to be read until
    /// [`Pace::rest`] is over.
    pub fn emptied(&mut self, now: u64) -> bool {
        let count = core::mem::take(&mut self.taken) as u64;
        let end = self.rested.take().unwrap_or(now);
        let past = self.emptied.map_or(BURST_NS, |last| end.saturating_sub(last)).max(1);
        if count > 0 {
            self.emptied = Some(now);
        }
        let rate = count * MS / past;
        // Where a large piece fills the room its writer waits for us already.
        let fills = self.room <= PIPE && count >= self.room as u64 / 4;
        self.patience = match self.patience {
            _ if count == 0 || fills => 0,
            0 if past >= BURST_NS => 0,
            // Of a burst that dies away nothing is held up long.
            patience if patience > 0 && 2 * rate >= self.rate => (2 * patience).min(LAST_REST),
            _ => FIRST_REST,
        };
        self.rate = rate;
        self.rest = (self.patience > 0).then(|| {
            let until_half_full = (self.room as u64 / 2).saturating_mul(past) / count;
            now + until_half_full.min(self.patience)
        });
        self.rest.is_some()
    }

    /// Until when nothing is to be read.
    pub fn rest(&self) -> Option<u64> {
        self.rest
    }

    /// Whether it is to be read at `now`: there is no rest, or it is over.
    pub fn is_due(&mut self, now: u64) -> bool {
        let is_over = self.rest.is_some_and(|until| until <= now);
        if is_over {
            (self.rest, self.rested) = (None, Some(now));
        }
        self.rest.is_none()
    }

    /// Reads again, whatever the time.
    pub fn wake(&mut self) {
        self.rest = None;
    }

    /// What comes next is an answer, for which somebody waits: it is read at once.
    pub fn hurry(&mut self) {
        (self.emptied, self.patience) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_sender_stops_at_the_window_and_goes_on_after_a_grant() {
        let mut sending = Sending::default();
        sending.sent(OUTPUT_WINDOW as usize);
        assert_eq!(sending.credit(), 0);
        sending.granted(10);
        assert_eq!(sending.credit(), 10);
        sending.granted(u32::MAX);
        assert_eq!(sending.credit(), OUTPUT_WINDOW as usize);
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

    /// A pace that has read `count` bytes at each of these times, and whether it rested then.
    fn paced(room: usize, count: usize, times: &[u64]) -> (Pace, Vec<bool>) {
        let mut pace = Pace::new(room);
        let rested = times.iter().map(|&now| {
            pace.wake();
            pace.read(count);
            pace.emptied(now)
        });
        let rested = rested.collect();
        (pace, rested)
    }

    const START: u64 = 1_000 * MS;

    #[test]
    fn small_pieces_in_a_row_are_gathered() {
        let (mut pace, rested) = paced(PIPE, 10, &[START, START + MS / 2]);
        assert_eq!(rested, [false, true], "the first is read at once");
        assert_eq!(pace.rest(), Some(START + MS * 3 / 2));
        pace.wake();
        assert_eq!(pace.rest(), None);
        assert!(!pace.emptied(START + MS * 3 / 2), "nothing has come: the burst is over");
        pace.read(10);
        assert!(!pace.emptied(START + 10 * MS), "that is another one");
    }

    #[test]
    fn a_long_burst_is_gathered_longer() {
        let (mut pace, _) = paced(PIPE, 10, &[START, START + MS / 2]);
        let mut rests = Vec::new();
        for _ in 0..6 {
            let last = pace.emptied.unwrap();
            let now = pace.rest().unwrap();
            rests.push((now - last) / MS);
            pace.wake();
            pace.read(20 * (now - last) as usize / MS as usize);
            assert!(pace.emptied(now));
        }
        assert_eq!(rests, [1, 2, 4, 8, 8, 8]);
        // A tenth of it in the same time.
        let now = pace.rest().unwrap();
        pace.read(16);
        assert!(pace.emptied(now));
        assert_eq!(pace.rest(), Some(now + FIRST_REST));
    }

    #[test]
    fn an_answer_is_read_at_once() {
        let (mut pace, rested) = paced(PIPE, 10, &[START, START + MS, START + 2 * MS]);
        assert_eq!(rested, [false, true, true]);
        pace.wake();
        pace.hurry();
        pace.read(10);
        assert!(!pace.emptied(START + 3 * MS));
    }

    #[test]
    fn a_writer_that_has_filled_its_pipe_is_not_held_up() {
        let times: Vec<u64> = (0..10).map(|count| START + count * 1000).collect();
        assert_eq!(paced(PIPE, PIPE, &times).1, [false; 10]);
        assert_eq!(paced(TERMINAL, TERMINAL / 2, &times).1, [false; 10]);
        assert!(paced(8 * PIPE, PIPE, &times).1[1..].iter().all(|rested| *rested), "it has room");
    }

    #[test]
    fn a_quick_writer_is_not_held_up_by_a_full_pipe() {
        let (pace, _) = paced(PIPE, 4096, &[START, START + 10_000]);
        assert_eq!(pace.rest(), Some(START + 90_000), "8 pieces more");
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
