//! Lines on the guest's console: boot milestones, and what went wrong before there was a port.

use core::fmt::{self, Write};

use alloc::string::String;

/// Standard error of PID 1 is the console.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: descriptor 2 is never closed in the agent.
        let stderr = unsafe { rustix::stdio::stderr() };
        rustix::io::write(stderr, text.as_bytes()).map_err(|_| fmt::Error)?;
        Ok(())
    }
}

/// Prints `cloche-agent: <message>`. Allocates nothing: it must work when memory has run out.
pub fn say(message: fmt::Arguments) {
    let _ = writeln!(Console, "cloche-agent: {message}");
}

/// A boot step has been reached.
pub fn milestone(name: &str) {
    say(format_args!("{name}"));
}

/// A best-effort step failed: the console and, once there is one, the host hear of it.
pub fn trouble(notes: &mut alloc::vec::Vec<String>, message: String) {
    say(format_args!("{message}"));
    notes.push(message);
}
