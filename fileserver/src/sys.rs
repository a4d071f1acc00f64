//! System calls that rustix lacks, and the identity in which files are made.
//!
//! The working directory is /proc/self/fd: a decimal name there stands for the file that a
//! descriptor (O_PATH ones too) refers to, with system calls that know no other way.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::wire::Result;

const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 4;
const CAP_FSETID: u32 = 4;
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `0`, or the error of a system call that returned -1.
fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        let error = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(error.unwrap_or(libc::EIO)));
    }
    Ok(result)
}

/// The name of a descriptor's file in the working directory.
pub fn name_of(fd: BorrowedFd) -> CString {
    CString::new(fd.as_raw_fd().to_string()).unwrap_or_default()
}

/// Opens the file of an O_PATH descriptor. Only for regular files and folders: anything else would
/// block, or do something.
pub fn reopen(fd: BorrowedFd, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::fs::openat(rustix::fs::CWD, name_of(fd), flags, Mode::empty())
}

/// Has changes of the file system identity leave the capabilities as they are.
pub fn keep_capabilities() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) }.into())
        .map(|_| ())
}

/// Does something as that user and group: what it makes is theirs. Permissions are not asked, the
/// guest's kernel has done so.
pub fn as_user<T>(uid: u32, gid: u32, action: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: these take numbers only, and concern this thread only.
    let become_user = |uid: u32, gid: u32| unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    };
    if (uid, gid) == (0, 0) {
        return action();
    }
    become_user(uid, gid);
    let result = action();
    become_user(0, 0);
    result
}

/// Does something without CAP_FSETID: a change of a file then takes its set-user-id bits.
pub fn dropping_privileges<T>(drop: bool, action: impl FnOnce() -> Result<T>) -> Result<T> {
    if !drop {
        return action();
    }
    let header = [CAPABILITY_VERSION, 0];
    let mut sets = [0u32; 6];
    // SAFETY: header and sets are as capget(2) and capset(2) have them.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) })?;
    let mut less = sets;
    less[0] &= !(1 << CAP_FSETID);
    // SAFETY: as above.
    let set = |sets: &[u32; 6]| unsafe {
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))
    };
    set(&less)?;
    let result = action();
    set(&sets)?;
    result
}

/// Sets the mask for files that are made; the kernel leaves it out where a folder has an ACL.
pub fn umask(mask: u32) {
    // SAFETY: takes a number only.
    unsafe { libc::umask(mask & 0o777) };
}

/// pwritev2(2) of memory that the guest may change meanwhile; `append`: at the end, wherever it is.
///
/// # Safety
/// All `length` bytes at `data` must be mapped.
pub unsafe fn write_at(
    file: &OwnedFd,
    data: *const u8,
    length: usize,
    offset: u64,
    append: bool,
) -> Result<usize> {
    let vector = libc::iovec { iov_base: data.cast_mut().cast(), iov_len: length };
    let flags = if append { libc::RWF_APPEND } else { 0 };
    // SAFETY: the caller's promise.
    let written =
        unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, offset as libc::off_t, flags) };
    check(written as libc::c_long).map(|count| count as usize)
}

/// pread(2) to memory that the guest may read meanwhile.
///
/// # Safety
/// All `length` bytes at `data` must be mapped.
pub unsafe fn read_at(file: &OwnedFd, data: *mut u8, length: usize, offset: u64) -> Result<usize> {
    // SAFETY: the caller's promise.
    let read = unsafe { libc::pread(file.as_raw_fd(), data.cast(), length, offset as libc::off_t) };
    check(read as libc::c_long).map(|count| count as usize)
}

/// getdents64(2).
pub fn entries(folder: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the buffer is as long as said.
    let filled = unsafe {
        libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    check(filled).map(|count| count as usize)
}

/// An ioctl(2) that reads or writes `data`.
pub fn ioctl(file: &OwnedFd, request: u32, data: &mut [u8; 32]) -> Result<()> {
    // SAFETY: the caller allows requests only whose argument has at most 32 bytes.
    let result = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(request) as _, data.as_mut_ptr())
    };
    check(result.into()).map(|_| ())
}

/// Raises how many descriptors there may be as far as is allowed; returns that.
pub fn most_descriptors() -> usize {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let limit = setrlimit(Resource::Nofile, raised).map_or(limit.current, |()| limit.maximum);
    limit.map_or(usize::MAX, |limit| limit as usize)
}

/// Takes a descriptor that was inherited under this number.
pub fn inherited(number: i32) -> Result<OwnedFd> {
    // SAFETY: the starter has put it there for us, and nothing else of this program knows it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)?;
    // SAFETY: it is open, see above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Far from all users, as QEMU's is (vmm/jail.py); the process's number is added.
const FIRST_USER: u32 = 0x7000_0000;

/// Does something that counts against the limits of a user of this process's own, if there can be
/// one here: all servers together would soon be at those of root. The death signal is lost by it.
pub fn as_own_user<T>(action: impl FnOnce() -> T) -> T {
    let user = FIRST_USER + std::process::id();
    // SAFETY: these take numbers only; there is one thread. What the first refuses changes nothing.
    let become_user = |user: u32| unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) };
    become_user(user);
    let result = action();
    become_user(0);
    // SAFETY: takes numbers only. (Another user's process is not for its user to look at.)
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    result
}

/// Ends this process when its parent ends.
pub fn die_with_parent() -> Result<()> {
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal)
}

/// Leaves the starter's mount namespace; what is mounted there still arrives.
pub fn own_mounts() -> Result<()> {
    use rustix::mount::{mount_change, MountPropagationFlags};
    use rustix::thread::UnshareFlags;
    // SAFETY: there is one thread, and nothing of the file system has been kept.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", follow)
}

/// Closes everything but the standard streams and two descriptors: what was inherited from an
/// engine is none of our business.
pub fn close_others(one: i32, other: i32) -> Result<()> {
    let (low, high) = (one.min(other), one.max(other));
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: takes numbers only; nothing has been opened yet.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// Does something in a process of its own, which then ends and that nobody has to wait for; returns
/// its descriptor.
pub fn aside(action: impl FnOnce()) -> Result<OwnedFd> {
    // SAFETY: there is one thread, so the child's memory is whole; it ends without a clean-up that
    // would be the parent's. Children that have ended leave nothing behind.
    let child = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        check(libc::fork().into())?
    };
    if child == 0 {
        action();
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: takes numbers only. The child is ours, and not waited for yet.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) })?;
    // SAFETY: it has just been opened; and children that end from now on leave nothing behind.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        Ok(OwnedFd::from_raw_fd(pidfd as i32))
    }
}

/// Takes a capability out of the bounding set.
pub fn drop_bounding(capability: u32) -> Result<()> {
    let number = libc::c_ulong::from(capability);
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into()).map(|_| ())
}

/// Keeps of the capabilities those in the mask, and inherits none.
pub fn limit_capabilities(kept: u32) -> Result<()> {
    let header = [CAPABILITY_VERSION, 0];
    let mut sets = [0u32; 6];
    // SAFETY: header and sets are as capget(2) and capset(2) have them.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) })?;
    // Effective, permitted, inheritable; then the same of the capabilities above 31.
    let limited = [sets[0] & kept, sets[1] & kept, 0, 0, 0, 0];
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), limited.as_ptr()) }).map(|_| ())
}

/// Installs a filter of system calls, for this process and all its threads to come.
pub fn allow_calls(steps: &[libc::sock_filter]) -> Result<()> {
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_ptr().cast_mut() };
    let no_new_privileges = libc::PR_SET_NO_NEW_PRIVS;
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(no_new_privileges, 1, 0, 0, 0) }.into())?;
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its steps outlive the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) }).map(|_| ())
}

/// A descriptor that can be read once SIGUSR1 has come, which does nothing else any more.
pub fn questions() -> Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is made before it is used, and outlives the calls.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        check(libc::signalfd(-1, &raw const set, flags).into())?
    };
    // SAFETY: it has just been opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes what made such a descriptor readable.
pub fn take_question(questions: &OwnedFd) {
    let _ = rustix::io::read(questions, &mut [0u8; 128]);
}
