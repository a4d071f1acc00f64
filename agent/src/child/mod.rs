//! What runs between clone and execve: the child that becomes a container's process.
//!
//! It reports on a pipe: `r` once it is ready to wait (followed by the number of its terminal's
//! descriptor, if it has one), `e` and the failure if something went wrong. The pipe closes by
//! itself when the program is executed.

mod hooks;
mod identity;
mod program;
pub mod rootfs;
pub mod terminal;

use alloc::vec::Vec;

use cloche_agent::messages::{Container, Process};
use linux_raw_sys::general as raw;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::OFlags;
use rustix::io;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys;

/// Report of a child that waits to be started.
pub const READY: u8 = b'r';
/// Report of a child that gives up; the failure's bytes follow.
pub const FAILED: u8 = b'e';

const REPORT: RawFd = 3;
const GO: RawFd = 4;
const INIT: RawFd = 5;
const FIRST_FREE: RawFd = 6;

/// Namespaces that are entered or unshared by the child itself; the others come with the clone.
const CLONE_NEWCGROUP: u64 = raw::CLONE_NEWCGROUP as u64;
const CLONE_NEWPID: u64 = raw::CLONE_NEWPID as u64;

/// The child's ends of its pipes. `None` among the standard streams: /dev/null.
pub struct Wires {
    pub stdio: [Option<OwnedFd>; 3],
    pub report: OwnedFd,
    pub go: OwnedFd,
}

/// Becomes a container's init. Never returns.
pub fn init(plan: &Container, wires: Wires) -> ! {
    let prepared = prepare_init(plan, wires);
    let outcome = prepared.and_then(|(mut ready, terminal)| {
        report_ready(terminal.as_ref());
        await_go();
        drop(terminal);
        hooks::run(&plan.start_hooks)?;
        seccomp_last(&plan.process)?;
        Err(ready.execute())
    });
    give_up(outcome)
}

fn prepare_init(plan: &Container, wires: Wires) -> Outcome<(program::Program, Option<OwnedFd>)> {
    let process = &plan.process;
    settle(wires, None)?;
    for (path, flag) in plan.join.iter().filter(|(_, flag)| *flag != CLONE_NEWPID) {
        let namespace = files::open(*path, OFlags::RDONLY).step("join namespace", path)?;
        sys::setns(&namespace, *flag).step("join namespace", path)?;
    }
    if plan.namespaces & CLONE_NEWCGROUP != 0 {
        // Only now: the clone itself would have made the agent's cgroup the root of it.
        sys::unshare(CLONE_NEWCGROUP).step("unshare", "cgroup namespace")?;
    }
    identity::limits(process)?;
    let root = rootfs::build(plan)?;
    let terminal = terminal_of(process, Some(&root))?;
    rootfs::finish(plan, &root)?;
    Ok((become_process(process)?, terminal))
}

/// Becomes a further process of a container. Never returns.
pub fn exec(process: &Process, namespaces: u64, init: &OwnedFd, wires: Wires) -> ! {
    let outcome =
        prepare_exec(process, namespaces, init, wires).and_then(|(mut ready, terminal)| {
            if let Some(terminal) = terminal {
                report_ready(Some(&terminal));
                await_go();
            }
            seccomp_last(process)?;
            Err(ready.execute())
        });
    give_up(outcome)
}

fn prepare_exec(
    process: &Process,
    namespaces: u64,
    init: &OwnedFd,
    wires: Wires,
) -> Outcome<(program::Program, Option<OwnedFd>)> {
    settle(wires, Some(init))?;
    identity::limits(process)?;
    // SAFETY: `settle` made this the descriptor of the container's init, and it stays open.
    let init = unsafe { BorrowedFd::borrow_raw(INIT) };
    sys::setns(init, namespaces & !CLONE_NEWPID).step("join namespaces", "container")?;
    let terminal = terminal_of(process, None)?;
    Ok((become_process(process)?, terminal))
}

/// Gives the streams that are not connected the container's /dev/null in place of the agent's, so
/// that their names in /proc/self/fd mean something (as runc does).
fn reopen_null(process: &Process) {
    let streams = [process.stdin, process.stdout, process.stderr];
    if process.terminal || !streams.contains(&0) {
        return;
    }
    let Ok(null) = files::open("/dev/null", OFlags::RDWR) else { return };
    for (number, _) in streams.iter().enumerate().filter(|(_, stream)| **stream == 0) {
        let _ = sys::duplicate(&null, number as RawFd, 0);
    }
}

/// Puts the wires where they belong and closes everything that was inherited.
fn settle(wires: Wires, init: Option<&OwnedFd>) -> Outcome<()> {
    let settled = || -> sys::Result<()> {
        sys::block_signals(0)?;
        sys::umask(0);
        rustix::process::setsid()?;
        // Away from the low numbers first, so that no wire is overwritten by another.
        let null = files::open("/dev/null", OFlags::RDWR)?;
        for (number, stream) in wires.stdio.iter().enumerate() {
            sys::duplicate(stream.as_ref().unwrap_or(&null), number as RawFd, 0)?;
        }
        let (report, go) = (lift(&wires.report)?, lift(&wires.go)?);
        if let Some(init) = init {
            sys::duplicate(&lift(init)?, INIT, raw::O_CLOEXEC)?;
        }
        sys::duplicate(&report, REPORT, raw::O_CLOEXEC)?;
        sys::duplicate(&go, GO, raw::O_CLOEXEC)?;
        sys::close_from(if init.is_some() { FIRST_FREE } else { INIT })?;
        // Closed already, all at once.
        core::mem::forget((wires, null, report, go));
        Ok(())
    };
    settled().step("set up", "descriptors")
}

fn lift(fd: &OwnedFd) -> sys::Result<OwnedFd> {
    io::fcntl_dupfd_cloexec(fd, FIRST_FREE)
}

fn terminal_of(process: &Process, root: Option<&OwnedFd>) -> Outcome<Option<OwnedFd>> {
    if !process.terminal {
        return Ok(None);
    }
    terminal::open(root, process).map(Some)
}

/// Everything that makes this process the one that was asked for, short of execve.
fn become_process(process: &Process) -> Outcome<program::Program> {
    reopen_null(process);
    let home = program::home_of(process);
    if !process.no_new_privs {
        // Without no_new_privs only a privileged process may install a filter (seccomp(2)).
        install_filter(process)?;
    }
    identity::become_user(process)?;
    sys::umask(process.umask.unwrap_or(0o022));
    program::find(process, home)
}

fn seccomp_last(process: &Process) -> Outcome<()> {
    if process.no_new_privs {
        install_filter(process)?;
    }
    Ok(())
}

fn install_filter(process: &Process) -> Outcome<()> {
    match process.seccomp {
        Some(filter) => sys::seccomp(filter, process.seccomp_flags).step("seccomp", "filter"),
        None => Ok(()),
    }
}

fn report_ready(terminal: Option<&OwnedFd>) {
    let number = terminal.map_or(0, |terminal| terminal.as_raw_fd() as u8);
    send(&[READY, number]);
}

fn send(report: &[u8]) {
    // SAFETY: `settle` made this the report pipe, and it stays open until the exec.
    let pipe = unsafe { BorrowedFd::borrow_raw(REPORT) };
    // If the agent does not listen any more, this process is about to be killed anyway.
    let _ = io::write(pipe, report);
}

/// Waits until the agent says so; a closed pipe means that this process is not wanted any more.
fn await_go() {
    // SAFETY: `settle` made this the go pipe; it is not used again.
    let pipe = unsafe { OwnedFd::from_raw_fd(GO) };
    let mut byte = [0];
    loop {
        match io::read(&pipe, &mut byte) {
            Ok(1..) => return,
            Err(io::Errno::INTR) => {}
            _ => sys::exit(1),
        }
    }
}

/// Reports the failure and ends.
fn give_up(outcome: Outcome<core::convert::Infallible>) -> ! {
    let Err(failure) = outcome;
    let mut report = Vec::from([FAILED]);
    failure.write(&mut report);
    send(&report);
    sys::exit(1)
}
