//! Frames of the agent protocol, without I/O: eight bytes of header, then the payload.

use alloc::vec::Vec;

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// Most bytes that one DATA frame carries.
pub const MAX_DATA: usize = 65_536;
/// Most bytes of a request from the host: the 6 MiB that execve(2) takes at most, and the rest.
pub const MAX_REQUEST: usize = 8 << 20;
/// A buffer that has grown beyond that is not kept.
const KEPT: usize = 1 << 18;
/// The stream of requests, replies and events.
pub const CONTROL: u32 = 0;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Data = 0,
    Credit = 1,
    Eof = 2,
    Request = 3,
    Reply = 4,
    Event = 5,
}

impl Kind {
    fn from_wire(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Data,
            1 => Kind::Credit,
            2 => Kind::Eof,
            3 => Kind::Request,
            4 => Kind::Reply,
            5 => Kind::Event,
            _ => return None,
        })
    }

    fn allows(self, stream: u32, length: usize) -> bool {
        match self {
            Kind::Data => stream != CONTROL && length <= MAX_DATA,
            Kind::Credit => stream != CONTROL && length == 4,
            Kind::Eof => stream != CONTROL && length == 0,
            Kind::Request => stream == CONTROL && length <= MAX_REQUEST,
            Kind::Reply | Kind::Event => stream == CONTROL && length <= MAX_DATA,
        }
    }
}

/// One received frame; the payload lies in the decoder's buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub stream: u32,
    pub kind: Kind,
    pub payload: &'a [u8],
}

/// The other side does not speak this protocol; nothing after it can be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAFrame {
    pub stream: u32,
    pub kind: u8,
    pub length: usize,
}

/// Cuts a byte stream into frames. Bytes go in through [`Decoder::space`] and [`Decoder::filled`].
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Decoder {
    /// Room for at least `size` more bytes; how many were written is told to [`Decoder::filled`].
    pub fn space(&mut self, size: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT {
                self.buffer = Vec::new();
            }
        } else if self.start > 0 && self.buffer.len() - self.end < size {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < size {
            self.buffer.resize(self.end + size, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// `size` bytes of the last [`Decoder::space`] now hold input.
    pub fn filled(&mut self, size: usize) {
        self.end = (self.end + size).min(self.buffer.len());
    }

    /// The next whole frame, if one has arrived.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, NotAFrame> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [s0, s1, s2, s3, kind, l0, l1, l2] = *header;
        let stream = u32::from_le_bytes([s0, s1, s2, s3]);
        let length = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
        let known = Kind::from_wire(kind).filter(|kind| kind.allows(stream, length));
        let Some(known) = known else {
            return Err(NotAFrame { stream, kind, length });
        };
        if rest.len() < length {
            return Ok(None);
        }
        self.start += HEADER + length;
        Ok(Some(Frame { stream, kind: known, payload: &rest[..length] }))
    }

    /// Forgets a half received frame (the other side is a new one).
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

/// Appends the header of a frame whose payload follows; give the result to [`finish`].
pub fn begin(out: &mut Vec<u8>, stream: u32, kind: Kind) -> usize {
    let at = out.len();
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    at
}

/// Writes the length of the payload appended since [`begin`] into its header.
pub fn finish(out: &mut [u8], at: usize) {
    let length = out.len() - at - HEADER;
    out[at + 5..at + 8].copy_from_slice(&length.to_le_bytes()[..3]);
}

/// Appends a CREDIT frame: `bytes` more of `stream` have been consumed.
pub fn credit(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    let at = begin(out, stream, Kind::Credit);
    out.extend_from_slice(&bytes.to_le_bytes());
    finish(out, at);
}

/// Appends an EOF frame.
pub fn eof(out: &mut Vec<u8>, stream: u32) {
    begin(out, stream, Kind::Eof);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(decoder: &mut Decoder, bytes: &[u8]) {
        decoder.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        decoder.filled(bytes.len());
    }

    #[test]
    fn a_frame_comes_out_however_the_bytes_are_cut() {
        let mut wire = Vec::new();
        let at = begin(&mut wire, 7, Kind::Data);
        wire.extend_from_slice(b"hello");
        finish(&mut wire, at);
        eof(&mut wire, 7);
        for cut in 0..=wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                feed(&mut decoder, part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.stream, frame.kind, frame.payload.to_vec()));
                }
            }
            assert_eq!(
                seen,
                [(7, Kind::Data, b"hello".to_vec()), (7, Kind::Eof, Vec::new())],
                "cut {cut}"
            );
        }
    }

    #[test]
    fn lengths_and_streams_are_bounded_by_kind() {
        let bad: [[u8; 8]; 6] = [
            [1, 0, 0, 0, 0, 1, 0, 1],   // DATA of 65537
            [0, 0, 0, 0, 0, 1, 0, 0],   // DATA on the control stream
            [1, 0, 0, 0, 1, 3, 0, 0],   // CREDIT of 3 bytes
            [1, 0, 0, 0, 2, 1, 0, 0],   // EOF with payload
            [0, 0, 0, 0, 3, 1, 0, 128], // REQUEST above 8 MiB
            [0, 0, 0, 0, 9, 0, 0, 0],   // no such kind
        ];
        for header in bad {
            let mut decoder = Decoder::default();
            feed(&mut decoder, &header);
            assert!(decoder.next_frame().is_err(), "{header:?}");
        }
    }

    #[test]
    fn the_buffer_of_a_long_request_is_given_back() {
        let mut decoder = Decoder::default();
        let mut wire = Vec::new();
        let at = begin(&mut wire, CONTROL, Kind::Request);
        wire.resize(HEADER + MAX_REQUEST, 7);
        finish(&mut wire, at);
        for piece in wire.chunks(4096) {
            assert_eq!(decoder.next_frame().unwrap(), None);
            feed(&mut decoder, piece);
        }
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload.len(), MAX_REQUEST);
        feed(&mut decoder, &wire[..5]);
        assert!(decoder.buffer.capacity() < KEPT);
    }

    #[test]
    fn the_buffer_does_not_grow_with_the_stream() {
        let mut decoder = Decoder::default();
        let mut wire = Vec::new();
        credit(&mut wire, 3, 65_536);
        for _ in 0..10_000 {
            feed(&mut decoder, &wire[..5]);
            assert_eq!(decoder.next_frame().unwrap(), None);
            feed(&mut decoder, &wire[5..]);
            assert_eq!(decoder.next_frame().unwrap().unwrap().payload, 65_536u32.to_le_bytes());
        }
        assert!(decoder.buffer.len() < 64);
    }
}
