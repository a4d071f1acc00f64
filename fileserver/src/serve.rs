//! The loop: requests in, replies and news out.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::contents::Read;
use crate::files::Files;
use crate::wire::{Out, Request, Result};
use crate::wire::{BEGIN, FREED, INLINE, IN_HEADER, LONG_BEGINNING, MAX_DATA, TAKEN};

const BUFFER: usize = 256 << 10;
/// A thread that waits for a disk needs no more.
const STACK: usize = 64 << 10;
/// Threads at once; further ones wait where all others do.
const MOST_SYNCS: usize = 16;

/// What becomes of a request.
enum Answer {
    Reply,
    /// A reply whose data, so many bytes, are in the ring.
    Long(usize),
    /// It has none, or gives it itself.
    None,
    /// Again when the guest has taken what is in the ring.
    Later,
}

pub struct Server {
    socket: Arc<Socket>,
    files: Files,
    postponed: Vec<Vec<u8>>,
}

/// The stream: messages go out whole.
struct Socket {
    fd: OwnedFd,
    sending: Mutex<()>,
}

impl Socket {
    fn send(&self, mut bytes: &[u8]) -> Result<()> {
        let _alone = self.sending.lock();
        while !bytes.is_empty() {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                // The VM is gone, which the next look at it tells.
                Err(Errno::PIPE) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Server {
    pub fn new(socket: OwnedFd, files: Files) -> Result<Server> {
        let socket = Arc::new(Socket { fd: socket, sending: Mutex::new(()) });
        Ok(Server { socket, files, postponed: Vec::new() })
    }

    /// Serves until the VM is gone.
    pub fn serve(&mut self) -> std::result::Result<(), String> {
        let mut buffer = vec![0u8; BUFFER];
        let mut filled = 0;
        loop {
            if self.wait().map_err(|error| format!("poll: {error}"))? {
                self.files.hear();
                self.send_news()?;
                continue;
            }
            match rustix::net::recv(&self.socket.fd, &mut buffer[filled..], RecvFlags::empty()) {
                Ok((0, _)) => return Ok(()),
                Ok((count, _)) => filled += count,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(()), // with replies that it has not read
                Err(error) => return Err(format!("receiving: {error}")),
            }
            let mut start = 0;
            while let Some(size) = whole_message(&buffer[start..filled])? {
                self.message(&buffer[start..start + size])?;
                start += size;
            }
            buffer.copy_within(start..filled, 0);
            filled -= start;
        }
    }

    /// Waits; true: for news of the host's files, which come first.
    fn wait(&self) -> Result<bool> {
        let (socket, watches) = (&self.socket.fd, self.files.watches.fd());
        let mut fds = [PollFd::new(&watches, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => self.wait(),
            Err(error) => Err(error),
        }
    }

    fn send_news(&mut self) -> std::result::Result<(), String> {
        let news = std::mem::take(&mut self.files.news);
        self.send(&news.0)
    }

    fn send(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        self.socket.send(bytes).map_err(|error| format!("sending: {error}"))
    }

    /// A message of the guest, whose rest is in the ring if it is a long one.
    fn message(&mut self, message: &[u8]) -> std::result::Result<(), String> {
        let wrong = |_| "not a message".to_string();
        let total = total_of(message);
        if total <= INLINE {
            return self.request(message, None);
        }
        let long = self.files.rings.incoming(total - LONG_BEGINNING).map_err(wrong)?;
        if Request::parse(message).map_err(wrong)?.opcode == opcode::WRITE {
            self.request(message, Some(long))?;
        } else {
            // SAFETY: the ring is mapped. What is copied may change before, but not afterwards.
            let rest = unsafe { std::slice::from_raw_parts(long.0, long.1) }.to_vec();
            self.request(&[message, &rest].concat(), None)?;
        }
        let mut freed = Out::default();
        freed.header(0, FREED, 0);
        self.send(&freed.0)
    }

    fn request(
        &mut self,
        message: &[u8],
        data: Option<(*const u8, usize)>,
    ) -> std::result::Result<(), String> {
        let Ok(request) = Request::parse(message) else { return Err("not a message".into()) };
        let mut out = Out::default();
        out.header(0, 0, request.unique);
        let answer = self.carry_out(&request, data, &mut out);
        // What the guest has to know comes before what it has waited for.
        if !self.files.news.0.is_empty() {
            self.send_news()?;
        }
        match answer {
            Ok(Answer::None) => Ok(()),
            Ok(Answer::Later) => {
                self.postponed.push(message.to_vec());
                Ok(())
            }
            Ok(Answer::Reply) => {
                let length = out.0.len() as u32;
                out.0[..4].copy_from_slice(&length.to_ne_bytes());
                self.send(&out.0)
            }
            Ok(Answer::Long(count)) => {
                out.0.clear();
                out.header(count, 0, request.unique);
                self.send(&out.0)
            }
            Err(error) => {
                out.0.clear();
                out.header(0, -error.raw_os_error(), request.unique);
                self.send(&out.0)
            }
        }
    }

    fn carry_out(
        &mut self,
        request: &Request,
        data: Option<(*const u8, usize)>,
        out: &mut Out,
    ) -> Result<Answer> {
        use opcode as op;
        let files = &mut self.files;
        match request.opcode {
            op::LOOKUP => files.look_up(request, out)?,
            op::GETATTR => files.tell_attributes(request.node, out)?,
            op::SETATTR => files.set_attributes(request, out)?,
            op::READLINK => files.read_link(request, out)?,
            op::SYMLINK => files.make_symlink(request, out)?,
            op::MKNOD => files.make_node(request, out)?,
            op::MKDIR => files.make_folder(request, out)?,
            op::UNLINK => files.remove(request, false)?,
            op::RMDIR => files.remove(request, true)?,
            op::RENAME => files.rename(request, false)?,
            op::RENAME2 => files.rename(request, true)?,
            op::LINK => files.make_link(request, out)?,
            op::READ => {
                return Ok(match files.read(request, out)? {
                    Read::Inline => Answer::Reply,
                    Read::Long(count) => Answer::Long(count),
                    Read::Later => Answer::Later,
                })
            }
            op::WRITE => files.write(request, data, out)?,
            op::STATFS => files.file_system(request, out)?,
            op::FSYNC | op::FSYNCDIR => return self.sync(request, false),
            op::SYNCFS => return self.sync(request, true),
            op::SETXATTR => files.set_xattr(request)?,
            op::GETXATTR => files.get_xattr(request, false, out)?,
            op::LISTXATTR => files.get_xattr(request, true, out)?,
            op::REMOVEXATTR => files.remove_xattr(request)?,
            op::READDIR => files.read_folder(request, false, out)?,
            op::READDIRPLUS => files.read_folder(request, true, out)?,
            op::FALLOCATE => files.allocate(request)?,
            op::LSEEK => files.seek(request, out)?,
            op::COPY_FILE_RANGE => files.copy(request, out)?,
            op::IOCTL => files.ioctl(request, out)?,
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::DESTROY | BEGIN | TAKEN => {
                return self.note(request)
            }
            // OPEN, OPENDIR, CREATE, FLUSH among them: the guest's kernel then does without.
            _ => return Err(Errno::NOSYS),
        }
        Ok(Answer::Reply)
    }

    /// What has no reply.
    fn note(&mut self, request: &Request) -> Result<Answer> {
        let mut fields = request.fields();
        match request.opcode {
            opcode::FORGET => self.files.forget(request.node, fields.u64()?),
            opcode::BATCH_FORGET => {
                let count = fields.u32()?;
                fields.skip(4)?;
                for _ in 0..count {
                    let (node, lookups) = (fields.u64()?, fields.u64()?);
                    self.files.forget(node, lookups);
                }
            }
            BEGIN => {
                self.postponed.clear();
                self.files.begin()?;
            }
            TAKEN => {
                self.files.rings.taken();
                for message in std::mem::take(&mut self.postponed) {
                    let _ = self.request(&message, None);
                }
            }
            _ => {}
        }
        Ok(Answer::None)
    }

    /// FUSE_FSYNC and the like, in a thread of its own: a disk may take its time, and all others
    /// wait for this one.
    fn sync(&mut self, request: &Request, everything: bool) -> Result<Answer> {
        let mut fields = request.fields();
        let flags = if everything { 0 } else { fields.skip(8).and_then(|()| fields.u32())? };
        let file = Arc::new(self.files.open_any(request.node)?);
        let unique = request.unique;
        let socket = Arc::clone(&self.socket);
        let work = move || {
            let result = match (everything, flags & 1) {
                (true, _) => rustix::fs::syncfs(&file),
                (false, 1) => rustix::fs::fdatasync(&file),
                (false, _) => rustix::fs::fsync(&file),
            };
            let mut out = Out::default();
            out.header(0, -result.err().map_or(0, Errno::raw_os_error), unique);
            let _ = socket.send(&out.0);
        };
        let busy = Arc::strong_count(&self.socket) > MOST_SYNCS;
        let thread = std::thread::Builder::new().stack_size(STACK);
        if busy || thread.spawn(work.clone()).is_err() {
            work();
        }
        Ok(Answer::None)
    }
}

fn total_of(message: &[u8]) -> usize {
    let size = message.get(..4).and_then(|bytes| bytes.try_into().ok());
    size.map_or(0, |bytes| u32::from_ne_bytes(bytes) as usize)
}

/// How much of the buffer is the next message, once all of it is there.
fn whole_message(buffer: &[u8]) -> std::result::Result<Option<usize>, String> {
    if buffer.len() < IN_HEADER {
        return Ok(None);
    }
    let total = total_of(buffer);
    if !(IN_HEADER..=LONG_BEGINNING + MAX_DATA).contains(&total) {
        return Err(format!("a message of {total} bytes"));
    }
    let size = if total > INLINE { LONG_BEGINNING } else { total };
    Ok((buffer.len() >= size).then_some(size))
}

/// Numbers of requests: enum fuse_opcode of linux/fuse.h.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const READDIR: u32 = 28;
    pub const FSYNCDIR: u32 = 30;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}
