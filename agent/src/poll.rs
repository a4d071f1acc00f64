//! What the agent waits for: one epoll instance, edge-triggered.
//!
//! Edges suit it: an end of a pipe is registered once and never again, the owner remembers that it
//! is ready until a call says EAGAIN, and a port without a host (always "hung up") does not spin.

use alloc::vec::Vec;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::sys::Result;

/// Whose descriptor has become ready. Keys are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Port,
    Child,
    Stdin,
    Stdout,
    Stderr,
    Report,
    CgroupEvents,
    MemoryEvents,
    Synced,
    Job,
    DnsDatagram,
    DnsListener,
    DnsConnection,
}

const KINDS: [Kind; 13] = [
    Kind::Port,
    Kind::Child,
    Kind::Stdin,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Report,
    Kind::CgroupEvents,
    Kind::MemoryEvents,
    Kind::Synced,
    Kind::Job,
    Kind::DnsDatagram,
    Kind::DnsListener,
    Kind::DnsConnection,
];

/// One thing that happened.
#[derive(Clone, Copy)]
pub struct Ready {
    pub kind: Kind,
    pub key: u32,
    pub flags: EventFlags,
}

pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    pub fn new() -> Result<Poll> {
        const BATCH: usize = 64;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Poll { epoll, events: Vec::with_capacity(BATCH) })
    }

    /// Reports `flags` of `fd` from now on, under `kind` and `key`, until it is closed.
    pub fn add(&self, fd: impl AsFd, kind: Kind, key: u32, flags: EventFlags) -> Result<()> {
        let data = u64::from(kind as u32) << 32 | u64::from(key);
        epoll::add(&self.epoll, fd, EventData::new_u64(data), flags | EventFlags::ET)
    }

    /// Waits for the next events, or takes those that are there if `busy`.
    pub fn wait(&mut self, busy: bool) -> usize {
        self.events.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, buffer, busy.then_some(&at_once)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            // Nothing else can be wrong with an epoll descriptor of ours.
            Err(error) => panic!("epoll_wait: {error:?}"),
        }
    }

    /// The event `index` of the last [`Poll::wait`].
    pub fn event(&self, index: usize) -> Option<Ready> {
        let event = self.events.get(index)?;
        let data = event.data.u64();
        let kind = *KINDS.get((data >> 32) as usize)?;
        Some(Ready { kind, key: data as u32, flags: event.flags })
    }
}
