//! A process of a container, from its clone until its last byte of output has been forwarded.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers;
use cloche_agent::flow::Overrun;
use cloche_agent::messages::Process as Plan;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io;
use rustix::pipe::{pipe_with, PipeFlags};
use rustix::process::PidfdGetfdFlags;

use crate::child::{terminal, Wires};
use crate::poll::{Kind, Poll, Wait};
use crate::slate::Slate;
use crate::streams::{Sink, Source};
use crate::sys::Result;

/// Input that is shorter is no bulk: an answer to it is not held up.
const SHORT_INPUT: usize = 4096;

/// How far a process has come; the number is that of the request which waits for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Being made ready for `create`, or for an `exec` with a terminal.
    Preparing(u64),
    /// Created; waits for `start`.
    Created,
    /// On its way to execve.
    Starting(u64),
    /// Has been executed.
    Running,
}

/// Whether file systems have been written back since a container's init has ended: whoever hears
/// of its end may well switch the VM off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    Needless,
    UnderWay,
    Done,
}

pub struct Process {
    pub key: u32,
    /// Key of its container.
    pub container: u32,
    /// `None`: the container's init.
    pub exec_id: Option<String>,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub stage: Stage,
    /// The `start` that came before the process was ready for it.
    pub start: Option<u64>,
    pub ends: Ends,
    /// What it has written to stderr waits, and precedes what is in stdout by now.
    errors_first: bool,
    /// A size that its terminal is to have once it is there.
    size: Option<(u16, u16)>,
    /// Wait status, once it has been reaped.
    pub status: Option<i32>,
    /// Its exit event has been sent.
    pub told: bool,
    /// What must be done before that, besides forwarding its output.
    pub sync: Sync,
    /// Its container is being deleted: output that the host does not take is given up.
    pub hurried: bool,
}

/// The agent's ends of a process's pipes.
pub struct Ends {
    pub stdin: Option<Sink>,
    pub stdout: Option<Source>,
    pub stderr: Option<Source>,
    pub report: Option<OwnedFd>,
    pub go: Option<OwnedFd>,
    /// What it leaves where it can report no more; none once it has been executed.
    pub slate: Option<Rc<Slate>>,
}

/// Makes the pipes of a process.
pub fn wire(plan: &Plan, slate: Rc<Slate>) -> Result<(Wires, Ends)> {
    let (report_out, report_in) = pipe_with(PipeFlags::CLOEXEC)?;
    let (go_out, go_in) = pipe_with(PipeFlags::CLOEXEC)?;
    io::ioctl_fionbio(&report_out, true)?;
    let stdio = [None, None, None];
    let mut wires = Wires { stdio, report: report_in, go: go_out, slate: slate.clone() };
    let mut ends = Ends {
        stdin: None,
        stdout: None,
        stderr: None,
        report: Some(report_out),
        go: Some(go_in),
        slate: Some(slate),
    };
    if plan.terminal {
        // Input may arrive, and sizes too, before the process has opened its terminal.
        ends.stdin = Some(Sink::awaited(plan.stdin));
        ends.stdout = Some(Source::awaited(plan.stdout));
        return Ok((wires, ends));
    }
    if plan.stdin != 0 {
        let (theirs, ours) = stream_pipe(false)?;
        wires.stdio[0] = Some(theirs);
        ends.stdin = Some(Sink::new(plan.stdin, ours));
    }
    // Where both are one stream the child has one pipe twice.
    let stderr = if plan.has_one_output() { 0 } else { plan.stderr };
    for (number, stream) in [(1, plan.stdout), (2, stderr)] {
        if stream != 0 {
            let (ours, theirs) = stream_pipe(true)?;
            wires.stdio[number] = Some(theirs);
            let source = Some(Source::new(stream, ours));
            *(if number == 1 { &mut ends.stdout } else { &mut ends.stderr }) = source;
        }
    }
    Ok((wires, ends))
}

/// Reading and writing end of a pipe of which one end, ours, does not block.
fn stream_pipe(read_here: bool) -> Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    io::ioctl_fionbio(if read_here { &reading } else { &writing }, true)?;
    Ok((reading, writing))
}

impl Ends {
    /// Lets epoll report all ends under `key`.
    pub fn watch(&self, poll: &Poll, key: u32) -> Result<()> {
        if let Some(report) = &self.report {
            poll.add(report, Kind::Report, key, EventFlags::IN)?;
        }
        if let Some(fd) = self.stdin.as_ref().and_then(Sink::fd) {
            poll.add(fd, Kind::Stdin, key, EventFlags::OUT)?;
        }
        if let Some(fd) = self.stdout.as_ref().and_then(Source::fd) {
            poll.add(fd, Kind::Stdout, key, EventFlags::IN)?;
        }
        if let Some(fd) = self.stderr.as_ref().and_then(Source::fd) {
            poll.add(fd, Kind::Stderr, key, EventFlags::IN)?;
        }
        Ok(())
    }
}

impl Process {
    pub fn new(
        key: u32,
        container: u32,
        exec_id: Option<String>,
        pid: i32,
        pidfd: OwnedFd,
        stage: Stage,
        ends: Ends,
    ) -> Process {
        Process {
            key,
            container,
            exec_id,
            pid,
            pidfd,
            stage,
            start: None,
            ends,
            errors_first: false,
            size: None,
            status: None,
            told: false,
            sync: Sync::Needless,
            hurried: false,
        }
    }

    /// Lets the waiting child go on.
    pub fn go(&mut self) -> Result<()> {
        match self.ends.go.take() {
            Some(pipe) => io::write(pipe, b"g").map(drop),
            None => Err(io::Errno::SRCH),
        }
    }

    /// Whether its streams are a terminal, be it open already or not.
    pub fn has_terminal(&self) -> bool {
        self.ends.stdin.as_ref().is_some_and(|sink| sink.is_terminal)
    }

    /// Sets the size of its terminal, now or as soon as it has one.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let input = self.ends.stdin.as_ref().filter(|sink| sink.is_terminal);
        match input.ok_or(io::Errno::NOTTY)?.fd() {
            Some(fd) => terminal::resize(fd, rows, columns),
            None => {
                self.size = Some((rows, columns));
                Ok(())
            }
        }
    }

    /// Takes the terminal that the waiting child has opened as its descriptor `number`.
    pub fn take_terminal(&mut self, number: u8, poll: &Poll) -> Result<()> {
        let flags = PidfdGetfdFlags::empty();
        let master = rustix::process::pidfd_getfd(&self.pidfd, number.into(), flags)?;
        io::ioctl_fionbio(&master, true)?;
        if let Some((rows, columns)) = self.size {
            terminal::resize(&master, rows, columns)?;
        }
        let (Some(sink), Some(source)) = (&mut self.ends.stdin, &mut self.ends.stdout) else {
            return Err(io::Errno::NOTTY);
        };
        let input = io::fcntl_dupfd_cloexec(&master, 0)?;
        poll.add(&input, Kind::Stdin, self.key, EventFlags::OUT)?;
        poll.add(&master, Kind::Stdout, self.key, EventFlags::IN)?;
        sink.open(input);
        source.open(master);
        Ok(())
    }

    /// The source or sink that epoll reported.
    pub fn ready(&mut self, kind: Kind) {
        match kind {
            Kind::Stdin => self.ends.stdin.iter_mut().for_each(Sink::ready),
            Kind::Stdout => {
                self.ends.stdout.iter_mut().for_each(Source::ready);
                self.errors_first |= self.ends.stderr.as_ref().is_some_and(Source::is_gathering);
                self.ends.stderr.iter_mut().for_each(Source::precede);
            }
            _ => {
                self.ends.stderr.iter_mut().for_each(Source::ready);
                self.ends.stdout.iter_mut().for_each(Source::precede);
            }
        }
    }

    /// Input for it, as long as it takes it in.
    pub fn input(&mut self, data: &[u8]) -> core::result::Result<(), Overrun> {
        if data.len() < SHORT_INPUT {
            self.sources().for_each(Source::hurry);
        }
        self.ends.stdin.as_mut().map_or(Ok(()), |sink| sink.receive(data))
    }

    pub fn sources(&mut self) -> impl Iterator<Item = &mut Source> {
        self.ends.stdout.iter_mut().chain(self.ends.stderr.iter_mut())
    }

    /// It has been reaped.
    pub fn ended(&mut self, status: i32) {
        self.status = Some(status);
        self.sources().for_each(Source::process_ended);
        self.ends.stdin.iter_mut().for_each(Sink::process_ended);
        self.ends.go = None;
    }

    /// Moves bytes both ways and tells of the exit once nothing precedes it any more; says when
    /// more could be moved. `poll` is not given while the host takes no more output.
    pub fn pump(&mut self, id: &str, out: &mut Vec<u8>, poll: Option<&Poll>) -> Wait {
        if let Some(sink) = &mut self.ends.stdin {
            sink.pump(out);
        }
        let mut wait = Wait::Forever;
        if let Some(poll) = poll {
            let mut outputs =
                [(&mut self.ends.stdout, Kind::Stdout), (&mut self.ends.stderr, Kind::Stderr)];
            if core::mem::take(&mut self.errors_first) {
                outputs.reverse();
            }
            for (source, kind) in outputs {
                if let Some(source) = source {
                    wait = wait.min(source.pump(out, poll, kind, self.key));
                }
            }
        }
        let hurried = self.hurried;
        let settled = self.sources().all(|source| source.is_settled(hurried));
        if let Some(status) =
            self.status.filter(|_| settled && self.sync != Sync::UnderWay && !self.told)
        {
            answers::exit(out, id, self.exec_id.as_deref(), status);
            self.told = true;
        }
        wait
    }

    /// Nothing of it is left: ended, told, and all output forwarded.
    pub fn is_over(&mut self) -> bool {
        self.told && self.sources().all(|source| source.is_closed())
    }
}
