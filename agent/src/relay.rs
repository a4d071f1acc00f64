//! The relay between the kernel and the host's program that serves the share.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as raw;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::{self, Errno};

use cloche_agent::known::{Known, ATTRIBUTES, LONGEST_ANSWER};

use crate::files;
use crate::share::message;
use crate::sys::{self, Fork, Lock, Result};

/// As fileserver/src/wire.rs and ring.rs have them: of a longer message only the beginning goes
/// through the port; the rest is in a ring on the disk, one for each direction.
const INLINE: usize = 32 << 10;
const IN_BEGINNING: usize = 80;
const OUT_HEADER: usize = 16;
const MAX_DATA: usize = 1 << 20;
const RING: usize = 2 << 20;
const STEP: usize = 4096;
/// More long requests than this have no room in their ring.
const MOST_LENT: usize = RING / INLINE + 1;
pub const BEGIN: u32 = 0x0c10_0001;
const TAKEN: u32 = 0x0c10_0002;
const FREED: u32 = 0x0c10_0003;
const FORGET: u32 = 0x0c10_0004;

/// Room for a message whose long part begins at a page, as a disk that is read directly demands.
struct Room {
    bytes: &'static mut [u8],
    /// Where the long part begins.
    page: usize,
}

impl Room {
    /// In one large page, so that the disk's driver and QEMU have one piece to care for instead of
    /// one for each page; and there from the beginning, which no clone then has to wait for.
    fn new() -> Result<Room> {
        let bytes = sys::large_page()?;
        bytes[..MAX_DATA + 2 * STEP].fill(0);
        Ok(Room { bytes, page: STEP })
    }

    /// The message, with a beginning of `before` bytes.
    fn message(&mut self, before: usize, long: usize) -> &mut [u8] {
        &mut self.bytes[self.page - before..self.page + long]
    }
}

/// Where messages of one direction are; both sides count alike.
#[derive(Default)]
struct Cursor {
    next: usize,
}

impl Cursor {
    fn advance(&mut self, size: usize) -> usize {
        let place = if self.next > RING - MAX_DATA { 0 } else { self.next };
        self.next = place + size.next_multiple_of(STEP);
        place
    }
}

/// What the threads share. Nobody allocates but the one that brings replies.
struct Relay {
    fuse: BorrowedFd<'static>,
    port: BorrowedFd<'static>,
    disk: BorrowedFd<'static>,
    news: BorrowedFd<'static>,
    their_news: BorrowedFd<'static>,
    known: Lock<Known>,
    /// How many long requests the host has taken.
    freed: AtomicU32,
    rooms: [Lock<Room>; 2],
    news_room: Lock<Vec<u8>>,
}

/// Serves until the file system or the host is gone. Three threads, each of which may wait: one
/// takes requests, one brings replies, and one notifications, for which the kernel may want a
/// reply first. They are threads since going from one to the other then leaves the processor's
/// tables as they are, which is dear to exchange under TCG.
pub fn serve(fds: [BorrowedFd<'_>; 5]) -> ! {
    // SAFETY: they stay open as long as this process lives.
    let [fuse, port, disk, news, their_news] =
        fds.map(|fd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) });
    let (Ok(one), Ok(other)) = (Room::new(), Room::new()) else { sys::exit(1) };
    let rooms = [Lock::new(one), Lock::new(other)];
    let relay: &'static Relay = Box::leak(Box::new(Relay {
        fuse,
        port,
        disk,
        news,
        their_news,
        known: Lock::new(Known::default()),
        freed: AtomicU32::new(0),
        rooms,
        news_room: Lock::new(vec![0; 2 * STEP]),
    }));
    let (buffer, waiting) = (vec![0; INLINE + STEP], Vec::new());
    let replier = Replier { relay, buffer, cursor: Cursor::default(), waiting };
    if sys::thread(relay, take_requests).is_ok() && sys::thread(relay, bring_news).is_ok() {
        take_precedence();
        replier.serve();
    }
    sys::exit(0)
}

/// All of the VM waits for it: containers that use all the time do not matter, and where it wants
/// memory itself the kernel waits for no file system. Each thread says so for itself.
fn take_precedence() {
    const PR_SET_IO_FLUSHER: u32 = 57;
    let _ = sys::take_precedence();
    let _ = sys::prctl(PR_SET_IO_FLUSHER, 1, 0);
}

/// Brings the kernel's requests to the host.
extern "C" fn take_requests(relay: &'static Relay) -> ! {
    take_precedence();
    relay.rooms[0].with(|room| Requester::new(relay, room).serve());
    sys::exit(0)
}

/// Where the data of long requests are that the host may not have taken yet; the oldest first.
struct Lent {
    places: [(usize, usize); MOST_LENT],
    first: usize,
    count: usize,
    freed: u32,
}

impl Lent {
    fn new() -> Lent {
        Lent { places: [(0, 0); MOST_LENT], first: 0, count: 0, freed: 0 }
    }

    fn push(&mut self, place: usize, size: usize) {
        self.places[(self.first + self.count) % MOST_LENT] = (place, size);
        self.count += 1;
    }

    /// The host has taken `freed` of them in all.
    fn settle(&mut self, freed: u32) {
        let newly = (freed.wrapping_sub(self.freed) as usize).min(self.count);
        self.first = (self.first + newly) % MOST_LENT;
        self.count -= newly;
        self.freed = freed;
    }

    /// Whether what is at that place is still to be taken.
    fn touches(&self, place: usize, size: usize) -> bool {
        let mut lent = (0..self.count).map(|at| self.places[(self.first + at) % MOST_LENT]);
        self.count == MOST_LENT || lent.any(|(at, long)| place < at + long && at < place + size)
    }
}

struct Requester<'a> {
    relay: &'static Relay,
    room: &'a mut Room,
    cursor: Cursor,
    lent: Lent,
}

impl<'a> Requester<'a> {
    fn new(relay: &'static Relay, room: &'a mut Room) -> Requester<'a> {
        Requester { relay, room, cursor: Cursor::default(), lent: Lent::new() }
    }

    fn serve(&mut self) {
        loop {
            match io::read(self.relay.fuse, &mut *self.room.message(IN_BEGINNING, MAX_DATA)) {
                Ok(count) if self.is_answered(count) => {}
                Ok(count) => {
                    if self.pass_on(count).is_none() {
                        return;
                    }
                }
                // Taken back meanwhile.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }

    /// Answers a request, if the host has said beforehand what is asked.
    fn is_answered(&mut self, count: usize) -> bool {
        let request = &self.room.message(IN_BEGINNING, MAX_DATA)[..count];
        let mut reply = [0; LONGEST_ANSWER];
        let answer = self.relay.known.with(|known| known.answer(request, now(), &mut reply));
        if let Some(size) = answer {
            let _ = io::write(self.relay.fuse, &reply[..size]);
        }
        answer.is_some()
    }

    /// Brings a request of `count` bytes to the host; None: it is gone.
    fn pass_on(&mut self, count: usize) -> Option<()> {
        let mut inline = count;
        if count > INLINE {
            let size = (count - IN_BEGINNING).next_multiple_of(STEP);
            let place = self.cursor.advance(size);
            self.wait_for(place, size);
            self.lent.push(place, size);
            let written = io::pwrite(self.relay.disk, &*self.room.message(0, size), place as u64);
            if written != Ok(size) {
                return None;
            }
            inline = IN_BEGINNING;
        }
        let message = &self.room.message(IN_BEGINNING, MAX_DATA)[..inline];
        sys::write_all(self.relay.port, message).ok()
    }

    /// Waits until the host has taken what is at that place.
    fn wait_for(&mut self, place: usize, size: usize) {
        loop {
            let freed = self.relay.freed.load(Ordering::Acquire);
            self.lent.settle(freed);
            if !self.lent.touches(place, size) {
                return;
            }
            sys::wait_while(&self.relay.freed, freed);
        }
    }
}

/// Seconds since some time.
fn now() -> u64 {
    sys::clock(raw::CLOCK_MONOTONIC_COARSE).unwrap_or_default() / 1_000_000_000
}

/// Brings replies to the kernel, and what else the host says to where it belongs. Once the host is
/// gone the whole process ends: nobody holds the file system then, and all that wait for an answer
/// get an error.
struct Replier {
    relay: &'static Relay,
    buffer: Vec<u8>,
    cursor: Cursor,
    /// Notifications for which their pipe has no room yet.
    waiting: Vec<u8>,
}

impl Replier {
    fn serve(mut self) {
        let mut buffer = core::mem::take(&mut self.buffer);
        let mut filled = 0;
        loop {
            if !self.waiting.is_empty() {
                self.wait();
            }
            match io::read(self.relay.port, &mut buffer[filled..]) {
                Ok(0) => return,
                Ok(count) => filled += count,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let mut start = 0;
            while let Some(size) = self.message(&buffer[start..filled]) {
                start += size;
            }
            buffer.copy_within(start..filled, 0);
            filled -= start;
        }
    }

    /// Waits for the host, or for room for notifications.
    fn wait(&mut self) {
        loop {
            let mut fds = [
                PollFd::new(&self.relay.port, PollFlags::IN),
                PollFd::new(&self.relay.their_news, PollFlags::OUT),
            ];
            let _ = poll(&mut fds, None);
            let (host, room) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if room {
                self.tell(&[]);
            }
            if host || self.waiting.is_empty() {
                return;
            }
        }
    }

    /// Handles the first message in `bytes`, if it is whole; returns its size.
    fn message(&mut self, bytes: &[u8]) -> Option<usize> {
        let header = bytes.get(..OUT_HEADER)?;
        let number = |at: usize| {
            header[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
        };
        let total = (number(0) as usize).max(OUT_HEADER);
        if header[8..] != [0; 8] && total > INLINE {
            self.long(header, total - OUT_HEADER);
            return Some(OUT_HEADER);
        }
        let message = bytes.get(..total)?;
        match number(4) {
            _ if header[8..] != [0; 8] => {
                // An error: the request was taken back meanwhile.
                let _ = io::write(self.relay.fuse, message);
            }
            FREED => {
                self.relay.freed.fetch_add(1, Ordering::Release);
                sys::wake(&self.relay.freed);
            }
            code => {
                // First: what the kernel is to forget is not to be said again.
                self.relay.known.with(|known| known.hear(message, now()));
                if code < ATTRIBUTES {
                    self.tell(message);
                }
            }
        }
        Some(total)
    }

    /// A reply whose data are on the disk.
    fn long(&mut self, header: &[u8], size: usize) {
        let place = RING + self.cursor.advance(size);
        let size = size.min(MAX_DATA);
        let whole = size.next_multiple_of(512);
        self.relay.rooms[1].with(|room| {
            let read = io::pread(self.relay.disk, &mut *room.message(0, whole), place as u64);
            let reply = room.message(OUT_HEADER, size);
            reply[..OUT_HEADER].copy_from_slice(header);
            let mut given = reply.len();
            if read != Ok(whole) {
                given = OUT_HEADER;
                reply[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
                reply[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_ne_bytes());
            }
            let _ = io::write(self.relay.fuse, &reply[..given]);
        });
        let _ = sys::write_all(self.relay.port, &message(TAKEN));
    }

    /// Hands a notification on, without waiting.
    fn tell(&mut self, message: &[u8]) {
        self.waiting.extend_from_slice(message);
        while !self.waiting.is_empty() {
            match io::write(self.relay.their_news, &self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Has the kernel forget files that nobody uses (only this makes it do so: FUSE's notifications
/// take names away, never inodes), in a process of its own, since other news must not wait. Files
/// with data in the page cache are kept unless those go as well.
fn forget_files(with_data: bool) {
    use rustix::process::{waitpid, WaitOptions};
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
    if let Ok(Fork::Child) = sys::fork(0, None) {
        let what: &[u8] = if with_data { b"3" } else { b"2" };
        let _ = files::write("/proc/sys/vm/drop_caches", what);
        sys::exit(0);
    }
}

/// Brings notifications to the kernel.
extern "C" fn bring_news(relay: &'static Relay) -> ! {
    take_precedence();
    relay.news_room.with(|buffer| bring_all(relay, buffer));
    sys::exit(0)
}

fn bring_all(relay: &Relay, buffer: &mut [u8]) {
    let mut filled = 0;
    loop {
        match io::read(relay.news, &mut buffer[filled..]) {
            Ok(0) => return,
            Ok(count) => filled += count,
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let mut start = 0;
        while let Some(size) = buffer[start..filled].first_chunk::<4>() {
            let size = (u32::from_ne_bytes(*size) as usize).clamp(OUT_HEADER, STEP);
            let Some(message) = buffer[start..filled].get(..size) else { break };
            if message[4..8] == FORGET.to_ne_bytes() {
                forget_files(message.get(OUT_HEADER) == Some(&1));
            } else {
                // An error: the kernel does not know of it, or not any more.
                let _ = io::write(relay.fuse, message);
            }
            start += size;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}
