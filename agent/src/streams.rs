//! Standard streams of a process: pipes or a terminal on one side, credit on the other.

use alloc::vec::Vec;

use cloche_agent::flow::{Overrun, Pace, Receiving, Sending, PIPE, TERMINAL};
use cloche_agent::frames::{self, Kind};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};
use rustix::pipe::fcntl_setpipe_size;

use crate::poll::{self, Kind as Watched, Poll, Wait};
use crate::sys;

/// Most bytes of one DATA frame: with its header, what the port takes in two writes.
const PIECE: usize = 64 * 1024 - frames::HEADER;
/// Whoever has written so much gets a pipe that holds more: the less often is it read.
const MUCH: usize = 256 * 1024;
const LARGE_PIPE: usize = 1024 * 1024;

/// The agent's end of a stream.
enum End {
    /// A terminal that its process has not opened yet.
    Awaited,
    Open(OwnedFd),
    Closed,
}

impl End {
    fn fd(&self) -> Option<&OwnedFd> {
        match self {
            End::Open(fd) => Some(fd),
            End::Awaited | End::Closed => None,
        }
    }
}

/// Output of a process on its way to the host.
pub struct Source {
    pub stream: u32,
    end: End,
    flow: Sending,
    pace: Pace,
    ready: bool,
    /// epoll says nothing of it while pieces are gathered.
    muted: bool,
    /// How much it has carried, as far as that matters.
    carried: usize,
    /// Bytes still to be forwarded before the exit of the process may be told.
    owed: Option<usize>,
}

impl Source {
    pub fn new(stream: u32, fd: OwnedFd) -> Source {
        Source { end: End::Open(fd), pace: Pace::new(PIPE), ..Source::awaited(stream) }
    }

    /// A terminal's output, once there is a terminal.
    pub fn awaited(stream: u32) -> Source {
        Source {
            stream,
            end: End::Awaited,
            flow: Sending::default(),
            pace: Pace::new(TERMINAL),
            ready: false,
            muted: false,
            carried: 0,
            owed: None,
        }
    }

    pub fn open(&mut self, fd: OwnedFd) {
        self.end = End::Open(fd);
    }

    pub fn ready(&mut self) {
        self.ready = true;
        self.pace.wake();
    }

    pub fn is_gathering(&self) -> bool {
        self.pace.rest().is_some()
    }

    /// What has been gathered precedes other output of the process, which is read now.
    pub fn precede(&mut self) {
        if self.is_gathering() {
            self.ready();
        }
    }

    /// The process has been sent something that it may answer.
    pub fn hurry(&mut self) {
        self.precede();
        self.pace.hurry();
    }

    pub fn granted(&mut self, bytes: u32) {
        self.flow.granted(bytes);
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.end, End::Closed)
    }

    /// Reads no more, whatever the process still writes.
    pub fn abandon(&mut self) {
        self.end = End::Closed;
    }

    pub fn fd(&self) -> Option<&OwnedFd> {
        self.end.fd()
    }

    /// The process has ended: what is in the pipe now precedes its exit event. What others that
    /// hold the pipe write later does not.
    pub fn process_ended(&mut self) {
        let Some(fd) = self.end.fd() else {
            self.end = End::Closed;
            return;
        };
        let mut waiting = 0i32;
        // SAFETY: FIONREAD stores an int.
        let result = unsafe { sys::ioctl(fd, linux_raw_sys::ioctl::FIONREAD, &mut waiting) };
        // A terminal counts only what its line discipline has seen: read it until EAGAIN instead.
        let is_known = result.is_ok() && !rustix::termios::isatty(fd);
        self.owed = Some(if is_known { waiting.max(0) as usize } else { usize::MAX });
        self.ready();
    }

    /// Whether everything that precedes the exit event has been forwarded, or (`hurried`) cannot
    /// be because the host takes no more.
    pub fn is_settled(&self, hurried: bool) -> bool {
        let stuck = hurried && self.flow.credit() == 0;
        self.is_closed() || self.owed == Some(0) || stuck
    }

    /// Forwards a piece; says when there may be more to forward. It is watched as `kind` and
    /// `key`.
    pub fn pump(&mut self, out: &mut Vec<u8>, poll: &Poll, kind: Watched, key: u32) -> Wait {
        if let Some(until) = self.pace.rest() {
            if !self.pace.is_due(poll::now()) {
                return Wait::Until(until);
            }
            self.ready = true;
        }
        let size = PIECE.min(self.flow.credit());
        let Some(fd) = self.end.fd().filter(|_| self.ready && size > 0) else {
            return Wait::Forever;
        };
        let at = frames::begin(out, self.stream, Kind::Data);
        let rest = fill(fd, out, size);
        let count = out.len() - at - frames::HEADER;
        if count > 0 {
            frames::finish(out, at);
            self.forwarded(count);
        } else {
            out.truncate(at);
        }
        match rest {
            Rest::More => Wait::Not,
            Rest::Nothing => self.emptied(poll, kind, key),
            Rest::End => {
                frames::eof(out, self.stream);
                self.end = End::Closed;
                Wait::Forever
            }
        }
    }

    /// Nothing is left to be read now: it waits for epoll or, in a burst, for some time.
    fn emptied(&mut self, poll: &Poll, kind: Watched, key: u32) -> Wait {
        self.ready = false;
        let Some(fd) = self.end.fd() else {
            return Wait::Forever;
        };
        // Once its process has ended nothing more is waited for.
        if self.owed.is_none() && self.pace.emptied(poll::now()) {
            self.muted = self.muted || poll.mute(fd, kind, key).is_ok();
            return self.pace.rest().map_or(Wait::Forever, Wait::Until);
        }
        self.owed = self.owed.map(|_| 0);
        self.muted = self.muted && poll.unmute(fd, kind, key).is_err();
        Wait::Forever
    }

    fn forwarded(&mut self, count: usize) {
        self.flow.sent(count);
        self.pace.read(count);
        if let Some(owed) = &mut self.owed {
            *owed = owed.saturating_sub(count);
        }
        if self.carried < MUCH {
            self.carried += count;
            if self.carried >= MUCH {
                self.widen();
            }
        }
    }

    /// Gives a pipe more room; a terminal has what it has.
    fn widen(&mut self) {
        let Some(fd) = self.end.fd() else { return };
        if let Ok(room) = fcntl_setpipe_size(fd, LARGE_PIPE) {
            self.pace.grown(room);
        }
    }
}

/// What is left to be read of an output.
enum Rest {
    More,
    Nothing,
    End,
}

/// Appends what can be read, at most `size` bytes.
fn fill(fd: &OwnedFd, out: &mut Vec<u8>, size: usize) -> Rest {
    let end = out.len() + size;
    while out.len() < end {
        match append(fd, out, end - out.len()) {
            Ok(1..) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Rest::Nothing,
            // End of the pipe, or EIO of a terminal that nobody holds open.
            Ok(0) | Err(_) => return Rest::End,
        }
    }
    Rest::More
}

/// Reads at most `size` bytes and appends them.
fn append(fd: &OwnedFd, out: &mut Vec<u8>, size: usize) -> sys::Result<usize> {
    out.reserve(size);
    let (read, _) = io::read(fd, &mut out.spare_capacity_mut()[..size])?;
    let count = read.len();
    // SAFETY: the kernel has filled that many bytes behind the old end.
    unsafe { out.set_len(out.len() + count) };
    Ok(count)
}

/// Input of a process on its way from the host.
pub struct Sink {
    pub stream: u32,
    end: End,
    flow: Receiving,
    ready: bool,
    ended: bool,
    /// A terminal is never closed for want of input: its reading end is also its writing end.
    pub is_terminal: bool,
}

impl Sink {
    pub fn new(stream: u32, fd: OwnedFd) -> Sink {
        Sink { end: End::Open(fd), is_terminal: false, ..Sink::awaited(stream) }
    }

    /// A terminal's input, once there is a terminal.
    pub fn awaited(stream: u32) -> Sink {
        let (end, flow) = (End::Awaited, Receiving::default());
        Sink { stream, end, flow, ready: true, ended: false, is_terminal: true }
    }

    pub fn open(&mut self, fd: OwnedFd) {
        self.end = End::Open(fd);
    }

    pub fn ready(&mut self) {
        self.ready = true;
    }

    pub fn fd(&self) -> Option<&OwnedFd> {
        self.end.fd()
    }

    pub fn receive(&mut self, data: &[u8]) -> Result<(), Overrun> {
        self.flow.receive(data)
    }

    /// The host writes no more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The process has ended: nobody reads a terminal's input any more.
    pub fn process_ended(&mut self) {
        if self.end.fd().is_none() {
            self.end = End::Closed;
        }
    }

    /// Writes what the process takes now and grants credit for it. Input that nobody will read is
    /// consumed as well, so that the host's writer is not stuck, and the host is told.
    pub fn pump(&mut self, out: &mut Vec<u8>) {
        if matches!(self.end, End::Awaited) {
            return;
        }
        while !self.flow.is_drained() && self.ready {
            let waiting = self.flow.next();
            let result = match &self.end {
                End::Open(fd) => io::write(fd, waiting),
                End::Awaited | End::Closed => Ok(waiting.len()),
            };
            match result {
                Ok(count) => self.flow.written(count),
                Err(Errno::AGAIN) => self.ready = false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    frames::eof(out, self.stream);
                    self.end = End::Closed;
                }
            }
        }
        if let Some(bytes) = self.flow.grant() {
            frames::credit(out, self.stream, bytes);
        }
        if self.ended && self.flow.is_drained() && !self.is_terminal {
            self.end = End::Closed;
        }
    }
}
