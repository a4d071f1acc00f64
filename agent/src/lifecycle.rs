//! Requests about containers and their processes.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{
    CgroupRead, CgroupWrite, Container as Plan, Exec, Freeze, Process as ProcessPlan, Resize,
    Signal,
};
use linux_raw_sys::general as raw;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io;

use crate::agent::{Agent, Answer};
use crate::bpf::DeviceFilter;
use crate::cgroup::{self, Cgroup};
use crate::child::{self, rootfs, Wires};
use crate::container::Container;
use crate::fail::{Outcome, Step};
use crate::files;
use crate::process::{self, Ends, Process, Stage};
use crate::slate::Slate;
use crate::spare::Spare;
use crate::sys::{self, Fork};
use crate::users;

const NEWPID: u64 = raw::CLONE_NEWPID as u64;
const NEWCGROUP: u64 = raw::CLONE_NEWCGROUP as u64;
const NEWNS: u64 = raw::CLONE_NEWNS as u64;
const NEWTIME: u64 = raw::CLONE_NEWTIME as u64;
const NEWUSER: u64 = raw::CLONE_NEWUSER as u64;
/// Namespaces that a container may have of its own. The network is the guest's.
const POSSIBLE: u64 =
    NEWPID | NEWCGROUP | NEWNS | NEWTIME | (raw::CLONE_NEWUTS | raw::CLONE_NEWIPC) as u64;
/// Those that it has only together: a user namespace has power over a network of its own only.
const WITH_USERS: u64 = NEWUSER | raw::CLONE_NEWNET as u64;

/// Gives a container's cgroup its limits and devices; `attached` is the filter it has already.
fn set_up(
    cgroup: &Cgroup,
    plan: &Plan,
    usual: Option<&DeviceFilter>,
    attached: Option<&DeviceFilter>,
) -> Outcome<()> {
    cgroup.write(&plan.cgroup_values)?;
    cgroup.filter_devices(plan.device_filter.0, usual, attached)
}

impl Agent {
    /// Makes a container; `payload` is the request that asks for it.
    pub fn create(&mut self, number: u64, plan: &Plan, payload: &[u8]) -> Outcome<Answer> {
        if self.containers.iter().any(|container| container.id == plan.id) {
            let message = format!("container {:?} exists already", plan.id);
            return Err(Failure::worded("create", plan.id, errno::EEXIST, message));
        }
        let joined = plan.join.iter().fold(0, |flags, (_, flag)| flags | flag);
        let with_users = if plan.users.0.is_some() { WITH_USERS } else { 0 };
        let is_possible = plan.namespaces & WITH_USERS == with_users
            && (plan.namespaces | joined) & !(POSSIBLE | with_users) == 0;
        if !is_possible {
            let message = format!("namespaces {:#x} are not possible", plan.namespaces | joined);
            return Err(Failure::worded("create", plan.id, errno::EINVAL, message));
        }
        if let Some(spare) = self.spare.take_if(|_| Spare::fits(plan)) {
            let usual = self.usual_filter.as_ref();
            if let Err(failure) = set_up(&spare.cgroup, plan, usual, usual) {
                self.spare = Some(spare);
                return Err(failure);
            }
            let is_connected = self.slots.as_ref().is_some_and(|slots| slots.is_connected);
            if spare.send(payload, is_connected).is_ok() {
                return self.dress(number, plan, spare);
            }
            self.warn("the spare init is gone");
        }
        let cgroup = Cgroup::make(plan.cgroup)?;
        if let Err(failure) = set_up(&cgroup, plan, self.usual_filter.as_ref(), None) {
            let _ = cgroup.remove();
            return Err(failure);
        }
        let key = self.new_key();
        let owns_pids = plan.namespaces & NEWPID != 0;
        let namespaces = plan.namespaces | joined;
        let container = Container::new(key, plan.id, cgroup, namespaces, owns_pids);
        let started = self.clone_init(number, plan, &container);
        self.admit(plan, container, started)
    }

    /// Makes the container out of the spare init, which has been told what to do.
    fn dress(&mut self, number: u64, plan: &Plan, spare: Spare) -> Outcome<Answer> {
        let (pid, pidfd, ends, cgroup, mounts) = spare.into_parts(&plan.process);
        let key = self.new_key();
        let mut container = Container::new(key, plan.id, cgroup, plan.namespaces, true);
        container.mounts = Some(mounts);
        let adopted = self.adopt(key, None, pid, pidfd, ends, Stage::Preparing(number));
        self.admit(plan, container, adopted)
    }

    /// Takes a new container in, if its init could be made.
    fn admit(
        &mut self,
        plan: &Plan,
        mut container: Container,
        init: Outcome<Process>,
    ) -> Outcome<Answer> {
        let watched = container.watch_memory(&self.poll, &plan.cgroup_values);
        let admitted = init.and_then(|process| {
            watched.step("create", "memory.events")?;
            if let Some(owner) = plan.cgroup_owner.0 {
                container.cgroup.give_to(owner).step("cgroup", "owner")?;
            }
            Ok(process)
        });
        match admitted {
            Ok(process) => {
                if rootfs::uses_disks(plan) {
                    self.syncer.disks_in_use();
                }
                self.processes.push(process);
                self.containers.push(container);
                Ok(Answer::Other)
            }
            Err(failure) => {
                let _ = container.cgroup.kill();
                let _ = container.cgroup.remove();
                users::forget(plan.id);
                Err(failure)
            }
        }
    }

    fn wire(&mut self, plan: &ProcessPlan) -> sys::Result<(Wires, Ends)> {
        let slate = self.slates.pop().map_or_else(|| Slate::make().map(Rc::new), Ok)?;
        process::wire(plan, slate)
    }

    fn clone_init(&mut self, number: u64, plan: &Plan, container: &Container) -> Outcome<Process> {
        const STEP: &str = "create";
        let pids = plan.join.iter().find(|(_, flag)| *flag == NEWPID);
        let pids = match pids {
            Some((path, _)) => {
                Some(files::open(*path, OFlags::RDONLY).step("join namespace", path)?)
            }
            None => None,
        };
        let (wires, ends) = self.wire(&plan.process).step(STEP, "pipes")?;
        if plan.users.0.is_some() {
            users::prepare(plan, &wires)?;
        }
        // The child itself makes those that clone would make too early or not at all.
        let flags = plan.namespaces & !(NEWCGROUP | NEWTIME) | NEWNS;
        match self
            .fork_into(pids.as_ref(), flags, container.cgroup.folder())
            .step("clone", plan.id)?
        {
            Fork::Child => child::init(plan, wires),
            Fork::Parent { pid, pidfd } => {
                drop(wires);
                if let Some(users) = &plan.users.0 {
                    self.admit_users(plan, users, pid, &ends)?;
                }
                self.adopt(container.key, None, pid, pidfd, ends, Stage::Preparing(number))
            }
        }
    }

    /// Forks into a cgroup, and into a PID namespace if one is given: only children enter it.
    fn fork_into(&self, pids: Option<&OwnedFd>, flags: u64, cgroup: &OwnedFd) -> sys::Result<Fork> {
        if let Some(pids) = pids {
            sys::setns(pids, NEWPID)?;
        }
        let fork = sys::fork(flags, Some(cgroup));
        if pids.is_some() && !matches!(fork, Ok(Fork::Child)) {
            // Where the agent's next children belong.
            if let Err(error) = sys::setns(&self.own_pids, NEWPID) {
                panic!("returning to the own PID namespace: {error:?}");
            }
        }
        fork
    }

    fn adopt(
        &mut self,
        container: u32,
        exec_id: Option<&str>,
        pid: i32,
        pidfd: OwnedFd,
        ends: Ends,
        stage: Stage,
    ) -> Outcome<Process> {
        let key = self.new_key();
        if let Err(error) = ends.watch(&self.poll, key) {
            let _ = sys::signal(&pidfd, raw::SIGKILL as i32);
            return Err(Failure::new("watch", "pipes", error.raw_os_error()));
        }
        let exec_id = exec_id.map(Into::into);
        Ok(Process::new(key, container, exec_id, pid, pidfd, stage, ends))
    }

    pub fn start(&mut self, number: u64, id: &str) -> Outcome<Answer> {
        let process = self.process(id, None)?;
        if matches!(process.stage, Stage::Preparing(_)) && process.start.is_none() {
            process.start = Some(number);
            if !process.has_terminal() {
                // The child finds the word to go when it is ready, and waits for nobody.
                process.go().step("start", id)?;
            }
            return Ok(Answer::Other);
        }
        if process.stage != Stage::Created {
            let message = format!("container {id:?} has been started already");
            return Err(Failure::worded("start", id, errno::EBUSY, message));
        }
        process.stage = Stage::Starting(number);
        process.go().step("start", id)?;
        Ok(Answer::Other)
    }

    pub fn exec(&mut self, number: u64, plan: &Exec) -> Outcome<Answer> {
        const STEP: &str = "exec";
        let index = self.index_of(plan.id)?;
        let (key, namespaces) = (self.containers[index].key, self.containers[index].namespaces);
        if self.process(plan.id, Some(plan.exec_id)).is_ok() {
            let message = format!("exec {:?} exists already", plan.exec_id);
            return Err(Failure::worded(STEP, plan.exec_id, errno::EEXIST, message));
        }
        let process = self.process(plan.id, None)?;
        let init_pid = process.pid;
        let init = io::fcntl_dupfd_cloexec(&process.pidfd, 0).step(STEP, "init")?;
        let (wires, ends) = self.wire(&plan.process).step(STEP, "pipes")?;
        users::give_stdio(&plan.process, &wires);
        let pids = Some(&init).filter(|_| namespaces & NEWPID != 0);
        let cgroup = &self.containers[index].cgroup;
        match self.fork_exec(plan, pids, init_pid, cgroup)? {
            Fork::Child => child::exec(&plan.process, namespaces, &init, wires),
            Fork::Parent { pid, pidfd } => {
                drop(wires);
                let stage = if plan.process.terminal {
                    Stage::Preparing(number)
                } else {
                    Stage::Starting(number)
                };
                let process = self.adopt(key, Some(plan.exec_id), pid, pidfd, ends, stage)?;
                self.processes.push(process);
                Ok(Answer::Other)
            }
        }
    }

    /// Forks into the cgroup that the plan names, else the container's; else, if that one only has
    /// others below it by now (a container that runs its own service manager), its init's.
    fn fork_exec(
        &self,
        plan: &Exec,
        pids: Option<&OwnedFd>,
        init: i32,
        cgroup: &Cgroup,
    ) -> Outcome<Fork> {
        const STEP: &str = "clone";
        if let Some(path) = plan.cgroup.0 {
            return self.fork_into(pids, 0, &cgroup.below(path)?).step(STEP, plan.exec_id);
        }
        match self.fork_into(pids, 0, cgroup.folder()) {
            Err(io::Errno::BUSY) => {
                let moved = cgroup::of(init).step("cgroup", plan.id)?;
                self.fork_into(pids, 0, &moved).step(STEP, plan.exec_id)
            }
            result => result.step(STEP, plan.exec_id),
        }
    }

    pub fn signal(&mut self, plan: &Signal) -> Outcome<()> {
        const STEP: &str = "signal";
        if !plan.all {
            let process = self.process(plan.id, plan.exec_id)?;
            return sys::signal(&process.pidfd, plan.signal).step(STEP, plan.id);
        }
        let cgroup = &self.container(plan.id)?.cgroup;
        if plan.signal == raw::SIGKILL as i32 {
            return cgroup.kill().step(STEP, plan.id);
        }
        let members = cgroup.processes();
        if members.is_empty() {
            return Err(Failure::new(STEP, plan.id, errno::ESRCH));
        }
        for pid in members {
            // Whoever ended in the meantime has nothing to be told.
            let _ = sys::kill(pid, plan.signal);
        }
        Ok(())
    }

    pub fn resize(&mut self, plan: &Resize) -> Outcome<()> {
        let process = self.process(plan.id, plan.exec_id)?;
        process.resize(plan.rows, plan.columns).step("resize", plan.exec_id.unwrap_or(plan.id))
    }

    pub fn freeze(&mut self, number: u64, plan: &Freeze) -> Outcome<Answer> {
        let wanted = if plan.frozen { "1" } else { "0" };
        let index = self.index_of(plan.id)?;
        let container = &mut self.containers[index];
        container.watch_state(&self.poll).step("freeze", "cgroup.events")?;
        container.freezes.push((number, plan.frozen));
        if let Err(failure) = container.cgroup.write(&[("cgroup.freeze", wanted)]) {
            container.freezes.pop();
            return Err(failure);
        }
        let key = container.key;
        self.cgroup_changed(key);
        Ok(Answer::Other)
    }

    /// cgroup.events has changed, or might have.
    pub fn cgroup_changed(&mut self, key: u32) {
        let found = self.containers.iter_mut().find(|container| container.key == key);
        let Some(container) = found else { return };
        if container.freezes.is_empty() {
            return;
        }
        let (_, frozen) = container.state();
        let waiting = core::mem::take(&mut container.freezes);
        let (done, waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, wanted)| *wanted == frozen);
        container.freezes = waiting;
        for (number, _) in done {
            self.reply(number, |writer| writer.nil());
        }
    }

    pub fn cgroup_write(&mut self, plan: &CgroupWrite) -> Outcome<()> {
        let index = self.index_of(plan.id)?;
        let container = &mut self.containers[index];
        container.cgroup.write(&plan.values)?;
        container.watch_memory(&self.poll, &plan.values).step("cgroup", "memory.events")
    }

    pub fn cgroup_read(&mut self, number: u64, plan: &CgroupRead) -> Outcome<Answer> {
        let cgroup = &self.container(plan.id)?.cgroup;
        let texts: Vec<_> = plan.files.iter().map(|file| (*file, cgroup.read(file))).collect();
        self.reply(number, |writer| {
            writer.map(texts.len());
            for (file, text) in &texts {
                writer.str(file);
                writer.optional(text.as_deref());
            }
        });
        Ok(Answer::Other)
    }

    pub fn index_of(&mut self, id: &str) -> Outcome<usize> {
        let key = self.container(id)?.key;
        let index = self.containers.iter().position(|container| container.key == key);
        index.ok_or_else(|| Failure::new("find", id, errno::ENOENT))
    }
}
