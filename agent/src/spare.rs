//! A container init made in advance: cloned, in its namespaces and its cgroup, with the usual
//! file systems at hand, waiting for a plan. The template of a VM holds one.
//!
//! A container whose plan fits takes it over; all others, and all later ones, are cloned when
//! they are asked for.

use alloc::rc::Rc;

use cloche_agent::messages::{Container as Plan, Process as ProcessPlan};
use linux_raw_sys::general as raw;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::{self, Errno};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::bpf::DeviceFilter;
use crate::cgroup::Cgroup;
use crate::child::{self, Wires};
use crate::files;
use crate::process::Ends;
use crate::slate::Slate;
use crate::streams::{Sink, Source};
use crate::sys::{self, Fork, Result};

/// The namespaces that it has, and that a container must want.
const NAMESPACES: u64 = (raw::CLONE_NEWNS
    | raw::CLONE_NEWPID
    | raw::CLONE_NEWIPC
    | raw::CLONE_NEWUTS
    | raw::CLONE_NEWCGROUP) as u64;

pub struct Spare {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
    /// Its mount namespace. Held, so that taking it apart does not delay the news of its end.
    pub mounts: OwnedFd,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    report: OwnedFd,
    go: OwnedFd,
    slate: Rc<Slate>,
}

impl Spare {
    /// Makes one, and waits until it waits. `connected` is the network namespace that it may be
    /// told to be in, `usual` decides which devices it may use.
    pub fn make(connected: Option<&OwnedFd>, usual: Option<&DeviceFilter>) -> Result<Spare> {
        let cgroup =
            Cgroup::make("spare").map_err(|failure| Errno::from_raw_os_error(failure.errno))?;
        if let Some(usual) = usual {
            let wanted = Some(usual.instructions.as_slice());
            let filtered = cgroup.filter_devices(wanted, Some(usual), None);
            filtered.map_err(|failure| Errno::from_raw_os_error(failure.errno))?;
        }
        let (their_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, their_report) = pipe_with(PipeFlags::CLOEXEC)?;
        let (their_go, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let slate = Rc::new(Slate::make()?);
        let wires = Wires {
            slate: slate.clone(),
            stdio: [Some(their_stdin), Some(their_stdout), Some(their_stderr)],
            report: their_report,
            go: their_go,
        };
        // Its cgroup namespace it makes itself: see `child::prepare_init`.
        let flags = NAMESPACES & !u64::from(raw::CLONE_NEWCGROUP);
        let (pid, pidfd) = match sys::fork(flags, Some(cgroup.folder()))? {
            Fork::Child => child::spare(wires, connected),
            Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(wires);
        let mut byte = [0];
        if io::read(&report, &mut byte)? == 0 {
            return Err(Errno::CHILD);
        }
        let mounts = files::open(alloc::format!("/proc/{pid}/ns/mnt").as_str(), OFlags::RDONLY)?;
        for end in [&stdin, &stdout, &stderr, &report] {
            io::ioctl_fionbio(end, true)?;
        }
        Ok(Spare { pid, pidfd, cgroup, mounts, stdin, stdout, stderr, report, go, slate })
    }

    /// Whether a container of this plan may be made of it.
    pub fn fits(plan: &Plan) -> bool {
        plan.namespaces == NAMESPACES && plan.join.is_empty()
    }

    /// Sends it the request that it is to carry out; an error if it is gone.
    pub fn send(&self, request: &[u8], is_connected: bool) -> Result<()> {
        let [a, b, c, d] = (request.len() as u32).to_le_bytes();
        sys::write_all(&self.go, &[a, b, c, d, is_connected.into()])?;
        sys::write_all(&self.go, request)
    }

    /// The parts: process, its ends (those of `plan`), and what its container keeps.
    pub fn into_parts(self, plan: &ProcessPlan) -> (i32, OwnedFd, Ends, Cgroup, OwnedFd) {
        let mut ends = Ends {
            stdin: None,
            stdout: None,
            stderr: None,
            report: Some(self.report),
            go: Some(self.go),
            slate: Some(self.slate),
        };
        if plan.terminal {
            ends.stdin = Some(Sink::awaited(plan.stdin));
            ends.stdout = Some(Source::awaited(plan.stdout));
        } else {
            ends.stdin = (plan.stdin != 0).then(|| Sink::new(plan.stdin, self.stdin));
            ends.stdout = (plan.stdout != 0).then(|| Source::new(plan.stdout, self.stdout));
            let has_stderr = plan.stderr != 0 && !plan.has_one_output();
            ends.stderr = has_stderr.then(|| Source::new(plan.stderr, self.stderr));
        }
        (self.pid, self.pidfd, ends, self.cgroup, self.mounts)
    }
}
