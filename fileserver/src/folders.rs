//! Folders being listed.
//!
//! The guest opens no folders: it asks for what comes behind a place. Where entries are removed
//! meanwhile, only the open folder itself knows where that is (overlay file systems, say). So each
//! stays open until it is read to its end, or too many others are.

use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::files::{open_folder, Files};
use crate::nodes;
use crate::sys;
use crate::wire::{Out, Request, Result};

const MOST_LISTINGS: usize = 32;
/// struct fuse_dirent without its name, and struct fuse_entry_out.
const DIRENT: usize = 24;
const ENTRY: usize = 128;
/// struct linux_dirent64 without its name.
const DIRENT64: usize = 19;
const LARGEST: usize = 64 << 10;

/// The open folders by node and by the place up to which they were read; the oldest first.
#[derive(Default)]
pub struct Listings(Vec<(u64, u64, OwnedFd)>);

impl Listings {
    fn take(&mut self, node: u64, place: u64) -> Option<OwnedFd> {
        let index = self.0.iter().position(|open| (open.0, open.1) == (node, place))?;
        Some(self.0.remove(index).2)
    }

    fn keep(&mut self, node: u64, place: u64, folder: OwnedFd) {
        if self.0.len() >= MOST_LISTINGS {
            self.0.remove(0);
        }
        self.0.push((node, place, folder));
    }
}

/// One entry as the host's kernel tells of it.
struct Entry<'a> {
    inode: u64,
    place: u64,
    kind: u8,
    name: &'a [u8],
}

fn parse(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let number = |range: std::ops::Range<usize>| {
        Some(u64::from_ne_bytes(bytes.get(range)?.try_into().ok()?))
    };
    let (inode, place) = (number(0..8)?, number(8..16)?);
    let size = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let text = bytes.get(DIRENT64..size)?;
    let end = text.iter().position(|&byte| byte == 0)?;
    let entry = Entry { inode, place, kind: *bytes.get(18)?, name: &text[..end] };
    Some((entry, bytes.get(size..)?))
}

/// The names among what the host's kernel tells of a folder.
pub fn names(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (entry, behind) = parse(bytes)?;
        bytes = behind;
        Some(entry.name)
    })
}

impl Files {
    /// FUSE_READDIR, and (`plus`) FUSE_READDIRPLUS, which tells of each entry what a look-up does.
    pub fn read_folder(&mut self, request: &Request, plus: bool, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let (mut place, size) = (fields.u64()?, fields.u32()? as usize);
        let size = size.min(LARGEST);
        self.doubt_attributes(); // the time of the last access
        let folder = match self.listings.take(request.node, place) {
            Some(folder) => folder,
            None => {
                let folder = open_folder(self.nodes.fd(request.node)?)?;
                if place != 0 {
                    rustix::fs::seek(&folder, SeekFrom::Start(place))?;
                }
                folder
            }
        };
        let mut buffer = vec![0; if plus { (size / 4).max(1024) } else { size.max(1024) }];
        let filled = sys::entries(&folder, &mut buffer)?;
        let mut rest = &buffer[..filled];
        while let Some((entry, behind)) = parse(rest) {
            let length =
                DIRENT + entry.name.len().next_multiple_of(8) + if plus { ENTRY } else { 0 };
            if out.0.len() + length > size {
                break;
            }
            self.tell_entry(request.node, &entry, plus, out);
            (place, rest) = (entry.place, behind);
        }
        if filled == 0 {
            return Ok(());
        }
        if out.0.is_empty() {
            return Err(Errno::INVAL); // not even one entry has room
        }
        if !rest.is_empty() {
            rustix::fs::seek(&folder, SeekFrom::Start(place))?;
        }
        self.listings.keep(request.node, place, folder);
        Ok(())
    }

    fn tell_entry(&mut self, folder: u64, entry: &Entry, plus: bool, out: &mut Out) {
        if plus {
            let start = out.0.len();
            let is_itself = matches!(entry.name, b"." | b"..");
            let told = if is_itself || self.nodes.is_crowded() {
                Err(Errno::NOENT)
            } else {
                self.hold(folder, entry.name).and_then(|fd| self.tell(folder, fd, out)).map(drop)
            };
            if told.is_err() {
                // The guest looks it up itself if it wants to know.
                out.0.truncate(start);
                out.bytes(&[0; ENTRY]);
            }
        }
        let device = self.nodes.fd(folder).and_then(nodes::stat).map(|stat| nodes::device(&stat));
        let inode = self.nodes.mounts.inode(device.unwrap_or(0), entry.inode);
        out.u64(inode).u64(entry.place).u32(entry.name.len() as u32).u32(entry.kind.into());
        out.bytes(entry.name);
        let padding = entry.name.len().next_multiple_of(8) - entry.name.len();
        out.bytes(&[0; 8][..padding]);
    }
}
