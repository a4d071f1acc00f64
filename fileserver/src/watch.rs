//! What others than the guest do to the files that it knows, heard by inotify(7).
//!
//! Each folder that the guest knows is watched, and each file that it has not found in such a
//! folder (a bind mount of one file) or that has further names. The guest's own changes are heard
//! too: what they were is known beforehand (entries), or what the file looks like afterwards.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::sys;
use crate::wire::Result;

/// An entry that appears or goes in a folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    Appears,
    Goes,
}

/// Something that happened, by the number of the watch.
pub enum Event {
    Entry {
        watch: i32,
        change: Change,
        name: Vec<u8>,
    },
    /// Data or attributes, of an entry or (no name) of what is watched itself.
    File {
        watch: i32,
        name: Option<Vec<u8>>,
        data: bool,
    },
    /// The watch is gone, with what it watched.
    End {
        watch: i32,
    },
    /// So much has happened that not all could be kept.
    Overflow,
}

pub struct Watches {
    /// None: this host has no further one to give (fs.inotify.max_user_instances).
    inotify: Option<OwnedFd>,
    /// Nodes by the number of their watch: a folder that is mounted twice is two nodes.
    nodes: HashMap<i32, Vec<u64>>,
    /// What the guest has just changed, and how often: each is to be heard once.
    expected: HashMap<(i32, Change, Vec<u8>), (u32, u64)>,
}

/// An instance of inotify(7), which each user has a number of; None where there is none left.
pub fn open() -> Option<OwnedFd> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    if let Err(error) = &inotify {
        eprintln!("cloche-files: inotify: {error}: nothing is cached in the guest");
    }
    inotify.ok()
}

impl Watches {
    pub fn new(inotify: Option<OwnedFd>) -> Watches {
        Watches { inotify, nodes: HashMap::new(), expected: HashMap::new() }
    }

    /// Watches nothing any more.
    pub fn clear(&mut self) {
        for (watch, _) in self.nodes.drain() {
            let _ = self.inotify.as_ref().map(|inotify| inotify::remove_watch(inotify, watch));
        }
        self.expected.clear();
        self.events(); // what has come before concerns nobody
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(OwnedFd::as_fd)
    }

    /// Watches the folder or file of a node.
    pub fn add(&mut self, fd: BorrowedFd, node: u64, is_folder: bool) -> Result<i32> {
        let mut flags = WatchFlags::MODIFY | WatchFlags::ATTRIB;
        if is_folder {
            flags |= WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
            flags |= WatchFlags::ONLYDIR;
        }
        let inotify = self.inotify.as_ref().ok_or(Errno::MFILE)?;
        let watch = inotify::add_watch(inotify, sys::name_of(fd), flags)?;
        let nodes = self.nodes.entry(watch).or_default();
        if !nodes.contains(&node) {
            nodes.push(node);
        }
        Ok(watch)
    }

    /// A node is gone.
    pub fn remove(&mut self, watch: i32, node: u64) {
        let Some(nodes) = self.nodes.get_mut(&watch) else { return };
        nodes.retain(|&other| other != node);
        if nodes.is_empty() {
            self.nodes.remove(&watch);
            let _ = self.inotify.as_ref().map(|inotify| inotify::remove_watch(inotify, watch));
        }
    }

    /// The nodes that a watch stands for.
    pub fn nodes(&self, watch: i32) -> &[u64] {
        self.nodes.get(&watch).map_or(&[], Vec::as_slice)
    }

    /// Forgets what a watch, which is gone, has stood for.
    pub fn ended(&mut self, watch: i32) -> Vec<u64> {
        self.nodes.remove(&watch).unwrap_or_default()
    }

    /// The guest itself, by `node`, has done that.
    pub fn expect(&mut self, watch: Option<i32>, change: Change, name: &[u8], node: u64) {
        if let Some(watch) = watch {
            let key = (watch, change, name.to_vec());
            let expected = self.expected.entry(key).or_insert((0, node));
            expected.0 += 1;
            expected.1 = node;
        }
    }

    /// By which node the guest has done that itself; each time counts once.
    pub fn is_expected(&mut self, watch: i32, change: Change, name: &[u8]) -> Option<u64> {
        let key = (watch, change, name.to_vec());
        let expected = self.expected.get_mut(&key)?;
        expected.0 -= 1;
        let node = expected.1;
        if expected.0 == 0 {
            self.expected.remove(&key);
        }
        Some(node)
    }

    /// All that has happened; nothing that is expected comes later than what has happened before.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let Some(inotify) = &self.inotify else { return events };
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_vec());
                    take(event.wd(), event.events(), name, &mut events);
                }
                Err(Errno::INTR) => {}
                Err(_) => return events,
            }
        }
    }

    /// Nothing is under way any more that could be heard of.
    pub fn settle(&mut self) {
        self.expected.clear();
    }
}

fn take(watch: i32, flags: ReadFlags, name: Option<Vec<u8>>, events: &mut Vec<Event>) {
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        events.push(Event::Overflow);
    } else if flags.contains(ReadFlags::IGNORED) {
        events.push(Event::End { watch });
    } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
        let name = name.unwrap_or_default();
        events.push(Event::Entry { watch, change: Change::Appears, name });
    } else if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
        let name = name.unwrap_or_default();
        events.push(Event::Entry { watch, change: Change::Goes, name });
    } else if flags.intersects(ReadFlags::MODIFY | ReadFlags::ATTRIB) {
        let data = flags.contains(ReadFlags::MODIFY);
        events.push(Event::File { watch, name, data });
    }
}
