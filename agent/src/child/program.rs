//! Finding the program of a process and executing it.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::Process;
use cloche_agent::program as names;
use rustix::fs::{self, FileType, OFlags};
use rustix::io::Errno;

use crate::fail::Outcome;
use crate::files;
use crate::sys::{self, Vector};

/// A program that exists and may be executed, with its arguments and environment.
pub struct Program {
    path: CString,
    arguments: Vector,
    pub environment: Vector,
}

impl Program {
    /// Executes it; returns why that did not work.
    pub fn execute(&self) -> Failure {
        let error = sys::execve(&self.path, &self.arguments, &self.environment).raw_os_error();
        let path = self.path.to_string_lossy();
        let message = format!("exec {path}: {}", errno::text(error));
        Failure::worded("exec", &path, error, message)
    }
}

/// `HOME=…` if the environment has none: from the container's /etc/passwd, else `/`.
pub fn home_of(process: &Process) -> Option<String> {
    if names::variable(&process.env, "HOME").is_some_and(|home| !home.is_empty()) {
        return None;
    }
    let passwd = files::read("/etc/passwd").unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    Some(format!("HOME={}", names::home(&passwd, process.uid).unwrap_or("/")))
}

/// Looks the program up as the process's user, as runc does.
pub fn find(process: &Process, home: Option<String>) -> Outcome<Program> {
    let name = process.args.first().copied().unwrap_or("");
    let path = names::variable(&process.env, "PATH").unwrap_or("");
    let path = locate(name, path)?;
    let path = CString::new(path).map_err(|_| unfit(name, Errno::INVAL))?;
    let (environment, last) = with_home(&process.env, home.as_deref());
    Ok(Program {
        path,
        arguments: Vector::new(process.args.iter().copied()),
        environment: Vector::new(environment.chain(last)),
    })
}

/// The environment with `home` in the place of an empty one, and what is to follow it: `home` where
/// there is none (as runc does it).
fn with_home<'a>(
    environment: &'a [&'a str],
    home: Option<&'a str>,
) -> (impl Iterator<Item = &'a str> + Clone, Option<&'a str>) {
    let is_home = |entry: &str| entry.starts_with("HOME=");
    let last = home.filter(|_| !environment.iter().copied().any(is_home));
    let entries = environment.iter().map(move |entry| match home {
        Some(home) if is_home(entry) => home,
        _ => entry,
    });
    (entries, last)
}

fn locate(name: &str, path: &str) -> Outcome<String> {
    let direct = name.contains('/');
    let mut denied = false;
    for candidate in names::candidates(name, path) {
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if direct => return Err(unfit(name, error)),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    let error = if denied { Errno::ACCESS } else { Errno::NOENT };
    let message = format!("exec: {name:?}: executable file not found in $PATH");
    Err(Failure::worded("exec", name, error.raw_os_error(), message))
}

/// Looks at the file once: on the share each walk along a path is many requests to the host.
fn executable(path: &str) -> sys::Result<()> {
    let file = files::open(path, OFlags::PATH)?;
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || stat.st_mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    sys::may_execute(&file)
}

#[cold]
fn unfit(name: &str, error: Errno) -> Failure {
    let number = error.raw_os_error();
    let cause = errno::text(number);
    let message = match error {
        Errno::ACCESS => format!("exec: {name:?}: {cause}"),
        _ => format!("exec: {name:?}: stat {name}: {cause}"),
    };
    Failure::worded("exec", name, number, message)
}
