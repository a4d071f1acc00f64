//! Requests about what files have beside their data: attributes, extended ones, flags.

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, CWD};
use rustix::fs::{UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::files::Files;
use crate::sys;
use crate::wire::{Fields, Out, Request, Result};

/// FATTR_* of linux/fuse.h.
mod valid {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SET_IDS: u32 = 1 << 11;
}

/// What linux/fs.h lets programs ask of, and set for, a file: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS,
/// FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR; with the size of the argument.
const IOCTLS: [(u32, usize, bool); 4] = [
    (0x8008_6601, 4, false),
    (0x4008_6602, 4, true),
    (0x801c_581f, 28, false),
    (0x401c_5820, 28, true),
];
const MOST_XATTR: usize = 64 << 10;

/// struct fuse_setattr_in.
struct Wanted {
    valid: u32,
    size: u64,
    times: [(u64, u32); 2],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Wanted {
    fn parse(mut fields: Fields) -> Result<Wanted> {
        let valid = fields.u32()?;
        fields.skip(12)?;
        let size = fields.u64()?;
        fields.skip(8)?;
        let (accessed, modified) = (fields.u64()?, fields.u64()?);
        fields.skip(8)?;
        let (accessed_ns, modified_ns) = (fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let mode = fields.u32()?;
        fields.skip(4)?;
        let (uid, gid) = (fields.u32()?, fields.u32()?);
        let times = [(accessed, accessed_ns), (modified, modified_ns)];
        Ok(Wanted { valid, size, times, mode, uid, gid })
    }

    fn has(&self, bits: u32) -> bool {
        self.valid & bits != 0
    }

    fn time(&self, index: usize, set: u32, now: u32) -> Timespec {
        let (seconds, nanoseconds) = self.times[index];
        match (self.has(set), self.has(now)) {
            (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            (true, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            (true, false) => Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() },
        }
    }
}

impl Files {
    /// FUSE_SETATTR.
    pub fn set_attributes(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let wanted = Wanted::parse(request.fields())?;
        self.hear();
        self.doubt_attributes();
        let result = self.apply(request.node, &wanted);
        self.changed(request.node)?;
        result?;
        self.tell_attributes(request.node, out)
    }

    fn apply(&self, number: u64, wanted: &Wanted) -> Result<()> {
        let node = self.nodes.get(number)?;
        let fd = self.nodes.fd(number)?;
        let name = sys::name_of(fd);
        if wanted.has(valid::UID | valid::GID) {
            let uid = wanted.has(valid::UID).then(|| Uid::from_raw(wanted.uid));
            let gid = wanted.has(valid::GID).then(|| Gid::from_raw(wanted.gid));
            rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if wanted.has(valid::MODE) {
            if node.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
            rustix::fs::chmodat(CWD, &name, mode, AtFlags::empty())?;
        }
        if wanted.has(valid::SIZE) {
            let file = self.open(number, rustix::fs::OFlags::WRONLY)?;
            sys::dropping_privileges(wanted.has(valid::KILL_SET_IDS), || {
                rustix::fs::ftruncate(&file, wanted.size)
            })?;
        }
        if wanted.has(valid::ATIME | valid::MTIME) {
            let last_access = wanted.time(0, valid::ATIME, valid::ATIME_NOW);
            let last_modification = wanted.time(1, valid::MTIME, valid::MTIME_NOW);
            let times = Timestamps { last_access, last_modification };
            rustix::fs::utimensat(CWD, &name, &times, AtFlags::empty())?;
        }
        Ok(())
    }

    /// FUSE_STATFS.
    pub fn file_system(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let stat = rustix::fs::fstatvfs(self.nodes.fd(request.node)?)?;
        out.u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail);
        out.u64(stat.f_files).u64(stat.f_ffree);
        out.u32(stat.f_bsize as u32).u32(stat.f_namemax as u32).u32(stat.f_frsize as u32);
        out.bytes(&[0; 28]);
        Ok(())
    }

    /// FUSE_GETXATTR and (without a name) FUSE_LISTXATTR.
    pub fn get_xattr(&mut self, request: &Request, list: bool, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let size = fields.u32()? as usize;
        fields.skip(4)?;
        let file = sys::name_of(self.nodes.fd(request.node)?);
        // With no room its size is asked for, which rustix has no way to tell by itself.
        let room = if size == 0 { MOST_XATTR } else { size.min(MOST_XATTR) };
        let mut buffer = vec![0u8; room];
        let count = if list {
            rustix::fs::listxattr(&file, &mut buffer[..])?
        } else {
            let name = fields.string()?;
            let count = rustix::fs::getxattr(&file, name, &mut buffer[..]);
            count.inspect_err(|&error| self.foretell_xattr(request.node, name, error))?
        };
        if size == 0 {
            out.u32(count as u32).u32(0);
        } else {
            out.bytes(&buffer[..count]);
        }
        Ok(())
    }

    /// FUSE_SETXATTR, as FUSE_SETXATTR_EXT has it.
    pub fn set_xattr(&mut self, request: &Request) -> Result<()> {
        const ACL_KILL_SGID: u32 = 1;
        let mut fields = request.fields();
        let (size, flags, more) = (fields.u32()? as usize, fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let (name, value) = (fields.string()?, fields.bytes(size)?);
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        self.hear();
        self.doubt_attributes();
        self.foretell_plain(request.node, false);
        let file = sys::name_of(self.nodes.fd(request.node)?);
        sys::dropping_privileges(more & ACL_KILL_SGID != 0, || {
            rustix::fs::setxattr(&file, name, value, flags)
        })?;
        self.changed(request.node).map(|_| ())
    }

    /// FUSE_REMOVEXATTR.
    pub fn remove_xattr(&mut self, request: &Request) -> Result<()> {
        let name = request.fields().string()?;
        self.hear();
        self.doubt_attributes();
        rustix::fs::removexattr(sys::name_of(self.nodes.fd(request.node)?), name)?;
        self.changed(request.node).map(|_| ())
    }

    /// FUSE_IOCTL: what chattr(1) and lsattr(1) do.
    pub fn ioctl(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(12)?;
        let command = fields.u32()?;
        fields.skip(8)?;
        let (given, room) = (fields.u32()? as usize, fields.u32()? as usize);
        let found = IOCTLS.iter().find(|known| known.0 == command);
        let &(_, size, sets) = found.ok_or(Errno::NOTTY)?;
        let mut data = [0u8; 32];
        if sets {
            data[..size]
                .copy_from_slice(fields.bytes(size.min(given))?.get(..size).ok_or(Errno::INVAL)?);
        }
        self.hear();
        self.doubt_attributes();
        let file = self.open_any(request.node)?;
        sys::ioctl(&file, command, &mut data)?;
        if sets {
            self.changed(request.node)?;
            self.file_is_other(request.node, false); // its names may mind their case less
        }
        out.u32(0).u32(0).u32(0).u32(0);
        if !sets {
            let told = if size == 4 { 4.min(room) } else { size.min(room) };
            out.bytes(&data[..told]);
        }
        Ok(())
    }
}
