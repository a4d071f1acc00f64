//! The part of msgpack that the protocol uses: a reader that borrows, and a writer.

use alloc::vec::Vec;

/// Bytes that are not the msgpack that was expected; says what was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads values off the front of a slice; strings and byte strings stay where they are.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The byte that tells what the next value is.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.first().copied()
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.bytes.split_first().ok_or(Malformed("more bytes"))?;
        self.bytes = rest;
        Ok(first)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(size).ok_or(Malformed("more bytes"))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A big-endian number of `size` bytes.
    fn number(&mut self, size: usize) -> Result<u64, Malformed> {
        Ok(self.take(size)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    pub fn integer(&mut self) -> Result<i128, Malformed> {
        let tag = self.byte()?;
        Ok(match tag {
            0x00..=0x7f => i128::from(tag),
            0xe0..=0xff => i128::from(tag as i8),
            0xcc..=0xcf => i128::from(self.number(1 << (tag - 0xcc))?),
            0xd0..=0xd3 => {
                let size = 1usize << (tag - 0xd0);
                let unused = 64 - 8 * size as u32;
                i128::from((self.number(size)? << unused) as i64 >> unused)
            }
            _ => return Err(Malformed("an integer")),
        })
    }

    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            _ => Err(Malformed("a boolean")),
        }
    }

    /// True, and the value is consumed, if the next one is nil.
    pub fn nil(&mut self) -> bool {
        match self.bytes.split_first() {
            Some((0xc0, rest)) => {
                self.bytes = rest;
                true
            }
            _ => false,
        }
    }

    pub fn str(&mut self) -> Result<&'a str, Malformed> {
        let tag = self.byte()?;
        let size = match tag {
            0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9..=0xdb => self.number(1 << (tag - 0xd9))? as usize,
            _ => return Err(Malformed("a string")),
        };
        core::str::from_utf8(self.take(size)?).map_err(|_| Malformed("a string in UTF-8"))
    }

    pub fn bin(&mut self) -> Result<&'a [u8], Malformed> {
        let tag = self.byte()?;
        let size = match tag {
            0xc4..=0xc6 => self.number(1 << (tag - 0xc4))? as usize,
            _ => return Err(Malformed("bytes")),
        };
        self.take(size)
    }

    /// The number of elements that follow; never more than there are bytes left.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        let tag = self.byte()?;
        let count = match tag {
            0x90..=0x9f => usize::from(tag & 0x0f),
            0xdc..=0xdd => self.number(2 << (tag - 0xdc))? as usize,
            _ => return Err(Malformed("an array")),
        };
        self.plausible(count)
    }

    /// The number of key and value pairs that follow; never more than there are bytes left.
    pub fn map(&mut self) -> Result<usize, Malformed> {
        let tag = self.byte()?;
        let count = match tag {
            0x80..=0x8f => usize::from(tag & 0x0f),
            0xde..=0xdf => self.number(2 << (tag - 0xde))? as usize,
            _ => return Err(Malformed("a map")),
        };
        self.plausible(count)
    }

    fn plausible(&self, count: usize) -> Result<usize, Malformed> {
        if count <= self.bytes.len() {
            Ok(count)
        } else {
            Err(Malformed("as many elements as announced"))
        }
    }
}

/// Appends msgpack values, each in its shortest form, as every msgpack library does.
pub struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// A tag for lengths of 8 (unless `short` is 0), 16 or 32 bits, then the length.
    fn sized(&mut self, size: usize, short: u8, long: u8) {
        if short != 0 && size < 1 << 8 {
            self.out.extend_from_slice(&[short, size as u8]);
        } else if size < 1 << 16 {
            self.out.push(long);
            self.out.extend_from_slice(&(size as u16).to_be_bytes());
        } else {
            self.out.push(long + 1);
            self.out.extend_from_slice(&(size as u32).to_be_bytes());
        }
    }

    pub fn nil(&mut self) {
        self.out.push(0xc0);
    }

    pub fn bool(&mut self, value: bool) {
        self.out.push(0xc2 + u8::from(value));
    }

    pub fn uint(&mut self, value: u64) {
        let bytes = value.to_be_bytes();
        match value {
            0..=0x7f => self.out.push(value as u8),
            0x80..=0xff => self.tagged(0xcc, &bytes[7..]),
            0x100..=0xffff => self.tagged(0xcd, &bytes[6..]),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &bytes[4..]),
            _ => self.tagged(0xcf, &bytes),
        }
    }

    pub fn int(&mut self, value: i64) {
        let bytes = value.to_be_bytes();
        match value {
            0.. => self.uint(value as u64),
            -0x20..=-1 => self.out.push(value as u8),
            -0x80..=-0x21 => self.tagged(0xd0, &bytes[7..]),
            -0x8000..=-0x81 => self.tagged(0xd1, &bytes[6..]),
            -0x8000_0000..=-0x8001 => self.tagged(0xd2, &bytes[4..]),
            _ => self.tagged(0xd3, &bytes),
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.out.push(tag);
        self.out.extend_from_slice(bytes);
    }

    pub fn str(&mut self, value: &str) {
        match value.len() {
            size @ 0..=31 => self.out.push(0xa0 | size as u8),
            size => self.sized(size, 0xd9, 0xda),
        }
        self.out.extend_from_slice(value.as_bytes());
    }

    pub fn bin(&mut self, value: &[u8]) {
        self.sized(value.len(), 0xc4, 0xc5);
        self.out.extend_from_slice(value);
    }

    pub fn array(&mut self, count: usize) {
        match count {
            0..=15 => self.out.push(0x90 | count as u8),
            _ => self.sized(count, 0, 0xdc),
        }
    }

    pub fn map(&mut self, count: usize) {
        match count {
            0..=15 => self.out.push(0x80 | count as u8),
            _ => self.sized(count, 0, 0xde),
        }
    }

    /// A string, or nil.
    pub fn optional(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.str(value),
            None => self.nil(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut Writer { out: &mut out });
        out
    }

    #[test]
    fn integers_survive_at_every_width() {
        let mut values = vec![0i64, i64::MAX, i64::MIN];
        for bit in 0..63 {
            let power = 1i64 << bit;
            values.extend([power, power - 1, -power, -power - 1]);
        }
        for value in values {
            let bytes = written(|writer| writer.int(value));
            assert_eq!(Reader::new(&bytes).integer(), Ok(i128::from(value)));
        }
        let bytes = written(|writer| writer.uint(u64::MAX));
        assert_eq!(Reader::new(&bytes).integer(), Ok(i128::from(u64::MAX)));
    }

    #[test]
    fn strings_bytes_and_counts_survive_at_every_width() {
        for size in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(size);
            let bytes = written(|writer| writer.str(&text));
            assert_eq!(Reader::new(&bytes).str(), Ok(text.as_str()));
            let bytes = written(|writer| writer.bin(text.as_bytes()));
            assert_eq!(Reader::new(&bytes).bin(), Ok(text.as_bytes()));
            let mut bytes = written(|writer| writer.array(size));
            bytes.extend(text.bytes());
            assert_eq!(Reader::new(&bytes).array(), Ok(size));
            let mut bytes = written(|writer| writer.map(size));
            bytes.extend(text.bytes());
            assert_eq!(Reader::new(&bytes).map(), Ok(size));
        }
    }

    #[test]
    fn truncated_and_foreign_bytes_are_errors() {
        assert!(Reader::new(&[]).integer().is_err());
        assert!(Reader::new(&[0xcd, 1]).integer().is_err());
        assert!(Reader::new(&[0xa3, b'a']).str().is_err());
        assert!(Reader::new(&[0xa1, 0xff]).str().is_err());
        assert!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).array().is_err());
        assert!(Reader::new(&[0xc1]).bool().is_err());
        assert!(!Reader::new(&[0xc2]).nil());
    }
}
