//! The byte stream to the host: the virtio-serial port, what came in and what goes out.

use alloc::vec::Vec;

use cloche_agent::frames::Decoder;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};

use crate::poll::{Kind, Poll};
use crate::sys::Result;

/// Once so much is waiting for the host, no more process output is read.
const ENOUGH: usize = 128 * 1024;

pub struct Port {
    fd: OwnedFd,
    pub decoder: Decoder,
    /// Frames for the host; the first `sent` bytes are gone already.
    pub out: Vec<u8>,
    sent: usize,
    readable: bool,
    writable: bool,
    /// The host has said `hello`.
    pub greeted: bool,
    /// What came was not the protocol: nothing is understood until another host connects.
    pub broken: bool,
}

impl Port {
    pub fn new(fd: OwnedFd, poll: &Poll) -> Result<Port> {
        poll.add(&fd, Kind::Port, 0, EventFlags::IN | EventFlags::OUT)?;
        Ok(Port {
            fd,
            decoder: Decoder::default(),
            out: Vec::with_capacity(4096),
            sent: 0,
            readable: false,
            writable: true,
            greeted: false,
            broken: false,
        })
    }

    /// Notes what epoll said; true if the host has hung up.
    pub fn ready(&mut self, flags: EventFlags) -> bool {
        let hung_up = flags.contains(EventFlags::HUP);
        if hung_up {
            self.forget_host();
        }
        self.readable |= flags.contains(EventFlags::IN);
        self.writable |= flags.contains(EventFlags::OUT);
        hung_up
    }

    /// A host that hung up takes everything under way with it, in both directions.
    fn forget_host(&mut self) {
        let mut left = [0u8; 4096];
        while io::read(&self.fd, &mut left).is_ok_and(|count| count > 0) {}
        self.decoder.clear();
        self.out.clear();
        (self.sent, self.greeted, self.broken) = (0, false, false);
    }

    /// Reads once; true if something came.
    pub fn receive(&mut self) -> bool {
        // The driver hands out one page-sized buffer a call.
        const PIECE: usize = 4096;
        if !self.readable {
            return false;
        }
        match io::read(&self.fd, &mut *self.decoder.space(PIECE)) {
            Ok(count @ 1..) => {
                self.decoder.filled(count);
                true
            }
            Err(Errno::INTR) => true,
            // Nothing is there, or (0) nobody: the next edge tells.
            Ok(0) | Err(_) => {
                self.readable = false;
                false
            }
        }
    }

    /// Writes what the driver takes now.
    pub fn flush(&mut self) {
        while self.writable && self.sent < self.out.len() {
            match io::write(&self.fd, &self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(_) => self.writable = false,
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > ENOUGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Whether process output may be added to what waits for the host.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < ENOUGH
    }
}
