//! The requests of the protocol as types.

use alloc::vec::Vec;

use crate::decode::{key, position, present, structures, Decode, Maybe, NotARequest};
use crate::msgpack::{Malformed, Reader};

/// A file of a cgroup or below /proc/sys, and what is written to it.
pub type Setting<'a> = (&'a str, &'a str);

structures! {
    /// First request of a connection.
    Hello { version: u32, nonce: [u8; 16], }

    /// What a clone must not share with its template.
    Renew<'a> { realtime_ns: u64, seed: &'a [u8], hostname: &'a str, machine_id: &'a str, }

    Network<'a> {
        interfaces: Vec<Interface<'a>>, routes: Vec<Route<'a>>, dns_relay: Vec<&'a str>,
        sysctls: Maybe<Vec<Setting<'a>>>,
    }

    /// What changes in a network that is set up: slots and routes that go, interfaces and routes
    /// that come.
    NetworkChange<'a> {
        gone: Vec<u32>, old_routes: Vec<Route<'a>>, interfaces: Vec<Interface<'a>>,
        routes: Vec<Route<'a>>, dns_relay: Vec<&'a str>,
    }

    Interface<'a> {
        slot: u32, name: &'a str, mac: Option<[u8; 6]>, mtu: u32,
        addresses: Vec<(&'a str, u8, Option<&'a str>)>, up: bool,
        neighbours: Vec<(&'a str, [u8; 6])>, sysctls: Maybe<Vec<Setting<'a>>>,
    }

    Route<'a> {
        destination: Option<&'a str>, prefix: u8, gateway: Option<&'a str>, interface: &'a str,
        source: Option<&'a str>, metric: u32, scope: u8, onlink: bool,
    }

    Mount<'a> {
        source: &'a str, target: &'a str, fstype as "type": &'a str, flags: u64, data: &'a str,
        propagation: u64, kind: &'a str, tmpcopyup: Maybe<bool>,
        recursive_attr: Maybe<Option<(u64, u64)>>, folders: Maybe<Vec<&'a str>>,
        read_only_last: Maybe<bool>, below: Maybe<Vec<(&'a str, u64)>>,
    }

    Container<'a> {
        id: &'a str, root: &'a str, read_only: bool, mounts: Vec<Mount<'a>>, namespaces: u64,
        join: Vec<(&'a str, u64)>, hostname: Option<&'a str>, domainname: Option<&'a str>,
        cgroup: &'a str, cgroup_values: Vec<Setting<'a>>,
        device_filter: Maybe<Option<&'a [u8]>>, sysctls: Vec<Setting<'a>>,
        devices: Vec<Device<'a>>, links: Vec<(&'a str, &'a str)>, masked_paths: Vec<&'a str>,
        read_only_paths: Vec<&'a str>, propagation: u64, process: Process<'a>,
        start_hooks: Vec<Hook<'a>>, users: Maybe<Option<Users<'a>>>,
        time_offsets: Maybe<Option<&'a str>>, cgroup_owner: Maybe<Option<u32>>,
        root_flags: Maybe<Option<u64>>,
    }

    Device<'a> {
        path: &'a str, mode: u32, major: u32, minor: u32, uid: u32, gid: u32,
        disk: Maybe<Option<&'a str>>,
    }

    Hook<'a> {
        path: &'a str, args: Vec<&'a str>, env: Option<Vec<&'a str>>, timeout: Option<u32>,
        stdin: &'a [u8],
    }

    Process<'a> {
        args: Vec<&'a str>, env: Vec<&'a str>, cwd: &'a str, uid: u32, gid: u32,
        groups: Vec<u32>, umask: Option<u32>, bounding: u64, effective: u64, inheritable: u64,
        permitted: u64, ambient: u64, rlimits: Vec<(u32, u64, u64)>, no_new_privs: bool,
        seccomp: Option<&'a [u8]>, seccomp_flags: u32, oom_score_adj: Option<i32>,
        terminal: bool, rows: u16, columns: u16, stdin: u32, stdout: u32, stderr: u32,
        tuning: Maybe<Option<Tuning<'a>>>, stdio_owner: Maybe<Option<u32>>,
        raw_newlines: Maybe<bool>,
    }

    /// A user namespace, with what uid_map and gid_map of proc(5) are to hold.
    Users<'a> { uid_map: &'a str, gid_map: &'a str, network: Maybe<Option<Network<'a>>>, }

    Tuning<'a> {
        sched_attr: Maybe<Option<&'a [u8]>>, io_priority: Maybe<Option<u32>>,
        affinity: Maybe<Option<&'a [u8]>>, personality: Maybe<Option<u32>>,
        memory_policy: Maybe<Option<(u32, &'a [u8])>>,
    }

    Exec<'a> {
        id: &'a str, exec_id: &'a str, process: Process<'a>, cgroup: Maybe<Option<&'a str>>,
    }
    Id<'a> { id: &'a str, }
    Signal<'a> { id: &'a str, exec_id: Option<&'a str>, signal: i32, all: bool, }
    Resize<'a> { id: &'a str, exec_id: Option<&'a str>, rows: u16, columns: u16, }
    Freeze<'a> { id: &'a str, frozen: bool, }
    CgroupWrite<'a> { id: &'a str, values: Vec<Setting<'a>>, }
    CgroupRead<'a> { id: &'a str, files: Vec<&'a str>, }
    DnsReply<'a> { query: u64, data: &'a [u8], }
    ModuleData<'a> { query: u64, module: &'a str, data: &'a [u8], complete: bool, }
    ModuleEnd { query: u64, found: bool, }
    Umount<'a> { target: &'a str, }
}

impl Process<'_> {
    /// Whether stdout and stderr are one stream of the host's.
    pub fn has_one_output(&self) -> bool {
        self.stderr != 0 && self.stderr == self.stdout
    }
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
    "ping" Ping(Nothing),
    "renew" Renew(Renew<'a>),
    "network" Network(Network<'a>),
    "network_change" NetworkChange(NetworkChange<'a>),
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
    "module_data" ModuleData(ModuleData<'a>),
    "module_end" ModuleEnd(ModuleEnd),
    "sync" Sync(Nothing),
    "spare" Spare(Nothing),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::Writer;

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
}
