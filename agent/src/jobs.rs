//! Lists of processes, made by a child of the agent.
//!
//! Reading /proc/<pid>/cmdline waits for the process's memory map, and a process that is starved
//! of memory can hold that for long. The agent itself must never wait for a container.

use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::msgpack::Writer;
use linux_raw_sys::general as raw;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::agent::{Agent, Answer};
use crate::fail::{Outcome, Step};
use crate::listing;
use crate::poll::Kind;
use crate::sys::{self, Fork};

/// A `processes` request under way.
pub struct Job {
    key: u32,
    number: u64,
    id: String,
    child: OwnedFd,
    pipe: OwnedFd,
    /// How many processes are left out, in four bytes, then the list in msgpack.
    bytes: Vec<u8>,
}

impl Agent {
    pub fn list_processes(&mut self, number: u64, id: &str) -> Outcome<Answer> {
        const STEP: &str = "processes";
        let pids = self.container(id)?.cgroup.processes();
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC).step(STEP, id)?;
        io::ioctl_fionbio(&pipe, true).step(STEP, id)?;
        let child = match sys::fork(0, None).step(STEP, id)? {
            Fork::Child => tell(&pids, theirs),
            Fork::Parent { pidfd, .. } => pidfd,
        };
        let key = self.new_key();
        self.poll.add(&pipe, Kind::Job, key, EventFlags::IN).step(STEP, id)?;
        let (id, bytes) = (id.into(), Vec::new());
        self.jobs.push(Job { key, number, id, child, pipe, bytes });
        Ok(Answer::Other)
    }

    /// Part of a list has come, or its end.
    pub fn job_ready(&mut self, key: u32) {
        let Some(index) = self.jobs.iter().position(|job| job.key == key) else { return };
        loop {
            let job = &mut self.jobs[index];
            job.bytes.reserve(4096);
            match io::read(&job.pipe, rustix::buffer::spare_capacity(&mut job.bytes)) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => break,
            }
        }
        let job = self.jobs.swap_remove(index);
        self.finish_job(&job);
    }

    fn finish_job(&mut self, job: &Job) {
        let Some((left_out, list)) = job.bytes.split_first_chunk() else {
            let failure = Failure::new("processes", &job.id, errno::ESRCH);
            return self.refuse(job.number, &failure);
        };
        self.reply(job.number, |writer| writer.out.extend_from_slice(list));
        let left_out = u32::from_le_bytes(*left_out);
        if left_out > 0 {
            let id = &job.id;
            self.warn(&alloc::format!("processes {id}: {left_out} more do not fit the reply"));
        }
    }

    /// Ends the jobs for a container that is being deleted.
    pub fn end_jobs(&mut self, id: &str) {
        for job in self.jobs.iter().filter(|job| job.id == id) {
            let _ = sys::signal(&job.child, raw::SIGKILL as i32);
        }
    }
}

/// Makes the list, writes it to the pipe, and ends.
fn tell(pids: &[i32], pipe: OwnedFd) -> ! {
    // Who asks for the list may well want to know what keeps the guest so busy.
    let _ = sys::take_precedence();
    if sys::close_all_but(&[&pipe]).is_err() {
        sys::exit(1);
    }
    let found = listing::list(pids);
    let mut bytes = Vec::from((found.left_out as u32).to_le_bytes());
    let mut writer = Writer { out: &mut bytes };
    writer.array(found.entries.len());
    found.entries.iter().for_each(|entry| writer.out.extend_from_slice(entry));
    let _ = sys::write_all(&pipe, &bytes);
    sys::exit(0)
}
