//! Turning system errors into failures that name step and object.

use cloche_agent::answers::Failure;
use rustix::io::Errno;

pub type Outcome<T> = Result<T, Failure>;

/// Says during which step, and on what, a system call failed.
pub trait Step<T> {
    fn step(self, step: &'static str, object: &str) -> Outcome<T>;
}

impl<T> Step<T> for Result<T, Errno> {
    #[inline]
    fn step(self, step: &'static str, object: &str) -> Outcome<T> {
        self.map_err(|error| failed(step, object, error))
    }
}

#[cold]
fn failed(step: &'static str, object: &str, error: Errno) -> Failure {
    Failure::new(step, object, error.raw_os_error())
}
