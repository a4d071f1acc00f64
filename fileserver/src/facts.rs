//! What the guest's relay is told beforehand, so that it can answer some of the kernel's next
//! requests itself (agent/src/known.rs): after each change the kernel asks for the folder's
//! attributes, before it makes an entry whether there is one, before the first write and at each
//! exec for capabilities. It goes where notifications go, before the reply, and these also take it
//! back. Of what this host does not hear all changes nothing is said.

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::attributes::BELIEVED_S;
use crate::files::{open_folder, Files, ATTRIBUTES};
use crate::folders;
use crate::nodes;
use crate::sys;
use crate::wire::{Request, Result, FACT_ATTRIBUTES, FACT_DOUBT, FACT_NAMES, FACT_PLAIN};

/// How much of a folder is read for its names; a larger one's are not told.
const LARGEST: usize = 64 << 10;
/// How often the guest may ask in vain for names of a folder before they are told again: it does
/// so when the relay has forgotten them. A larger number each time.
const FIRST_PATIENCE: u32 = 16;
const CAPABILITY: &[u8] = b"security.capability";

/// What the relay has been told of a folder's names.
#[derive(Default)]
pub struct NamesTold {
    is_told: bool,
    misses: u32,
    patience: u32,
}

impl NamesTold {
    /// The guest has asked for an entry that is not there.
    pub fn missed(&mut self) {
        self.misses += 1;
        if self.is_told && self.misses > self.patience {
            (self.is_told, self.misses) = (false, 0);
        }
    }

    fn told(&mut self) {
        (self.is_told, self.misses) = (true, 0);
        self.patience = (self.patience * 4).max(FIRST_PATIENCE);
    }
}

/// FNV-1a, folded, as agent/src/known.rs has it.
fn hash(name: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0x811c_9dc5u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash ^ hash >> 16
}

/// The name with its ASCII letters in the other case; None where it has none.
fn in_other_case(name: &[u8]) -> Option<Vec<u8>> {
    let other = |byte: &u8| if byte.is_ascii_alphabetic() { byte ^ 0x20 } else { *byte };
    let swapped: Vec<u8> = name.iter().map(other).collect();
    (swapped != name).then_some(swapped)
}

impl Files {
    /// The guest has changed an entry of the folder.
    pub fn foretell_attributes(&mut self, folder: u64) {
        if self.believed(folder) == 0 {
            return;
        }
        let Ok(stat) = self.nodes.fd(folder).and_then(nodes::stat) else { return };
        let mut news = std::mem::take(&mut self.news);
        news.header(8 + 16 + ATTRIBUTES, FACT_ATTRIBUTES, 0);
        news.u64(folder).u64(BELIEVED_S).u32(0).u32(0);
        self.attributes(&mut news, &stat);
        self.news = news;
        self.is_foretold = true;
    }

    /// The attributes of folders may be others than were told.
    pub fn doubt_attributes(&mut self) {
        if std::mem::take(&mut self.is_foretold) {
            self.news.header(0, FACT_DOUBT, 0);
        }
    }

    /// Says whether a file has no capabilities: that of a regular one which has none.
    pub fn foretell_plain(&mut self, number: u64, is_plain: bool) {
        let is_regular =
            self.nodes.get(number).is_ok_and(|node| node.kind == FileType::RegularFile);
        if is_regular && (!is_plain || self.believed(number) > 0) {
            self.news.header(16, FACT_PLAIN, 0);
            self.news.u64(number).u32(is_plain.into()).u32(0);
        }
    }

    /// A program, which the guest may execute next.
    pub fn foretell_program(&mut self, number: u64, stat: &Statx) {
        if stat.stx_mode & 0o111 != 0 && nodes::kind_of(stat) == FileType::RegularFile {
            let Ok(fd) = self.nodes.fd(number) else { return };
            let found = rustix::fs::getxattr(sys::name_of(fd), CAPABILITY, &mut [0u8; 0][..]);
            if found == Err(Errno::NODATA) {
                self.foretell_plain(number, true);
            }
        }
    }

    /// The guest has asked for an extended attribute in vain.
    pub fn foretell_xattr(&mut self, number: u64, name: &[u8], error: Errno) {
        if name == CAPABILITY && error == Errno::NODATA {
            self.foretell_plain(number, true);
        }
    }

    /// Notes a request that makes a name: the relay counts alike, and knows so whether what it is
    /// told of a folder is older than a request that is under way.
    pub fn count_maker(&mut self, request: &Request) {
        use crate::opcode as op;
        const MAKERS: [u32; 6] =
            [op::MKNOD, op::MKDIR, op::SYMLINK, op::LINK, op::RENAME, op::RENAME2];
        if MAKERS.contains(&request.opcode) {
            self.makers = self.makers.wrapping_add(1);
        }
    }

    /// The guest has made an entry of the folder: it may go on to make others.
    pub fn foretell_names(&mut self, folder: u64) {
        let is_told = self.nodes.get(folder).map_or(true, |node| node.names.is_told);
        if is_told || self.believed(folder) == 0 {
            return;
        }
        let hashes = self.names(folder).unwrap_or_default();
        if let Ok(node) = self.nodes.get_mut(folder) {
            node.names.told();
        }
        if let Some(hashes) = hashes {
            self.news.header(16 + 4 * hashes.len(), FACT_NAMES, 0);
            self.news.u64(folder).u32(self.makers).u32(0);
            for hash in hashes {
                self.news.u32(hash);
            }
        }
    }

    /// All names of a folder; None if they are too many, or if more names lead to its entries.
    fn names(&self, folder: u64) -> Result<Option<Vec<u32>>> {
        let fd = open_folder(self.nodes.fd(folder)?)?;
        let mut buffer = vec![0; LARGEST];
        let filled = sys::entries(&fd, &mut buffer)?;
        let names: Vec<&[u8]> = folders::names(&buffer[..filled]).collect();
        if sys::entries(&fd, &mut [0; 1024])? > 0 || !self.minds_case(folder, &names) {
            return Ok(None);
        }
        Ok(Some(names.iter().map(|name| hash(name)).collect()))
    }

    /// Whether `a` and `A` are two names: tried with one that is there. (ext4, XFS and others can
    /// be told that they are not.)
    fn minds_case(&self, folder: u64, names: &[&[u8]]) -> bool {
        let stat = |name: &[u8]| {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            rustix::fs::statx(self.nodes.fd(folder)?, name, flags, StatxFlags::INO)
        };
        let tried = names.iter().find_map(|&name| Some((name, in_other_case(name)?)));
        tried.is_some_and(|(name, other)| match (stat(name), stat(&other)) {
            (Ok(_), Err(Errno::NOENT)) => true,
            (Ok(one), Ok(other)) => one.stx_ino != other.stx_ino,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_relay() {
        assert_eq!(hash(b""), 0x811c_9dc5 ^ 0x811c);
        assert_eq!(hash(b"file"), 0xaaea_fda9);
    }

    #[test]
    fn letters_have_another_case() {
        assert_eq!(in_other_case(b"a1-Z"), Some(b"A1-z".to_vec()));
        assert_eq!(in_other_case(b"1-\xe4"), None);
    }

    #[test]
    fn names_are_told_again_after_more_misses_each_time() {
        let mut names = NamesTold::default();
        for patience in [16, 64, 256] {
            names.told();
            (0..patience).for_each(|_| names.missed());
            assert!(names.is_told);
            names.missed();
            assert!(!names.is_told);
        }
    }
}
