//! What children tell on their way to execve, and what that means to the waiting request.

use alloc::format;

use cloche_agent::answers::{self, Failure};
use cloche_agent::errno;
use linux_raw_sys::general as raw;
use rustix::io;

use crate::agent::Agent;
use crate::child;
use crate::process::Stage;
use crate::sys;

impl Agent {
    /// Reads the reports of the process `key`.
    pub fn report(&mut self, key: u32) {
        while let Some(index) = self.process_index(key) {
            let Some(pipe) = &self.processes[index].ends.report else {
                return;
            };
            // All that one child ever reports fits.
            let mut report = [0u8; 4096];
            match io::read(pipe, &mut report) {
                Ok(0) => self.executed(index),
                Ok(size) => self.reported(key, &report[..size]),
                Err(io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// One or both reports of a child: it may have been ready, started, and then given up.
    fn reported(&mut self, key: u32, mut reports: &[u8]) {
        while let Some(index) = self.process_index(key) {
            match reports {
                [child::READY, terminal, rest @ ..] => {
                    reports = rest;
                    self.prepared(index, *terminal);
                }
                [child::FAILED, failure @ ..] => return self.given_up(index, failure),
                _ => return,
            }
        }
    }

    fn process_index(&self, key: u32) -> Option<usize> {
        self.processes.iter().position(|process| process.key == key)
    }

    /// The child waits to be started.
    fn prepared(&mut self, index: usize, terminal: u8) {
        let process = &mut self.processes[index];
        let Stage::Preparing(number) = process.stage else {
            return;
        };
        let taken = match terminal {
            0 => Ok(()),
            terminal => process.take_terminal(terminal, &self.poll),
        };
        if let Err(error) = taken {
            let failure = Failure::new("open terminal", "master", error.raw_os_error());
            return self.abort(index, number, &failure);
        }
        if process.exec_id.is_none() {
            process.stage = process.start.take().map_or(Stage::Created, Stage::Starting);
            if process.stage != Stage::Created && terminal != 0 {
                // It had to wait until its terminal had been taken.
                let _ = process.go();
            }
            let pid = process.pid;
            self.reply_pid(number, pid);
        } else {
            process.stage = Stage::Starting(number);
            // If it is gone already, the closed report pipe tells.
            let _ = process.go();
        }
    }

    /// The report pipe was closed: by execve, or because the child is dead, which may have left
    /// the reason on its slate.
    fn executed(&mut self, index: usize) {
        let process = &mut self.processes[index];
        process.ends.report = None;
        if let Some(slate) = process.ends.slate.take() {
            if let Some(failure) = slate.read() {
                return self.given_up(index, &failure);
            }
            self.slates.push(slate);
        }
        let process = &mut self.processes[index];
        match process.stage {
            Stage::Starting(number) => {
                process.stage = Stage::Running;
                process.ends.go = None;
                let pid = process.pid;
                if process.exec_id.is_some() {
                    self.reply_pid(number, pid);
                } else {
                    self.reply(number, |writer| writer.nil());
                }
            }
            Stage::Preparing(number) => {
                let failure = self.died_early(index);
                self.abort(index, number, &failure);
            }
            Stage::Created | Stage::Running => {}
        }
    }

    /// Why a process ended before it was what was asked for. In runc's words where it had too little
    /// memory.
    fn died_early(&mut self, index: usize) -> Failure {
        let (pid, key) = (self.processes[index].pid, self.processes[index].container);
        let found = self.containers.iter_mut().find(|container| container.key == key);
        if found.is_some_and(|container| container.is_starved(&mut self.port.out)) {
            let message = "container init was OOM-killed (memory limit too low?)".into();
            return Failure::worded("cgroup", "memory.max", errno::ENOMEM, message);
        }
        let message = format!("process {pid} died while it was set up");
        Failure::worded("create", "", errno::ESRCH, message)
    }

    /// The child could not become what was asked for; `failure` are the bytes of the error.
    fn given_up(&mut self, index: usize, failure: &[u8]) {
        let process = &mut self.processes[index];
        process.ends.report = None;
        match process.stage {
            Stage::Preparing(number) => {
                answers::refuse(&mut self.port.out, number, failure);
                self.discard(index);
            }
            Stage::Starting(number) => {
                answers::refuse(&mut self.port.out, number, failure);
                if process.exec_id.is_some() {
                    self.discard(index);
                } else {
                    // The container exists; its init's end is told like any other.
                    process.stage = Stage::Running;
                }
            }
            Stage::Created | Stage::Running => {}
        }
    }

    fn abort(&mut self, index: usize, number: u64, failure: &Failure) {
        self.refuse(number, failure);
        self.discard(index);
    }

    /// Forgets a process that never ran, and with an init its container. The wait is short: the
    /// child has nothing left to do but die.
    fn discard(&mut self, index: usize) {
        let process = self.processes.swap_remove(index);
        if let Some(number) = process.start {
            self.refuse(number, &Failure::new("start", "container", errno::ESRCH));
        }
        if process.status.is_none() {
            let _ = sys::signal(&process.pidfd, raw::SIGKILL as i32);
            sys::wait(process.pid, raw::__WALL);
        }
        if process.exec_id.is_some() {
            return;
        }
        let found = self.containers.iter().position(|one| one.key == process.container);
        if let Some(index) = found {
            let container = self.containers.swap_remove(index);
            self.forget(&container);
        }
    }

    fn reply_pid(&mut self, number: u64, pid: i32) {
        self.reply(number, |writer| {
            writer.map(1);
            writer.str("pid");
            writer.int(pid.into());
        });
    }
}
