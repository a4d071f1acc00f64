//! What files have of the mount in which they are found.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

/// File systems whose files change without a word to inotify(7): others write there too. (NFS, SMB
/// in three ages, FUSE, 9P, Ceph, AFS, OCFS2, GFS2, Lustre, VirtualBox's and VMware's folders.)
const REMOTE: [u64; 13] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7461_636f,
    0x0116_1970,
    0x0bd0_0bd0,
    0x786f_4256,
    0xbacb_acbc,
];

#[derive(Clone, Copy)]
pub struct Traits {
    mount: u64,
    read_only: bool,
    id_mapped: bool,
    /// Changes made on this host are heard of.
    pub is_local: bool,
}

impl Traits {
    /// Files are the same in all mounts of one class: what is read-only by its mount must stay so,
    /// and an id-mapped mount shows owners of its own.
    pub fn class(self) -> u64 {
        match (self.id_mapped, self.read_only) {
            (true, _) => self.mount << 2 | 2,
            (false, read_only) => read_only.into(),
        }
    }
}

pub struct Mounts {
    /// The folder /proc/self.
    process: OwnedFd,
    known: HashMap<u64, Traits>,
    /// The device of the share's own folders.
    own: u64,
    /// Other devices, in the order in which they were met.
    devices: Vec<u64>,
}

impl Mounts {
    pub fn new(process: OwnedFd, own: u64) -> Mounts {
        Mounts { process, known: HashMap::new(), own, devices: Vec::new() }
    }

    /// Those of the mount `mount`, of which `fd` is a file.
    pub fn traits(&mut self, fd: BorrowedFd, mount: u64) -> Traits {
        if let Some(known) = self.known.get(&mount) {
            return *known;
        }
        let read_only = rustix::fs::fstatvfs(fd)
            .is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
        let kind = rustix::fs::fstatfs(fd).map_or(0, |stat| stat.f_type as u64 & 0xffff_ffff);
        let is_local = !REMOTE.contains(&kind);
        let traits = Traits { mount, read_only, id_mapped: self.is_id_mapped(mount), is_local };
        self.known.insert(mount, traits);
        traits
    }

    /// Forgets what is known of a mount: the number of one that is gone is given to a new one.
    pub fn forget(&mut self, mount: u64) {
        self.known.remove(&mount);
    }

    /// Whether /proc/self/mountinfo (proc_pid_mountinfo(5)) says so; an unknown one counts as such.
    fn is_id_mapped(&self, mount: u64) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.process, c"mountinfo", flags, Mode::empty());
        let text = opened.and_then(|file| {
            let mut text = Vec::new();
            let mut piece = [0u8; 16384];
            loop {
                match rustix::io::read(&file, &mut piece[..])? {
                    0 => return Ok(text),
                    count => text.extend_from_slice(&piece[..count]),
                }
            }
        });
        let Ok(text) = text else { return true };
        let number = mount.to_string();
        let line = text.split(|&byte| byte == b'\n').find_map(|line| {
            let mut words = line.split(|&byte| byte == b' ');
            (words.next() == Some(number.as_bytes())).then(|| words.nth(4))
        });
        let options = line.flatten();
        options.is_none_or(|options| options.split(|&byte| byte == b',').any(|o| o == b"idmapped"))
    }

    /// The inode number that the guest sees: those of several devices must not look alike, for
    /// programs would take two files for one. The first device's stay as they are: mostly it is
    /// that of the root, and there are programs that know 32 bits only.
    pub fn inode(&mut self, device: u64, inode: u64) -> u64 {
        const OWN: u64 = 0x7fff;
        if device == self.own {
            return inode ^ OWN << 48;
        }
        let known = self.devices.iter().position(|&known| known == device);
        let index = known.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        inode ^ (index as u64) << 48
    }
}
