//! Carrying out one mount of a plan, with its target looked up inside a root.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::messages::Mount;
use linux_raw_sys::general as raw;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::copyup;
use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys::{self, Result};

const STEP: &str = "mount";
const PROPAGATIONS: u64 =
    (raw::MS_SHARED | raw::MS_SLAVE | raw::MS_PRIVATE | raw::MS_UNBINDABLE) as u64;

/// Opens `path` as if `root` were `/`: neither `..` nor a symlink leads out.
pub fn open_in_root(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd> {
    open_how(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn open_how(root: impl AsFd, path: &str, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    loop {
        // EAGAIN: something was renamed while `..` was looked up.
        match fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

/// Opens the folder `path` below `root`; whatever of it is missing is made.
pub fn folder_in_root(root: impl AsFd, path: &str) -> Result<OwnedFd> {
    folder(root.as_fd(), path, LINKS)
}

/// Symlinks that are followed to something missing, as in the kernel.
const LINKS: u32 = 40;

fn folder(root: BorrowedFd, path: &str, links: u32) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in_root(root, path, flags) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let (parent, name) = place(root, path, links)?;
    match fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    files::open_at(&parent, &name, flags | OFlags::NOFOLLOW)
}

/// Where the missing `path` is to be made: the folder, made if need be, and the name in it. Where
/// symlinks point to what is not there (/etc/resolv.conf of many images), that is it.
fn place(root: BorrowedFd, path: &str, links: u32) -> Result<(OwnedFd, String)> {
    let path = path.trim_end_matches('/');
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    if matches!(name, "" | "." | "..") {
        return Err(Errno::INVAL);
    }
    let parent = folder(root, above, links)?;
    let Ok(link) = fs::readlinkat(&parent, name, Vec::new()) else {
        return Ok((parent, name.into()));
    };
    let link = link.to_str().map_err(|_| Errno::ILSEQ)?;
    let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
    if link.starts_with('/') {
        place(root, link, links)
    } else {
        place(root, &format!("{above}/{link}"), links)
    }
}

/// The folder in which `path` is to be made, made itself if need be, and the name in it.
pub fn parent_in_root(root: impl AsFd, path: &str) -> Result<(OwnedFd, &str)> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((folder_in_root(root, above)?, name))
}

/// The mount's target, and whether it was missing and has been made, as `kind` says.
fn target(root: BorrowedFd, path: &str, kind: &str) -> Result<(OwnedFd, bool)> {
    match (open_target(root, path), kind) {
        (Err(Errno::NOENT), "dir") => Ok((folder_in_root(root, path)?, true)),
        (Err(Errno::NOENT), "file") => {
            let (parent, name) = place(root, path, LINKS)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            files::open_at(&parent, &name, flags)?;
            Ok((files::open_at(&parent, &name, OFlags::PATH | OFlags::NOFOLLOW)?, true))
        }
        (result, _) => Ok((result?, false)),
    }
}

/// The host has looked at the path itself; what symlinks make of it must not be inside /proc, as
/// with runc: mounts there would hide from the container's programs what they rely on.
fn open_target(root: BorrowedFd, path: &str) -> Result<OwnedFd> {
    match open_how(root, path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => {}
        result => return result,
    }
    let target = open_in_root(root, path, OFlags::PATH)?;
    if fs::fstatfs(&target)?.f_type == raw::PROC_SUPER_MAGIC.into() {
        return Err(Errno::PERM);
    }
    Ok(target)
}

/// Carries out `plan` with its target inside `root`.
pub fn mount(root: impl AsFd, plan: &Mount) -> Outcome<()> {
    let root = root.as_fd();
    for folder in &plan.folders.0 {
        folder_in_root(root, folder).step("mkdir", folder)?;
    }
    let (target, made) =
        target(root, plan.target, plan.kind).map_err(|error| unfit(plan, error))?;
    let flags = plan.flags;
    if flags & u64::from(raw::MS_REMOUNT) != 0 {
        return remount(&target, plan).map_err(|error| failed(plan, error));
    }
    if flags & u64::from(raw::MS_BIND) != 0 {
        return bind(&target, plan)
            .and_then(|()| bind_below(root, plan))
            .map_err(|error| failed(plan, error));
    }
    if plan.tmpcopyup.0 {
        return copyup::mount(&target, made, plan);
    }
    fresh(&target, made, plan).map_err(|error| failed(plan, error))?;
    let attributes = plan.recursive_attr.0;
    if attributes.is_none() && plan.propagation == 0 {
        return Ok(());
    }
    // Opened again, the target is the root of the new mount.
    let new = open_in_root(root, plan.target, OFlags::PATH).step(STEP, plan.target)?;
    adjust(&new, plan).map_err(|error| failed(plan, error))
}

/// Carries out `plan` in the agent's own file system.
pub fn mount_here(plan: &Mount) -> Outcome<()> {
    let root = files::open("/", OFlags::PATH | OFlags::DIRECTORY).step("open", "/")?;
    mount(root, plan)
}

/// Takes a mount off the agent's own file system, at once or as soon as nobody uses it.
pub fn unmount_here(target: &str) -> Outcome<()> {
    mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step("umount", target)
}

#[cold]
fn unfit(plan: &Mount, error: Errno) -> Failure {
    const STEP: &str = "mount target";
    if error == Errno::PERM {
        let message = format!("{STEP} {}: its symlinks lead into /proc", plan.target);
        return Failure::worded(STEP, plan.target, error.raw_os_error(), message);
    }
    Failure::new(STEP, plan.target, error.raw_os_error())
}

#[cold]
pub fn failed(plan: &Mount, error: Errno) -> Failure {
    let object = alloc::format!("{} ({}) on {}", plan.source, plan.fstype, plan.target);
    Failure::new(STEP, &object, error.raw_os_error())
}

/// Mounts a file system on the folder `target`, through the working directory: a descriptor has
/// no other name that does not need /proc.
fn fresh(target: &OwnedFd, made: bool, plan: &Mount) -> Result<()> {
    let mut data = String::from(plan.data);
    if plan.fstype == "tmpfs" && !made && !data.contains("mode=") {
        // As runc does: a tmpfs keeps the mode of the folder that it hides, if there was one.
        let mode = fs::fstat(target)?.st_mode & 0o7777;
        let comma = if data.is_empty() { "" } else { "," };
        data.push_str(&format!("{comma}mode={mode:04o}"));
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::from_bits_retain(plan.flags as u32);
    rustix::process::fchdir(target)?;
    let mounted = mount::mount(plan.source, ".", plan.fstype, flags, data.as_c_str());
    rustix::process::chdir("/")?;
    mounted
}

fn remount(target: &OwnedFd, plan: &Mount) -> Result<()> {
    let data = CString::new(plan.data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::from_bits_retain(plan.flags as u32 & !raw::MS_REMOUNT);
    rustix::process::fchdir(target)?;
    let mounted = mount::mount_remount(".", flags, data.as_c_str());
    rustix::process::chdir("/")?;
    mounted
}

/// A bind mount gets its flags before it is attached anywhere, so that it is never seen without.
fn bind(target: &OwnedFd, plan: &Mount) -> Result<()> {
    let recursive = plan.flags & u64::from(raw::MS_REC) != 0;
    let tree = clone_tree(fs::CWD, plan.source, recursive)?;
    let others = plan.flags & !u64::from(raw::MS_BIND | raw::MS_REC);
    if others != 0 {
        set_flags(&tree, others)?;
    }
    adjust(&tree, plan)?;
    attach(&tree, target)
}

/// Binds of what is below the bind `plan` that have flags of their own. One that cannot be reached
/// there needs none: another mount of the host's hides it, or it is closed to all but one user.
fn bind_below(root: BorrowedFd, plan: &Mount) -> Result<()> {
    for (path, flags) in &plan.below.0 {
        let target = match open_target(root, &format!("{}/{path}", plan.target)) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::NOTCONN) => continue,
            result => result?,
        };
        let tree = clone_tree(fs::CWD, &format!("{}/{path}", plan.source), false)?;
        set_flags(&tree, *flags)?;
        adjust(&tree, plan)?;
        attach(&tree, &target)?;
    }
    Ok(())
}

/// Recursive attributes and propagation.
pub fn adjust(tree: &OwnedFd, plan: &Mount) -> Result<()> {
    if let Some((set, clear)) = plan.recursive_attr.0 {
        sys::mount_setattr(tree, raw::AT_RECURSIVE, set, clear, 0)?;
    }
    if plan.propagation & PROPAGATIONS != 0 {
        let recursive = plan.propagation & u64::from(raw::MS_REC) != 0;
        let flags = if recursive { raw::AT_RECURSIVE } else { 0 };
        sys::mount_setattr(tree, flags, 0, 0, plan.propagation & PROPAGATIONS)?;
    }
    Ok(())
}

/// A detached copy of the mount at `path`.
pub fn clone_tree(folder: impl AsFd, path: &str, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    mount::open_tree(folder, path, flags)
}

/// Mounts `tree`, which is a file system as `plan` wants it, where `plan` says.
pub fn attach_ready(root: &OwnedFd, plan: &Mount, tree: Result<OwnedFd>) -> Outcome<()> {
    let (target, _) =
        target(root.as_fd(), plan.target, plan.kind).map_err(|error| unfit(plan, error))?;
    let attached = tree.and_then(|tree| {
        adjust(&tree, plan)?;
        attach(&tree, &target)
    });
    attached.map_err(|error| failed(plan, error))
}

/// A new file system, to be mounted by `detached`.
pub fn made(source: &str, fstype: &str, data: &str) -> Result<OwnedFd> {
    let context = mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(&context, "source", source)?;
    for option in data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => mount::fsconfig_set_string(&context, key, value)?,
            None => mount::fsconfig_set_flag(&context, option)?,
        }
    }
    mount::fsconfig_create(&context)?;
    Ok(context)
}

/// A mount of a file system that was `made`, attached nowhere yet, with those of MS_* `flags` that
/// belong to mounts.
pub fn detached(context: &OwnedFd, flags: u64) -> Result<OwnedFd> {
    let (set, _) = attributes(flags);
    let set = MountAttrFlags::from_bits_retain(set as u32);
    mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, set)
}

/// Gives a mount exactly those of MS_* `flags` that belong to mounts.
pub fn set_flags(tree: &OwnedFd, flags: u64) -> Result<()> {
    let (set, clear) = attributes(flags);
    sys::mount_setattr(tree, 0, set, clear, 0)
}

/// Mounts a detached tree on `target`.
pub fn attach(tree: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match mount::move_mount(&tree, "", &target, "", flags) {
        // mount(2) says it better, and engines explain what they are told by it.
        Err(Errno::INVAL) if is_folder(&tree)? != is_folder(&target)? => Err(Errno::NOTDIR),
        result => result,
    }
}

/// Whether an open file is a folder.
pub fn is_folder(file: impl AsFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(fs::fstat(file)?.st_mode) == FileType::Directory)
}

/// What a bind remount with MS_* `flags` means to mount_setattr(2): exactly these flags; the
/// access time mode stays as it is unless one is named (mount(2), "Remounting").
fn attributes(flags: u64) -> (u64, u64) {
    const PLAIN: [(u32, u32); 6] = [
        (raw::MS_RDONLY, raw::MOUNT_ATTR_RDONLY),
        (raw::MS_NOSUID, raw::MOUNT_ATTR_NOSUID),
        (raw::MS_NODEV, raw::MOUNT_ATTR_NODEV),
        (raw::MS_NOEXEC, raw::MOUNT_ATTR_NOEXEC),
        (raw::MS_NODIRATIME, raw::MOUNT_ATTR_NODIRATIME),
        (raw::MS_NOSYMFOLLOW, raw::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    const TIMES: [(u32, u32); 3] = [
        (raw::MS_NOATIME, raw::MOUNT_ATTR_NOATIME),
        (raw::MS_STRICTATIME, raw::MOUNT_ATTR_STRICTATIME),
        (raw::MS_RELATIME, raw::MOUNT_ATTR_RELATIME),
    ];
    let named = |flag: u32| flags & u64::from(flag) != 0;
    let (mut set, mut clear) = (0, 0);
    for (flag, attribute) in PLAIN {
        let side = if named(flag) { &mut set } else { &mut clear };
        *side |= u64::from(attribute);
    }
    if let Some((_, attribute)) = TIMES.iter().find(|(flag, _)| named(*flag)) {
        set |= u64::from(*attribute);
        clear |= u64::from(raw::MOUNT_ATTR__ATIME);
    }
    (set, clear)
}
