//! The `processes` request: what runs in a container, from its cgroup and /proc.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::frames::MAX_DATA;
use cloche_agent::msgpack::Writer;
use rustix::fs::{self, OFlags};

use crate::files;
use crate::sys::Result;

/// Nanoseconds of one clock tick in /proc/<pid>/stat (USER_HZ is 100 for every program).
const TICK_NS: u64 = 10_000_000;
/// Bytes of a command line that are reported.
const LONGEST_COMMAND: usize = 1024;
/// Bytes left for the rest of the reply.
const RESERVE: usize = 256;

/// Fields of /proc/<pid>/stat that are told as they are, by their numbers (proc(5)): pgrp, session,
/// tty, tpgid, nice, threads, vsize, rss.
const PLAIN: [usize; 8] = [5, 6, 7, 8, 19, 20, 23, 24];

/// What is told about one process.
struct Entry {
    pid: i32,
    ppid: i32,
    uid: u32,
    gid: u32,
    /// As seen in its own pid namespace.
    nspid: i32,
    start_ns: u64,
    cpu_ns: u64,
    state: String,
    /// Further fields of /proc/<pid>/stat, in the order of `PLAIN`.
    plain: [i64; PLAIN.len()],
    command: String,
}

/// Entries of the processes in msgpack, as many as fit into a frame.
pub struct Listing {
    pub entries: Vec<Vec<u8>>,
    pub left_out: usize,
}

/// Lists `pids`; who has ended in the meantime is not in the list.
pub fn list(pids: &[i32]) -> Listing {
    let mut listing = Listing { entries: Vec::new(), left_out: 0 };
    let mut size = RESERVE;
    for pid in pids {
        let Ok(entry) = describe(*pid) else { continue };
        let bytes = entry.encode();
        if size + bytes.len() > MAX_DATA {
            listing.left_out += 1;
        } else {
            size += bytes.len();
            listing.entries.push(bytes);
        }
    }
    listing
}

fn describe(pid: i32) -> Result<Entry> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let folder = files::open(format!("/proc/{pid}").as_str(), flags)?;
    let owner = fs::fstat(&folder)?;
    let status = files::read_at(&folder, "status")?;
    let status = String::from_utf8_lossy(&status);
    let nspid = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let nspid = nspid.and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok());
    let stat = files::read_at(&folder, "stat")?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses may hold anything; what follows it is plain (proc(5)).
    let (head, tail) = stat.rsplit_once(") ").unwrap_or(("", ""));
    let name = head.split_once('(').map_or("", |(_, name)| name);
    let fields: Vec<&str> = tail.split(' ').collect();
    let text = |number: usize| fields.get(number - 3).copied().unwrap_or("");
    let field = |number: usize| text(number).parse().ok();
    let (user, system): (u64, u64) = (field(14).unwrap_or(0), field(15).unwrap_or(0));
    Ok(Entry {
        pid,
        ppid: text(4).parse().unwrap_or(0),
        uid: owner.st_uid,
        gid: owner.st_gid,
        nspid: nspid.unwrap_or(pid),
        start_ns: field(22).unwrap_or(0) * TICK_NS,
        cpu_ns: (user + system) * TICK_NS,
        state: text(3).into(),
        plain: PLAIN.map(|number| text(number).parse().unwrap_or(0)),
        command: command(files::read_at(&folder, "cmdline")?, name),
    })
}

/// The arguments joined by spaces; `[name]` for who has none.
fn command(mut arguments: Vec<u8>, name: &str) -> String {
    arguments.truncate(LONGEST_COMMAND);
    while arguments.last() == Some(&0) {
        arguments.pop();
    }
    if arguments.is_empty() {
        return format!("[{name}]");
    }
    for byte in arguments.iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    String::from_utf8_lossy(&arguments).into_owned()
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer { out: &mut out };
        writer.map(9);
        writer.str("pid");
        writer.int(self.pid.into());
        writer.str("ppid");
        writer.int(self.ppid.into());
        writer.str("uid");
        writer.uint(self.uid.into());
        writer.str("gid");
        writer.uint(self.gid.into());
        writer.str("nspid");
        writer.int(self.nspid.into());
        writer.str("start_ns");
        writer.uint(self.start_ns);
        writer.str("cpu_ns");
        writer.uint(self.cpu_ns);
        writer.str("stat");
        writer.array(1 + PLAIN.len());
        writer.str(&self.state);
        self.plain.into_iter().for_each(|value| writer.int(value));
        writer.str("command");
        writer.str(&self.command);
        out
    }
}
