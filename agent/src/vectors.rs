//! Checks against the vectors that the host's tests read as well: tests/vectors/frames.json.

use serde_json::{json, Map, Value};

use crate::answers::{self, Failure};
use crate::frames::{self, Decoder, Frame, Kind};
use crate::messages::{self, Request};
use crate::msgpack::{Reader, Writer};

fn vectors(group: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/frames.json");
    let text = std::fs::read_to_string(path).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let group = all[group].as_array().unwrap();
    assert!(!group.is_empty());
    group.clone()
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn name(vector: &Value) -> &str {
    vector["name"].as_str().unwrap()
}

/// The frames that a side takes cut out of `bytes`.
fn decode(bytes: &[u8], check: impl FnOnce(Result<Option<Frame>, frames::NotAFrame>)) {
    let mut decoder = Decoder::default();
    decoder.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
    decoder.filled(bytes.len());
    check(decoder.next_frame());
}

/// The msgpack value at the front of `bytes`, whatever it is.
fn read(reader: &mut Reader) -> Value {
    match reader.peek().unwrap() {
        0xc0 => {
            assert!(reader.nil());
            Value::Null
        }
        0xc2 | 0xc3 => reader.bool().unwrap().into(),
        0xa0..=0xbf | 0xd9..=0xdb => reader.str().unwrap().into(),
        0xc4..=0xc6 => {
            let digits = reader.bin().unwrap().iter().map(|byte| format!("{byte:02x}"));
            json!({ "bin": digits.collect::<String>() })
        }
        0x90..=0x9f | 0xdc | 0xdd => {
            let count = reader.array().unwrap();
            (0..count).map(|_| read(reader)).collect()
        }
        0x80..=0x8f | 0xde | 0xdf => {
            let count = reader.map().unwrap();
            let mut map = Map::new();
            for _ in 0..count {
                let key = reader.str().unwrap().to_owned();
                map.insert(key, read(reader));
            }
            map.into()
        }
        _ => match reader.integer().unwrap() {
            value @ 0.. => u64::try_from(value).unwrap().into(),
            value => i64::try_from(value).unwrap().into(),
        },
    }
}

/// Writes `value` with the agent's writer; maps in the order in which the vectors have them.
fn write(writer: &mut Writer, value: &Value) {
    match value {
        Value::Null => writer.nil(),
        Value::Bool(value) => writer.bool(*value),
        Value::String(value) => writer.str(value),
        Value::Number(value) => match value.as_u64() {
            Some(value) => writer.uint(value),
            None => writer.int(value.as_i64().unwrap()),
        },
        Value::Array(values) => {
            writer.array(values.len());
            values.iter().for_each(|value| write(writer, value));
        }
        Value::Object(fields) if fields.len() == 1 && fields.contains_key("bin") => {
            writer.bin(&hex(&fields["bin"]));
        }
        Value::Object(fields) => {
            writer.map(fields.len());
            for (key, value) in fields {
                writer.str(key);
                write(writer, value);
            }
        }
    }
}

fn kind(vector: &Value) -> Kind {
    match vector["kind"].as_str().unwrap() {
        "data" => Kind::Data,
        "credit" => Kind::Credit,
        "eof" => Kind::Eof,
        "request" => Kind::Request,
        "reply" => Kind::Reply,
        "event" => Kind::Event,
        other => panic!("kind {other}"),
    }
}

fn payload(vector: &Value) -> Vec<u8> {
    hex(&vector["frame"])[frames::HEADER..].to_vec()
}

#[test]
fn frames_decode_to_what_they_say() {
    for vector in vectors("frames") {
        decode(&hex(&vector["frame"]), |result| {
            let frame = result.unwrap().unwrap();
            assert_eq!(u64::from(frame.stream), vector["stream"].as_u64().unwrap());
            assert_eq!(frame.kind, kind(&vector), "{}", name(&vector));
            if let Some(bytes) = vector.get("payload") {
                assert_eq!(frame.payload, hex(bytes), "{}", name(&vector));
            }
        });
    }
}

#[test]
fn what_is_not_a_frame_to_the_guest_is_refused() {
    for vector in vectors("not_frames").iter().filter(|vector| vector["to"] == "guest") {
        decode(&hex(&vector["frame"]), |result| {
            assert!(result.is_err(), "{}", name(vector));
        });
    }
}

#[test]
fn messages_read_as_the_vectors_say() {
    for vector in vectors("frames").iter().filter(|vector| vector.get("message").is_some()) {
        let bytes = payload(vector);
        let mut reader = Reader::new(&bytes);
        let value = read(&mut reader);
        assert!(reader.is_empty());
        assert_eq!(value, vector["message"], "{}", name(vector));
    }
}

#[test]
fn messages_to_the_host_are_written_byte_for_byte() {
    for vector in vectors("frames").iter().filter(|vector| vector.get("message").is_some()) {
        let mut out = Vec::new();
        let at = frames::begin(&mut out, 0, kind(vector));
        write(&mut Writer { out: &mut out }, &vector["message"]);
        frames::finish(&mut out, at);
        assert_eq!(out, hex(&vector["frame"]), "{}", name(vector));
    }
}

#[test]
fn every_request_is_understood() {
    let mut seen = 0;
    for vector in vectors("frames").iter().filter(|vector| vector["kind"] == "request") {
        let bytes = payload(vector);
        let (number, request) = messages::request(&bytes);
        assert_eq!(number, vector["message"][0].as_u64().unwrap());
        assert!(request.is_ok(), "{}: {:?}", name(vector), request);
        seen += 1;
    }
    assert!(seen >= 20);
}

#[test]
fn a_plan_has_the_values_of_its_vector() {
    let bytes = frame_of("create")[frames::HEADER..].to_vec();
    let Ok(Request::Create(plan)) = messages::request(&bytes).1 else {
        panic!("not a create");
    };
    assert_eq!((plan.id, plan.hostname, plan.domainname), ("box", None, Some("d")));
    assert_eq!(plan.join, [("/proc/9/ns/ipc", 0x0800_0000)]);
    assert_eq!(plan.mounts.len(), 2);
    assert_eq!((plan.mounts[1].fstype, plan.mounts[1].tmpcopyup.0), ("tmpfs", false));
    assert_eq!(plan.process.groups, [5, u32::MAX - 1]);
    assert_eq!(plan.process.rlimits, [(7, 1024, u64::MAX)]);
    assert_eq!((plan.process.ambient, plan.process.oom_score_adj), (1 << 40, Some(-500)));
    assert_eq!((plan.start_hooks[0].timeout, plan.start_hooks[1].timeout), (None, Some(10)));
    assert_eq!(plan.start_hooks[0].stdin, br#"{"id":"box"}"#);
}

#[test]
fn a_change_of_the_network_has_the_values_of_its_vector() {
    let bytes = frame_of("network_change")[frames::HEADER..].to_vec();
    let Ok(Request::NetworkChange(plan)) = messages::request(&bytes).1 else {
        panic!("not a network_change");
    };
    assert_eq!((plan.gone, plan.dns_relay), (vec![2], vec!["127.0.0.11"]));
    assert_eq!(plan.old_routes[0].gateway, Some("172.17.0.1"));
    assert_eq!((plan.interfaces[0].slot, plan.interfaces[0].name), (1, "eth1"));
    assert_eq!(plan.routes[0].destination, Some("172.18.0.0"));
}

#[test]
fn fields_that_may_be_left_out_are_read_if_they_are_there() {
    let bytes = frame_of("mount, every field")[frames::HEADER..].to_vec();
    let Ok(Request::Mount(plan)) = messages::request(&bytes).1 else {
        panic!("not a mount");
    };
    assert_eq!((plan.target, plan.kind, plan.flags), ("/b/ä", "none", 0x5001));
    assert_eq!(plan.recursive_attr.0, Some((1, 2)));
    assert_eq!(plan.folders.0, ["/run/scratch/upper"]);
    let bytes = frame_of("mount")[frames::HEADER..].to_vec();
    let Ok(Request::Mount(plan)) = messages::request(&bytes).1 else {
        panic!("not a mount");
    };
    assert_eq!((plan.recursive_attr.0, plan.folders.0), (None, Vec::new()));
}

#[test]
fn a_container_may_have_users_and_clocks() {
    let bytes = frame_of("create, with users")[frames::HEADER..].to_vec();
    let Ok(Request::Create(plan)) = messages::request(&bytes).1 else {
        panic!("not a create");
    };
    let users = plan.users.0.unwrap();
    assert_eq!((users.uid_map, users.gid_map), ("0 100000 65536\n", "0 100000 65536\n"));
    assert!(!users.network.0.unwrap().interfaces.is_empty());
    assert_eq!(plan.time_offsets.0, Some("boottime 5 0\n"));
    assert_eq!((plan.process.stdio_owner.0, plan.cgroup_owner.0), (Some(100_000), Some(101_000)));
}

#[test]
fn a_process_may_be_tuned() {
    let bytes = frame_of("exec, tuned")[frames::HEADER..].to_vec();
    let Ok(Request::Exec(plan)) = messages::request(&bytes).1 else {
        panic!("not an exec");
    };
    assert_eq!(plan.cgroup.0, Some("a/b"));
    let tuning = plan.process.tuning.0.unwrap();
    assert_eq!((tuning.sched_attr.0.unwrap().len(), tuning.io_priority.0), (56, Some(16387)));
    assert_eq!((tuning.affinity.0.unwrap()[0], tuning.personality.0), (3, Some(8)));
    let (mode, nodes) = tuning.memory_policy.0.unwrap();
    assert_eq!((mode, nodes), (2 | 1 << 15, [1, 0, 0, 0, 0, 0, 0, 0].as_slice()));
}

#[test]
fn what_is_no_request_is_refused_by_field() {
    for vector in vectors("not_requests") {
        let bytes = hex(&vector["payload"]);
        let (number, request) = messages::request(&bytes);
        assert_eq!(number, 1);
        let error = request.unwrap_err();
        assert_eq!(error.field, vector["field"].as_str().unwrap(), "{}", name(&vector));
    }
}

fn frame_of(title: &str) -> Vec<u8> {
    let all = vectors("frames");
    let vector = all.iter().find(|vector| name(vector) == title);
    hex(&vector.unwrap_or_else(|| panic!("no vector {title}"))["frame"])
}

/// What `make` appends.
fn made(make: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    make(&mut out);
    out
}

#[test]
fn events_and_errors_are_the_vectors() {
    assert_eq!(made(|out| answers::exit(out, "box", None, 32512)), frame_of("exit"));
    assert_eq!(made(|out| answers::exit(out, "box", Some("e1"), 9)), frame_of("exit of an exec"));
    assert_eq!(made(|out| answers::oom(out, "box", 3)), frame_of("oom"));
    let query = made(|out| answers::dns_query(out, 3, "127.0.0.11", false, b"\x12\x34\x01\x00"));
    assert_eq!(query, frame_of("dns_query"));
    let module = made(|out| answers::module(out, 4, "rtnl-link-wireguard", &["ip_tables", "9p"]));
    assert_eq!(module, frame_of("module"));
    let text = "hugetlb: operation not permitted";
    assert_eq!(made(|out| answers::log(out, "warning", text)), frame_of("log"));
    assert_eq!(made(|out| frames::credit(out, 1, 65536)), frame_of("credit"));
    let message = "exec: \"foo\": executable file not found in $PATH".to_owned();
    let mut error = Vec::new();
    Failure::worded("exec", "foo", 2, message).write(&mut error);
    assert_eq!(made(|out| answers::refuse(out, 8, &error)), frame_of("reply: an error"));
    let nothing = made(|out| answers::reply(out, 2, |writer| writer.nil()));
    assert_eq!(nothing, frame_of("reply: nothing to tell"));
}
