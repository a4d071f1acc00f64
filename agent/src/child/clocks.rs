//! Time namespaces: clocks that are off by what the plan says.

use linux_raw_sys::general as raw;
use rustix::fs::OFlags;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys;

const CLONE_NEWTIME: u64 = raw::CLONE_NEWTIME as u64;

/// Enters a new time namespace with `offsets`, lines as of time_namespaces(7). They can be written
/// only while no process is in it, so it is entered by a second step.
pub fn enter(offsets: Option<&str>) -> Outcome<()> {
    const OFFSETS: &str = "/proc/self/timens_offsets";
    sys::unshare(CLONE_NEWTIME).step("unshare", "time namespace")?;
    if let Some(offsets) = offsets {
        files::write(OFFSETS, offsets.as_bytes()).step("set time offsets", offsets.trim_end())?;
    }
    let made = files::open("/proc/self/ns/time_for_children", OFlags::RDONLY)
        .step("open", "time namespace")?;
    sys::setns(&made, CLONE_NEWTIME).step("enter", "time namespace")
}
