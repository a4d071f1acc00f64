//! What a process sets for itself before it becomes a container's: who it is, what it may do and have.

use core::ptr;

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use super::{syscall, Result};

/// The three sets of capset(2).
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Sets the capabilities of this process.
pub fn capset(sets: &Capabilities) -> Result<()> {
    let header: [u32; 2] = [raw::_LINUX_CAPABILITY_VERSION_3, 0];
    let half = |shift: u32| {
        [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32)
    };
    let data: [[u32; 3]; 2] = [half(0), half(32)];
    let (header, data) = (ptr::addr_of!(header) as usize, ptr::addr_of!(data) as usize);
    // SAFETY: header and two data structures of version 3, alive during the call.
    unsafe { syscall(raw::__NR_capset, [header, data, 0, 0, 0]) }.map(drop)
}

/// Sets group list, group and user of this process, in that order.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: the list outlives the call; the other calls take numbers.
    unsafe {
        syscall(raw::__NR_setgroups, [groups.len(), groups.as_ptr() as usize, 0, 0, 0])?;
        syscall(raw::__NR_setresgid, [gid, gid, gid, 0, 0])?;
        syscall(raw::__NR_setresuid, [uid, uid, uid, 0, 0])?;
    }
    Ok(())
}

/// Sets one resource limit of the process `pid` (0: this one).
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit: [u64; 2] = [soft, hard];
    let at = ptr::addr_of!(limit) as usize;
    // SAFETY: the limit outlives the call.
    unsafe { syscall(raw::__NR_prlimit64, [pid as usize, resource as usize, at, 0, 0]) }.map(drop)
}

/// Sets the file mode creation mask.
pub fn umask(mask: u32) {
    // SAFETY: takes no pointers, cannot fail.
    let _ = unsafe { syscall(raw::__NR_umask, [mask as usize, 0, 0, 0, 0]) };
}

/// Installs a seccomp filter: `filter` is an array of struct sock_filter, eight bytes each.
pub fn seccomp(filter: &[u8], flags: u32) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    const SET_MODE_FILTER: usize = 1;
    let length = u16::try_from(filter.len() / 8).map_err(|_| Errno::INVAL)?;
    // The instructions lie in a msgpack message, at any address; the kernel copies them.
    let program = Program { length, filter: filter.as_ptr() };
    let at = ptr::addr_of!(program) as usize;
    // SAFETY: the program and its instructions outlive the call.
    unsafe { syscall(raw::__NR_seccomp, [SET_MODE_FILTER, flags as usize, at, 0, 0]) }.map(drop)
}

/// sched_setattr(2) of this process; `attributes` is a struct sched_attr, which begins with its
/// own size.
pub fn set_scheduler(attributes: &[u8]) -> Result<()> {
    let size = attributes.first_chunk().map_or(0, |size| u32::from_ne_bytes(*size));
    if size as usize != attributes.len() {
        return Err(Errno::INVAL);
    }
    let at = attributes.as_ptr() as usize;
    // SAFETY: the kernel reads as many bytes as the structure says that it has, which are there.
    unsafe { syscall(raw::__NR_sched_setattr, [0, at, 0, 0, 0]) }.map(drop)
}

/// sched_setaffinity(2) of this process; `mask` has a bit for each processor.
pub fn set_affinity(mask: &[u8]) -> Result<()> {
    let (at, size) = (mask.as_ptr() as usize, mask.len());
    // SAFETY: the mask outlives the call.
    unsafe { syscall(raw::__NR_sched_setaffinity, [0, size, at, 0, 0]) }.map(drop)
}

/// ioprio_set(2) of this process: class and level.
pub fn set_io_priority(priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: usize = 1;
    let arguments = [IOPRIO_WHO_PROCESS, 0, priority as usize, 0, 0];
    // SAFETY: takes no pointers.
    unsafe { syscall(raw::__NR_ioprio_set, arguments) }.map(drop)
}

/// set_mempolicy(2) of this process: mode with flags, and the mask of memory nodes.
pub fn set_memory_policy(mode: u32, nodes: &[u8]) -> Result<()> {
    // The kernel looks at one bit less than it is told of.
    let (mask, bits) = match nodes.len() {
        0 => (0, 0),
        length => (nodes.as_ptr() as usize, length * 8 + 1),
    };
    // SAFETY: the mask is as long as is said, and alive during the call.
    unsafe { syscall(raw::__NR_set_mempolicy, [mode as usize, mask, bits, 0, 0]) }.map(drop)
}

/// personality(2) of this process.
pub fn set_personality(domain: u32) -> Result<()> {
    // SAFETY: takes no pointers.
    unsafe { syscall(raw::__NR_personality, [domain as usize, 0, 0, 0, 0]) }.map(drop)
}
