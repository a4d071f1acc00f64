//! Error numbers and their texts, worded as Go's standard library (and so runc) words them.

pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const ESRCH: i32 = 3;
pub const ENOMEM: i32 = 12;
pub const EACCES: i32 = 13;
pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const ENODEV: i32 = 19;
pub const EINVAL: i32 = 22;
pub const EPROTO: i32 = 71;
pub const EMSGSIZE: i32 = 90;

const TEXTS: [(i32, &str); 47] = [
    (1, "operation not permitted"),
    (2, "no such file or directory"),
    (3, "no such process"),
    (4, "interrupted system call"),
    (5, "input/output error"),
    (6, "no such device or address"),
    (7, "argument list too long"),
    (8, "exec format error"),
    (9, "bad file descriptor"),
    (10, "no child processes"),
    (11, "resource temporarily unavailable"),
    (12, "cannot allocate memory"),
    (13, "permission denied"),
    (14, "bad address"),
    (15, "block device required"),
    (16, "device or resource busy"),
    (17, "file exists"),
    (18, "invalid cross-device link"),
    (19, "no such device"),
    (20, "not a directory"),
    (21, "is a directory"),
    (22, "invalid argument"),
    (23, "too many open files in system"),
    (24, "too many open files"),
    (25, "inappropriate ioctl for device"),
    (26, "text file busy"),
    (27, "file too large"),
    (28, "no space left on device"),
    (30, "read-only file system"),
    (31, "too many links"),
    (32, "broken pipe"),
    (34, "numerical result out of range"),
    (36, "file name too long"),
    (38, "function not implemented"),
    (39, "directory not empty"),
    (40, "too many levels of symbolic links"),
    (62, "timer expired"),
    (71, "protocol error"),
    (75, "value too large for defined data type"),
    (90, "message too long"),
    (95, "operation not supported"),
    (97, "address family not supported by protocol"),
    (98, "address already in use"),
    (99, "cannot assign requested address"),
    (100, "network is down"),
    (101, "network is unreachable"),
    (122, "disk quota exceeded"),
];

/// What error `number` means, in lower case.
pub fn text(number: i32) -> &'static str {
    match TEXTS.iter().find(|(known, _)| *known == number) {
        Some((_, text)) => text,
        None => "unknown error",
    }
}
