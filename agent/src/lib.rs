//! The parts of the agent that do no I/O: bytes in, values out. They are tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod answers;
pub mod decode;
pub mod errno;
pub mod flow;
pub mod frames;
pub mod known;
pub mod messages;
pub mod msgpack;
pub mod netlink;
pub mod program;

#[cfg(test)]
mod vectors;
