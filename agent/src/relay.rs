//! What the processes of the share's relay do, each until its file system or its host is gone.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use linux_raw_sys::general as raw;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};

use crate::files;
use crate::share::message;
use crate::sys::{self, Fork};

/// As fileserver/src/wire.rs and ring.rs have them: of a longer message only the beginning goes
/// through the port; the rest is in a ring on the disk, one for each direction.
const INLINE: usize = 32 << 10;
const IN_BEGINNING: usize = 80;
const OUT_HEADER: usize = 16;
const MAX_DATA: usize = 1 << 20;
const RING: usize = 2 << 20;
const STEP: usize = 4096;
pub const BEGIN: u32 = 0x0c10_0001;
const TAKEN: u32 = 0x0c10_0002;
const FREED: u32 = 0x0c10_0003;
const FORGET: u32 = 0x0c10_0004;

/// Room for a message whose long part begins at a page, as a disk that is read directly demands.
struct Room {
    bytes: Vec<u8>,
    /// Where the long part begins.
    page: usize,
}

impl Room {
    fn new() -> Room {
        let bytes = vec![0; MAX_DATA + 2 * STEP];
        let address = bytes.as_ptr() as usize;
        let page = (address + IN_BEGINNING).next_multiple_of(STEP) - address;
        Room { bytes, page }
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

/// Brings the kernel's requests to the host.
pub fn take_requests(fuse: &OwnedFd, port: &OwnedFd, disk: &OwnedFd, freed: &OwnedFd) {
    let mut room = Room::new();
    let mut cursor = Cursor::default();
    let mut lent = VecDeque::new();
    loop {
        let count = match io::read(fuse, &mut *room.message(IN_BEGINNING, MAX_DATA)) {
            Ok(count) => count,
            // Taken back meanwhile.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => return,
        };
        let mut inline = count;
        if count > INLINE {
            let size = (count - IN_BEGINNING).next_multiple_of(STEP);
            let place = cursor.advance(size);
            // The host says how many of the oldest it has taken, a byte for each.
            while lent.iter().any(|&(at, long)| place < at + long && at < place + size) {
                let mut bytes = [0; 64];
                match io::read(freed, &mut bytes) {
                    Ok(0) => return,
                    Ok(count) => drop(lent.drain(..count.min(lent.len()))),
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
            lent.push_back((place, size));
            if !put(disk, room.message(0, size), place) {
                return;
            }
            inline = IN_BEGINNING;
        }
        if sys::write_all(port, &room.message(IN_BEGINNING, MAX_DATA)[..inline]).is_err() {
            return;
        }
    }
}

fn put(disk: &OwnedFd, bytes: &[u8], place: usize) -> bool {
    matches!(io::pwrite(disk, bytes, place as u64), Ok(count) if count == bytes.len())
}

/// Brings replies to the kernel, and what else the host says to where it belongs. Once the host is
/// gone the others have nothing to do any more: nobody holds the file system, and all that wait
/// for an answer get an error.
pub fn bring_replies(
    fuse: &OwnedFd,
    port: &OwnedFd,
    disk: &OwnedFd,
    news: &OwnedFd,
    freed: &OwnedFd,
    others: [&OwnedFd; 2],
) {
    let replier = Replier {
        fuse,
        port,
        disk,
        news,
        freed,
        room: Room::new(),
        cursor: Cursor::default(),
        waiting: Vec::new(),
    };
    replier.serve();
    for other in others {
        let _ = sys::signal(other, raw::SIGKILL as i32);
    }
}

struct Replier<'a> {
    fuse: &'a OwnedFd,
    port: &'a OwnedFd,
    disk: &'a OwnedFd,
    news: &'a OwnedFd,
    freed: &'a OwnedFd,
    room: Room,
    cursor: Cursor,
    /// Notifications for which their pipe has no room yet.
    waiting: Vec<u8>,
}

impl Replier<'_> {
    fn serve(mut self) {
        let mut buffer = vec![0; INLINE + STEP];
        let mut filled = 0;
        loop {
            if !self.waiting.is_empty() {
                self.wait();
            }
            match io::read(self.port, &mut buffer[filled..]) {
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
            let mut fds =
                [PollFd::new(self.port, PollFlags::IN), PollFd::new(self.news, PollFlags::OUT)];
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
        if header[8..] != [0; 8] {
            // An error: the request was taken back meanwhile.
            let _ = io::write(self.fuse, message);
        } else if number(4) == FREED {
            let _ = io::write(self.freed, b"f");
        } else {
            self.tell(message);
        }
        Some(total)
    }

    /// A reply whose data are on the disk.
    fn long(&mut self, header: &[u8], size: usize) {
        let place = RING + self.cursor.advance(size);
        let size = size.min(MAX_DATA);
        let whole = size.next_multiple_of(512);
        let read = io::pread(self.disk, &mut *self.room.message(0, whole), place as u64);
        let _ = sys::write_all(self.port, &message(TAKEN));
        let reply = self.room.message(OUT_HEADER, size);
        reply[..OUT_HEADER].copy_from_slice(header);
        if read != Ok(whole) {
            reply[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
            reply[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_ne_bytes());
            let _ = io::write(self.fuse, &reply[..OUT_HEADER]);
            return;
        }
        let _ = io::write(self.fuse, &*reply);
    }

    /// Hands a notification on, without waiting.
    fn tell(&mut self, message: &[u8]) {
        self.waiting.extend_from_slice(message);
        while !self.waiting.is_empty() {
            match io::write(self.news, &self.waiting) {
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
pub fn bring_news(fuse: &OwnedFd, news: &OwnedFd) {
    let mut buffer = vec![0; 2 * STEP];
    let mut filled = 0;
    loop {
        match io::read(news, &mut buffer[filled..]) {
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
                let _ = io::write(fuse, message);
            }
            start += size;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}
