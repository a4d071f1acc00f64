//! Standard streams of a process: pipes or a terminal on one side, credit on the other.

use alloc::vec::Vec;

use cloche_agent::flow::{Overrun, Receiving, Sending};
use cloche_agent::frames::{self, Kind};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};

use crate::sys;

/// Most bytes of one DATA frame: with its header, what the port takes in one write.
const PIECE: usize = 32 * 1024 - frames::HEADER;

/// Output of a process on its way to the host.
pub struct Source {
    pub stream: u32,
    fd: Option<OwnedFd>,
    flow: Sending,
    ready: bool,
    /// Bytes still to be forwarded before the exit of the process may be told.
    owed: Option<usize>,
}

impl Source {
    pub fn new(stream: u32, fd: OwnedFd) -> Source {
        Source {
            stream,
            fd: Some(fd),
            flow: Sending::default(),
            ready: false,
            owed: None,
        }
    }

    pub fn ready(&mut self) {
        self.ready = true;
    }

    pub fn granted(&mut self, bytes: u32) {
        self.flow.granted(bytes);
    }

    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Reads no more, whatever the process still writes.
    pub fn abandon(&mut self) {
        self.fd = None;
    }

    /// The process has ended: what is in the pipe now precedes its exit event. What others that
    /// hold the pipe write later does not.
    pub fn process_ended(&mut self) {
        let Some(fd) = &self.fd else { return };
        let mut waiting = 0i32;
        // SAFETY: FIONREAD stores an int.
        let result = unsafe { sys::ioctl(fd, linux_raw_sys::ioctl::FIONREAD, &mut waiting) };
        // A terminal counts only what its line discipline has seen: read it until EAGAIN instead.
        let is_terminal = rustix::termios::isatty(fd);
        let known = result.is_ok() && !is_terminal;
        self.owed = Some(if known {
            waiting.max(0) as usize
        } else {
            usize::MAX
        });
        self.ready = true;
    }

    pub fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Whether everything that precedes the exit event has been forwarded, or (`hurried`) cannot
    /// be because the host takes no more.
    pub fn is_settled(&self, hurried: bool) -> bool {
        let stuck = hurried && self.flow.credit() == 0;
        self.fd.is_none() || self.owed == Some(0) || stuck
    }

    /// Forwards one piece; true if there may be more to forward now.
    pub fn pump(&mut self, out: &mut Vec<u8>) -> bool {
        let size = PIECE.min(self.flow.credit());
        let Some(fd) = self.fd.as_ref().filter(|_| self.ready && size > 0) else {
            return false;
        };
        let at = frames::begin(out, self.stream, Kind::Data);
        let start = out.len();
        out.resize(start + size, 0);
        let result = io::read(fd, &mut out[start..]);
        out.truncate(start + result.unwrap_or(0));
        match result {
            Ok(count @ 1..) => {
                frames::finish(out, at);
                self.forwarded(count);
                return true;
            }
            Err(Errno::INTR) => out.truncate(at),
            Err(Errno::AGAIN) => {
                out.truncate(at);
                self.ready = false;
                self.owed = self.owed.map(|_| 0);
            }
            // End of the pipe, or EIO of a terminal that nobody holds open.
            Ok(0) | Err(_) => {
                out.truncate(at);
                frames::eof(out, self.stream);
                self.fd = None;
            }
        }
        false
    }

    fn forwarded(&mut self, count: usize) {
        self.flow.sent(count);
        if let Some(owed) = &mut self.owed {
            *owed = owed.saturating_sub(count);
        }
    }
}

/// Input of a process on its way from the host.
pub struct Sink {
    pub stream: u32,
    fd: Option<OwnedFd>,
    flow: Receiving,
    ready: bool,
    ended: bool,
    /// A terminal is never closed for want of input: its reading end is also its writing end.
    is_terminal: bool,
}

impl Sink {
    pub fn new(stream: u32, fd: OwnedFd, is_terminal: bool) -> Sink {
        let flow = Receiving::default();
        Sink {
            stream,
            fd: Some(fd),
            flow,
            ready: true,
            ended: false,
            is_terminal,
        }
    }

    pub fn ready(&mut self) {
        self.ready = true;
    }

    pub fn receive(&mut self, data: &[u8]) -> Result<(), Overrun> {
        self.flow.receive(data)
    }

    pub fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// The host writes no more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Writes what the process takes now and grants credit for it. Input that nobody will read is
    /// consumed as well, so that the host's writer is not stuck.
    pub fn pump(&mut self, out: &mut Vec<u8>) {
        while !self.flow.is_drained() && self.ready {
            let waiting = self.flow.next();
            let result = match &self.fd {
                Some(fd) => io::write(fd, waiting),
                None => Ok(waiting.len()),
            };
            match result {
                Ok(count) => self.flow.written(count),
                Err(Errno::AGAIN) => self.ready = false,
                Err(Errno::INTR) => {}
                Err(_) => self.fd = None,
            }
        }
        if let Some(bytes) = self.flow.grant() {
            frames::credit(out, self.stream, bytes);
        }
        if self.ended && self.flow.is_drained() && !self.is_terminal {
            self.fd = None;
        }
    }
}
