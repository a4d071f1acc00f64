//! Streams and ends of processes.

use cloche_agent::answers;
use linux_raw_sys::general as raw;

use crate::agent::Agent;
use crate::poll::Wait;
use crate::process::{Process, Sync};
use crate::syncer::Waiting;

impl Agent {
    /// A child has been reaped. Most are ours; the others lost their parent.
    pub fn ended(&mut self, pid: i32, status: i32) {
        let is_it = |process: &&mut Process| process.pid == pid && process.status.is_none();
        let Some(process) = self.processes.iter_mut().find(is_it) else {
            return;
        };
        process.ended(status);
        let (key, container, is_init) = (process.key, process.container, process.exec_id.is_none());
        // What it reported before it ended comes first.
        self.report(key);
        if is_init && self.syncer.is_needed() && self.syncer.order(Waiting::Exit(key)) {
            let found = self.processes.iter_mut().find(|process| process.key == key);
            found.into_iter().for_each(|process| process.sync = Sync::UnderWay);
        }
        let Some(container) = self.containers.iter_mut().find(|one| one.key == container) else {
            return;
        };
        if status & 0x7f == raw::SIGKILL as i32 {
            // The kernel tells epoll of kills for want of memory 10 ms late; the end comes second.
            container.check_memory(&mut self.port.out);
        }
        if is_init && !container.owns_pids {
            let _ = container.cgroup.kill();
        }
    }

    /// File systems have been synced.
    pub fn synced(&mut self) {
        for waiting in self.syncer.finished() {
            match waiting {
                Waiting::Request(number) => self.reply(number, |writer| writer.nil()),
                Waiting::Exit(key) => {
                    let found = self.processes.iter_mut().find(|process| process.key == key);
                    found.into_iter().for_each(|process| process.sync = Sync::Done);
                }
            }
        }
    }

    /// Moves what can be moved; true if there is more to do at once.
    pub fn pump(&mut self) -> Wait {
        let mut wait = Wait::Forever;
        for process in &mut self.processes {
            let container = self.containers.iter().find(|one| one.key == process.container);
            let id = container.map_or("", |container| container.id.as_str());
            let poll = self.port.has_room().then_some(&self.poll);
            wait = wait.min(process.pump(id, &mut self.port.out, poll));
        }
        self.processes.retain_mut(|process| process.exec_id.is_none() || !process.is_over());
        self.finish_deletions();
        // With no room, it is the port that has to become writable first.
        if self.port.has_room() {
            wait
        } else {
            Wait::Forever
        }
    }

    pub fn input(&mut self, stream: u32, data: &[u8]) {
        let reads = |process: &&mut Process| {
            process.ends.stdin.as_ref().is_some_and(|sink| sink.stream == stream)
        };
        let Some(process) = self.processes.iter_mut().find(reads) else {
            return;
        };
        if process.input(data).is_err() {
            let message =
                alloc::format!("stream {stream}: more than there was credit for, dropped");
            answers::log(&mut self.port.out, "error", &message);
        }
    }

    pub fn credit(&mut self, stream: u32, payload: &[u8]) {
        let Ok(bytes) = payload.try_into().map(u32::from_le_bytes) else {
            return;
        };
        let mut sources = self.processes.iter_mut().flat_map(|process| process.sources());
        if let Some(source) = sources.find(|source| source.stream == stream) {
            source.granted(bytes);
        }
    }

    /// The host writes no more to a stdin, or reads no more of an output.
    pub fn end_of_stream(&mut self, stream: u32) {
        for process in &mut self.processes {
            let sink = process.ends.stdin.as_mut().filter(|sink| sink.stream == stream);
            sink.into_iter().for_each(|sink| sink.end());
            let source = process.sources().find(|source| source.stream == stream);
            source.into_iter().for_each(|source| source.abandon());
        }
    }
}
