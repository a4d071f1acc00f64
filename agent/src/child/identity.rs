//! User, groups, capabilities and limits of a process, in the order in which runc applies them.

use alloc::format;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{Process, Tuning};
use linux_raw_sys::{general as raw, prctl};
use rustix::fd::BorrowedFd;
use rustix::fs::{self, Gid, Uid};
use rustix::io::Errno;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys;
use crate::sys::own::Capabilities;

/// Sets the OOM score, while /proc is the agent's.
pub fn set_oom_score(process: &Process) -> Outcome<()> {
    // 0 is what every process of this guest starts with.
    let Some(value) = process.oom_score_adj.filter(|value| *value != 0) else { return Ok(()) };
    let text = format!("{value}");
    files::write("/proc/self/oom_score_adj", text.as_bytes()).step("oom_score_adj", &text)
}

/// Sets the resource limits, while they may still be raised.
pub fn set_limits(process: &Process) -> Outcome<()> {
    for &(resource, soft, hard) in &process.rlimits {
        sys::own::set_limit(0, resource, soft, hard).step("rlimit", &format!("{resource}"))?;
    }
    Ok(())
}

/// Sets how the process is scheduled, its memory policy and its personality, before a filter or the loss of privileges
/// forbids it.
pub fn tune(plan: &Tuning) -> Outcome<()> {
    if let Some(attributes) = plan.sched_attr.0 {
        sys::own::set_scheduler(attributes).step("set", "scheduler")?;
    }
    if let Some(priority) = plan.io_priority.0 {
        sys::own::set_io_priority(priority).step("set", "I/O priority")?;
    }
    if let Some(mask) = plan.affinity.0 {
        sys::own::set_affinity(mask).step("set", "CPU affinity")?;
    }
    if let Some((mode, nodes)) = plan.memory_policy.0 {
        sys::own::set_memory_policy(mode, nodes).step("set", "memory policy")?;
    }
    if let Some(domain) = plan.personality.0 {
        sys::own::set_personality(domain).step("set", "personality")?;
    }
    Ok(())
}

/// Becomes root of the user namespace that this process is in, with all capabilities there.
pub fn become_mapped_root() -> Outcome<()> {
    sys::own::become_user(0, 0, &[]).step("user", "0:0")
}

/// Drops to the process's user and capabilities; changes to its working directory.
pub fn become_user(process: &Process) -> Outcome<()> {
    let entered = enter(process.cwd)?;
    give_stdio_to(process.uid);
    drop_bounding(process.bounding).step("capabilities", "bounding set")?;
    sys::prctl(prctl::PR_SET_KEEPCAPS, 1, 0).step("capabilities", "keep")?;
    sys::own::become_user(process.uid, process.gid, &process.groups)
        .step("user", &format!("{}:{}", process.uid, process.gid))?;
    sys::prctl(prctl::PR_SET_KEEPCAPS, 0, 0).step("capabilities", "keep")?;
    if !entered {
        rustix::process::chdir(process.cwd).map_err(|error| no_folder(process.cwd, error))?;
    }
    let kept = kept_for_filter(process);
    let sets = Capabilities {
        effective: process.effective | kept,
        permitted: process.permitted | kept,
        inheritable: process.inheritable,
    };
    sys::own::capset(&sets).step("capabilities", "capset")?;
    raise_ambient(process.ambient).step("capabilities", "ambient set")?;
    if process.no_new_privs {
        sys::prctl(prctl::PR_SET_NO_NEW_PRIVS, 1, 0).step("set", "no_new_privs")?;
    }
    Ok(())
}

/// What it takes to install a filter without no_new_privs (seccomp(2)), which is to be done last.
/// The program does not get it: what execve permits comes from the inheritable, bounding and ambient
/// sets and the program's file (capabilities(7)), never from what was permitted before.
fn kept_for_filter(process: &Process) -> u64 {
    let is_needed = process.seccomp.is_some() && !process.no_new_privs;
    if is_needed {
        1 << raw::CAP_SYS_ADMIN
    } else {
        0
    }
}

/// Changes the folder while still privileged; false: not allowed, to be tried again as the user
/// (whose home may be on a file system that does not trust root).
fn enter(cwd: &str) -> Outcome<bool> {
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(error) => Err(no_folder(cwd, error)),
    }
}

#[cold]
fn no_folder(cwd: &str, error: Errno) -> Failure {
    let number = error.raw_os_error();
    let cause = errno::text(number);
    let message = format!("chdir to cwd ({cwd:?}) set in config.json failed: {cause}");
    Failure::worded("chdir", cwd, number, message)
}

/// The standard streams belong to the user, so that /dev/stdout can be opened again. Not
/// /dev/null, which belongs to all.
fn give_stdio_to(uid: u32) {
    if uid == 0 {
        return;
    }
    for number in 0..3 {
        // SAFETY: the standard streams are open.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let null = fs::fstat(stream).is_ok_and(|stat| stat.st_rdev == fs::makedev(1, 3));
        if !null {
            let _ = fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>);
        }
    }
}

fn drop_bounding(keep: u64) -> sys::Result<()> {
    const MOST: u64 = 63;
    for capability in (0..=MOST).filter(|capability| keep & 1 << capability == 0) {
        match sys::prctl(prctl::PR_CAPBSET_DROP, capability, 0) {
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

fn raise_ambient(set: u64) -> sys::Result<()> {
    for capability in (0..64).filter(|capability| set & 1 << capability != 0) {
        sys::prctl(prctl::PR_CAP_AMBIENT, prctl::PR_CAP_AMBIENT_RAISE.into(), capability)?;
    }
    Ok(())
}
