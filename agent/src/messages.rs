//! The requests of the protocol as types, and the replies and events as bytes.
//!
//! Decoding is strict: an unknown operation, an unknown field or a missing one is an error.
//! Everything borrows from the frame, so a plan costs no copies.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::errno;
use crate::frames::{self, Kind};
use crate::msgpack::{Malformed, Reader, Writer};

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

/// Bytes that are not a request; names the field at which reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotARequest {
    pub field: String,
    pub expected: &'static str,
}

impl From<Malformed> for NotARequest {
    fn from(cause: Malformed) -> Self {
        NotARequest { field: String::new(), expected: cause.0 }
    }
}

impl NotARequest {
    /// The same, seen from the structure that holds `name`.
    fn within(mut self, name: &str) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        self.field.insert_str(0, dot);
        self.field.insert_str(0, name);
        self
    }

    pub fn failure(&self) -> Failure {
        let message = format!("request: {}: expected {}", self.field, self.expected);
        Failure::worded("decode", &self.field, errno::EINVAL, message)
    }
}

/// A type that can be read from msgpack.
pub trait Decode<'a>: Sized {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest>;

    /// What a field that was left out stands for; `None`: it may not be left out.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! decode_integers {
    ($($type:ty)*) => { $(impl<'a> Decode<'a> for $type {
        fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
            let value = reader.integer()?;
            value.try_into().map_err(|_| Malformed(concat!("a number of type ", stringify!($type))).into())
        }
    })* };
}
decode_integers!(u8 u16 u32 u64 i32 i64);

impl<'a> Decode<'a> for bool {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        Ok(reader.bool()?)
    }
}

impl<'a> Decode<'a> for &'a str {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        let text = reader.str()?;
        if text.bytes().any(|byte| byte == 0) {
            return Err(Malformed("a string without NUL").into());
        }
        Ok(text)
    }
}

impl<'a> Decode<'a> for &'a [u8] {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        Ok(reader.bin()?)
    }
}

impl<'a, const N: usize> Decode<'a> for [u8; N] {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        reader.bin()?.try_into().map_err(|_| Malformed("bytes of the right length").into())
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        if reader.nil() {
            Ok(None)
        } else {
            T::decode(reader).map(Some)
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        let mut values = Vec::new();
        for index in 0..reader.array()? {
            let value = T::decode(reader).map_err(|error| error.within(&format!("{index}")))?;
            values.push(value);
        }
        Ok(values)
    }
}

impl<'a, A: Decode<'a>, B: Decode<'a>> Decode<'a> for (A, B) {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        match reader.array()? {
            2 => Ok((A::decode(reader)?, B::decode(reader)?)),
            _ => Err(Malformed("an array of 2").into()),
        }
    }
}

impl<'a, A: Decode<'a>, B: Decode<'a>, C: Decode<'a>> Decode<'a> for (A, B, C) {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        match reader.array()? {
            3 => Ok((A::decode(reader)?, B::decode(reader)?, C::decode(reader)?)),
            _ => Err(Malformed("an array of 3").into()),
        }
    }
}

/// A field that may be left out, and then has its type's default value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Maybe<T>(pub T);

impl<'a, T: Decode<'a> + Default> Decode<'a> for Maybe<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        T::decode(reader).map(Maybe)
    }

    fn absent() -> Option<Self> {
        Some(Maybe::default())
    }
}

/// Declares structures and how they are read from a map; `as` names a field that is a keyword.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? {
        $($field:ident $(as $key:literal)?: $type:ty,)*
    })*) => { $(
        $(#[$doc])*
        #[derive(Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? { $(pub $field: $type,)* }

        impl<'a> Decode<'a> for $name $(<$life>)? {
            fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
                #[allow(non_camel_case_types)]
                enum Field { $($field,)* Unknown }
                const KEYS: &[&str] = &[$(key!($field $($key)?)),*];
                $(let mut $field = <$type as Decode>::absent();)*
                let mut index = Field::Unknown as usize;
                for _ in 0..reader.map()? {
                    let key = reader.str()?;
                    index = position(KEYS, key, index);
                    $(if index == Field::$field as usize {
                        let value = Decode::decode(reader).map_err(|error| error.within(key))?;
                        $field = Some(value);
                        continue;
                    })*
                    return Err(NotARequest::from(Malformed("no such field")).within(key));
                }
                Ok($name { $($field: present($field, key!($field $($key)?))?,)* })
            }
        }
    )* };
}

/// Where `key` is among `keys`, or their number; looked for first behind the `last` one found,
/// since fields come in the order in which they are declared.
fn position(keys: &[&str], key: &str, last: usize) -> usize {
    let next = if last < keys.len() { last + 1 } else { 0 };
    if keys.get(next) == Some(&key) {
        return next;
    }
    keys.iter().position(|known| *known == key).unwrap_or(keys.len())
}

fn present<T>(value: Option<T>, field: &str) -> Result<T, NotARequest> {
    match value {
        Some(value) => Ok(value),
        None => Err(missing(field)),
    }
}

macro_rules! key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

#[cold]
fn missing(field: &str) -> NotARequest {
    NotARequest::from(Malformed("the field to be there")).within(field)
}

/// A file of a cgroup or below /proc/sys, and what is written to it.
pub type Setting<'a> = (&'a str, &'a str);

structures! {
    /// First request of a connection.
    Hello { version: u32, nonce: [u8; 16], }

    /// What a clone must not share with its template.
    Renew<'a> { realtime_ns: u64, seed: &'a [u8], hostname: &'a str, machine_id: &'a str, }

    Network<'a> { interfaces: Vec<Interface<'a>>, routes: Vec<Route<'a>>, dns_relay: Vec<&'a str>, }

    Interface<'a> {
        slot: u32, name: &'a str, mac: Option<[u8; 6]>, mtu: u32,
        addresses: Vec<(&'a str, u8, Option<&'a str>)>, up: bool,
        neighbours: Vec<(&'a str, [u8; 6])>,
    }

    Route<'a> {
        destination: Option<&'a str>, prefix: u8, gateway: Option<&'a str>, interface: &'a str,
        source: Option<&'a str>, metric: u32, scope: u8, onlink: bool,
    }

    Mount<'a> {
        source: &'a str, target: &'a str, fstype as "type": &'a str, flags: u64, data: &'a str,
        propagation: u64, kind: &'a str, tmpcopyup: Maybe<bool>,
        recursive_attr: Maybe<Option<(u64, u64)>>, folders: Maybe<Vec<&'a str>>,
    }

    Container<'a> {
        id: &'a str, root: &'a str, read_only: bool, mounts: Vec<Mount<'a>>, namespaces: u64,
        join: Vec<(&'a str, u64)>, hostname: Option<&'a str>, domainname: Option<&'a str>,
        cgroup: &'a str, cgroup_values: Vec<Setting<'a>>, sysctls: Vec<Setting<'a>>,
        devices: Vec<Device<'a>>, links: Vec<(&'a str, &'a str)>, masked_paths: Vec<&'a str>,
        read_only_paths: Vec<&'a str>, propagation: u64, process: Process<'a>,
        start_hooks: Vec<Hook<'a>>,
    }

    Device<'a> { path: &'a str, mode: u32, major: u32, minor: u32, uid: u32, gid: u32, }

    Hook<'a> {
        path: &'a str, args: Vec<&'a str>, env: Vec<&'a str>, timeout: Option<u32>,
        stdin: &'a [u8],
    }

    Process<'a> {
        args: Vec<&'a str>, env: Vec<&'a str>, cwd: &'a str, uid: u32, gid: u32,
        groups: Vec<u32>, umask: Option<u32>, bounding: u64, effective: u64, inheritable: u64,
        permitted: u64, ambient: u64, rlimits: Vec<(u32, u64, u64)>, no_new_privs: bool,
        seccomp: Option<&'a [u8]>, seccomp_flags: u32, oom_score_adj: Option<i32>,
        terminal: bool, rows: u16, columns: u16, stdin: u32, stdout: u32, stderr: u32,
    }

    Exec<'a> { id: &'a str, exec_id: &'a str, process: Process<'a>, }
    Id<'a> { id: &'a str, }
    Signal<'a> { id: &'a str, exec_id: Option<&'a str>, signal: i32, all: bool, }
    Resize<'a> { id: &'a str, exec_id: Option<&'a str>, rows: u16, columns: u16, }
    Freeze<'a> { id: &'a str, frozen: bool, }
    CgroupWrite<'a> { id: &'a str, values: Vec<Setting<'a>>, }
    CgroupRead<'a> { id: &'a str, files: Vec<&'a str>, }
    DnsReply<'a> { query: u64, data: &'a [u8], }
    Umount<'a> { target: &'a str, }
}

/// The fields of an operation that has none.
#[derive(Debug, PartialEq, Eq)]
pub struct Nothing;

impl<'a> Decode<'a> for Nothing {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        match reader.map()? {
            0 => Ok(Nothing),
            _ => Err(NotARequest::from(Malformed("no such field")).within(reader.str()?)),
        }
    }
}

macro_rules! requests {
    ($($operation:literal $name:ident($type:ty),)*) => {
        /// What the host asks for. There is one at a time, on the stack, and none is moved about:
        /// that some are large costs nothing.
        #[derive(Debug, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)]
        pub enum Request<'a> { $($name($type),)* }

        fn fields<'a>(operation: &str, reader: &mut Reader<'a>) -> Result<Request<'a>, NotARequest> {
            Ok(match operation {
                $($operation => Request::$name(Decode::decode(reader)?),)*
                _ => return Err(Malformed("no such operation").into()),
            })
        }
    };
}

requests! {
    "hello" Hello(Hello),
    "renew" Renew(Renew<'a>),
    "network" Network(Network<'a>),
    "mount" Mount(Mount<'a>),
    "create" Create(Container<'a>),
    "start" Start(Id<'a>),
    "exec" Exec(Exec<'a>),
    "signal" Signal(Signal<'a>),
    "resize" Resize(Resize<'a>),
    "freeze" Freeze(Freeze<'a>),
    "processes" Processes(Id<'a>),
    "cgroup_write" CgroupWrite(CgroupWrite<'a>),
    "cgroup_read" CgroupRead(CgroupRead<'a>),
    "delete" Delete(Id<'a>),
    "dns_reply" DnsReply(DnsReply<'a>),
    "sync" Sync(Nothing),
    "umount" Umount(Umount<'a>),
    "shutdown" Shutdown(Nothing),
}

/// Reads `[id, {"op": {…}}]`. The number is there whenever it could be read, so that even a
/// request that makes no sense is answered.
pub fn request(payload: &[u8]) -> (u64, Result<Request<'_>, NotARequest>) {
    let mut reader = Reader::new(payload);
    match envelope(&mut reader) {
        Ok(number) => (number, operation(&mut reader)),
        Err(error) => (0, Err(error.within("id"))),
    }
}

fn envelope(reader: &mut Reader) -> Result<u64, NotARequest> {
    match reader.array()? {
        2 => u64::decode(reader),
        _ => Err(Malformed("an array of 2").into()),
    }
}

fn operation<'a>(reader: &mut Reader<'a>) -> Result<Request<'a>, NotARequest> {
    if reader.map()? != 1 {
        return Err(Malformed("one operation").into());
    }
    let name = reader.str()?;
    let request = fields(name, reader).map_err(|error| error.within(name))?;
    if reader.is_empty() {
        Ok(request)
    } else {
        Err(NotARequest::from(Malformed("nothing after the request")).within(name))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut Writer { out: &mut out });
        out
    }

    fn start(write_fields: impl FnOnce(&mut Writer)) -> Vec<u8> {
        encoded(|writer| {
            writer.array(2);
            writer.uint(5);
            writer.map(1);
            writer.str("start");
            write_fields(writer);
        })
    }

    #[test]
    fn an_error_names_the_field() {
        let wrong = start(|writer| {
            writer.map(1);
            writer.str("id");
            writer.uint(3);
        });
        let (number, result) = request(&wrong);
        assert_eq!(number, 5);
        let error = result.unwrap_err();
        assert_eq!((error.field.as_str(), error.expected), ("start.id", "a string"));
    }

    #[test]
    fn unknown_and_missing_fields_are_errors() {
        let unknown = start(|writer| {
            writer.map(1);
            writer.str("name");
            writer.str("x");
        });
        assert_eq!(request(&unknown).1.unwrap_err().field, "start.name");
        let missing = start(|writer| writer.map(0));
        assert_eq!(request(&missing).1.unwrap_err().field, "start.id");
    }

    #[test]
    fn no_prefix_of_a_request_is_one_and_none_panics() {
        let whole = start(|writer| {
            writer.map(1);
            writer.str("id");
            writer.str("box");
        });
        assert!(request(&whole).1.is_ok());
        for end in 0..whole.len() {
            assert!(request(&whole[..end]).1.is_err());
        }
    }

    #[test]
    fn any_single_changed_byte_is_survived() {
        let whole = start(|writer| {
            writer.map(1);
            writer.str("id");
            writer.str("box");
        });
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = request(&changed);
            }
        }
    }

    #[test]
    fn long_error_texts_are_clipped_between_characters() {
        let failure = Failure::new("mount", &"ä".repeat(5000), errno::ENOENT);
        let mut out = Vec::new();
        failure.write(&mut out);
        assert!(out.len() < 4096);
    }
}
