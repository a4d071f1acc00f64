//! bpf(2): programs that decide which devices the processes of a cgroup may use.

use alloc::vec::Vec;
use core::ptr;

use linux_raw_sys::general as raw;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

use crate::sys::{self, Result};

const PROG_LOAD: usize = 5;
const PROG_ATTACH: usize = 8;
const PROG_DETACH: usize = 9;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups below decide as well, as with runc: else a container could attach none.
const ALLOW_MULTI: u32 = 2;
const INSTRUCTION: usize = 8;

/// The part of union bpf_attr that BPF_PROG_LOAD reads up to the attach type.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: *const u8,
    license: *const u8,
    log: [u64; 2],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Has the kernel check and take a program: `filter` is an array of struct bpf_insn.
fn load_device_filter(filter: &[u8]) -> Result<OwnedFd> {
    let count = u32::try_from(filter.len() / INSTRUCTION).map_err(|_| Errno::INVAL)?;
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count,
        // They lie in a msgpack message, at any address; the kernel copies them.
        instructions: filter.as_ptr(),
        license: c"".as_ptr().cast(),
        log: [0; 2],
        version_and_flags: [0; 2],
        name: [0; 16],
        interface: 0,
        attach_type: ATTACH_CGROUP_DEVICE,
    };
    let at = ptr::addr_of!(load) as usize;
    // SAFETY: program and license outlive the call; the returned descriptor is ours alone.
    unsafe {
        let fd = sys::syscall(raw::__NR_bpf, [PROG_LOAD, at, size_of::<Load>(), 0, 0])?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A loaded program, and what it was made of.
pub struct DeviceFilter {
    pub instructions: Vec<u8>,
    program: OwnedFd,
}

impl DeviceFilter {
    pub fn load(instructions: Vec<u8>) -> Result<DeviceFilter> {
        let program = load_device_filter(&instructions)?;
        Ok(DeviceFilter { instructions, program })
    }

    /// Attaches it to the cgroup whose folder is open for reading.
    pub fn attach(&self, cgroup: &OwnedFd) -> Result<()> {
        change(PROG_ATTACH, ALLOW_MULTI, &self.program, cgroup)
    }

    /// Takes it from a cgroup again.
    pub fn detach(&self, cgroup: &OwnedFd) -> Result<()> {
        change(PROG_DETACH, 0, &self.program, cgroup)
    }
}

fn change(command: usize, flags: u32, program: &OwnedFd, cgroup: &OwnedFd) -> Result<()> {
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags,
    };
    let arguments = [command, ptr::addr_of!(attach) as usize, size_of::<Attach>(), 0, 0];
    // SAFETY: the structure outlives the call.
    unsafe { sys::syscall(raw::__NR_bpf, arguments) }.map(drop)
}
