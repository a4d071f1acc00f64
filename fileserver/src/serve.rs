//! The loop: requests in, replies and news out.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::contents::Read;
use crate::files::Files;
use crate::opcode::{self, Counts};
use crate::sys;
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
    /// Whoever wants to know asks by SIGUSR1; the answer goes to the log.
    questions: OwnedFd,
    counts: Counts,
}

/// What the loop goes on with.
enum Next {
    Request,
    /// News of the host's files, which come first.
    News,
    Question,
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
    /// `questions`: as sys::questions has made it.
    pub fn new(socket: OwnedFd, questions: OwnedFd, files: Files) -> Server {
        let socket = Arc::new(Socket { fd: socket, sending: Mutex::new(()) });
        Server { socket, files, postponed: Vec::new(), questions, counts: Counts::new() }
    }

    /// Serves until the VM is gone.
    pub fn serve(&mut self) -> std::result::Result<(), String> {
        let mut buffer = vec![0u8; BUFFER];
        let mut filled = 0;
        loop {
            match self.wait().map_err(|error| format!("poll: {error}"))? {
                Next::Request => {}
                Next::News => {
                    self.files.hear();
                    self.send_news()?;
                    continue;
                }
                Next::Question => {
                    sys::take_question(&self.questions);
                    eprintln!("cloche-files: requests: {}", self.counts.text());
                    continue;
                }
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

    fn wait(&self) -> Result<Next> {
        let (socket, watches) = (&self.socket.fd, self.files.watches.fd());
        let fds = [watches.unwrap_or(socket.as_fd()), self.questions.as_fd(), socket.as_fd()];
        let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) if watches.is_some() && !fds[0].revents().is_empty() => Ok(Next::News),
            Ok(_) if !fds[1].revents().is_empty() => Ok(Next::Question),
            Ok(_) => Ok(Next::Request),
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
        self.counts.count(request.opcode);
        self.files.count_maker(&request);
        let mut out = Out::default();
        out.header(0, 0, request.unique);
        let answer = self.carry_out(&request, data, &mut out);
        match answer {
            Ok(Answer::None) => out.0.clear(),
            Ok(Answer::Later) => {
                self.postponed.push(message.to_vec());
                out.0.clear();
            }
            Ok(Answer::Reply) => {
                let length = out.0.len() as u32;
                out.0[..4].copy_from_slice(&length.to_ne_bytes());
            }
            Ok(Answer::Long(count)) => {
                out.0.clear();
                out.header(count, 0, request.unique);
            }
            Err(error) => {
                out.0.clear();
                out.header(0, -error.raw_os_error(), request.unique);
            }
        }
        // What the guest has to know comes before what it has waited for.
        let mut news = std::mem::take(&mut self.files.news);
        if news.0.is_empty() {
            return self.send(&out.0);
        }
        news.bytes(&out.0);
        self.send(&news.0)
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
            op::TMPFILE => files.make_unnamed(request, out)?,
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
