//! System calls that rustix has no function for, or only one that fits badly.

pub mod own;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::{size_of, MaybeUninit};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::vec::Vec;
use linux_raw_sys::general as raw;
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

pub type Result<T> = core::result::Result<T, Errno>;

/// Executes one system call.
///
/// # Safety
/// The arguments must be what the call demands: pointers valid for what it reads and writes.
#[inline(never)]
pub unsafe fn syscall(number: u32, arguments: [usize; 5]) -> Result<usize> {
    let result: isize;
    let [a, b, c, d, e] = arguments;
    // SAFETY: the caller's; the kernel clobbers rcx and r11, and memory as the call says.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        -4095..0 => Err(Errno::from_raw_os_error(-result as i32)),
        _ => Ok(result as usize),
    }
}

fn raw_fd(fd: impl AsFd) -> usize {
    fd.as_fd().as_raw_fd() as usize
}

/// Writes all of `bytes`; `file` must be one that blocks.
pub fn write_all(file: impl AsFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The side of a fork that returned.
pub enum Fork {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks into new namespaces (`flags`, CLONE_NEW*) and, if given, directly into a cgroup.
/// The child shares nothing with its parent.
pub fn fork(flags: u64, cgroup: Option<&OwnedFd>) -> Result<Fork> {
    let mut pidfd: RawFd = -1;
    let mut arguments = raw::clone_args {
        flags: flags | u64::from(raw::CLONE_PIDFD),
        pidfd: ptr::addr_of_mut!(pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: raw::SIGCHLD.into(),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= raw::CLONE_INTO_CGROUP;
        arguments.cgroup = raw_fd(cgroup) as u64;
    }
    let size = size_of::<raw::clone_args>();
    // SAFETY: the structure outlives the call; without CLONE_VM the child goes on in a copy of
    // this memory and stack, and the agent has no other thread whose state could be torn.
    let pid =
        unsafe { syscall(raw::__NR_clone3, [ptr::addr_of!(arguments) as usize, size, 0, 0, 0]) }?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: CLONE_PIDFD made the kernel store a descriptor that is ours alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent { pid: pid as i32, pidfd })
}

/// Memory of the size and at the place of a large page, for this process's life; it is one, if the
/// kernel has one.
pub fn large_page() -> Result<&'static mut [u8]> {
    use rustix::mm::{madvise, mmap_anonymous, Advice, MapFlags, ProtFlags};
    const LARGE: usize = 2 << 20;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, of which the part that is a large page's place is given away once.
    unsafe {
        let start = mmap_anonymous(ptr::null_mut(), 2 * LARGE, protection, MapFlags::PRIVATE)?;
        let start: *mut u8 = start.cast();
        let page = start.wrapping_add(start.align_offset(LARGE));
        let _ = madvise(page.cast(), LARGE, Advice::LinuxHugepage);
        Ok(core::slice::from_raw_parts_mut(page, LARGE))
    }
}

/// Starts a thread of this process on a stack of its own. It does `work` with what `shared` refers
/// to, which must not allocate: the allocator is for one thread.
pub fn thread<T: Sync>(shared: &'static T, work: extern "C" fn(&'static T) -> !) -> Result<()> {
    const STACK: usize = 64 << 10;
    const FLAGS: u32 = raw::CLONE_VM
        | raw::CLONE_FS
        | raw::CLONE_FILES
        | raw::CLONE_SIGHAND
        | raw::CLONE_THREAD
        | raw::CLONE_SYSVSEM;
    let top = Vec::<u128>::with_capacity(STACK / 16).leak().as_mut_ptr().wrapping_byte_add(STACK);
    let result: isize;
    // SAFETY: the new thread begins behind the call with the stack that is its own for ever, and
    // goes on in `work`, which does not return. Nothing of this thread's is touched by it.
    unsafe {
        asm!(
            "syscall",
            "test %rax, %rax",
            "jnz 2f",
            "xor %ebp, %ebp",
            "mov %r12, %rdi",
            "call *%r13",
            "ud2",
            "2:",
            inlateout("rax") raw::__NR_clone as isize => result,
            in("rdi") FLAGS as usize, in("rsi") top, in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") core::ptr::from_ref(shared), in("r13") work,
            lateout("rcx") _, lateout("r11") _, options(att_syntax)
        );
    }
    if result < 0 {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    Ok(())
}

/// Waits while `word` is `value`, unless it is woken for nothing.
pub fn wait_while(word: &AtomicU32, value: u32) {
    let arguments = [word.as_ptr() as usize, raw::FUTEX_WAIT as usize, value as usize, 0, 0];
    // SAFETY: the word outlives the call, and there is no time-out.
    let _ = unsafe { syscall(raw::__NR_futex, arguments) };
}

/// Wakes one thread that waits at `word`.
pub fn wake(word: &AtomicU32) {
    let arguments = [word.as_ptr() as usize, raw::FUTEX_WAKE as usize, 1, 0, 0];
    // SAFETY: the word outlives the call.
    let _ = unsafe { syscall(raw::__NR_futex, arguments) };
}

/// What threads share, one of them at a time.
pub struct Lock<T> {
    /// 0: free; 1: taken; 2: taken, and somebody waits.
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `with` lets one thread at a time have the value.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub fn new(value: T) -> Lock<T> {
        Lock { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Does something with the value, when no other thread does.
    pub fn with<R>(&self, action: impl FnOnce(&mut T) -> R) -> R {
        if self.state.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.state.swap(2, Ordering::Acquire) != 0 {
                wait_while(&self.state, 2);
            }
        }
        // SAFETY: the state says that nobody else has it; a panic ends the whole VM.
        let result = action(unsafe { &mut *self.value.get() });
        if self.state.swap(0, Ordering::Release) == 2 {
            wake(&self.state);
        }
        result
    }
}

/// Ends this process, by SIGILL where a seccomp filter does not let it exit.
pub fn exit(status: i32) -> ! {
    // SAFETY: takes no pointers; does not return unless a filter has it fail. The instruction is
    // no instruction.
    unsafe {
        let _ = syscall(raw::__NR_exit_group, [status as usize, 0, 0, 0, 0]);
        asm!("ud2", options(noreturn, nostack));
    }
}

/// Turns the machine off. QEMU runs with -no-reboot, so a restart is the end as well.
pub fn power_off() -> ! {
    loop {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    }
}

/// Strings and the array of pointers to them that execve(2) wants.
pub struct Vector {
    _strings: Vec<u8>,
    pointers: Vec<*const u8>,
}

impl Vector {
    /// The protocol's strings hold no NUL (`messages` checks that). All are kept in one piece:
    /// there may be hundreds of thousands.
    pub fn new<'a>(strings: impl Iterator<Item = &'a str> + Clone) -> Vector {
        let mut bytes = Vec::with_capacity(strings.clone().map(|text| text.len() + 1).sum());
        for text in strings.clone() {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        let mut next = bytes.as_ptr();
        let mut pointers = Vec::with_capacity(strings.clone().count() + 1);
        for text in strings {
            pointers.push(next);
            next = next.wrapping_add(text.len() + 1);
        }
        pointers.push(ptr::null());
        Vector { _strings: bytes, pointers }
    }
}

/// Replaces the program of this process; returns only if that failed.
pub fn execve(path: &CStr, arguments: &Vector, environment: &Vector) -> Errno {
    let (path, arguments, environment) =
        (path.as_ptr() as usize, arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    // SAFETY: NUL-terminated strings in NULL-terminated arrays, alive during the call.
    let result = unsafe {
        syscall(raw::__NR_execve, [path, arguments as usize, environment as usize, 0, 0])
    };
    result.err().unwrap_or(Errno::INVAL)
}

/// Whether this process, with its effective user, may execute the file that is open
/// (faccessat2(2); rustix knows no AT_EMPTY_PATH for it).
pub fn may_execute(file: impl AsFd) -> Result<()> {
    const X_OK: usize = 1;
    let flags = (raw::AT_EACCESS | raw::AT_EMPTY_PATH) as usize;
    let empty = c"".as_ptr() as usize;
    // SAFETY: the path is a string.
    unsafe { syscall(raw::__NR_faccessat2, [raw_fd(file), empty, X_OK, flags, 0]) }.map(drop)
}

/// A process that has ended, and its wait status; `None` if there is none now.
pub fn reap() -> Option<(i32, i32)> {
    wait(-1, raw::WNOHANG | raw::__WALL)
}

/// Waits for `pid` (-1: any child) with the options of wait4(2).
pub fn wait(pid: i32, options: u32) -> Option<(i32, i32)> {
    let mut status = 0i32;
    let status_at = ptr::addr_of_mut!(status) as usize;
    // SAFETY: the status outlives the call; no rusage is asked for.
    let call =
        || unsafe { syscall(raw::__NR_wait4, [pid as usize, status_at, options as usize, 0, 0]) };
    loop {
        match call() {
            Ok(0) => return None,
            Ok(pid) => return Some((pid as i32, status)),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Blocks exactly the signals of `mask` (bit n-1 is signal n).
pub fn block_signals(mask: u64) -> Result<()> {
    let at = ptr::addr_of!(mask) as usize;
    // SAFETY: the mask of eight bytes outlives the call.
    let how = raw::SIG_SETMASK as usize;
    unsafe { syscall(raw::__NR_rt_sigprocmask, [how, at, 0, size_of::<u64>(), 0]) }.map(drop)
}

/// A descriptor that is readable while one of the blocked signals of `mask` is pending.
pub fn signal_fd(mask: u64) -> Result<OwnedFd> {
    let at = ptr::addr_of!(mask) as usize;
    let flags = (raw::O_NONBLOCK | raw::O_CLOEXEC) as usize;
    let new = usize::MAX;
    // SAFETY: the mask outlives the call; the returned descriptor is ours alone.
    unsafe {
        let fd = syscall(raw::__NR_signalfd4, [new, at, size_of::<u64>(), flags, 0])?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> Result<()> {
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<()> {
    if last < first {
        return Ok(());
    }
    // SAFETY: takes no pointers; only called where none of these descriptors is used again.
    unsafe { syscall(raw::__NR_close_range, [first as usize, last as usize, 0, 0, 0]) }.map(drop)
}

/// Closes everything but the standard streams and `keep`. For children of the agent that never
/// execute another program: an end of a pipe that one of them holds as well would never close.
pub fn close_all_but(keep: &[&OwnedFd]) -> Result<()> {
    let mut numbers: Vec<RawFd> = keep.iter().map(|fd| fd.as_raw_fd()).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        close_range(first, number - 1)?;
        first = number + 1;
    }
    close_from(first)
}

/// Makes `to` a copy of `from`; `flags`: 0, or O_CLOEXEC for one that execve(2) closes.
pub fn duplicate(from: impl AsFd, to: RawFd, flags: u32) -> Result<()> {
    // SAFETY: takes no pointers; `to` is a number that the caller sets aside.
    unsafe { syscall(raw::__NR_dup3, [raw_fd(from), to as usize, flags as usize, 0, 0]) }.map(drop)
}

/// prctl(2) with an option that takes numbers only.
pub fn prctl(option: u32, a: u64, b: u64) -> Result<()> {
    let arguments = [option as usize, a as usize, b as usize, 0, 0];
    // SAFETY: the options used here take no pointers.
    unsafe { syscall(raw::__NR_prctl, arguments) }.map(drop)
}

/// mount_setattr(2) on the mount that `fd` stands for.
pub fn mount_setattr(
    fd: impl AsFd,
    flags: u32,
    set: u64,
    clear: u64,
    propagation: u64,
) -> Result<()> {
    let attributes = raw::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let (at, size) = (ptr::addr_of!(attributes) as usize, size_of::<raw::mount_attr>());
    let flags = (flags | raw::AT_EMPTY_PATH) as usize;
    let here = c"".as_ptr() as usize;
    // SAFETY: path and structure outlive the call.
    unsafe { syscall(raw::__NR_mount_setattr, [raw_fd(fd), here, flags, at, size]) }.map(drop)
}

/// kill(2) of one process.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes no pointers.
    unsafe { syscall(raw::__NR_kill, [pid as usize, signal as usize, 0, 0, 0]) }.map(drop)
}

/// Sends `signal` to the process that `pidfd` stands for.
pub fn signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let arguments = [raw_fd(pidfd), signal as usize, 0, 0, 0];
    // SAFETY: no siginfo is given.
    unsafe { syscall(raw::__NR_pidfd_send_signal, arguments) }.map(drop)
}

/// setns(2): enters namespaces of the kinds `flags` of what `fd` stands for.
pub fn setns(fd: impl AsFd, flags: u64) -> Result<()> {
    // SAFETY: takes no pointers.
    unsafe { syscall(raw::__NR_setns, [raw_fd(fd), flags as usize, 0, 0, 0]) }.map(drop)
}

/// unshare(2) with CLONE_NEW* flags.
pub fn unshare(flags: u64) -> Result<()> {
    // SAFETY: no flag that is passed here (CLONE_NEW*) affects memory or descriptors.
    unsafe { syscall(raw::__NR_unshare, [flags as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Nanoseconds of `clock` (CLOCK_*).
pub fn clock(clock: u32) -> Result<u64> {
    let mut time = MaybeUninit::<raw::timespec>::uninit();
    // SAFETY: the kernel fills the structure if the call succeeds.
    let time = unsafe {
        syscall(raw::__NR_clock_gettime, [clock as usize, time.as_mut_ptr() as usize, 0, 0, 0])?;
        time.assume_init()
    };
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Sets CLOCK_REALTIME.
pub fn set_time(nanoseconds: u64) -> Result<()> {
    let time = raw::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as _,
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    };
    let at = ptr::addr_of!(time) as usize;
    // SAFETY: the time outlives the call.
    unsafe { syscall(raw::__NR_clock_settime, [raw::CLOCK_REALTIME as usize, at, 0, 0, 0]) }
        .map(drop)
}

/// Puts this process, but none of its children, before all that are scheduled normally; such a
/// process may also use up more of the last free memory.
pub fn take_precedence() -> Result<()> {
    let policy = (raw::SCHED_RR | raw::SCHED_RESET_ON_FORK) as usize;
    let priority: i32 = 1;
    let at = ptr::addr_of!(priority) as usize;
    // SAFETY: struct sched_param is one int, and outlives the call.
    unsafe { syscall(raw::__NR_sched_setscheduler, [0, policy, at, 0, 0]) }.map(drop)
}

/// Sleeps; only for the few waits at boot that nothing can be polled for.
pub fn sleep(milliseconds: u32) {
    let time = raw::timespec {
        tv_sec: (milliseconds / 1000).into(),
        tv_nsec: (milliseconds % 1000 * 1_000_000).into(),
    };
    let at = ptr::addr_of!(time) as usize;
    // SAFETY: the time outlives the call; what remains after an interruption is not asked for.
    let _ = unsafe { syscall(raw::__NR_nanosleep, [at, 0, 0, 0, 0]) };
}

/// madvise(2) against transparent huge pages in the whole pages of a range.
///
/// # Safety
/// The range must be mapped.
pub unsafe fn no_huge_pages(start: *mut u8, size: usize) {
    const PAGE: usize = 4096;
    let first = (start as usize).next_multiple_of(PAGE);
    let end = (start as usize + size) & !(PAGE - 1);
    let advice = raw::MADV_NOHUGEPAGE as usize;
    // SAFETY: the caller's; contents are not affected.
    let _ = unsafe { syscall(raw::__NR_madvise, [first, end - first, advice, 0, 0]) };
}

/// An ioctl(2) that takes a number.
pub fn ioctl_number(fd: impl AsFd, request: u32, value: usize) -> Result<usize> {
    // SAFETY: the requests used with this (TIOCSCTTY, TIOCGPTPEER, RNDRESEEDCRNG) take numbers.
    unsafe { syscall(raw::__NR_ioctl, [raw_fd(fd), request as usize, value, 0, 0]) }
}

/// An ioctl(2) that reads or writes a `T`.
///
/// # Safety
/// `T` must be what `request` takes.
pub unsafe fn ioctl<T: ?Sized>(fd: impl AsFd, request: u32, value: &mut T) -> Result<usize> {
    let at = ptr::from_mut(value).cast::<u8>() as usize;
    // SAFETY: the caller's, and the value outlives the call.
    unsafe { syscall(raw::__NR_ioctl, [raw_fd(fd), request as usize, at, 0, 0]) }
}
