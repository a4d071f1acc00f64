//! Requests about a file's data.

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::files::Files;
use crate::sys;
use crate::wire::{Out, Request, Result, INLINE, MAX_DATA, OUT_HEADER};

/// FUSE_WRITE_KILL_SUIDGID.
const KILL_SET_IDS: u32 = 1 << 2;
const O_APPEND: u32 = libc::O_APPEND as u32;

/// Where the data of a read have been put.
pub enum Read {
    Inline,
    /// So many bytes are in the ring.
    Long(usize),
    /// There is no room in the ring yet.
    Later,
}

impl Files {
    /// FUSE_READ.
    pub fn read(&mut self, request: &Request, out: &mut Out) -> Result<Read> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let (offset, size) = (fields.u64()?, fields.u32()? as usize);
        let size = size.min(MAX_DATA);
        let file = self.open(request.node, OFlags::RDONLY)?;
        if OUT_HEADER + size <= INLINE {
            let start = out.0.len();
            out.0.resize(start + size, 0);
            let count = rustix::io::pread(&file, &mut out.0[start..], offset)?;
            out.0.truncate(start + count);
            return Ok(Read::Inline);
        }
        let Some((place, room)) = self.rings.outgoing(size) else { return Ok(Read::Later) };
        // SAFETY: the ring is mapped, and has that room.
        let count = unsafe { sys::read_at(&file, place, room, offset)? };
        if OUT_HEADER + count > INLINE {
            self.rings.lend(count);
            return Ok(Read::Long(count));
        }
        // SAFETY: as above. The guest may change it meanwhile: it would change what it gets itself.
        out.bytes(unsafe { std::slice::from_raw_parts(place, count) });
        Ok(Read::Inline)
    }

    /// FUSE_WRITE of what `data` points to: memory that the guest may change at any time, if long.
    pub fn write(
        &mut self,
        request: &Request,
        data: Option<(*const u8, usize)>,
        out: &mut Out,
    ) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let (offset, size, flags) = (fields.u64()?, fields.u32()? as usize, fields.u32()?);
        fields.skip(8)?;
        let file_flags = fields.u32()?;
        fields.skip(4)?;
        let (data, length) = data.unwrap_or((fields.0.as_ptr(), fields.0.len()));
        if length != size {
            return Err(Errno::INVAL);
        }
        self.hear();
        let append = file_flags & O_APPEND != 0;
        // A file that can only be appended to is opened in no other way.
        let mode = if append { OFlags::APPEND } else { OFlags::empty() };
        let file = self.open(request.node, OFlags::WRONLY | mode)?;
        let written = sys::dropping_privileges(flags & KILL_SET_IDS != 0, || {
            // SAFETY: all of it is in the request, or in the ring.
            unsafe { sys::write_at(&file, data, size, offset, append) }
        })?;
        let stat = self.changed(request.node)?;
        // It went where the guest did not know the end to be: others append there too.
        if append && stat.stx_size != offset + written as u64 {
            self.file_is_other(request.node, true);
        }
        out.u32(written as u32).u32(0);
        Ok(())
    }

    /// FUSE_FALLOCATE.
    pub fn allocate(&mut self, request: &Request) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let (offset, length, mode) = (fields.u64()?, fields.u64()?, fields.u32()?);
        self.hear();
        let file = self.open(request.node, OFlags::WRONLY)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(&file, mode, offset, length)?;
        self.changed(request.node).map(|_| ())
    }

    /// FUSE_LSEEK: SEEK_DATA and SEEK_HOLE.
    pub fn seek(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let (offset, whence) = (fields.u64()?, fields.u32()?);
        let file = self.open(request.node, OFlags::RDONLY)?;
        let whence = match whence as i32 {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        out.u64(rustix::fs::seek(&file, whence)?);
        Ok(())
    }

    /// FUSE_COPY_FILE_RANGE.
    pub fn copy(&mut self, request: &Request, out: &mut Out) -> Result<()> {
        let mut fields = request.fields();
        fields.skip(8)?;
        let mut from = fields.u64()?;
        let target = fields.u64()?;
        fields.skip(8)?;
        let (mut to, length) = (fields.u64()?, fields.u64()?);
        self.hear();
        let source = self.open(request.node, OFlags::RDONLY)?;
        let file = self.open(target, OFlags::WRONLY)?;
        // So that other requests get their turn.
        const MOST: u64 = 64 << 20;
        let length = length.min(MOST) as usize;
        let (from, to) = (Some(&mut from), Some(&mut to));
        let copied = rustix::fs::copy_file_range(&source, from, &file, to, length)?;
        self.changed(target)?;
        out.u32(copied as u32).u32(0);
        Ok(())
    }
}
