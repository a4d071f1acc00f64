//! What the host has said beforehand about its files: the relay answers some requests of the
//! kernel with it, and the host is not asked (docs/files.md). It is correct since the host takes
//! back what has changed before anything later is answered, as it does with what the kernel keeps.

use alloc::vec;
use alloc::vec::Vec;

/// Messages of the host, as fileserver/src/wire.rs has them: attributes of a folder; which files
/// have no capabilities; all names of a folder; that attributes are not to be relied on any more.
pub const ATTRIBUTES: u32 = 0x0c10_0010;
pub const PLAIN: u32 = 0x0c10_0011;
pub const NAMES: u32 = 0x0c10_0012;
pub const DOUBT: u32 = 0x0c10_0013;
/// And of the kernel's protocol.
const INVAL_INODE: u32 = 2;
const INVAL_ENTRY: u32 = 3;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const GETXATTR: u32 = 22;
const OPENDIR: u32 = 27;
const CREATE: u32 = 35;
const RENAME2: u32 = 45;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// struct fuse_attr_out and struct fuse_entry_out.
const ATTR_OUT: usize = 104;
const ENTRY_OUT: usize = 128;
pub const LONGEST_ANSWER: usize = OUT_HEADER + ENTRY_OUT;
/// For how long anything is believed, in seconds, as fileserver/src/attributes.rs has it.
const BELIEVED_S: u64 = 30;
const ENOSYS: i32 = 38;
const ENODATA: i32 = 61;

const ROOT: u64 = 1;
/// Folders whose attributes are known, files without capabilities, folders whose names are known.
const MOST_ATTRIBUTES: usize = 16;
const MOST_PLAIN: usize = 4096;
const MOST_FOLDERS: usize = 8;
/// Bits that stand for names of one folder, and how many names make them useless.
const BITS: usize = 1 << 16;
const MOST_NAMES: u32 = 1 << 15;

struct Attributes {
    folder: u64,
    since: u64,
    out: [u8; ATTR_OUT],
}

/// All that is in a folder, or has been: a name whose bit is not set is not there.
struct Folder {
    number: u64,
    names: u32,
    bits: Vec<u64>,
}

impl Folder {
    fn add(&mut self, hash: u32) {
        let bit = hash as usize % BITS;
        self.bits[bit / 64] |= 1 << (bit % 64);
        self.names += 1;
        if self.names > MOST_NAMES {
            self.number = 0;
        }
    }

    fn has(&self, hash: u32) -> bool {
        let bit = hash as usize % BITS;
        self.bits[bit / 64] & 1 << (bit % 64) != 0
    }
}

/// Nothing here allocates but `new`: it is used by several threads.
pub struct Known {
    attributes: [Attributes; MOST_ATTRIBUTES],
    oldest_attributes: usize,
    plain: Vec<u64>,
    folders: Vec<Folder>,
    oldest_folder: usize,
    /// How many requests there were that make names. The host counts too: what it says about a
    /// folder's names counts only if it had seen all of them.
    makers: u32,
}

/// FNV-1a, folded; the host's names come as such numbers.
pub fn hash(name: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0x811c_9dc5u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash ^ hash >> 16
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A string that ends with NUL, and what is behind it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The share's own folder, which is the same in each VM: known before anybody serves it.
fn root() -> Attributes {
    const FOLDER: u32 = 0o040_755;
    let mut out = [0; ATTR_OUT];
    out[..8].copy_from_slice(&(u64::from(u32::MAX)).to_ne_bytes()); // for ever
    out[16..24].copy_from_slice(&ROOT.to_ne_bytes());
    out[76..80].copy_from_slice(&FOLDER.to_ne_bytes());
    out[80..84].copy_from_slice(&2u32.to_ne_bytes());
    Attributes { folder: ROOT, since: u64::MAX - BELIEVED_S, out }
}

impl Default for Known {
    fn default() -> Known {
        let none = || Attributes { folder: 0, since: 0, out: [0; ATTR_OUT] };
        let folder = |_| Folder { number: 0, names: 0, bits: vec![0; BITS / 64] };
        let mut attributes = core::array::from_fn(|_| none());
        attributes[0] = root();
        Known {
            attributes,
            oldest_attributes: 1,
            plain: vec![0; MOST_PLAIN],
            folders: (0..MOST_FOLDERS).map(folder).collect(),
            oldest_folder: 0,
            makers: 0,
        }
    }
}

impl Known {
    /// Takes a message of the host's: what it says, or takes back. `now` in seconds.
    pub fn hear(&mut self, message: &[u8], now: u64) -> Option<()> {
        let body = message.get(OUT_HEADER..)?;
        match u32_at(message, 4)? {
            INVAL_INODE => {
                let number = u64_at(body, 0)?;
                self.doubt(number);
                self.folders.iter_mut().for_each(|known| {
                    if known.number == number {
                        known.number = 0;
                    }
                });
                self.set_plain(number, false);
            }
            INVAL_ENTRY => {
                let folder = u64_at(body, 0)?;
                self.doubt(folder);
                self.add_name(folder, string(body.get(16..)?)?.0);
            }
            ATTRIBUTES => {
                let (folder, out) = (u64_at(body, 0)?, body.get(8..8 + ATTR_OUT)?);
                self.doubt(folder);
                let place = &mut self.attributes[self.oldest_attributes];
                self.oldest_attributes = (self.oldest_attributes + 1) % MOST_ATTRIBUTES;
                (place.folder, place.since) = (folder, now);
                place.out.copy_from_slice(out);
            }
            PLAIN => self.set_plain(u64_at(body, 0)?, u32_at(body, 8)? != 0),
            NAMES => self.learn(u64_at(body, 0)?, u32_at(body, 8)?, body.get(16..)?),
            DOUBT => self.attributes.iter_mut().for_each(|known| known.folder = 0),
            _ => {}
        }
        Some(())
    }

    fn doubt(&mut self, folder: u64) {
        for known in self.attributes.iter_mut().filter(|known| known.folder == folder) {
            known.folder = 0;
        }
    }

    fn set_plain(&mut self, file: u64, is_plain: bool) {
        let place = &mut self.plain[file as usize % MOST_PLAIN];
        if is_plain {
            *place = file;
        } else if *place == file {
            *place = 0;
        }
    }

    fn learn(&mut self, number: u64, makers: u32, hashes: &[u8]) {
        if makers != self.makers {
            return;
        }
        let known = self.folders.iter().position(|folder| folder.number == number);
        let place = known.unwrap_or(self.oldest_folder);
        if known.is_none() {
            self.oldest_folder = (self.oldest_folder + 1) % MOST_FOLDERS;
        }
        let folder = &mut self.folders[place];
        folder.bits.fill(0);
        (folder.number, folder.names) = (number, 0);
        for at in (0..hashes.len()).step_by(4) {
            folder.add(u32_at(hashes, at).unwrap_or_default());
        }
    }

    fn add_name(&mut self, number: u64, name: &[u8]) {
        if let Some(folder) = self.folders.iter_mut().find(|folder| folder.number == number) {
            folder.add(hash(name));
        }
    }

    /// Answers a request, into `reply`, or notes what it will change: None means the host is asked.
    pub fn answer(
        &mut self,
        request: &[u8],
        now: u64,
        reply: &mut [u8; LONGEST_ANSWER],
    ) -> Option<usize> {
        let (opcode, number) = (u32_at(request, 4)?, u64_at(request, 16)?);
        let body = request.get(IN_HEADER..)?;
        if number == 0 {
            return None; // as whatever is not known is numbered here
        }
        let (error, length) = match opcode {
            LOOKUP => {
                let folder = self.folders.iter().find(|folder| folder.number == number)?;
                if folder.has(hash(string(body)?.0)) {
                    return None;
                }
                // Node 0: there is no such entry.
                reply.fill(0);
                reply[OUT_HEADER + 16..][..8].copy_from_slice(&BELIEVED_S.to_ne_bytes());
                (0, ENTRY_OUT)
            }
            GETATTR => {
                let known = self.attributes.iter_mut().find(|known| known.folder == number)?;
                known.folder = 0; // the kernel has it now
                if now > known.since + BELIEVED_S {
                    return None;
                }
                reply[OUT_HEADER..][..ATTR_OUT].copy_from_slice(&known.out);
                (0, ATTR_OUT)
            }
            GETXATTR => {
                let is_plain = self.plain[number as usize % MOST_PLAIN] == number;
                if !is_plain || string(body.get(8..)?)?.0 != b"security.capability" {
                    return None;
                }
                (-ENODATA, 0)
            }
            // As the host does: the kernel then does without, and asks no more.
            OPENDIR | CREATE => (-ENOSYS, 0),
            _ => {
                self.note_names(opcode, number, body);
                return None;
            }
        };
        reply[..4].copy_from_slice(&((OUT_HEADER + length) as u32).to_ne_bytes());
        reply[4..8].copy_from_slice(&error.to_ne_bytes());
        reply[8..16].copy_from_slice(request.get(8..16)?);
        Some(OUT_HEADER + length)
    }

    /// A request that makes a name: from now on it may be there.
    fn note_names(&mut self, opcode: u32, folder: u64, body: &[u8]) -> Option<()> {
        let before = match opcode {
            MKNOD | RENAME2 => 16,
            MKDIR | LINK | RENAME => 8,
            SYMLINK => 0,
            _ => return None,
        };
        self.makers = self.makers.wrapping_add(1);
        let (name, behind) = string(body.get(before..)?)?;
        self.add_name(folder, name);
        if matches!(opcode, RENAME | RENAME2) {
            self.add_name(u64_at(body, 0)?, string(behind)?.0);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: u64 = 5;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&77u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&node.to_ne_bytes());
        [&bytes, body].concat()
    }

    fn message(code: u32, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; OUT_HEADER];
        bytes[4..8].copy_from_slice(&code.to_ne_bytes());
        [&bytes[..], &parts.concat()].concat()
    }

    fn ask(known: &mut Known, request: &[u8], now: u64) -> Option<Vec<u8>> {
        let mut reply = [0xff; LONGEST_ANSWER];
        known.answer(request, now, &mut reply).map(|size| reply[..size].to_vec())
    }

    fn names(known: &mut Known, makers: u32, names: &[&[u8]]) {
        let hashes: Vec<u8> = names.iter().flat_map(|name| hash(name).to_ne_bytes()).collect();
        let counts = [makers, 0].map(u32::to_ne_bytes).concat();
        known.hear(&message(NAMES, &[&FOLDER.to_ne_bytes(), &counts, &hashes]), 0);
    }

    #[test]
    fn hashes_are_those_of_the_host() {
        assert_eq!(hash(b""), 0x811c_9dc5 ^ 0x811c);
        assert_eq!(hash(b"file"), 0xaaea_fda9);
    }

    #[test]
    fn a_name_that_is_not_in_a_known_folder_is_missing() {
        let mut known = Known::default();
        let look = |name: &[u8]| request(LOOKUP, FOLDER, name);
        assert_eq!(ask(&mut known, &look(b"new\0"), 0), None);
        names(&mut known, 0, &[b"old"]);
        let reply = ask(&mut known, &look(b"new\0"), 0).expect("an answer");
        assert_eq!(u32_at(&reply, 0), Some(144));
        assert_eq!((u32_at(&reply, 4), u64_at(&reply, 8)), (Some(0), Some(77)));
        assert_eq!((u64_at(&reply, 16), u64_at(&reply, 32)), (Some(0), Some(BELIEVED_S)));
        assert_eq!(ask(&mut known, &look(b"old\0"), 0), None);
        // Others make names, by all ways that there are, and the host does.
        let requests = [
            request(MKNOD, FOLDER, &[&[0; 16][..], b"a\0"].concat()),
            request(MKDIR, FOLDER, &[&[0; 8][..], b"b\0"].concat()),
            request(SYMLINK, FOLDER, b"c\0target\0"),
            request(LINK, FOLDER, &[&[0; 8][..], b"d\0"].concat()),
            request(RENAME, 9, &[&FOLDER.to_ne_bytes()[..], b"x\0e\0"].concat()),
            request(RENAME2, 9, &[&FOLDER.to_ne_bytes()[..], &[0; 8], b"x\0f\0"].concat()),
        ];
        let made = [b"a\0", b"b\0", b"c\0", b"d\0", b"e\0", b"f\0"];
        for (request, name) in requests.iter().zip(made) {
            assert!(ask(&mut known, &look(name), 0).is_some());
            assert_eq!(ask(&mut known, request, 0), None);
            assert_eq!(ask(&mut known, &look(name), 0), None);
        }
        known.hear(&message(INVAL_ENTRY, &[&FOLDER.to_ne_bytes(), &[0; 8], b"h\0"]), 0);
        assert_eq!(ask(&mut known, &look(b"h\0"), 0), None);
        assert!(ask(&mut known, &look(b"i\0"), 0).is_some());
        known.hear(&message(INVAL_INODE, &[&FOLDER.to_ne_bytes(), &[0; 16]]), 0);
        assert_eq!(ask(&mut known, &look(b"i\0"), 0), None);
    }

    #[test]
    fn names_count_only_if_the_host_had_seen_all_requests() {
        let mut known = Known::default();
        ask(&mut known, &request(SYMLINK, 9, b"c\0target\0"), 0);
        names(&mut known, 0, &[]);
        assert_eq!(ask(&mut known, &request(LOOKUP, FOLDER, b"c\0"), 0), None);
        names(&mut known, 1, &[]);
        assert!(ask(&mut known, &request(LOOKUP, FOLDER, b"c\0"), 0).is_some());
    }

    #[test]
    fn attributes_of_a_folder_are_handed_on_once() {
        let mut known = Known::default();
        let told = message(ATTRIBUTES, &[&FOLDER.to_ne_bytes(), &[7; ATTR_OUT]]);
        let get = request(GETATTR, FOLDER, &[0; 16]);
        known.hear(&told, 10);
        let reply = ask(&mut known, &get, 40).expect("an answer");
        assert_eq!((reply.len(), &reply[16..]), (120, &[7; ATTR_OUT][..]));
        assert_eq!(ask(&mut known, &get, 40), None);
        known.hear(&told, 10);
        assert_eq!(ask(&mut known, &get, 41), None);
        for doubt in [
            message(DOUBT, &[]),
            message(INVAL_INODE, &[&FOLDER.to_ne_bytes(), &[0; 16]]),
            message(INVAL_ENTRY, &[&FOLDER.to_ne_bytes(), &[0; 8], b"h\0"]),
        ] {
            known.hear(&told, 10);
            known.hear(&doubt, 10);
            assert_eq!(ask(&mut known, &get, 10), None);
        }
    }

    #[test]
    fn a_plain_file_has_no_capabilities_until_it_is_changed() {
        let mut known = Known::default();
        let plain = message(PLAIN, &[&FOLDER.to_ne_bytes(), &1u32.to_ne_bytes(), &[0; 4]]);
        let get = |name: &[u8]| request(GETXATTR, FOLDER, &[&[0; 8], name].concat());
        known.hear(&plain, 0);
        let reply = ask(&mut known, &get(b"security.capability\0"), 0).expect("an answer");
        assert_eq!((reply.len(), u32_at(&reply, 4)), (16, Some(-ENODATA as u32)));
        assert_eq!(ask(&mut known, &get(b"user.x\0"), 0), None);
        let other = message(PLAIN, &[&FOLDER.to_ne_bytes(), &[0; 8]]);
        let changed = message(INVAL_INODE, &[&FOLDER.to_ne_bytes(), &[0; 16]]);
        for taken_back in [other, changed] {
            known.hear(&plain, 0);
            known.hear(&taken_back, 0);
            assert_eq!(ask(&mut known, &get(b"security.capability\0"), 0), None);
        }
    }

    #[test]
    fn what_is_the_same_in_each_vm_is_known_from_the_beginning() {
        let mut known = Known::default();
        let reply = ask(&mut known, &request(GETATTR, ROOT, &[0; 16]), 7).expect("an answer");
        assert_eq!(u64_at(&reply, 16), Some(u32::MAX.into()));
        assert_eq!((u64_at(&reply, 32), u32_at(&reply, 92)), (Some(ROOT), Some(0o040_755)));
        for opcode in [OPENDIR, CREATE] {
            let reply = ask(&mut known, &request(opcode, 3, &[0; 32]), 7).expect("an answer");
            assert_eq!(u32_at(&reply, 4), Some(-ENOSYS as u32));
        }
    }
}
