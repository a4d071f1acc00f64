//! What the server shuts itself off from before it reads the first request.
//!
//! It sees the share and nothing else, has the capabilities that changing files of other users
//! takes, and the system calls that it makes. Whoever takes it over has no more.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{mount, mount_bind_recursive, unmount, MountFlags, UnmountFlags};

use crate::sys;
use crate::wire::Result;

/// CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, LINUX_IMMUTABLE,
/// SYS_ADMIN (trusted.* attributes), MKNOD, SETFCAP. Not SYS_RESOURCE: quotas are to hold.
const CAPABILITIES: [u32; 11] = [0, 1, 2, 3, 4, 6, 7, 9, 21, 27, 31];
const LAST_CAPABILITY: u32 = 63;

/// All system calls that it makes, those of the C library for threads and memory included.
const SYSTEM_CALLS: [libc::c_long; 74] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_lseek,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_ioctl,
    libc::SYS_pread64,
    libc::SYS_pwritev2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_getdents64,
    libc::SYS_umask,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_openat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchownat,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_writev,
];

/// Leaves the starter's mounts, and gets a /proc with processes only: nothing there can be set.
/// (Before Linux 5.8 there is none such, and it is the host's.)
pub fn leave_mounts() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    sys::own_mounts()?;
    let _ = mount("proc", "/proc", "proc", flags, c"subset=pid,hidepid=ptraceable");
    Ok(())
}

/// Leaves everything but the folder: it becomes the root, and what was mounted besides is gone.
/// What is mounted below it later still arrives. Returns the folder. `process` is /proc/self.
pub fn enter(folder: &str, process: &OwnedFd) -> Result<OwnedFd> {
    let hold = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if !is_mounted(folder)? {
        mount_bind_recursive(folder, folder)?; // a root has to be one: that of a rehearsal is not
    }
    let root = rustix::fs::openat(CWD, folder, hold, Mode::empty())?;
    // pivot_root(2) takes names only; the working directory is needed for both.
    rustix::process::chdir(folder)?;
    rustix::process::pivot_root(c".", c".")?;
    leave_old_root(&root, process)?;
    Ok(root)
}

/// Unmounts what is on top of the root, the one before. It is gone at once, but the call returns
/// only when no processor can be looking at it any more, which takes 80 ms on a busy machine: so
/// another process makes it.
fn leave_old_root(root: &OwnedFd, process: &OwnedFd) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    // What is told of it is what has changed since it was opened.
    let mounts = rustix::fs::openat(process, c"mountinfo", flags, Mode::empty())?;
    let helper = sys::aside(|| {
        let _ = unmount(c".", UnmountFlags::DETACH);
    })?;
    loop {
        let has_ended = !poll_any(&mounts, &helper)?;
        if mount_of(root, c"")? == mount_of(CWD, c"/..")? {
            return Ok(());
        }
        if has_ended {
            return Err(Errno::BUSY);
        }
    }
}

/// Waits until mounts change (true), or the process has ended.
fn poll_any(mounts: &OwnedFd, process: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(mounts, PollFlags::PRI), PollFd::new(process, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) => Ok(fds[1].revents().is_empty()),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The number of the mount that a path leads to.
fn mount_of(folder: impl AsFd, path: &CStr) -> Result<u64> {
    let flags = if path.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
    Ok(rustix::fs::statx(folder, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Whether something is mounted at that very folder.
fn is_mounted(folder: &str) -> Result<bool> {
    let wanted = StatxFlags::BASIC_STATS;
    let stat = rustix::fs::statx(CWD, folder, AtFlags::empty(), wanted)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Gives up all capabilities and system calls that are not needed.
pub fn lock() -> Result<()> {
    for capability in (0..=LAST_CAPABILITY).filter(|each| !CAPABILITIES.contains(each)) {
        match sys::drop_bounding(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // there are no more
            Err(error) => return Err(error),
        }
    }
    let kept = CAPABILITIES.iter().fold(0, |mask, each| mask | 1 << each);
    sys::limit_capabilities(kept)?;
    sys::allow_calls(&filter())
}

/// The program for seccomp(2): what is not on the list fails with EPERM.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = vec![
        step(LOAD, 0, 0, ARCHITECTURE),
        step(IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
    ];
    for (index, &call) in SYSTEM_CALLS.iter().enumerate() {
        let to_end = (SYSTEM_CALLS.len() - index) as u8;
        steps.push(step(IF_EQUAL, to_end, 0, call as u32));
    }
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    steps
}
