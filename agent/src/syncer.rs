//! Writing file systems back, in a process of its own: that takes as long as it takes, and the
//! agent has streams to serve meanwhile. The process is made at boot, since a clone is slow just
//! after a restore.

use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::messages::Mount;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::{self, Errno};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::files;
use crate::poll::{Kind, Poll};
use crate::sys::{self, Fork, Result};

/// File systems that hold what must outlive the VM, and keep written data to themselves at first.
const LASTING: [&str; 4] = ["ext4", "xfs", "btrfs", "f2fs"];
/// In an order: whatever is mounted, wherever, and all block devices.
const EVERYTHING: &str = "*";
/// Longest path of a mount point that is synced.
const LONGEST: usize = 4096;

/// What waits until file systems have been synced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The request of this number.
    Request(u64),
    /// The exit of the process with this key.
    Exit(u32),
}

pub struct Syncer {
    orders: OwnedFd,
    answers: OwnedFd,
    /// Where lasting file systems are mounted; `EVERYTHING` if a container mounts disks itself.
    mounts: Vec<String>,
    /// Who waits for the sync under way, and who came after it had begun.
    current: Vec<Waiting>,
    next: Vec<Waiting>,
}

impl Syncer {
    /// Makes the process.
    pub fn start(poll: &Poll) -> Result<Syncer> {
        let (their_orders, orders) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, their_answers) = pipe_with(PipeFlags::CLOEXEC)?;
        if matches!(sys::fork(0, None)?, Fork::Child) {
            obey(&their_orders, &their_answers);
        }
        io::ioctl_fionbio(&answers, true)?;
        poll.add(&answers, Kind::Synced, 0, EventFlags::IN)?;
        let (mounts, current, next) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Syncer { orders, answers, mounts, current, next })
    }

    /// A file system of this type is now mounted there.
    pub fn mounted(&mut self, plan: &Mount) {
        // 9p writes through, unless it is told to cache.
        let caches = plan.data.contains("cache=loose") || plan.data.contains("cache=fscache");
        let lasts = LASTING.contains(&plan.fstype) || plan.fstype == "9p" && caches;
        if lasts && plan.target.len() < LONGEST {
            self.mounts.push(plan.target.into());
        }
    }

    /// A container reaches disks, and mounts them where it likes.
    pub fn disks_in_use(&mut self) {
        self.mounts.retain(|mount| mount != EVERYTHING);
        self.mounts.push(EVERYTHING.into());
    }

    /// That mount is gone.
    pub fn unmounted(&mut self, target: &str) {
        self.mounts.retain(|mount| mount != target);
    }

    /// Whether there is anything to sync.
    pub fn is_needed(&self) -> bool {
        !self.mounts.is_empty()
    }

    /// Syncs everything. True: [`Syncer::finished`] will name `waiting`; false: it is done, here
    /// and now, since the process is gone.
    pub fn order(&mut self, waiting: Waiting) -> bool {
        if !self.current.is_empty() {
            // What was written since the sync under way began might not be part of it.
            self.next.push(waiting);
            return true;
        }
        let begun = self.begin();
        if begun {
            self.current.push(waiting);
        }
        begun
    }

    fn begin(&self) -> bool {
        let mut order = self.mounts.join("\n");
        order.push('\0');
        let begun = io::write(&self.orders, order.as_bytes()).is_ok();
        if !begun {
            self.mounts.iter().for_each(|mount| sync_one(mount.as_bytes()));
        }
        begun
    }

    /// Who has waited long enough.
    pub fn finished(&mut self) -> Vec<Waiting> {
        let mut byte = [0];
        if let Err(Errno::AGAIN | Errno::INTR) = io::read(&self.answers, &mut byte) {
            return Vec::new();
        }
        // That was an answer, or the process is gone and waiting would be in vain.
        let mut done = core::mem::take(&mut self.current);
        if !self.next.is_empty() {
            let next = core::mem::take(&mut self.next);
            if self.begin() {
                self.current = next;
            } else {
                done.extend(next);
            }
        }
        done
    }
}

/// Syncs what each order names, and answers. An order is a list of lines that ends with NUL.
fn obey(orders: &OwnedFd, answers: &OwnedFd) -> ! {
    if sys::close_all_but(&[orders, answers]).is_err() {
        sys::exit(1);
    }
    // Containers that eat all memory are not to take it along.
    let _ = files::write("/proc/self/oom_score_adj", b"-1000");
    let mut order = Vec::new();
    let mut piece = [0u8; LONGEST];
    loop {
        match io::read(orders, &mut piece) {
            Ok(count @ 1..) => order.extend_from_slice(&piece[..count]),
            Err(Errno::INTR) => {}
            _ => sys::exit(0),
        }
        if order.last() == Some(&0) {
            order.pop();
            order.split(|&byte| byte == b'\n').for_each(sync_one);
            order.clear();
            let _ = io::write(answers, b"s");
        }
    }
}

fn sync_one(mount: &[u8]) {
    if mount == EVERYTHING.as_bytes() {
        rustix::fs::sync();
        return;
    }
    if let Ok(folder) = files::open(mount, OFlags::RDONLY | OFlags::DIRECTORY) {
        let _ = rustix::fs::syncfs(&folder);
    }
}
