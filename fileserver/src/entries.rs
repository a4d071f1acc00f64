//! Requests about the entries of folders.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, CWD};
use rustix::io::Errno;

use crate::files::Files;
use crate::sys;
use crate::watch::Change;
use crate::wire::{Fields, Out, Request, Result};

impl Files {
    /// FUSE_LOOKUP.
    pub fn look_up(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let name = request.fields().name()?;
        match self.hold(request.node, name) {
            Ok(fd) => {
                let (number, stat) = self.tell(request.node, fd, out)?;
                self.foretell_program(number, &stat);
                Ok(())
            }
            Err(Errno::NOENT) if self.believed(request.node) > 0 => {
                self.nodes.get_mut(request.node)?.names.missed();
                self.tell_nothing(request.node, out);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// An entry of that folder has been made by the guest: tells it of it.
    fn made(&mut self, parent: u64, name: &[u8], out: &mut Out) -> Result<()> {
        self.expect(parent, Change::Appears, name);
        let fd = self.hold(parent, name)?;
        let (number, stat) = self.tell(parent, fd, out)?;
        self.foretell_attributes(parent);
        self.foretell_names(parent);
        if stat.stx_nlink == 1 {
            self.foretell_plain(number, true);
        }
        Ok(())
    }

    fn expect(&mut self, folder: u64, change: Change, name: &[u8]) {
        let watch = self.nodes.get(folder).ok().and_then(|node| node.watch);
        self.watches.expect(watch, change, name, folder);
    }

    /// FUSE_MKNOD.
    pub fn make_node(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let (mode, device, mask) = (fields.u32()?, fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let name = fields.name()?;
        self.hear();
        let folder = self.nodes.fd(request.node)?;
        let kind = FileType::from_raw_mode(mode);
        // new_decode_dev() of the kernel.
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
        let device = rustix::fs::makedev(major, minor);
        sys::umask(mask);
        sys::as_user(request.uid, request.gid, || {
            rustix::fs::mknodat(folder, name, kind, Mode::from_raw_mode(mode), device)
        })?;
        self.made(request.node, name, out)
    }

    /// FUSE_TMPFILE (Linux 6.2): open(2) with O_TMPFILE. It has no name unless it is linked.
    pub fn make_unnamed(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let (flags, mode, mask) = (fields.u32()?, fields.u32()?, fields.u32()?);
        self.hear();
        let folder = self.nodes.fd(request.node)?;
        let exclusive = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let how = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | exclusive;
        sys::umask(mask);
        let file = sys::as_user(request.uid, request.gid, || {
            rustix::fs::openat(folder, c".", how, Mode::from_raw_mode(mode))
        })?;
        let fd = sys::reopen(file.as_fd(), OFlags::PATH)?;
        self.tell(request.node, fd, out)?;
        // struct fuse_open_out.
        out.u64(0).u32(0).u32(0);
        Ok(())
    }

    /// FUSE_MKDIR.
    pub fn make_folder(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let (mode, mask) = (fields.u32()?, fields.u32()?);
        let name = fields.name()?;
        self.hear();
        let folder = self.nodes.fd(request.node)?;
        sys::umask(mask);
        sys::as_user(request.uid, request.gid, || {
            rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(mode))
        })?;
        self.made(request.node, name, out)
    }

    /// FUSE_SYMLINK.
    pub fn make_symlink(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let (name, target) = (fields.name()?, fields.string()?);
        self.hear();
        let folder = self.nodes.fd(request.node)?;
        sys::as_user(request.uid, request.gid, || rustix::fs::symlinkat(target, folder, name))?;
        self.made(request.node, name, out)
    }

    /// FUSE_LINK.
    pub fn make_link(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        let (number, name) = (fields.u64()?, fields.name()?);
        self.hear();
        let (file, folder) = (self.nodes.fd(number)?, self.nodes.fd(request.node)?);
        rustix::fs::linkat(CWD, sys::name_of(file), folder, name, AtFlags::SYMLINK_FOLLOW)?;
        self.changed(number)?;
        self.made(request.node, name, out)
    }

    /// FUSE_UNLINK and FUSE_RMDIR.
    pub fn remove(&mut self, request: &Request, is_folder: bool) -> Result<()> {
        let name = request.fields().name()?;
        self.hear();
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if is_folder {
            self.doubt_attributes(); // its own too
        }
        rustix::fs::unlinkat(self.nodes.fd(request.node)?, name, flags)?;
        self.expect(request.node, Change::Goes, name);
        self.foretell_attributes(request.node);
        Ok(())
    }

    /// FUSE_RENAME, and (`with_flags`) FUSE_RENAME2.
    pub fn rename(&mut self, request: &Request, with_flags: bool) -> Result<()> {
        let mut fields = request.fields();
        let target = fields.u64()?;
        let flags = if with_flags { rename_flags(&mut fields)? } else { RenameFlags::empty() };
        let (old, new) = (fields.name()?, fields.name()?);
        self.hear();
        let (from, to) = (self.nodes.fd(request.node)?, self.nodes.fd(target)?);
        rustix::fs::renameat_with(from, old, to, new, flags)?;
        self.expect(request.node, Change::Goes, old);
        self.expect(target, Change::Appears, new);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.expect(target, Change::Goes, new);
            self.expect(request.node, Change::Appears, old);
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            self.expect(request.node, Change::Appears, old);
        }
        self.doubt_attributes(); // those of a folder that was moved too
        self.foretell_attributes(request.node);
        self.foretell_attributes(target);
        Ok(())
    }

    /// FUSE_READLINK.
    pub fn read_link(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let empty = CString::default();
        let target = rustix::fs::readlinkat(self.nodes.fd(request.node)?, empty, Vec::new())?;
        out.bytes(target.to_bytes());
        Ok(())
    }
}

fn rename_flags(fields: &mut Fields) -> Result<RenameFlags> {
    let flags = fields.u32()?;
    fields.skip(4)?;
    RenameFlags::from_bits(flags).ok_or(Errno::INVAL)
}
