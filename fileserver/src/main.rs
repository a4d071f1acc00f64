//! cloche-files: serves what a sandbox shares with its VM to the FUSE client of the guest's kernel.
//!
//! `cloche-files SOCKET BULK FOLDER`: requests and replies go through the stream socket, long data
//! through the bulk file (ring.rs), both inherited by their numbers. The guest is not trusted: a
//! name is one component that is looked up in a folder it was told of, and nothing else is opened.

mod attributes;
mod contents;
mod entries;
mod facts;
mod files;
mod folders;
mod jail;
mod mounts;
mod nodes;
mod opcode;
mod properties;
mod ring;
mod serve;
mod sys;
mod watch;
mod wire;

use rustix::fs::{Mode, OFlags, CWD};

use crate::files::Files;
use crate::ring::Rings;
use crate::serve::Server;
use crate::watch::Watches;

fn prepare(arguments: &[String]) -> Result<Server, String> {
    let [socket, bulk, folder] = arguments else {
        return Err("needed: SOCKET BULK FOLDER".into());
    };
    let step = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let number = |text: &String| text.parse().map_err(|_| format!("{text:?}: not a number"));
    let (socket, bulk) = (number(socket)?, number(bulk)?);
    sys::close_others(socket, bulk).map_err(step("descriptors"))?;
    let inotify = sys::as_own_user(watch::open);
    sys::die_with_parent().map_err(step("parent"))?;
    let socket = sys::inherited(socket).map_err(step("socket"))?;
    let bulk = sys::inherited(bulk).map_err(step("bulk file"))?;
    let hold = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    jail::leave_mounts().map_err(step("mounts"))?;
    let process =
        rustix::fs::openat(CWD, c"/proc/self", hold, Mode::empty()).map_err(step("/proc"))?;
    let files = rustix::fs::openat(CWD, c"/proc/self/fd", hold, Mode::empty());
    let files = files.map_err(step("/proc/self/fd"))?;
    let root = jail::enter(folder, &process).map_err(|error| format!("{folder}: {error}"))?;
    rustix::process::fchdir(&files).map_err(step("/proc/self/fd"))?;
    sys::keep_capabilities().map_err(step("capabilities"))?;
    let rings = Rings::map(&bulk).map_err(step("bulk file"))?;
    let questions = sys::questions().map_err(step("signals"))?;
    jail::lock().map_err(step("jail"))?;
    let files = Files::new(root, process, rings, Watches::new(inotify)).map_err(step("watches"))?;
    Ok(Server::new(socket, questions, files))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = prepare(&arguments).and_then(|mut server| {
        // The starter knows by this that it serves: what fails later has another reason.
        let _ = rustix::io::write(std::io::stdout(), b"\n");
        server.serve()
    });
    if let Err(problem) = result {
        eprintln!("cloche-files: {problem}");
        std::process::exit(1);
    }
}
