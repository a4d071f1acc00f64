//! The terminal of a process: opened from the container's own devpts by the child itself.

use cloche_agent::messages::Process;
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl::{TIOCGPTPEER, TIOCSCTTY, TIOCSWINSZ};
use rustix::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions, OutputModes};

use crate::fail::{Outcome, Step};
use crate::mounts;
use crate::sys;

/// struct winsize of ioctl_tty(2).
#[repr(C)]
struct Size {
    rows: u16,
    columns: u16,
    pixels: [u16; 2],
}

/// Opens a terminal, makes it the controlling one and the three standard streams, and returns its
/// master. Below `root`, if given (a container that is being made), it is also /dev/console.
pub fn open(root: Option<&OwnedFd>, process: &Process) -> Outcome<OwnedFd> {
    let within = match root {
        Some(root) => root.as_fd(),
        None => fs::CWD,
    };
    let path = if root.is_some() { "dev/pts/ptmx" } else { "/dev/pts/ptmx" };
    let (master, slave) = pair(within, path).step("open terminal", path)?;
    resize(&master, process.rows, process.columns).step("resize terminal", path)?;
    if process.raw_newlines.0 {
        keep_newlines(&slave).step("set up terminal", path)?;
    }
    if let Some(root) = root {
        bind_console(root, &slave).step("bind terminal", "/dev/console")?;
    }
    control(&slave).step("open terminal", path)?;
    Ok(master)
}

/// Sets the size in characters; 0 by 0 leaves it as it is.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> sys::Result<()> {
    if (rows, columns) == (0, 0) {
        return Ok(());
    }
    let mut size = Size { rows, columns, pixels: [0; 2] };
    // SAFETY: TIOCSWINSZ reads a winsize.
    unsafe { sys::ioctl(terminal, TIOCSWINSZ, &mut size) }.map(drop)
}

/// A line feed that is printed stays just that: the terminal where it is shown adds the return.
fn keep_newlines(terminal: &OwnedFd) -> sys::Result<()> {
    let mut settings = termios::tcgetattr(terminal)?;
    settings.output_modes.remove(OutputModes::ONLCR);
    termios::tcsetattr(terminal, OptionalActions::Now, &settings)
}

fn pair(within: impl AsFd, path: &str) -> sys::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = fs::openat(within, path, flags | OFlags::CLOEXEC, fs::Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let flags = raw::O_RDWR | raw::O_NOCTTY | raw::O_CLOEXEC;
    let slave = sys::ioctl_number(&master, TIOCGPTPEER, flags as usize)?;
    // SAFETY: the ioctl returned a new descriptor.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave as RawFd) }))
}

fn bind_console(root: &OwnedFd, slave: &OwnedFd) -> sys::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let folder = mounts::folder_in_root(root, "dev")?;
    let console = match fs::openat(&folder, "console", OFlags::PATH | OFlags::NOFOLLOW, 0.into()) {
        Err(Errno::NOENT) => {
            fs::openat(&folder, "console", flags, 0o600.into())?;
            fs::openat(&folder, "console", OFlags::PATH | OFlags::NOFOLLOW, 0.into())?
        }
        result => result?,
    };
    mounts::attach(mounts::clone_tree(slave, "", false)?, console)
}

fn control(slave: &OwnedFd) -> sys::Result<()> {
    sys::ioctl_number(slave, TIOCSCTTY, 0)?;
    for number in 0..3 {
        sys::duplicate(slave, number, 0)?;
    }
    Ok(())
}
