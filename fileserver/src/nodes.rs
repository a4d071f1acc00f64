//! The files that the guest knows, by the numbers that it knows them by.
//!
//! One file of the host is one node in the whole VM, by whichever name and mount it was found: its
//! containers share locks, FIFOs and sockets so. A folder is one for each mount, since the guest's
//! kernel has each of them in one place only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::facts::NamesTold;
use crate::mounts::Mounts;
use crate::wire::Result;

pub const ROOT: u64 = 1;
/// How many nodes there may be: each is a descriptor, and holds a file of the host in its memory.
const MOST: usize = 200_000;
/// Descriptors that are used for other things: folders being listed, files being written.
const OTHER_DESCRIPTORS: usize = 128;

/// What makes two files the same. `class` tells apart what differs by the mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    device: u64,
    inode: u64,
    class: u64,
}

/// What the guest may know of a file's contents and attributes: when that changes, and not by the
/// guest itself, it has to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    modified: (i64, u32),
    changed: (i64, u32),
    size: u64,
}

impl Seen {
    pub fn of(stat: &Statx) -> Seen {
        Seen {
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            size: stat.stx_size,
        }
    }
}

pub struct Node {
    pub fd: OwnedFd,
    pub kind: FileType,
    key: Key,
    /// The mount in which it was found first.
    pub mount: u64,
    /// How often the guest has been told of it, less how often it has forgotten it.
    lookups: u64,
    /// inotify(7)'s number of what watches it.
    pub watch: Option<i32>,
    /// Its changes are heard of: the guest may remember what it is told.
    pub is_watched: bool,
    pub seen: Seen,
    /// Of a folder.
    pub names: NamesTold,
}

/// How full the table is, and when the guest has to be asked to forget.
struct Room {
    most: usize,
    /// From so many nodes on it is asked.
    mark: usize,
    /// It was asked, and that was not enough.
    insist: bool,
}

impl Room {
    /// As many as there may be open files, at most MOST.
    fn new(files: usize) -> Room {
        let most = files.saturating_sub(OTHER_DESCRIPTORS).clamp(1, MOST);
        Room { most, mark: most / 4 * 3, insist: false }
    }

    /// Whether the guest is to be asked now, and if so, whether to insist. The less room there is
    /// left, the more often.
    fn ask(&mut self, count: usize) -> Option<bool> {
        if count < self.mark || count >= self.most {
            return None;
        }
        self.mark = count + (self.most - count).div_ceil(2);
        Some(std::mem::replace(&mut self.insist, true))
    }

    /// Half of it is free: the guest has done what it was asked for.
    fn freed(&mut self, count: usize) {
        if count <= self.most / 2 {
            (self.mark, self.insist) = (self.most / 4 * 3, false);
        }
    }
}

pub struct Nodes {
    room: Room,
    by_number: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    next: u64,
    pub mounts: Mounts,
}

/// statx(2) of what a descriptor refers to.
pub fn stat(fd: impl AsFd) -> Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, wanted)
}

pub fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

pub fn device(stat: &Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// `fd`: a file of the mount, at least where that is a new one.
fn key(mounts: &mut Mounts, fd: BorrowedFd, stat: &Statx) -> Key {
    let class = match kind_of(stat) {
        FileType::Directory => stat.stx_mnt_id << 2 | 3,
        _ => mounts.traits(fd, stat.stx_mnt_id).class(),
    };
    Key { device: device(stat), inode: stat.stx_ino, class }
}

impl Nodes {
    /// With `root` as the only one; `files`: how many descriptors there may be.
    pub fn new(root: OwnedFd, mounts: Mounts, files: usize) -> Result<Nodes> {
        let (by_number, by_key) = (HashMap::new(), HashMap::new());
        let room = Room::new(files);
        let mut nodes = Nodes { room, by_number, by_key, next: ROOT, mounts };
        let stat = stat(&root)?;
        let key = key(&mut nodes.mounts, root.as_fd(), &stat);
        nodes.insert(root, key, &stat);
        Ok(nodes)
    }

    /// Begins anew with the root alone.
    pub fn clear(&mut self) {
        self.by_number.retain(|&number, _| number == ROOT);
        self.by_key.retain(|_, &mut number| number == ROOT);
        self.room.freed(0);
    }

    pub fn get(&self, number: u64) -> Result<&Node> {
        self.by_number.get(&number).ok_or(Errno::STALE)
    }

    pub fn get_mut(&mut self, number: u64) -> Result<&mut Node> {
        self.by_number.get_mut(&number).ok_or(Errno::STALE)
    }

    pub fn fd(&self, number: u64) -> Result<BorrowedFd<'_>> {
        Ok(self.get(number)?.fd.as_fd())
    }

    pub fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    /// As find, of an entry of a folder.
    pub fn find_entry(&mut self, folder: u64, stat: &Statx) -> Option<u64> {
        let fd = &self.by_number.get(&folder)?.fd;
        let key = key(&mut self.mounts, fd.as_fd(), stat);
        self.by_key.get(&key).copied()
    }

    /// Whether this host hears of all changes of a node.
    pub fn is_local(&mut self, number: u64) -> bool {
        let Some(node) = self.by_number.get(&number) else { return false };
        self.mounts.traits(node.fd.as_fd(), node.mount).is_local
    }

    /// The number of a file that the guest is to be told of, and whether it is a new node.
    pub fn refer(&mut self, fd: OwnedFd, stat: &Statx) -> Result<(u64, bool)> {
        let key = key(&mut self.mounts, fd.as_fd(), stat);
        if let Some(&number) = self.by_key.get(&key) {
            self.get_mut(number)?.lookups += 1;
            return Ok((number, false));
        }
        if self.by_number.len() >= self.room.most {
            return Err(Errno::NFILE);
        }
        let number = self.insert(fd, key, stat);
        self.get_mut(number)?.lookups += 1;
        Ok((number, true))
    }

    fn insert(&mut self, fd: OwnedFd, key: Key, stat: &Statx) -> u64 {
        let number = self.next;
        self.next += 1;
        let (kind, seen) = (kind_of(stat), Seen::of(stat));
        let mount = stat.stx_mnt_id;
        let (watch, is_watched, names) = (None, false, NamesTold::default());
        let node = Node { fd, kind, key, mount, lookups: 0, watch, is_watched, seen, names };
        self.by_number.insert(number, node);
        self.by_key.insert(key, number);
        number
    }

    /// Whether the guest should be told of no file that it has not asked for.
    pub fn is_crowded(&self) -> bool {
        self.by_number.len() >= self.room.most / 4 * 3
    }

    /// Whether the guest is to be asked to forget files, and if so, whether to insist.
    pub fn ask_to_forget(&mut self) -> Option<bool> {
        self.room.ask(self.by_number.len())
    }

    /// The guest has forgotten `count` of the times that it was told of the node; returns the node
    /// when none is left.
    pub fn forget(&mut self, number: u64, count: u64) -> Option<Node> {
        let node = self.by_number.get_mut(&number)?;
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 || number == ROOT {
            return None;
        }
        let node = self.by_number.remove(&number)?;
        if self.by_key.get(&node.key) == Some(&number) {
            self.by_key.remove(&node.key);
        }
        self.room.freed(self.by_number.len());
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_asked_the_more_the_less_room_there_is() {
        let mut room = Room::new(1000 + OTHER_DESCRIPTORS);
        let mut ask = |count| room.ask(count);
        assert_eq!((ask(749), ask(750), ask(751)), (None, Some(false), None));
        assert_eq!((ask(875), ask(876), ask(938)), (Some(true), None, Some(true)));
        assert_eq!(ask(1000), None);
        room.freed(501);
        assert_eq!(room.ask(749), None);
        room.freed(500);
        assert_eq!((room.ask(749), room.ask(750)), (None, Some(false)));
    }

    #[test]
    fn there_are_no_more_nodes_than_descriptors() {
        assert_eq!(Room::new(usize::MAX).most, MOST);
        assert_eq!(Room::new(1024).most, 1024 - OTHER_DESCRIPTORS);
        assert_eq!(Room::new(10).most, 1);
    }
}
