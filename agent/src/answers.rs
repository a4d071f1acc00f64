//! What the agent sends: replies, errors and events, as frames.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::errno;
use crate::frames::{self, Kind};
use crate::msgpack::Writer;

/// Why a request was not carried out; becomes the `err` of its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub step: &'static str,
    pub object: String,
    pub errno: i32,
    pub message: String,
}

impl Failure {
    /// `step` failed on `object` with a system error, which is also the message.
    pub fn new(step: &'static str, object: &str, errno: i32) -> Failure {
        let message = format!("{step} {object}: {}", errno::text(errno));
        Failure { step, object: object.into(), errno, message }
    }

    /// As [`Failure::new`], in words of its own.
    pub fn worded(step: &'static str, object: &str, errno: i32, message: String) -> Failure {
        Failure { step, object: object.into(), errno, message }
    }

    /// Appends the map of `err`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut writer = Writer { out };
        writer.map(4);
        writer.str("step");
        writer.str(self.step);
        writer.str("object");
        writer.str(clipped(&self.object));
        writer.str("errno");
        writer.int(self.errno.into());
        writer.str("message");
        writer.str(clipped(&self.message));
    }
}

/// Text that surely fits into a frame, and into one write to a pipe.
fn clipped(text: &str) -> &str {
    let mut end = text.len().min(1500);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a REPLY frame; `value` writes what stands under "ok".
pub fn reply(out: &mut Vec<u8>, number: u64, value: impl FnOnce(&mut Writer)) {
    let at = answer(out, number, "ok");
    value(&mut Writer { out });
    frames::finish(out, at);
}

/// Appends a REPLY frame with an error, given as the bytes that [`Failure::write`] made.
pub fn refuse(out: &mut Vec<u8>, number: u64, failure: &[u8]) {
    let at = answer(out, number, "err");
    out.extend_from_slice(failure);
    frames::finish(out, at);
}

fn answer(out: &mut Vec<u8>, number: u64, key: &str) -> usize {
    let at = frames::begin(out, frames::CONTROL, Kind::Reply);
    let mut writer = Writer { out };
    writer.array(2);
    writer.uint(number);
    writer.map(1);
    writer.str(key);
    at
}

/// Appends an EVENT frame; `fields` writes the map of its fields.
pub fn event(out: &mut Vec<u8>, name: &str, fields: impl FnOnce(&mut Writer)) {
    let at = frames::begin(out, frames::CONTROL, Kind::Event);
    let mut writer = Writer { out };
    writer.map(1);
    writer.str(name);
    fields(&mut writer);
    frames::finish(out, at);
}

/// Appends a `log` event.
pub fn log(out: &mut Vec<u8>, level: &str, message: &str) {
    event(out, "log", |writer| {
        writer.map(2);
        writer.str("level");
        writer.str(level);
        writer.str("message");
        writer.str(clipped(message));
    });
}

/// Appends an `exit` event; `status` is a wait status.
pub fn exit(out: &mut Vec<u8>, id: &str, exec_id: Option<&str>, status: i32) {
    event(out, "exit", |writer| {
        writer.map(3);
        writer.str("id");
        writer.str(id);
        writer.str("exec_id");
        writer.optional(exec_id);
        writer.str("status");
        writer.int(status.into());
    });
}

/// Appends an `oom` event.
pub fn oom(out: &mut Vec<u8>, id: &str, count: u64) {
    event(out, "oom", |writer| {
        writer.map(2);
        writer.str("id");
        writer.str(id);
        writer.str("count");
        writer.uint(count);
    });
}

/// Appends a `dns_query` event.
pub fn dns_query(out: &mut Vec<u8>, query: u64, server: &str, tcp: bool, data: &[u8]) {
    event(out, "dns_query", |writer| {
        writer.map(4);
        writer.str("query");
        writer.uint(query);
        writer.str("server");
        writer.str(server);
        writer.str("tcp");
        writer.bool(tcp);
        writer.str("data");
        writer.bin(data);
    });
}

/// Appends a `module` event: the kernel asks for what is called `name`, and has `loaded` already.
pub fn module(out: &mut Vec<u8>, query: u64, name: &str, loaded: &[&str]) {
    event(out, "module", |writer| {
        writer.map(3);
        writer.str("query");
        writer.uint(query);
        writer.str("name");
        writer.str(name);
        writer.str("loaded");
        writer.array(loaded.len());
        loaded.iter().for_each(|name| writer.str(name));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_error_texts_are_clipped_between_characters() {
        let failure = Failure::new("mount", &"ä".repeat(5000), errno::ENOENT);
        let mut out = Vec::new();
        failure.write(&mut out);
        assert!(out.len() < 4096);
    }
}
