//! Numbers of requests, enum fuse_opcode of linux/fuse.h, and how many of each have come.

/// Their names in the order of their numbers; the kernel's first one is 1.
macro_rules! opcodes {
    ($($name:ident = $number:literal),+ $(,)?) => {
        $(
            #[allow(dead_code)] // some are only counted
            pub const $name: u32 = $number;
        )+
        const NAMES: &[(u32, &str)] = &[$(($number, stringify!($name))),+];
    };
}

opcodes! {
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    OPENDIR = 27,
    READDIR = 28,
    FSYNCDIR = 30,
    CREATE = 35,
    INTERRUPT = 36,
    DESTROY = 38,
    IOCTL = 39,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    SYNCFS = 50,
    TMPFILE = 51,
}

const KNOWN: usize = 64;

/// How many requests of each kind have come: what a program costs does not depend on who else is
/// at work. Others than the kernel's count as number 0.
pub struct Counts([u64; KNOWN]);

impl Counts {
    pub fn new() -> Counts {
        Counts([0; KNOWN])
    }

    pub fn count(&mut self, opcode: u32) {
        let known = (opcode as usize) < KNOWN;
        self.0[if known { opcode as usize } else { 0 }] += 1;
    }

    /// `LOOKUP=3 GETATTR=1`: those that there were.
    pub fn text(&self) -> String {
        let name = |number: usize| {
            let found = NAMES.iter().find(|known| known.0 as usize == number);
            found.map_or_else(|| number.to_string(), |known| known.1.to_string())
        };
        let told = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        let told = told.map(|(number, count)| format!("{}={count}", name(number)));
        told.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_name() {
        let mut counts = Counts::new();
        for opcode in [LOOKUP, GETATTR, LOOKUP, 63, 0x0c10_0001] {
            counts.count(opcode);
        }
        assert_eq!(counts.text(), "0=1 LOOKUP=2 GETATTR=1 63=1");
    }
}
