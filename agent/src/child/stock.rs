//! File systems that nearly every container mounts, made before there is a container.
//!
//! They belong to the namespaces of the spare init that makes them, and are mounted in its
//! container's root if the plan asks for just this. It is a matter of time only: a restored VM
//! has to translate all code that it executes, and this code it then need not execute.
//!
//! No mount is made before the root's, since Linux 6.8 and later list mounts in the order in which
//! they were made, and programs take the first one that they see for the root.

use alloc::vec::Vec;

use cloche_agent::messages::Mount;
use linux_raw_sys::general as raw;
use rustix::fd::OwnedFd;

use crate::mounts;
use crate::sys::Result;

/// A file system of nobody's.
struct Ready {
    source: &'static str,
    fstype: &'static str,
    data: &'static str,
    context: OwnedFd,
}

/// What is in stock.
#[derive(Default)]
pub struct Stock {
    ready: Vec<Ready>,
}

/// Source, type and options as Docker, Podman, containerd and `runc spec` have them.
const USUAL: [(&str, &str, &str); 8] = [
    ("proc", "proc", ""),
    ("tmpfs", "tmpfs", "mode=755,size=65536k"),
    ("devpts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("sysfs", "sysfs", ""),
    ("cgroup", "cgroup2", ""),
    ("mqueue", "mqueue", ""),
    ("shm", "tmpfs", "mode=1777,size=67108864"),
    ("shm", "tmpfs", "mode=1777,size=65536k"),
];

/// Flags of mount(2) that belong to the mount. Others belong to the file system itself, and
/// would have had to be given when it was made.
const OF_MOUNT: u64 = (raw::MS_RDONLY
    | raw::MS_NOSUID
    | raw::MS_NODEV
    | raw::MS_NOEXEC
    | raw::MS_NODIRATIME
    | raw::MS_NOATIME
    | raw::MS_STRICTATIME
    | raw::MS_RELATIME) as u64;

impl Stock {
    /// Makes all that is usual; what cannot be made is not in stock.
    pub fn make() -> Stock {
        let mut stock = Stock::default();
        for (source, fstype, data) in USUAL {
            if let Ok(context) = mounts::made(source, fstype, data) {
                stock.ready.push(Ready { source, fstype, data, context });
            }
        }
        stock
    }

    /// Takes a type out of stock.
    pub fn discard(&mut self, fstype: &str) {
        self.ready.retain(|ready| ready.fstype != fstype);
    }

    /// The file system for `plan`, mounted nowhere yet, with the plan's flags, if it is in stock.
    pub fn take(&mut self, plan: &Mount) -> Option<Result<OwnedFd>> {
        if plan.flags & !OF_MOUNT != 0 || plan.tmpcopyup.0 {
            return None;
        }
        let index = self.ready.iter().position(|ready| {
            ready.source == plan.source && ready.fstype == plan.fstype && ready.data == plan.data
        })?;
        let context = self.ready.swap_remove(index).context;
        Some(mounts::detached(&context, plan.flags))
    }
}
