//! Messages of the kernel's FUSE protocol (linux/fuse.h), and what is added for bulk data.
//!
//! A message comes as one stream of bytes. The part of a long one behind its fixed beginning does
//! not: it lies in the bulk file, in the ring of its direction (see ring.rs).

use rustix::io::Errno;

pub type Result<T> = std::result::Result<T, Errno>;

/// Size of struct fuse_in_header and of struct fuse_out_header.
pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
/// Of a longer message only the beginning is in the stream (as agent/src/share.rs has it).
pub const INLINE: usize = 32 << 10;
/// That much of a long request: struct fuse_in_header and struct fuse_write_in.
pub const LONG_BEGINNING: usize = 80;
/// What a FUSE request carries at most, beside its beginning.
pub const MAX_DATA: usize = 1 << 20;

/// Messages of our own: from the relay that a session begins, and that it has taken bulk data.
pub const BEGIN: u32 = 0x0c10_0001;
pub const TAKEN: u32 = 0x0c10_0002;
/// To the relay: that bulk data of a request has been taken.
pub const FREED: i32 = 0x0c10_0003;
/// That the guest's kernel should forget files that it does not use; with 1: their data, too.
pub const FORGET: i32 = 0x0c10_0004;

/// To the relay, what it may answer by itself: attributes of a folder; whether a file has no
/// capabilities; all names of a folder; that the attributes are not to be relied on any more.
pub const FACT_ATTRIBUTES: i32 = 0x0c10_0010;
pub const FACT_PLAIN: i32 = 0x0c10_0011;
pub const FACT_NAMES: i32 = 0x0c10_0012;
pub const FACT_DOUBT: i32 = 0x0c10_0013;

pub const NOTIFY_INVAL_INODE: i32 = 2;
pub const NOTIFY_INVAL_ENTRY: i32 = 3;

/// A request as it came; `body` is what follows its header.
pub struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes a whole message apart.
    pub fn parse(message: &'a [u8]) -> Result<Request<'a>> {
        let mut fields = Fields(message);
        fields.u32()?;
        let opcode = fields.u32()?;
        let (unique, node) = (fields.u64()?, fields.u64()?);
        let (uid, gid) = (fields.u32()?, fields.u32()?);
        fields.skip(8)?;
        Ok(Request { opcode, unique, node, uid, gid, body: fields.0 })
    }

    pub fn fields(&self) -> Fields<'a> {
        Fields(self.body)
    }
}

/// Fields of a body, one after the other.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn skip(&mut self, count: usize) -> Result<()> {
        self.bytes(count).map(|_| ())
    }

    pub fn u32(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_ne_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_ne_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?))
    }

    /// A string that ends with NUL, without it.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// The name of a folder's entry: a single component that leads nowhere else.
    pub fn name(&mut self) -> Result<&'a [u8]> {
        let name = self.string()?;
        match name {
            b"" | b"." | b".." => Err(Errno::INVAL),
            _ if name.contains(&b'/') => Err(Errno::INVAL),
            _ if name.len() > 255 => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

/// Builds a reply's body, or a notification.
#[derive(Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u32(&mut self, value: u32) -> &mut Out {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Out {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Out {
        self.0.extend_from_slice(bytes);
        self
    }

    /// struct fuse_out_header for `length` bytes that follow.
    pub fn header(&mut self, length: usize, error: i32, unique: u64) -> &mut Out {
        self.u32((OUT_HEADER + length) as u32).u32(error as u32).u64(unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"no end"] {
            assert_eq!(Fields(bad).name(), Err(Errno::INVAL));
        }
        assert_eq!(Fields(&[b'x'; 300]).name(), Err(Errno::INVAL));
        let long = [&[b'x'; 256][..], b"\0"].concat();
        assert_eq!(Fields(&long).name(), Err(Errno::NAMETOOLONG));
        let mut fields = Fields(b"...\0\xff\0");
        assert_eq!(fields.name(), Ok(&b"..."[..]));
        assert_eq!(fields.name(), Ok(&b"\xff"[..]));
        assert_eq!(fields.u32(), Err(Errno::INVAL));
    }

    #[test]
    fn a_request_has_a_whole_header() {
        let mut message = [0u8; IN_HEADER + 3];
        message[4] = 9;
        message[8] = 7;
        let request = Request::parse(&message).expect("a whole one");
        assert_eq!((request.opcode, request.unique, request.body.len()), (9, 7, 3));
        assert!(Request::parse(&message[..IN_HEADER - 1]).is_err());
    }
}
