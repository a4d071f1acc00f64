//! Reading and writing small files.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::path::Arg;

use crate::sys::Result;

/// Opens `path` below `folder` with O_CLOEXEC and the given flags.
pub fn open_at(folder: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd> {
    fs::openat(folder, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// Opens `path` with O_CLOEXEC and the given flags.
pub fn open(path: impl Arg, flags: OFlags) -> Result<OwnedFd> {
    open_at(fs::CWD, path, flags)
}

/// Writes `value` in one write, as files of cgroups and of /proc/sys demand.
pub fn write_at(folder: impl AsFd, path: impl Arg, value: &[u8]) -> Result<()> {
    let file = open_at(folder, path, OFlags::WRONLY)?;
    match io::write(&file, value)? {
        written if written == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Writes `value` to the existing file `path`.
pub fn write(path: impl Arg, value: &[u8]) -> Result<()> {
    write_at(fs::CWD, path, value)
}

/// All of an open file, up to 1 MiB.
pub fn read_open(file: impl AsFd) -> Result<Vec<u8>> {
    const LIMIT: usize = 1 << 20;
    let mut text = Vec::new();
    loop {
        text.reserve(4096);
        match io::read(file.as_fd(), rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => return Ok(text),
            Ok(_) if text.len() > LIMIT => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// All of the file `path` below `folder`.
pub fn read_at(folder: impl AsFd, path: impl Arg) -> Result<Vec<u8>> {
    read_open(open_at(folder, path, OFlags::RDONLY)?)
}

/// All of the file `path`.
pub fn read(path: impl Arg) -> Result<Vec<u8>> {
    read_at(fs::CWD, path)
}

/// Has the kernel ask for many entries of a folder in one request: some are looked up next.
pub fn look_around(folder: impl AsFd) {
    let Ok(folder) = open_at(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY) else { return };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let _ = fs::RawDir::new(folder, &mut buffer).next();
}

/// Names in a folder, without `.` and `..`, in no order.
pub fn names(folder: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let folder = open_at(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = Vec::with_capacity(4096);
    let mut names = Vec::new();
    let mut entries = fs::RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}
