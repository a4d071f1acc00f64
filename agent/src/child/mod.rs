//! What runs between clone and execve: the child that becomes a container's process.
//!
//! It reports on a pipe: `r` once it is ready to wait (followed by the number of its terminal's
//! descriptor, if it has one), `e` and the failure if something went wrong. The pipe closes by
//! itself when the program is executed. Why that failed is on the slate: by then a filter may forbid
//! to write.

mod clocks;
mod hooks;
mod identity;
mod program;
pub mod rootfs;
mod stock;
pub mod terminal;

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::messages::{self, Container, Process, Request};
use linux_raw_sys::general as raw;
use linux_raw_sys::prctl;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::OFlags;
use rustix::io;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::slate::Slate;
use crate::sys;

use program::Program;
use stock::Stock;

/// Report of a child that waits to be started.
pub const READY: u8 = b'r';
/// Report of a child that gives up; the failure's bytes follow.
pub const FAILED: u8 = b'e';

const REPORT: RawFd = 3;
const GO: RawFd = 4;
/// A namespace's or process's descriptor, if the child is given one.
const EXTRA: RawFd = 5;
const FIRST_FREE: RawFd = 6;

/// Namespaces that are entered or unshared by the child itself; the others come with the clone.
const CLONE_NEWCGROUP: u64 = raw::CLONE_NEWCGROUP as u64;
const CLONE_NEWPID: u64 = raw::CLONE_NEWPID as u64;
const CLONE_NEWNET: u64 = raw::CLONE_NEWNET as u64;
const CLONE_NEWTIME: u64 = raw::CLONE_NEWTIME as u64;
const CLONE_NEWUSER: u64 = raw::CLONE_NEWUSER as u64;

/// The child's ends of its pipes. `None` among the standard streams: /dev/null.
pub struct Wires {
    pub stdio: [Option<OwnedFd>; 3],
    pub report: OwnedFd,
    pub go: OwnedFd,
    /// For what cannot be reported any more.
    pub slate: Rc<Slate>,
}

/// Becomes a container's init. Never returns.
pub fn init(plan: &Container, wires: Wires) -> ! {
    let slate = wires.slate.clone();
    let prepared = enter(plan, wires).and_then(|()| prepare_init(plan, Stock::default()));
    finish_init(plan, prepared, &slate)
}

/// Becomes the init of a container that is not known yet. Never returns.
pub fn spare(wires: Wires, connected: Option<&OwnedFd>) -> ! {
    let slate = wires.slate.clone();
    let (mut stock, apart) = match prepare_spare(wires, connected) {
        Ok(prepared) => prepared,
        Err(_) => sys::exit(1),
    };
    send(&[READY]);
    let Ok((request, is_connected)) = receive_request() else { sys::exit(1) };
    if let Some(apart) = apart.filter(|_| !is_connected) {
        if sys::setns(&apart, CLONE_NEWNET).is_err() {
            sys::exit(1)
        }
        // It shows the network devices of the namespace in which it was made.
        stock.discard("sysfs");
    }
    // The agent has understood this request before: it is a `create`.
    let (_, Ok(Request::Create(plan))) = messages::request(&request) else { sys::exit(1) };
    finish_init(&plan, prepare_init(&plan, stock), &slate)
}

/// What can be done without a plan. Returns the file systems, and the network namespace without
/// a connection if this process is in the one with it.
fn prepare_spare(wires: Wires, connected: Option<&OwnedFd>) -> Outcome<(Stock, Option<OwnedFd>)> {
    settle(wires, connected)?;
    sys::unshare(CLONE_NEWCGROUP).step("unshare", "cgroup namespace")?;
    // What the agent mounts from now on is to be seen here as well.
    rootfs::follow_agent().step("make slave", "/")?;
    let mut apart = None;
    if connected.is_some() {
        apart = Some(files::open("/proc/self/ns/net", OFlags::RDONLY).step("open", "netns")?);
        // SAFETY: `settle` made this the descriptor of the namespace.
        let connected = unsafe { OwnedFd::from_raw_fd(EXTRA) };
        sys::setns(&connected, CLONE_NEWNET).step("enter", "netns")?;
    }
    Ok((Stock::make(), apart))
}

/// Reads the request that makes this process a container's, and whether it has a network.
fn receive_request() -> sys::Result<(Vec<u8>, bool)> {
    // SAFETY: `settle` made this the go pipe, and it stays open.
    let pipe = unsafe { BorrowedFd::borrow_raw(GO) };
    let mut header = [0u8; 5];
    read_exact(pipe, &mut header)?;
    let [a, b, c, d, is_connected] = header;
    let mut request = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
    read_exact(pipe, &mut request)?;
    Ok((request, is_connected != 0))
}

fn read_exact(pipe: BorrowedFd, mut buffer: &mut [u8]) -> sys::Result<()> {
    while !buffer.is_empty() {
        match io::read(pipe, &mut *buffer) {
            Ok(0) => return Err(io::Errno::PIPE),
            Ok(count) => buffer = &mut buffer[count..],
            Err(io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Enters the namespaces that the clone did not make.
fn enter(plan: &Container, wires: Wires) -> Outcome<()> {
    settle(wires, None)?;
    if plan.users.0.is_some() {
        await_mapping();
    }
    if plan.namespaces & CLONE_NEWTIME != 0 {
        clocks::enter(plan.time_offsets.0)?;
    }
    if plan.users.0.is_some() {
        identity::become_mapped_root()?;
    }
    for (path, flag) in plan.join.iter().filter(|(_, flag)| *flag != CLONE_NEWPID) {
        let namespace = files::open(*path, OFlags::RDONLY).step("join namespace", path)?;
        sys::setns(&namespace, *flag).step("join namespace", path)?;
    }
    if plan.namespaces & CLONE_NEWCGROUP != 0 {
        // Only now: the clone itself would have made the agent's cgroup the root of it.
        sys::unshare(CLONE_NEWCGROUP).step("unshare", "cgroup namespace")?;
    }
    Ok(())
}

/// A program that is ready to be executed, and the master of its terminal if it has one.
type Prepared = Outcome<(Program, Option<OwnedFd>)>;

fn prepare_init(plan: &Container, stock: Stock) -> Prepared {
    let process = &plan.process;
    if plan.users.0.is_none() {
        identity::set_oom_score(process)?;
    }
    let root = rootfs::build(plan, stock)?;
    let terminal = terminal_of(process, Some(&root.folder))?;
    with_terminal(terminal, rootfs::finish(plan, &root).and_then(|()| become_process(process)))
}

/// Joins a program with its terminal. The terminal of a failure is not closed: that would hang up
/// on this process, which has yet to tell why it gives up.
fn with_terminal(terminal: Option<OwnedFd>, program: Outcome<Program>) -> Prepared {
    match program {
        Ok(program) => Ok((program, terminal)),
        Err(failure) => {
            core::mem::forget(terminal);
            Err(failure)
        }
    }
}

/// Waits for `start`, then executes the program. Never returns.
fn finish_init(plan: &Container, prepared: Prepared, slate: &Slate) -> ! {
    let ready = prepared.and_then(|(program, terminal)| {
        report_ready(terminal.as_ref());
        await_go();
        drop(terminal);
        hooks::run(&plan.start_hooks, &plan.process, &program)?;
        Ok(program)
    });
    execute(&plan.process, ready, slate)
}

/// Becomes a further process of a container. Never returns.
pub fn exec(process: &Process, namespaces: u64, init: &OwnedFd, wires: Wires) -> ! {
    let slate = wires.slate.clone();
    let ready = prepare_exec(process, namespaces, init, wires).map(|(program, terminal)| {
        if let Some(terminal) = terminal {
            report_ready(Some(&terminal));
            await_go();
        }
        program
    });
    execute(process, ready, &slate)
}

fn prepare_exec(process: &Process, namespaces: u64, init: &OwnedFd, wires: Wires) -> Prepared {
    settle(wires, Some(init))?;
    identity::set_oom_score(process)?;
    // SAFETY: `settle` made this the descriptor of the container's init, and it stays open.
    let init = unsafe { BorrowedFd::borrow_raw(EXTRA) };
    let is_mapped = namespaces & CLONE_NEWUSER != 0;
    if is_mapped {
        // Inside, no limit may be raised any more.
        identity::set_limits(process)?;
    }
    sys::setns(init, namespaces & !CLONE_NEWPID).step("join namespaces", "container")?;
    if is_mapped {
        identity::become_mapped_root()?;
    }
    let terminal = terminal_of(process, None)?;
    with_terminal(terminal, become_process(process))
}

/// Makes one pipe of outputs that are one stream, and gives the streams that are not connected the
/// container's /dev/null in place of the agent's, so that their names in /proc/self/fd mean
/// something (as runc does).
fn settle_streams(process: &Process) {
    if process.has_one_output() {
        // SAFETY: the standard streams are open.
        let stdout = unsafe { BorrowedFd::borrow_raw(1) };
        let _ = sys::duplicate(stdout, 2, 0);
    }
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
fn settle(wires: Wires, extra: Option<&OwnedFd>) -> Outcome<()> {
    let settled = || -> sys::Result<()> {
        sys::block_signals(0)?;
        sys::own::umask(0);
        rustix::process::setsid()?;
        // Away from the low numbers first, so that no wire is overwritten by another.
        let null = files::open("/dev/null", OFlags::RDWR)?;
        for (number, stream) in wires.stdio.iter().enumerate() {
            sys::duplicate(stream.as_ref().unwrap_or(&null), number as RawFd, 0)?;
        }
        let (report, go) = (lift(&wires.report)?, lift(&wires.go)?);
        if let Some(extra) = extra {
            sys::duplicate(&lift(extra)?, EXTRA, raw::O_CLOEXEC)?;
        }
        sys::duplicate(&report, REPORT, raw::O_CLOEXEC)?;
        sys::duplicate(&go, GO, raw::O_CLOEXEC)?;
        sys::close_from(if extra.is_some() { FIRST_FREE } else { EXTRA })?;
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
fn become_process(process: &Process) -> Outcome<Program> {
    identity::set_limits(process)?;
    settle_streams(process);
    let home = program::home_of(process);
    if let Some(plan) = &process.tuning.0 {
        identity::tune(plan)?;
    }
    identity::become_user(process)?;
    sys::own::umask(process.umask.unwrap_or(0o022));
    program::find(process, home)
}

/// Executes the program under the process's filter. Never returns.
///
/// What the filter allows is for the program: of this one's system calls only execve comes after
/// it, and to fail takes none at all.
fn execute(process: &Process, ready: Outcome<Program>, slate: &Slate) -> ! {
    let filtered = ready.and_then(|program| install_filter(process).map(|()| program));
    let program = filtered.unwrap_or_else(|failure| give_up(&failure));
    let mut text = Vec::new();
    program.execute().write(&mut text);
    slate.write(&text);
    sys::exit(1)
}

/// To be followed by execve at once.
fn install_filter(process: &Process) -> Outcome<()> {
    let Some(filter) = process.seccomp else { return Ok(()) };
    // Until then: a process that is not let exit dies of a signal, which is to dump no core.
    sys::prctl(prctl::PR_SET_DUMPABLE, 0, 0).step("seccomp", "dumpable")?;
    sys::own::seccomp(filter, process.seccomp_flags).step("seccomp", "filter")
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

/// Waits until the agent has mapped the users of this process.
fn await_mapping() {
    // SAFETY: `settle` made this the go pipe, and it stays open.
    let pipe = unsafe { BorrowedFd::borrow_raw(GO) };
    if read_exact(pipe, &mut [0]).is_err() {
        sys::exit(1)
    }
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
fn give_up(failure: &Failure) -> ! {
    let mut report = Vec::from([FAILED]);
    failure.write(&mut report);
    send(&report);
    sys::exit(1)
}
