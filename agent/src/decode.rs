//! Reading typed values from msgpack.
//!
//! It is strict: an unknown field or a missing one is an error, which names the field. Everything
//! borrows from the frame, so a plan costs no copies.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::answers::Failure;
use crate::errno;
use crate::msgpack::{Malformed, Reader};

/// Bytes that are not a request; names the field at which reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotARequest {
    pub field: String,
    pub expected: &'static str,
}

impl From<Malformed> for NotARequest {
    fn from(cause: Malformed) -> Self {
        NotARequest { field: String::new(), expected: cause.0 }
    }
}

impl NotARequest {
    /// The same, seen from the structure that holds `name`.
    pub fn within(mut self, name: &str) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        self.field.insert_str(0, dot);
        self.field.insert_str(0, name);
        self
    }

    pub fn failure(&self) -> Failure {
        let message = format!("request: {}: expected {}", self.field, self.expected);
        Failure::worded("decode", &self.field, errno::EINVAL, message)
    }
}

/// A type that can be read from msgpack.
pub trait Decode<'a>: Sized {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest>;

    /// What a field that was left out stands for; `None`: it may not be left out.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! decode_integers {
    ($($type:ty)*) => { $(impl<'a> Decode<'a> for $type {
        fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
            let value = reader.integer()?;
            value.try_into().map_err(|_| Malformed(concat!("a number of type ", stringify!($type))).into())
        }
    })* };
}
decode_integers!(u8 u16 u32 u64 i32 i64);

impl<'a> Decode<'a> for bool {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        Ok(reader.bool()?)
    }
}

impl<'a> Decode<'a> for &'a str {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        let text = reader.str()?;
        if text.bytes().any(|byte| byte == 0) {
            return Err(Malformed("a string without NUL").into());
        }
        Ok(text)
    }
}

impl<'a> Decode<'a> for &'a [u8] {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        Ok(reader.bin()?)
    }
}

impl<'a, const N: usize> Decode<'a> for [u8; N] {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        reader.bin()?.try_into().map_err(|_| Malformed("bytes of the right length").into())
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        if reader.nil() {
            Ok(None)
        } else {
            T::decode(reader).map(Some)
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        let mut values = Vec::new();
        for index in 0..reader.array()? {
            let value = T::decode(reader).map_err(|error| error.within(&format!("{index}")))?;
            values.push(value);
        }
        Ok(values)
    }
}

impl<'a, A: Decode<'a>, B: Decode<'a>> Decode<'a> for (A, B) {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        match reader.array()? {
            2 => Ok((A::decode(reader)?, B::decode(reader)?)),
            _ => Err(Malformed("an array of 2").into()),
        }
    }
}

impl<'a, A: Decode<'a>, B: Decode<'a>, C: Decode<'a>> Decode<'a> for (A, B, C) {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        match reader.array()? {
            3 => Ok((A::decode(reader)?, B::decode(reader)?, C::decode(reader)?)),
            _ => Err(Malformed("an array of 3").into()),
        }
    }
}

/// A field that may be left out, and then has its type's default value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Maybe<T>(pub T);

impl<'a, T: Decode<'a> + Default> Decode<'a> for Maybe<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
        T::decode(reader).map(Maybe)
    }

    fn absent() -> Option<Self> {
        Some(Maybe::default())
    }
}

/// Declares structures and how they are read from a map; `as` names a field that is a keyword.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? {
        $($field:ident $(as $key:literal)?: $type:ty,)*
    })*) => { $(
        $(#[$doc])*
        #[derive(Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? { $(pub $field: $type,)* }

        impl<'a> Decode<'a> for $name $(<$life>)? {
            fn decode(reader: &mut Reader<'a>) -> Result<Self, NotARequest> {
                #[allow(non_camel_case_types)]
                enum Field { $($field,)* Unknown }
                const KEYS: &[&str] = &[$(key!($field $($key)?)),*];
                $(let mut $field = <$type as Decode>::absent();)*
                let mut index = Field::Unknown as usize;
                for _ in 0..reader.map()? {
                    let key = reader.str()?;
                    index = position(KEYS, key, index);
                    $(if index == Field::$field as usize {
                        let value = Decode::decode(reader).map_err(|error| error.within(key))?;
                        $field = Some(value);
                        continue;
                    })*
                    return Err(NotARequest::from(Malformed("no such field")).within(key));
                }
                Ok($name { $($field: present($field, key!($field $($key)?))?,)* })
            }
        }
    )* };
}

/// Where `key` is among `keys`, or their number; looked for first behind the `last` one found,
/// since fields come in the order in which they are declared.
pub fn position(keys: &[&str], key: &str, last: usize) -> usize {
    let next = if last < keys.len() { last + 1 } else { 0 };
    if keys.get(next) == Some(&key) {
        return next;
    }
    keys.iter().position(|known| *known == key).unwrap_or(keys.len())
}

pub fn present<T>(value: Option<T>, field: &str) -> Result<T, NotARequest> {
    match value {
        Some(value) => Ok(value),
        None => Err(missing(field)),
    }
}

macro_rules! key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

#[cold]
fn missing(field: &str) -> NotARequest {
    NotARequest::from(Malformed("the field to be there")).within(field)
}

pub(crate) use {key, structures};
