//! User namespaces: what only a process outside of one may do for the container inside.
//!
//! Its first process is cloned into a user namespace together with all others, so that they belong
//! to it, and waits until this side has mapped its users.

use alloc::format;
use alloc::string::String;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{Container as Plan, Process, Users};
use rustix::fd::AsFd;
use rustix::fs::{self, Gid, Mode, OFlags, Uid};
use rustix::io;

use crate::agent::Agent;
use crate::child::{rootfs, Wires};
use crate::fail::{Outcome, Step};
use crate::files;
use crate::process::Ends;
use crate::sys;

/// Where device nodes lie that containers bind: nobody can make any in a user namespace.
const NODES: &str = "/dev/nodes";

/// The folder with a container's device nodes, named by their place in the plan.
pub fn nodes_of(id: &str) -> String {
    format!("{NODES}/{id}")
}

/// Makes what the container's first process will need and cannot make.
pub fn prepare(plan: &Plan, wires: &Wires) -> Outcome<()> {
    give_stdio(&plan.process, wires);
    if plan.id.contains('/') || matches!(plan.id, "." | "..") {
        return Err(Failure::new("device nodes", plan.id, errno::EINVAL));
    }
    let folder = nodes_of(plan.id);
    for path in [NODES, folder.as_str()] {
        match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Err(io::Errno::EXIST) => {}
            result => result.step("mkdir", path)?,
        }
    }
    let opened = files::open(folder.as_str(), OFlags::PATH).step("open", &folder)?;
    for (index, device) in plan.devices.iter().enumerate() {
        let name = format!("{index}");
        rootfs::make_device(&opened, &name, device).step("mknod", device.path)?;
        // What the agent's umask took away.
        let mode = Mode::from_raw_mode(device.mode & 0o7777);
        fs::chmod(format!("{folder}/{name}").as_str(), mode).step("mknod", device.path)?;
    }
    Ok(())
}

/// Removes the device nodes of a container.
pub fn forget(id: &str) {
    let folder = nodes_of(id);
    let names = files::open(folder.as_str(), OFlags::RDONLY | OFlags::DIRECTORY)
        .and_then(files::names)
        .unwrap_or_default();
    for name in names {
        let path = [folder.as_bytes(), b"/", &name].concat();
        let _ = fs::unlink(path.as_slice());
    }
    let _ = fs::rmdir(folder.as_str());
}

/// Gives the pipes of a process to its user, whom it cannot name from inside.
pub fn give_stdio(process: &Process, wires: &Wires) {
    let Some(owner) = process.stdio_owner.0 else { return };
    for stream in wires.stdio.iter().flatten() {
        let _ = fs::fchown(stream, Some(Uid::from_raw(owner)), None::<Gid>);
    }
}

impl Agent {
    /// Maps the users of the new process `pid`, gives it the network, and lets it go on.
    pub fn admit_users(
        &mut self,
        plan: &Plan,
        users: &Users,
        pid: i32,
        ends: &Ends,
    ) -> Outcome<()> {
        for (name, map) in [("uid_map", users.uid_map), ("gid_map", users.gid_map)] {
            files::write(format!("/proc/{pid}/{name}").as_str(), map.as_bytes())
                .step("map", name)?;
        }
        let own = files::open(format!("/proc/{pid}/ns/net").as_str(), OFlags::RDONLY)
            .step("open", "netns")?;
        if let Some(slots) = &mut self.slots {
            slots.rehome(own).step("network", "namespace")?;
        }
        if let Some(network) = &users.network.0 {
            self.network(network)?;
        }
        grant(pid, &plan.process)?;
        match &ends.go {
            Some(go) => io::write(go.as_fd(), b"m").map(drop).step("map", "users"),
            None => Ok(()),
        }
    }
}

/// Limits that a process in a user namespace may not raise, and a score that it may not lower.
fn grant(pid: i32, process: &Process) -> Outcome<()> {
    for &(resource, soft, hard) in &process.rlimits {
        sys::own::set_limit(pid, resource, soft, hard).step("rlimit", &format!("{resource}"))?;
    }
    if let Some(value) = process.oom_score_adj {
        let path = format!("/proc/{pid}/oom_score_adj");
        let text = format!("{value}");
        files::write(path.as_str(), text.as_bytes()).step("oom_score_adj", &text)?;
    }
    Ok(())
}
