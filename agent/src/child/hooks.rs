//! startContainer hooks: programs of the container, run by its init before its own program.

use alloc::ffi::CString;
use alloc::format;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{Hook, Process};
use linux_raw_sys::general as raw;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::{self, MemfdFlags, SeekFrom};
use rustix::io;
use rustix::pipe::{pipe_with, PipeFlags};

use crate::fail::{Outcome, Step};
use crate::sys::{self, Fork, Vector};

use super::program::Program;

/// Runs the hooks in order, as the process whose `program` is about to be executed; the first one
/// that fails ends the start.
pub fn run(hooks: &[Hook], process: &Process, program: &Program) -> Outcome<()> {
    hooks.iter().try_for_each(|hook| run_one(hook, process, program))
}

fn run_one(hook: &Hook, process: &Process, program: &Program) -> Outcome<()> {
    const STEP: &str = "startContainer hook";
    let input = state(hook.stdin).step(STEP, hook.path)?;
    let (pid, pidfd) = match sys::fork(0, None).step(STEP, hook.path)? {
        Fork::Child => become_hook(hook, input, process, program),
        Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(input);
    let in_time = finished(&pidfd, hook.timeout);
    if !in_time {
        let _ = sys::signal(&pidfd, raw::SIGKILL as i32);
    }
    let status = sys::wait(pid, raw::__WALL).map_or(0, |(_, status)| status);
    if in_time && status == 0 {
        return Ok(());
    }
    let why = if in_time { format!("wait status {status:#x}") } else { "timed out".into() };
    Err(Failure::worded(STEP, hook.path, errno::EINVAL, format!("{STEP} {}: {why}", hook.path)))
}

/// What a hook finds on its stdin: a pipe that holds it all, or a file, since a hook that reads
/// nothing is no failure and holds nobody up.
fn state(text: &[u8]) -> sys::Result<OwnedFd> {
    // What any pipe holds, however many its user has.
    const PIPE: usize = 4096;
    if text.len() <= PIPE {
        let (input, feed) = pipe_with(PipeFlags::CLOEXEC)?;
        sys::write_all(&feed, text)?;
        return Ok(input);
    }
    let file = fs::memfd_create("state", MemfdFlags::CLOEXEC)?;
    sys::write_all(&file, text)?;
    fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

fn finished(pidfd: &OwnedFd, seconds: Option<u32>) -> bool {
    let limit = seconds.map(|seconds| Timespec { tv_sec: seconds.into(), tv_nsec: 0 });
    let mut wanted = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut wanted, limit.as_ref()) {
            Err(io::Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

/// The filter is the hook's only: the process that waits for it makes its own calls without.
fn become_hook(hook: &Hook, input: OwnedFd, process: &Process, program: &Program) -> ! {
    let _ = sys::duplicate(&input, 0, 0);
    if let Ok(path) = CString::new(hook.path) {
        let arguments = Vector::new(hook.args.iter().copied());
        let own = hook.env.as_ref().map(|env| Vector::new(env.iter().copied()));
        let environment = own.as_ref().unwrap_or(&program.environment);
        if super::install_filter(process).is_ok() {
            sys::execve(&path, &arguments, environment);
        }
    }
    sys::exit(127)
}
