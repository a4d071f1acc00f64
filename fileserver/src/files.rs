//! What there is of a session: nodes, watches, folders being listed; and what others change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};

use crate::attributes::{self, BELIEVED_S};
use crate::folders::Listings;
use crate::mounts::Mounts;
use crate::nodes::{self, Nodes, Seen, ROOT};
use crate::ring::Rings;
use crate::sys;
use crate::watch::{Change, Event, Watches};
use crate::wire::{Out, Result, FORGET, NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE};

/// struct fuse_attr.
pub const ATTRIBUTES: usize = 88;

pub struct Files {
    pub nodes: Nodes,
    pub watches: Watches,
    pub listings: Listings,
    pub rings: Rings,
    /// Notifications and facts (facts.rs) that are to be sent.
    pub news: Out,
    /// The relay has been told of a folder's attributes.
    pub is_foretold: bool,
    /// How many requests there were that make names.
    pub makers: u32,
}

/// What is opened of a file by its name: nothing but a hold on it.
const HOLD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Files {
    /// Serves the tree below `root`; `process` is /proc/self.
    pub fn new(root: OwnedFd, process: OwnedFd, rings: Rings, watches: Watches) -> Result<Files> {
        let own = nodes::device(&nodes::stat(&root)?);
        let nodes = Nodes::new(root, Mounts::new(process, own), sys::most_descriptors())?;
        let (listings, news) = (Listings::default(), Out::default());
        let mut files =
            Files { nodes, watches, listings, rings, news, is_foretold: false, makers: 0 };
        files.watch(ROOT, true);
        Ok(files)
    }

    /// Begins anew: another kernel, or another mount, which knows nothing yet.
    pub fn begin(&mut self) -> Result<()> {
        self.nodes.clear();
        self.listings = Listings::default();
        self.rings.clear();
        self.news.0.clear();
        (self.is_foretold, self.makers) = (false, 0);
        self.watches.clear();
        self.watch(ROOT, true);
        Ok(())
    }

    /// Has changes of a node heard of, as far as this host hears of them.
    fn watch(&mut self, number: u64, is_folder: bool) {
        let is_local = self.nodes.is_local(number);
        let Ok(node) = self.nodes.get_mut(number) else { return };
        // Where there can be no more watches the guest is to believe nothing.
        node.watch = self.watches.add(node.fd.as_fd(), number, is_folder).ok();
        node.is_watched = is_local && node.watch.is_some();
    }

    /// For how long the guest may believe what it is told of a node.
    pub fn believed(&self, number: u64) -> u64 {
        let is_watched = self.nodes.get(number).is_ok_and(|node| node.is_watched);
        if is_watched {
            BELIEVED_S
        } else {
            0
        }
    }

    /// A hold on the entry of a folder.
    pub fn hold(&self, parent: u64, name: &[u8]) -> Result<OwnedFd> {
        rustix::fs::openat(self.nodes.fd(parent)?, name, HOLD, Mode::empty())
    }

    /// Tells the guest of an entry of the folder `parent`, by struct fuse_entry_out.
    pub fn tell(&mut self, parent: u64, fd: OwnedFd, out: &mut Out) -> Result<(u64, Statx)> {
        let stat = nodes::stat(&fd)?;
        let (folder_mount, is_heard) = {
            let folder = self.nodes.get(parent)?;
            (folder.mount, folder.is_watched)
        };
        let crosses = stat.stx_mnt_id != folder_mount;
        let kind = nodes::kind_of(&stat);
        if crosses {
            self.nodes.mounts.forget(stat.stx_mnt_id);
        }
        let (number, is_new) = self.nodes.refer(fd, &stat)?;
        if let Some(insist) = self.nodes.ask_to_forget() {
            self.news.header(4, FORGET, 0).u32(insist.into());
        }
        if kind == FileType::Directory {
            if is_new {
                self.watch(number, true);
            }
        } else if crosses || stat.stx_nlink > 1 {
            if self.nodes.get(number)?.watch.is_none() {
                self.watch(number, false);
            }
        } else if is_new {
            self.nodes.get_mut(number)?.is_watched = is_heard;
        }
        self.check_unheard(number, &stat);
        let entry_s = if is_heard { BELIEVED_S } else { 0 };
        attributes::entry(out, number, entry_s, self.believed(number));
        self.attributes(out, &stat);
        Ok((number, stat))
    }

    /// Tells the guest that there is no such entry.
    pub fn tell_nothing(&self, parent: u64, out: &mut Out) {
        attributes::entry(out, 0, self.believed(parent), 0);
        out.bytes(&[0; ATTRIBUTES]);
    }

    /// struct fuse_attr.
    pub fn attributes(&mut self, out: &mut Out, stat: &Statx) {
        let inode = self.nodes.mounts.inode(nodes::device(stat), stat.stx_ino);
        attributes::attributes(out, stat, inode);
    }

    /// struct fuse_attr_out of a node.
    pub fn tell_attributes(&mut self, number: u64, out: &mut Out) -> Result<()> {
        let stat = nodes::stat(self.nodes.fd(number)?)?;
        self.check_unheard(number, &stat);
        out.u64(self.believed(number)).u32(0).u32(0);
        self.attributes(out, &stat);
        Ok(())
    }

    /// A file whose changes are not heard of is compared whenever it is asked for.
    fn check_unheard(&mut self, number: u64, stat: &Statx) {
        if self.believed(number) == 0 {
            self.compare(number, stat, true);
        }
    }

    /// The guest itself has changed the file.
    pub fn changed(&mut self, number: u64) -> Result<Statx> {
        let node = self.nodes.get_mut(number)?;
        let stat = nodes::stat(&node.fd)?;
        node.seen = Seen::of(&stat);
        Ok(stat)
    }

    /// The guest forgets a node.
    pub fn forget(&mut self, number: u64, count: u64) {
        if let Some(node) = self.nodes.forget(number, count) {
            if let Some(watch) = node.watch {
                self.watches.remove(watch, number);
            }
        }
    }

    /// Hears what others have changed; what the guest has to know of it comes into `news`. To be
    /// called before the guest changes something: what it did is told apart by what comes later.
    pub fn hear(&mut self) {
        for event in self.watches.events() {
            match event {
                Event::Entry { watch, change, name } => self.entry_changed(watch, change, &name),
                Event::File { watch, name: Some(name), data } => {
                    for folder in self.watches.nodes(watch).to_vec() {
                        self.entry_touched(folder, &name, data);
                    }
                }
                Event::File { watch, name: None, data } => {
                    for number in self.watches.nodes(watch).to_vec() {
                        let stat = self.nodes.fd(number).and_then(nodes::stat);
                        stat.iter().for_each(|stat| self.compare(number, stat, data));
                    }
                }
                Event::End { watch } => self.watch_ended(watch),
                Event::Overflow => self.doubt_everything(),
            }
        }
        self.watches.settle();
    }

    fn entry_changed(&mut self, watch: i32, change: Change, name: &[u8]) {
        let by = self.watches.is_expected(watch, change, name);
        for folder in self.watches.nodes(watch).to_vec() {
            if by != Some(folder) {
                self.entry_is_other(folder, name);
            }
        }
    }

    /// Data or attributes of an entry have changed, whoever did it.
    fn entry_touched(&mut self, folder: u64, name: &[u8], data: bool) {
        let Ok(fd) = self.nodes.fd(folder) else { return };
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let Ok(stat) = rustix::fs::statx(fd, name, flags, wanted) else { return };
        if let Some(number) = self.nodes.find_entry(folder, &stat) {
            self.compare(number, &stat, data);
        }
    }

    /// Tells the guest if the file is not as it left it.
    fn compare(&mut self, number: u64, stat: &Statx, data: bool) {
        let Ok(node) = self.nodes.get_mut(number) else { return };
        let seen = Seen::of(stat);
        if node.seen != seen {
            let data = data && node.kind == FileType::RegularFile;
            node.seen = seen;
            self.file_is_other(number, data);
        }
    }

    fn watch_ended(&mut self, watch: i32) {
        for number in self.watches.ended(watch) {
            if let Ok(node) = self.nodes.get_mut(number) {
                (node.watch, node.is_watched) = (None, false);
            }
            self.file_is_other(number, true);
        }
    }

    fn doubt_everything(&mut self) {
        for number in self.nodes.numbers() {
            self.file_is_other(number, true);
        }
    }

    /// FUSE_NOTIFY_INVAL_INODE: attributes, and with `data` what is in the page cache.
    pub fn file_is_other(&mut self, number: u64, data: bool) {
        const LENGTH: usize = 24;
        let offset = if data { 0 } else { -1i64 };
        self.news.header(LENGTH, NOTIFY_INVAL_INODE, 0);
        self.news.u64(number).u64(offset as u64).u64(0);
    }

    /// FUSE_NOTIFY_INVAL_ENTRY.
    fn entry_is_other(&mut self, folder: u64, name: &[u8]) {
        self.news.header(16 + name.len() + 1, NOTIFY_INVAL_ENTRY, 0);
        self.news.u64(folder).u32(name.len() as u32).u32(0).bytes(name).bytes(b"\0");
    }

    /// Opens a regular file for its data. Nothing else has any here: FIFOs and devices are the
    /// guest's own affair, and opening the host's would do something.
    pub fn open(&self, number: u64, flags: OFlags) -> Result<OwnedFd> {
        let node = self.nodes.get(number)?;
        match node.kind {
            FileType::RegularFile => sys::reopen(node.fd.as_fd(), flags),
            FileType::Directory => Err(rustix::io::Errno::ISDIR),
            _ => Err(rustix::io::Errno::INVAL),
        }
    }

    /// Opens a file or folder for what both have.
    pub fn open_any(&self, number: u64) -> Result<OwnedFd> {
        let node = self.nodes.get(number)?;
        match node.kind {
            FileType::Directory => open_folder(node.fd.as_fd()),
            _ => self.open(number, OFlags::RDONLY),
        }
    }
}

pub fn open_folder(fd: BorrowedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(fd, c".", flags, Mode::empty())
}
