//! What the agent remembers about a container.

use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers;
use cloche_agent::messages::Setting;
use linux_raw_sys::general as raw;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::fs;

use crate::cgroup::{self, Cgroup};
use crate::files;
use crate::poll::{Kind, Poll};
use crate::sys::Result;

pub struct Container {
    pub key: u32,
    pub id: String,
    pub cgroup: Cgroup,
    /// CLONE_NEW* of the namespaces that it does not share with the agent.
    pub namespaces: u64,
    /// Its init is PID 1 of a PID namespace, whose processes the kernel kills along with it.
    pub owns_pids: bool,
    /// Its mount namespace, if it was a spare's.
    pub mounts: Option<OwnedFd>,
    memory_events: Option<Watched>,
    cgroup_events: Option<Watched>,
    oom_kills: u64,
    /// `freeze` requests that wait for the kernel: number and wanted state.
    pub freezes: Vec<(u64, bool)>,
    /// The `delete` request that waits for the last process to go.
    pub deleting: Option<u64>,
}

/// A file of the cgroup that epoll reports changes of.
struct Watched(OwnedFd);

impl Watched {
    fn text(&self) -> String {
        let _ = fs::seek(&self.0, fs::SeekFrom::Start(0));
        let text = files::read_open(&self.0).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Container {
    pub fn new(key: u32, id: &str, cgroup: Cgroup, namespaces: u64, owns_pids: bool) -> Container {
        Container {
            key,
            id: id.into(),
            cgroup,
            // A mount namespace of its own it has in any case.
            namespaces: namespaces | u64::from(raw::CLONE_NEWNS),
            owns_pids,
            mounts: None,
            memory_events: None,
            cgroup_events: None,
            oom_kills: 0,
            freezes: Vec::new(),
            deleting: None,
        }
    }

    /// Watches for kills for want of memory, if there is a limit that could cause them.
    pub fn watch_memory(&mut self, poll: &Poll, values: &[Setting]) -> Result<()> {
        if self.memory_events.is_none() && values.iter().any(|(file, _)| *file == "memory.max") {
            let watched = self.watch("memory.events", Kind::MemoryEvents, poll)?;
            self.memory_events = Some(watched);
        }
        Ok(())
    }

    /// Watches whether there are processes and whether they are frozen.
    pub fn watch_state(&mut self, poll: &Poll) -> Result<()> {
        if self.cgroup_events.is_none() {
            let watched = self.watch("cgroup.events", Kind::CgroupEvents, poll)?;
            self.cgroup_events = Some(watched);
        }
        Ok(())
    }

    fn watch(&self, file: &str, kind: Kind, poll: &Poll) -> Result<Watched> {
        let watched = Watched(self.cgroup.open(file)?);
        poll.add(&watched.0, kind, self.key, EventFlags::PRI)?;
        // Only a change after a read is reported.
        watched.text();
        Ok(watched)
    }

    /// Appends an event if there were new kills for want of memory.
    pub fn check_memory(&mut self, out: &mut Vec<u8>) {
        let Some(watched) = &self.memory_events else {
            return;
        };
        let count = cgroup::number(&watched.text(), "oom_kill");
        if count > self.oom_kills {
            self.oom_kills = count;
            answers::oom(out, &self.id, count);
        }
    }

    /// Whether any of its processes has been killed for want of memory.
    pub fn is_starved(&mut self, out: &mut Vec<u8>) -> bool {
        self.check_memory(out);
        self.oom_kills > 0
    }

    /// (has processes, is frozen) according to the kernel.
    pub fn state(&self) -> (bool, bool) {
        let text = match &self.cgroup_events {
            Some(watched) => watched.text(),
            None => self.cgroup.read("cgroup.events").unwrap_or_default(),
        };
        let is = |key| cgroup::number(&text, key) == 1;
        (is("populated"), is("frozen"))
    }
}
