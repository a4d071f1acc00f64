//! Cgroups (v2) of containers.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::Setting;
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::bpf::DeviceFilter;
use crate::fail::{Outcome, Step};
use crate::files;
use crate::mounts;
use crate::sys::Result;

const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of one container.
pub struct Cgroup {
    path: String,
    folder: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup `name` (below the root).
    pub fn make(name: &str) -> Outcome<Cgroup> {
        let mut path = String::from(ROOT);
        let mut parts = parts(name)?.into_iter().peekable();
        while let Some(part) = parts.next() {
            path.push('/');
            path.push_str(part);
            make_one(&path, parts.peek().is_some()).step("cgroup", &path)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = files::open(path.as_str(), flags).step("cgroup", &path)?;
        Ok(Cgroup { path, folder })
    }

    pub fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Writes `values`, in order.
    pub fn write(&self, values: &[Setting]) -> Outcome<()> {
        for (file, value) in values {
            let written =
                plain(file).and_then(|file| files::write_at(&self.folder, file, value.as_bytes()));
            written.map_err(|error| refused(file, value, error))?;
        }
        Ok(())
    }

    /// Has `filter`, if there is one, decide which devices its processes may use, in place of
    /// the one that was attached before. `usual` is at hand: the kernel need not check it anew.
    pub fn filter_devices(
        &self,
        filter: Option<&[u8]>,
        usual: Option<&DeviceFilter>,
        attached: Option<&DeviceFilter>,
    ) -> Outcome<()> {
        let is = |known: &&DeviceFilter| filter == Some(known.instructions.as_slice());
        if attached.map_or(filter.is_none(), |known| is(&known)) {
            return Ok(());
        }
        let change = || -> Result<()> {
            let folder = files::open(self.path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY)?;
            match (usual.filter(is), filter) {
                (Some(known), _) => known.attach(&folder)?,
                (None, Some(other)) => DeviceFilter::load(other.into())?.attach(&folder)?,
                (None, None) => {}
            }
            attached.map_or(Ok(()), |known| known.detach(&folder))
        };
        change().step("cgroup", "device filter")
    }

    /// The text of `file`, if there is such a file.
    pub fn read(&self, file: &str) -> Option<String> {
        let text = files::read_at(&self.folder, plain(file).ok()?).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Opens `file` for reading, as epoll can watch it.
    pub fn open(&self, file: &str) -> Result<OwnedFd> {
        files::open_at(&self.folder, file, OFlags::RDONLY)
    }

    /// Gives it to the user `owner`, with the files that cgroups(7) calls delegatable.
    pub fn give_to(&self, owner: u32) -> Result<()> {
        let owner = Some(Uid::from_raw(owner));
        fs::chownat(fs::CWD, self.path.as_str(), owner, None::<Gid>, AtFlags::empty())?;
        let files = files::read("/sys/kernel/cgroup/delegate")?;
        for name in String::from_utf8_lossy(&files).lines() {
            match fs::chownat(&self.folder, name, owner, None::<Gid>, AtFlags::SYMLINK_NOFOLLOW) {
                // Of a controller that this cgroup does not have.
                Err(Errno::NOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The cgroup `path` below this one, for a process to be made in.
    pub fn below(&self, path: &str) -> Outcome<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        mounts::open_in_root(&self.folder, path, flags).step("cgroup", path)
    }

    /// SIGKILL to every process in it and below.
    pub fn kill(&self) -> Result<()> {
        files::write_at(&self.folder, "cgroup.kill", b"1")
    }

    /// Process ids in it and below, as this namespace numbers them.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        collect(&self.folder, &mut found);
        found
    }

    /// Removes it and the cgroups that its processes made below it.
    pub fn remove(&self) -> Result<()> {
        remove_below(&self.folder)?;
        match fs::rmdir(self.path.as_str()) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }
}

/// The cgroup that the process `pid` is in, for another one to be made in.
pub fn of(pid: i32) -> Result<OwnedFd> {
    let text = files::read(format!("/proc/{pid}/cgroup").as_str())?;
    let text = String::from_utf8_lossy(&text);
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Errno::NOENT)?;
    files::open(format!("{ROOT}{path}").as_str(), OFlags::PATH | OFlags::DIRECTORY)
}

/// Number that stands behind `key` in a file of lines `key number`.
pub fn number(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn parts(name: &str) -> Outcome<Vec<&str>> {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(Failure::new("cgroup", name, errno::EINVAL));
    }
    Ok(parts)
}

/// Makes one level; controllers are passed on from levels that only group others.
fn make_one(path: &str, groups: bool) -> Result<()> {
    match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) if groups => pass_on(path),
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn pass_on(path: &str) -> Result<()> {
    let text = files::read(format!("{path}/cgroup.controllers").as_str())?;
    let mut enable = String::new();
    for name in String::from_utf8_lossy(&text).split_whitespace() {
        enable.push('+');
        enable.push_str(name);
        enable.push(' ');
    }
    files::write(format!("{path}/cgroup.subtree_control").as_str(), enable.trim_end().as_bytes())
}

/// A file name and nothing that leads elsewhere.
fn plain(file: &str) -> Result<&str> {
    if file.contains('/') || file == ".." {
        Err(Errno::INVAL)
    } else {
        Ok(file)
    }
}

fn refused(file: &str, value: &str, error: Errno) -> Failure {
    let number = error.raw_os_error();
    let message = format!("cgroup: writing {value:?} to {file}: {}", errno::text(number));
    Failure::worded("cgroup", file, number, message)
}

fn children(folder: &OwnedFd) -> Vec<OwnedFd> {
    let names = files::names(folder).unwrap_or_default();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    names.iter().filter_map(|name| files::open_at(folder, name.as_slice(), flags).ok()).collect()
}

fn collect(folder: &OwnedFd, found: &mut Vec<i32>) {
    if let Ok(text) = files::read_at(folder, "cgroup.procs") {
        let text = String::from_utf8_lossy(&text);
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in children(folder) {
        collect(&child, found);
    }
}

fn remove_below(folder: &OwnedFd) -> Result<()> {
    for name in files::names(folder)? {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        if let Ok(child) = files::open_at(folder, name.as_slice(), flags) {
            remove_below(&child)?;
            fs::unlinkat(folder, name.as_slice(), AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}
