//! What the agent waits for: one epoll instance, edge-triggered.
//!
//! Edges suit it: an end of a pipe is registered once and never again, the owner remembers that it
//! is ready until a call says EAGAIN, and a port without a host (always "hung up") does not spin.

use alloc::vec::Vec;

use linux_raw_sys::general as raw;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::sys::{self, Result};

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
    ModuleListener,
    ModuleHelper,
}

const KINDS: [Kind; 15] = [
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
    Kind::ModuleListener,
    Kind::ModuleHelper,
];

/// How long to wait for something to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Only what has happened already matters.
    Not,
    /// Until CLOCK_MONOTONIC shows so many ns.
    Until(u64),
    Forever,
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    // Linux has this clock always.
    sys::clock(raw::CLOCK_MONOTONIC).unwrap_or(0)
}

fn data(kind: Kind, key: u32) -> EventData {
    EventData::new_u64(u64::from(kind as u32) << 32 | u64::from(key))
}

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
        epoll::add(&self.epoll, fd, data(kind, key), flags | EventFlags::ET)
    }

    /// Reports nothing of `fd` but its hang-up until [`Poll::unmute`].
    pub fn mute(&self, fd: impl AsFd, kind: Kind, key: u32) -> Result<()> {
        epoll::modify(&self.epoll, fd, data(kind, key), EventFlags::ET)
    }

    /// Reports input of `fd` again, what is there already included.
    pub fn unmute(&self, fd: impl AsFd, kind: Kind, key: u32) -> Result<()> {
        epoll::modify(&self.epoll, fd, data(kind, key), EventFlags::IN | EventFlags::ET)
    }

    /// Waits for the next events.
    pub fn wait(&mut self, wait: Wait) -> usize {
        self.events.clear();
        let timeout = match wait {
            Wait::Not => Some(0),
            Wait::Until(time) => Some(time.saturating_sub(now())),
            Wait::Forever => None,
        };
        const SECOND: u64 = 1_000_000_000;
        let timeout = timeout.map(|left| Timespec {
            tv_sec: (left / SECOND) as i64,
            tv_nsec: (left % SECOND) as i64,
        });
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
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
