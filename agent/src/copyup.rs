//! A tmpfs that starts with what its target held (the mount option `tmpcopyup`).

use alloc::vec::Vec;

use cloche_agent::messages::Mount;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::fail::Outcome;
use crate::files;
use crate::mounts;
use crate::sys::Result;

/// Deeper folders than this are not copied; nothing sensible has them.
const DEPTH: u32 = 64;

/// Fills a detached tmpfs from `target`, which may just have been `made`, then mounts it there.
pub fn mount(target: &OwnedFd, made: bool, plan: &Mount) -> Outcome<()> {
    let mounted = || -> Result<()> {
        let context = mounts::made(plan.source, plan.fstype, plan.data)?;
        let tree = mounts::detached(&context, 0)?;
        if !made {
            copy_owner(target, &tree)?;
        }
        copy(target, &tree, DEPTH)?;
        mounts::set_flags(&tree, plan.flags)?;
        mounts::adjust(&tree, plan)?;
        mounts::attach(&tree, target)
    };
    mounted().map_err(|error| mounts::failed(plan, error))
}

fn copy(from: &OwnedFd, to: &OwnedFd, depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    for name in files::names(from)? {
        let name = name.as_slice();
        let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => copy_folder(from, to, name, depth)?,
            FileType::RegularFile => copy_file(from, to, name)?,
            FileType::Symlink => fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?,
            kind => fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?,
        }
        settle(to, name, &stat)?;
    }
    Ok(())
}

fn copy_folder(from: &OwnedFd, to: &OwnedFd, name: &[u8], depth: u32) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
    copy(&files::open_at(from, name, flags)?, &files::open_at(to, name, flags)?, depth - 1)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> Result<()> {
    const WHOLE: usize = 1 << 30;
    let source = files::open_at(from, name, OFlags::RDONLY | OFlags::NOFOLLOW)?;
    let copy = files::open_at(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
    while fs::sendfile(&copy, &source, None, WHOLE)? > 0 {}
    Ok(())
}

/// Owner and mode as the original's.
fn settle(to: &OwnedFd, name: &[u8], stat: &Stat) -> Result<()> {
    let (uid, gid) = owner(stat);
    fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    Ok(())
}

fn copy_owner(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let stat = fs::fstat(from)?;
    let (uid, gid) = owner(&stat);
    fs::chownat(to.as_fd(), "", uid, gid, AtFlags::EMPTY_PATH)?;
    let here = files::open_at(to, ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    fs::fchmod(&here, Mode::from_raw_mode(stat.st_mode))
}

fn owner(stat: &Stat) -> (Option<fs::Uid>, Option<fs::Gid>) {
    (Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))
}
