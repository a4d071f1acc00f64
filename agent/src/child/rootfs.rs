//! The file system that a container sees, built in its own mount namespace.
//!
//! Everything is done before pivot_root, with every path looked up inside the new root: nothing
//! of the agent's file system has to be carried across.

use alloc::format;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{Container, Device, Setting};
use linux_raw_sys::general as raw;
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{self, MountPropagationFlags, UnmountFlags};
use rustix::process;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::mounts;
use crate::share;
use crate::sys;
use crate::users;

use super::stock::Stock;

/// Where block devices are found by their serial numbers.
const DISKS: &str = "/dev/disk/";

/// Whether the container reaches disks that outlive the VM.
pub fn uses_disks(plan: &Container) -> bool {
    plan.devices.iter().any(|device| device.disk.0.is_some())
        || plan.mounts.iter().any(|mount| mount.source.starts_with(DISKS))
}

/// An empty folder for hiding others; made by the agent at boot.
pub const EMPTY: &str = "/run/empty";

/// Makes what the agent mounts from now on appear here too, but nothing there that is done here.
pub fn follow_agent() -> sys::Result<()> {
    mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// The root, with what is to be made read-only once everything is in place.
pub struct Root {
    pub folder: OwnedFd,
    read_only_last: Vec<(usize, OwnedFd)>,
}

/// Binds the root, makes the mounts, devices and links.
pub fn build(plan: &Container, mut stock: Stock) -> Outcome<Root> {
    let slave = plan.propagation & u64::from(raw::MS_SLAVE) != 0;
    let kind =
        if slave { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    mount::mount_change("/", kind | MountPropagationFlags::REC).step("make private", "/")?;
    mount::mount_bind_recursive(plan.root, plan.root).step("bind root", plan.root)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let root = files::open(plan.root, flags).step("open root", plan.root)?;
    if share::is_served(plan.root) {
        files::look_around(&root);
    }
    if let Some(flags) = plan.root_flags.0 {
        mounts::set_flags(&root, flags).step("bind root", plan.root)?;
    }
    let mut read_only_last = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        let mounted = match stock.take(mount) {
            Some(tree) => mounts::attach_ready(&root, mount, tree),
            None => mounts::mount(&root, mount),
        };
        mounted.map_err(|failure| of_mount(failure, index))?;
        if mount.read_only_last.0 {
            // Now: a later one may hide it.
            let opened = mounts::open_in_root(&root, mount.target, OFlags::PATH);
            read_only_last.push((index, opened.step("mount", mount.target)?));
        }
    }
    match plan.users.0 {
        None => make_devices(&root, &plan.devices)?,
        Some(_) => bind_devices(&root, plan)?,
    }
    for &(to, path) in &plan.links {
        make_link(&root, to, path).step("link", path)?;
    }
    mounts::folder_in_root(&root, plan.process.cwd).step("mkdir", plan.process.cwd)?;
    Ok(Root { folder: root, read_only_last })
}

/// `failure`, with the place of the mount in the plan as its object: of the config's mounts several
/// may have the same target.
#[cold]
fn of_mount(failure: Failure, index: usize) -> Failure {
    Failure { object: format!("mounts[{index}]"), ..failure }
}

/// What must come after everything else is in place, and pivot_root.
pub fn finish(plan: &Container, root: &Root) -> Outcome<()> {
    set_sysctls(&plan.sysctls)?;
    for (index, mount) in &root.read_only_last {
        sys::mount_setattr(mount, 0, raw::MOUNT_ATTR_RDONLY.into(), 0, 0)
            .step("mount", "read-only")
            .map_err(|failure| of_mount(failure, *index))?;
    }
    let root = &root.folder;
    for path in &plan.read_only_paths {
        protect(root, path).step("make read-only", path)?;
    }
    mask_all(root, &plan.masked_paths)?;
    if plan.read_only {
        sys::mount_setattr(root, 0, raw::MOUNT_ATTR_RDONLY.into(), 0, 0)
            .step("make read-only", "/")?;
    }
    pivot(root).step("pivot_root", plan.root)?;
    if plan.propagation & u64::from(raw::MS_SHARED | raw::MS_UNBINDABLE) != 0 {
        let kind = MountPropagationFlags::from_bits_retain(plan.propagation as u32);
        mount::mount_change("/", kind).step("set propagation", "/")?;
    }
    if let Some(name) = plan.hostname {
        rustix::system::sethostname(name.as_bytes()).step("sethostname", name)?;
    }
    if let Some(name) = plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).step("setdomainname", name)?;
    }
    Ok(())
}

fn pivot(root: &OwnedFd) -> sys::Result<()> {
    process::fchdir(root)?;
    // Both at the same place: the old root lies on top of the new one, and is taken off.
    process::pivot_root(".", ".")?;
    mount::unmount(".", UnmountFlags::DETACH)?;
    process::chdir("/")
}

fn make_devices(root: &OwnedFd, devices: &[Device]) -> Outcome<()> {
    let mut last: Option<(&str, OwnedFd)> = None;
    for device in devices {
        let (folder, name) = device.path.rsplit_once('/').unwrap_or(("", device.path));
        if last.as_ref().is_none_or(|(path, _)| *path != folder) {
            let opened = mounts::folder_in_root(root, folder).step("mkdir", folder)?;
            last = Some((folder, opened));
        }
        if let Some((_, folder)) = &last {
            make_device(folder, name, device).step("mknod", device.path)?;
        }
    }
    Ok(())
}

/// Makes a device node, with the owner and, as far as the umask lets it, the mode of the plan.
pub fn make_device(folder: &OwnedFd, name: &str, device: &Device) -> sys::Result<()> {
    let kind = FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let number = match device.disk.0 {
        Some(serial) => fs::stat(format!("{DISKS}{serial}").as_str())?.st_rdev,
        None => fs::makedev(device.major, device.minor),
    };
    match fs::mknodat(folder, name, kind, mode, number) {
        // Whatever is there was put there on purpose (a bind mount, say).
        Err(Errno::EXIST) => return Ok(()),
        result => result?,
    }
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// In a user namespace: binds the nodes that the agent has made outside of it.
fn bind_devices(root: &OwnedFd, plan: &Container) -> Outcome<()> {
    let nodes = users::nodes_of(plan.id);
    for (index, device) in plan.devices.iter().enumerate() {
        bind_device(root, device.path, &format!("{nodes}/{index}")).step("bind", device.path)?;
    }
    Ok(())
}

fn bind_device(root: &OwnedFd, path: &str, node: &str) -> sys::Result<()> {
    let (folder, name) = mounts::parent_in_root(root, path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
    match files::open_at(&folder, name, flags) {
        Err(Errno::EXIST) => return Ok(()),
        result => drop(result?),
    }
    let target = files::open_at(&folder, name, OFlags::PATH | OFlags::NOFOLLOW)?;
    mounts::attach(mounts::clone_tree(fs::CWD, node, false)?, target)
}

fn make_link(root: &OwnedFd, to: &str, path: &str) -> sys::Result<()> {
    let (folder, name) = mounts::parent_in_root(root, path)?;
    match fs::symlinkat(to, folder, name) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Through the agent's /proc: what these files mean depends on who writes, not on which /proc.
fn set_sysctls(sysctls: &[Setting]) -> Outcome<()> {
    for (name, value) in sysctls {
        if name.split('/').any(|part| part == "..") {
            return Err(Failure::new("sysctl", name, errno::EINVAL));
        }
        let path = format!("/proc/sys/{name}");
        files::write(path.as_str(), value.as_bytes()).step("sysctl", name)?;
    }
    Ok(())
}

/// Mounts a path read-only on itself. A path that is not there needs no protection.
fn protect(root: &OwnedFd, path: &str) -> sys::Result<()> {
    let target = match mounts::open_in_root(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let tree = mounts::clone_tree(&target, "", true)?;
    sys::mount_setattr(&tree, 0, raw::MOUNT_ATTR_RDONLY.into(), 0, 0)?;
    mounts::attach(&tree, &target)
}

fn mask_all(root: &OwnedFd, paths: &[&str]) -> Outcome<()> {
    for path in paths {
        match mounts::open_in_root(root, path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(Failure::new("mask", path, error.raw_os_error())),
            Ok(target) => mask(&target).step("mask", path)?,
        }
    }
    Ok(())
}

/// Hides a folder behind an empty one, anything else behind /dev/null: the agent's, since what the
/// container has under these names is its own business.
fn mask(target: &OwnedFd) -> sys::Result<()> {
    let cover = if mounts::is_folder(target)? { EMPTY } else { "/dev/null" };
    mounts::attach(mounts::clone_tree(fs::CWD, cover, false)?, target)
}
