//! The share as a FUSE file system, which a program of the host serves (docs/files.md).
//!
//! The kernel's requests and that program's replies go through a port of their own, which a process
//! of ours relays (relay.rs). The long part of a message goes through a disk that is memory of the
//! host, past the guest's page cache.

use alloc::format;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Access, OFlags};
use rustix::io::{self, Errno};
use rustix::mount::{self, MountFlags};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::boot::{find_port, make_folder};
use crate::files;
use crate::relay::{self, BEGIN};
use crate::sys::{self, Fork, Result};

/// Name of the virtio-serial port that leads to the program.
const PORT: &[u8] = b"cloche.files\n";
const DISK: &str = "/dev/disk/cloche-bulk";
/// Where a guest has the share from its boot on.
pub const MOUNT_POINT: &str = "/run/share";
/// How far the kernel reads ahead, in KiB: as much as one request may carry.
const READ_AHEAD_KIB: &[u8] = b"1024";
const NEWS_PIPE: usize = 1 << 20;

/// Flags of FUSE_INIT (linux/fuse.h).
mod init {
    const ASYNC_READ: u32 = 1;
    const BIG_WRITES: u32 = 1 << 5;
    const DONT_MASK: u32 = 1 << 6;
    const DO_READDIRPLUS: u32 = 1 << 13;
    const READDIRPLUS_AUTO: u32 = 1 << 14;
    const ASYNC_DIO: u32 = 1 << 15;
    const NO_OPEN_SUPPORT: u32 = 1 << 17;
    const PARALLEL_DIROPS: u32 = 1 << 18;
    const POSIX_ACL: u32 = 1 << 20;
    const MAX_PAGES: u32 = 1 << 22;
    const CACHE_SYMLINKS: u32 = 1 << 23;
    const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
    const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    const SETXATTR_EXT: u32 = 1 << 29;
    pub const WANTED: u32 = ASYNC_READ
        | BIG_WRITES
        | DONT_MASK
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | POSIX_ACL
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | EXPLICIT_INVAL_DATA
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT;
    /// Without these the program would be wrong about what the kernel does.
    pub const NEEDED: u32 =
        DONT_MASK | MAX_PAGES | POSIX_ACL | EXPLICIT_INVAL_DATA | HANDLE_KILLPRIV_V2 | SETXATTR_EXT;
}

/// What a VM has for it, and the relay of the mount that there is.
pub struct Share {
    port: OwnedFd,
    disk: OwnedFd,
    relay: Option<OwnedFd>,
}

impl Share {
    /// None: this VM has none, its share is another kind of file system.
    pub fn find() -> Option<Share> {
        let port = find_port(PORT, OFlags::RDWR)?;
        let disk = files::open(DISK, OFlags::RDWR | OFlags::DIRECT).ok()?;
        Some(Share { port, disk, relay: None })
    }

    /// Mounts it, in place of what was mounted before; the program begins anew.
    pub fn mount(&mut self, target: &str) -> Result<()> {
        if let Some(process) = self.relay.take() {
            let _ = sys::signal(&process, linux_raw_sys::general::SIGKILL as i32);
        }
        let fuse = files::open("/dev/fuse", OFlags::RDWR)?;
        let number = rustix::fd::AsRawFd::as_raw_fd(&fuse);
        let options = format!(
            "fd={number},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other\0"
        );
        let options = core::ffi::CStr::from_bytes_with_nul(options.as_bytes());
        make_folder(target);
        mount::mount("cloche", target, "fuse", MountFlags::empty(), options.ok())?;
        answer_init(&fuse)?;
        read_far_ahead();
        sys::write_all(&self.port, &message(BEGIN))?;
        self.start(&fuse)?;
        drop(fuse); // now nothing waits for a relay that could not begin
                    // The relay answers this by itself. The kernel then knows the folder, and asks in no clone.
        files::open(target, OFlags::RDONLY | OFlags::DIRECTORY).map(drop)
    }

    /// Makes the relay's process.
    fn start(&mut self, fuse: &OwnedFd) -> Result<()> {
        let (news, their_news) = pipe_with(PipeFlags::CLOEXEC)?;
        io::ioctl_fionbio(&their_news, true)?;
        let _ = rustix::pipe::fcntl_setpipe_size(&their_news, NEWS_PIPE);
        match sys::fork(0, None)? {
            Fork::Parent { pidfd, .. } => {
                self.relay = Some(pidfd);
                Ok(())
            }
            Fork::Child => {
                let keep = [fuse, &self.port, &self.disk, &news, &their_news];
                if sys::close_all_but(&keep).is_err() {
                    sys::exit(1);
                }
                // Containers that eat all memory do not matter.
                let _ = files::write("/proc/self/oom_score_adj", b"-1000");
                relay::serve(keep.map(AsFd::as_fd))
            }
        }
    }
}

/// Whether a path leads to such a share.
pub fn is_served(path: &str) -> bool {
    path.starts_with(MOUNT_POINT) && fs::access(DISK, Access::EXISTS).is_ok()
}

/// A message of our own: struct fuse_in_header with an opcode that the kernel has not.
pub fn message(opcode: u32) -> [u8; 40] {
    let mut message = [0; 40];
    message[..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..8].copy_from_slice(&opcode.to_ne_bytes());
    message
}

/// Answers the kernel's FUSE_INIT in place of the program: so it can be mounted before the VM is
/// saved, and each clone has a program of its own that need not know.
fn answer_init(fuse: impl AsFd) -> Result<()> {
    const SMALLEST: usize = 8192;
    const OFFERED: usize = 40 + 12;
    const LARGEST_WRITE: u32 = 1 << 20;
    const MAX_PAGES: u16 = 256;
    let mut request = [0u8; SMALLEST];
    let count = io::read(fuse.as_fd(), &mut request[..])?;
    if count < OFFERED + 4 {
        return Err(Errno::PROTO);
    }
    let number = |at: usize| {
        request[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
    };
    let offered = number(OFFERED);
    if offered & init::NEEDED != init::NEEDED {
        return Err(Errno::PROTONOSUPPORT);
    }
    let mut reply = [0u8; 16 + 64];
    let mut put = |at: usize, bytes: &[u8]| reply[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &80u32.to_ne_bytes());
    put(8, &request[8..16]);
    put(16, &7u32.to_ne_bytes());
    put(20, &number(44).min(38).to_ne_bytes());
    put(24, &LARGEST_WRITE.to_ne_bytes());
    put(28, &(offered & init::WANTED).to_ne_bytes());
    // How many requests may wait that nobody waits for, and from how many on there are too many.
    put(32, &32u16.to_ne_bytes());
    put(34, &24u16.to_ne_bytes());
    put(36, &LARGEST_WRITE.to_ne_bytes());
    put(40, &1u32.to_ne_bytes());
    put(44, &MAX_PAGES.to_ne_bytes());
    sys::write_all(fuse, &reply)
}

/// Else the kernel asks for 128 KiB at a time.
fn read_far_ahead() {
    let Ok(devices) = files::open("/sys/class/bdi", OFlags::RDONLY | OFlags::DIRECTORY) else {
        return;
    };
    for name in files::names(&devices).unwrap_or_default() {
        if name.starts_with(b"0:") {
            let path = [name.as_slice(), b"/read_ahead_kb"].concat();
            let _ = files::write_at(&devices, path.as_slice(), READ_AHEAD_KIB);
        }
    }
}
