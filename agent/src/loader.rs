//! Modules that the kernel asks for while the guest runs.
//!
//! The kernel's modprobe helper (`helper`) hands over the name, the host answers with the files
//! that are to be loaded, in order, and the helper loads them. All that knows which files these
//! are is on the host: until something is asked for, the guest has no modules but those of the
//! boot.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use cloche_agent::answers::{self, Failure};
use cloche_agent::errno;
use cloche_agent::messages::{ModuleData, ModuleEnd};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use crate::fail::{Outcome, Step};
use crate::poll::{Kind, Poll};
use crate::sys::{self, Result};

/// Where helpers find PID 1: in the file system of the initramfs, out of every container's sight.
pub const SOCKET: &str = "/modules/socket";
/// The last byte to a helper: the host knows the name, or not.
pub const FOUND: u8 = b'1';
const UNKNOWN: u8 = b'0';
/// The first byte to a helper, and the one that a file comes with.
const HEARD: u8 = b'.';
/// Questions under way. The kernel has 50 helpers at once, and lets all others wait.
const MOST: usize = 64;
/// Longest question: a name, and those of all modules that are loaded.
const LONGEST: usize = 60_000;

pub struct Loader {
    listener: OwnedFd,
    questions: Vec<Question>,
    /// The last question's number.
    last: u32,
}

struct Question {
    key: u32,
    helper: OwnedFd,
    /// Empty until the helper has said it.
    name: String,
    /// The file that is coming from the host.
    file: Option<OwnedFd>,
    /// The modules that the helper has, and has not said how it fared with them.
    given: Vec<String>,
}

impl Loader {
    /// Listens to helpers. Until then the kernel is refused every module at once.
    pub fn start(poll: &Poll) -> Result<Loader> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        net::bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
        net::listen(&listener, MOST as i32)?;
        poll.add(&listener, Kind::ModuleListener, 0, EventFlags::IN)?;
        Ok(Loader { listener, questions: Vec::new(), last: 0 })
    }

    /// Takes the helpers that have come.
    pub fn accept(&mut self, poll: &Poll) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(helper) = net::accept_with(&self.listener, flags) {
            self.last += 1;
            let key = self.last;
            let full = self.questions.len() >= MOST;
            if full || poll.add(&helper, Kind::ModuleHelper, key, EventFlags::IN).is_err() {
                continue;
            }
            let (name, file, given) = (String::new(), None, Vec::new());
            self.questions.push(Question { key, helper, name, file, given });
        }
    }

    /// A helper has said something, or is gone. Nothing is asked of a host that is not there.
    pub fn ready(&mut self, key: u32, is_greeted: bool, out: &mut Vec<u8>) {
        let found = self.questions.iter().position(|question| question.key == key);
        let Some(index) = found else { return };
        if !self.questions[index].hear(is_greeted, out) {
            self.questions.swap_remove(index);
        }
    }

    /// The next bytes of a module's file; the last ones make it complete.
    pub fn data(&mut self, plan: &ModuleData) -> Outcome<()> {
        let question = self.find(plan.query, plan.module)?;
        question.take(plan).step("module", plan.module)
    }

    /// There are no more files.
    pub fn end(&mut self, plan: &ModuleEnd) -> Outcome<()> {
        let byte = if plan.found { FOUND } else { UNKNOWN };
        let question = self.find(plan.query, "")?;
        net::send(&question.helper, &[byte], SendFlags::NOSIGNAL).step("module", &question.name)?;
        Ok(())
    }

    fn find(&mut self, query: u64, module: &str) -> Outcome<&mut Question> {
        let found = self.questions.iter_mut().find(|each| u64::from(each.key) == query);
        found.ok_or_else(|| Failure::new("module", module, errno::ESRCH))
    }

    /// The host is gone, and with it who was to answer.
    pub fn forget(&mut self) {
        self.questions.clear();
    }
}

impl Question {
    /// Reads what the helper has said; false once it is done with.
    fn hear(&mut self, is_greeted: bool, out: &mut Vec<u8>) -> bool {
        let mut buffer = Vec::with_capacity(LONGEST);
        loop {
            buffer.clear();
            let space = rustix::buffer::spare_capacity(&mut buffer);
            match net::recv(&self.helper, space, RecvFlags::empty()) {
                Ok((1.., _)) => {}
                Err(Errno::AGAIN) => return true,
                Ok(_) | Err(_) => return false,
            }
            if self.name.is_empty() {
                if !is_greeted || self.ask(&buffer, out).is_none() {
                    return false;
                }
            } else if let Ok(errno) = buffer.as_slice().try_into().map(i32::from_le_bytes) {
                self.fared(errno, out);
            }
        }
    }

    /// Hands a helper's question to the host: the name, then those of loaded modules, a line each.
    fn ask(&mut self, question: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let mut lines = core::str::from_utf8(question).ok()?.split('\n');
        self.name = lines.next().filter(|name| !name.is_empty())?.into();
        let loaded: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        answers::module(out, self.key.into(), &self.name, &loaded);
        net::send(&self.helper, &[HEARD], SendFlags::NOSIGNAL).ok().map(drop)
    }

    /// The helper has loaded a module, or could not.
    fn fared(&mut self, errno: i32, out: &mut Vec<u8>) {
        if self.given.is_empty() {
            return;
        }
        let module = self.given.remove(0);
        // A driver without its device is nothing to speak of.
        if errno != 0 && errno != errno::ENODEV {
            let cause = errno::text(errno);
            let message = format!("module {module}, for {}: {cause}", self.name);
            answers::log(out, "warning", &message);
        }
    }

    fn take(&mut self, plan: &ModuleData) -> Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => rustix::fs::memfd_create(plan.module, MemfdFlags::CLOEXEC)?,
        };
        sys::write_all(&file, plan.data)?;
        if !plan.complete {
            self.file = Some(file);
            return Ok(());
        }
        give(&self.helper, &file)?;
        self.given.push(plan.module.into());
        Ok(())
    }
}

/// Hands an open file to a helper.
fn give(helper: &OwnedFd, file: &OwnedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    net::sendmsg(helper, &[IoSlice::new(&[HEARD])], &mut control, SendFlags::NOSIGNAL).map(drop)
}
