//! The kernel's modprobe helper: this program once more, as /sbin/modprobe.
//!
//! The kernel executes it in the initial namespaces, with the name of what a program has asked for
//! (`modprobe -q -- fs-fuse`), and waits for its end. It asks PID 1, which asks the host, and
//! loads what comes back. Loading takes up to a tenth of a second, which PID 1 does not have.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno, IoSliceMut};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use crate::files;
use crate::loader::{FOUND, SOCKET};
use crate::sys::{self, Result};

/// Longest name (the kernel's own limit is 56 bytes).
const LONGEST: usize = 64;
/// How long PID 1 may take to say that it has heard. It cannot while it waits for this very
/// process, in a system call of its own that asks for a module: then that call has to fail.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does what the arguments ask for, and ends.
pub fn run(arguments: &[&CStr]) -> ! {
    let name = arguments.last().map_or(&b""[..], |name| name.to_bytes());
    let is_name = (1..=LONGEST).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let loaded = is_name && load(name) == Ok(true);
    sys::exit(i32::from(!loaded))
}

/// Whether there is something of this name, and at least a part of it could be loaded.
fn load(name: &[u8]) -> Result<bool> {
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    net::connect(&socket, &SocketAddrUnix::new(SOCKET)?)?;
    let question = [name, b"\n", &loaded_modules()].concat();
    net::send(&socket, &question, SendFlags::NOSIGNAL)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    net::recv(&socket, &mut [0u8][..], RecvFlags::empty())?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, None)?;
    let (mut good, mut bad) = (0, 0);
    loop {
        match next(&socket)? {
            Answer::Module(file) => {
                let errno = insert(&file).map_or_else(Errno::raw_os_error, |()| 0);
                *(if errno == 0 { &mut good } else { &mut bad }) += 1;
                net::send(&socket, &errno.to_le_bytes(), SendFlags::NOSIGNAL)?;
            }
            Answer::End(found) => return Ok(found && (good > 0 || bad == 0)),
        }
    }
}

/// The names of all modules that are loaded, a line each.
fn loaded_modules() -> Vec<u8> {
    // The root that the kernel gives its helpers is the one below PID 1's.
    let list = rustix::process::chdir("/..").and_then(|()| files::read("proc/modules"));
    let list = list.unwrap_or_default();
    let name = |line: &[u8]| line.split(|&byte| byte == b' ').next().map(<[u8]>::to_vec);
    let names: Vec<_> = list.split(|&byte| byte == b'\n').filter_map(name).collect();
    names.join(&b'\n')
}

enum Answer {
    /// A module's file.
    Module(OwnedFd),
    /// There are no more; whether the host knows the name.
    End(bool),
}

fn next(socket: &OwnedFd) -> Result<Answer> {
    let mut byte = [0];
    let mut space = [core::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(Errno::CONNRESET);
    }
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok(file.map_or(Answer::End(byte == [FOUND]), Answer::Module))
}

/// Loads a module. (Not by finit_module(2): it takes no file that somebody may still write to.)
fn insert(file: &OwnedFd) -> Result<()> {
    let size = rustix::fs::fstat(file)?.st_size as usize;
    let mut code = Vec::with_capacity(size);
    while code.len() < size {
        let at = code.len() as u64;
        match io::pread(file, spare_capacity(&mut code), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    match rustix::system::init_module(&code, c"") {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}
