//! The bytes of a QMP connection: JSON values in, lines out.
//!
//! Owns the boundaries of values in a stream that may have no line breaks, the reports of input
//! that is not JSON and the position at which reading continues after it, and the printed form of
//! values. Never knows what a value means. Keeps memory bounded: a message longer than the parser's
//! limit or nested deeper than [`MAX_NESTING`] is an error, not an allocation.
//!
//! docs/interop/qmp-spec of QEMU: output is ASCII and ends with CRLF; an ASCII control
//! character (or the byte 0xFF) brings the parser into a known state. As an extension of QEMU's
//! parser, strings may stand in single quotes, where `"` needs no backslash; a key that an object
//! has twice is an error.

use std::io;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

/// The most bytes of one message of a client.
pub const MAX_MESSAGE: usize = 4 << 20;
/// The deepest nesting of arrays and objects.
pub const MAX_NESTING: i32 = 100;

/// Input that is not a JSON value, or is too large for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON parse error, {0}")]
pub struct ParseError(String);

/// The parser's state between two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two tokens.
    Start,
    /// Within a number or a name.
    Bare,
    /// Within a string that this quote ends.
    Text(u8),
    /// Within such a string, after a backslash.
    Escape(u8),
    /// After an error, up to a byte that probably begins a new value.
    Recovery,
}

/// Cuts a stream of bytes into JSON values.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The most bytes of a message.
    most: usize,
    /// Bytes of the message so far.
    message: Vec<u8>,
    /// Open objects; below 0 if one was closed too often.
    braces: i32,
    /// Open arrays.
    brackets: i32,
}

impl Default for Parser {
    fn default() -> Self {
        Parser::new(MAX_MESSAGE)
    }
}

impl Parser {
    /// A parser of messages of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Parser { state: State::Start, most, message: Vec::new(), braces: 0, brackets: 0 }
    }

    /// Parses more bytes and passes each value, or error, to `found` as soon as it is complete. A
    /// number or a name outside an object or array is complete only with the byte after it.
    pub fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Result<Value, ParseError>)) {
        for &byte in bytes {
            while !self.step(byte, &mut found) {}
        }
    }

    /// Parses `byte`; false if it ended a token and must be parsed again.
    fn step(&mut self, byte: u8, found: &mut impl FnMut(Result<Value, ParseError>)) -> bool {
        match self.state {
            State::Start => self.start(byte, found),
            State::Bare => match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.' => {
                    self.push(byte, found);
                }
                _ => {
                    self.state = State::Start;
                    self.token_ended(found);
                    return false;
                }
            },
            State::Text(quote) => match byte {
                _ if byte == quote => {
                    self.state = State::Start;
                    self.push(b'"', found);
                    self.token_ended(found);
                }
                // The next byte decides whether the backslash is kept.
                b'\\' => self.state = State::Escape(quote),
                b'"' => self.escaped(byte, found),
                0x20..=0xfd => self.push(byte, found),
                _ => self.stray(byte, found),
            },
            State::Escape(quote) => match byte {
                0x20..=0xfd => {
                    self.state = State::Text(quote);
                    if byte == b'\'' {
                        self.push(byte, found);
                    } else {
                        self.escaped(byte, found);
                    }
                }
                _ => self.stray(byte, found),
            },
            State::Recovery => match byte {
                b'{' | b'}' | b'[' | b']' | b':' | b',' | b'\r' | b'\n' => {
                    self.state = State::Start;
                    return false;
                }
                0x20..=0xfd | b'\t' => {}
                // The client's own way to abandon a message.
                _ => self.state = State::Start,
            },
        }
        true
    }

    /// A byte between two tokens.
    fn start(&mut self, byte: u8, found: &mut impl FnMut(Result<Value, ParseError>)) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                // After a name or number inside a message it separates; elsewhere it is ignored.
                if !self.message.is_empty() {
                    self.push(b' ', found);
                }
                return;
            }
            b'"' => self.state = State::Text(byte),
            b'\'' => {
                self.state = State::Text(byte);
                return self.push(b'"', found);
            }
            b'-' | b'0'..=b'9' | b'a'..=b'z' => self.state = State::Bare,
            b'{' => self.braces += 1,
            b'}' => self.braces -= 1,
            b'[' => self.brackets += 1,
            b']' => self.brackets -= 1,
            b':' | b',' => {}
            _ => return self.stray(byte, found),
        }
        self.push(byte, found);
        if self.braces + self.brackets > MAX_NESTING {
            let what = format!("nested deeper than {MAX_NESTING} levels");
            return self.fail(what, found);
        }
        if self.state == State::Start {
            self.token_ended(found);
        }
    }

    /// Appends a byte to the message.
    fn push(&mut self, byte: u8, found: &mut impl FnMut(Result<Value, ParseError>)) {
        if self.message.len() >= self.most {
            return self.fail(format!("a message of more than {} bytes", self.most), found);
        }
        self.message.push(byte);
    }

    /// A byte of a string after a backslash.
    fn escaped(&mut self, byte: u8, found: &mut impl FnMut(Result<Value, ParseError>)) {
        self.push(b'\\', found);
        if self.state != State::Recovery {
            self.push(byte, found);
        }
    }

    /// A byte that is not allowed here.
    fn stray(&mut self, byte: u8, found: &mut impl FnMut(Result<Value, ParseError>)) {
        let shown = if byte.is_ascii_graphic() {
            (byte as char).to_string()
        } else {
            format!("\\x{byte:02x}")
        };
        self.fail(format!("stray '{shown}'"), found);
        if !(0x20..0xfe).contains(&byte) {
            self.state = State::Start;
        }
    }

    /// Reports an error and forgets the message.
    fn fail(&mut self, what: String, found: &mut impl FnMut(Result<Value, ParseError>)) {
        *self = Parser { state: State::Recovery, ..Parser::new(self.most) };
        found(Err(ParseError(what)));
    }

    /// After a token: the message is complete if nothing is open any more.
    fn token_ended(&mut self, found: &mut impl FnMut(Result<Value, ParseError>)) {
        let open = self.braces > 0 || self.brackets > 0;
        if self.message.is_empty() || (open && self.braces >= 0 && self.brackets >= 0) {
            return;
        }
        let next = Parser::new(self.most);
        let message = std::mem::replace(self, next).message;
        let value = serde_json::from_slice(&message).map(|Unique(value)| value);
        found(value.map_err(|error| describe(&error)));
    }
}

/// The JSON parser's error, without the position, which has no meaning in a stream.
fn describe(error: &serde_json::Error) -> ParseError {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    ParseError(match text {
        "expected value" => "expecting value".to_owned(),
        other => other.to_owned(),
    })
}

/// A value in which no object has a key twice: of two commands in one message, neither is carried
/// out.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Unique(value))) = members.next_entry::<String, Unique>()? {
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(object))
    }
}

/// A value as one line: ASCII, `{"key": value, …}` as QEMU spaces it, CRLF at the end.
pub fn line(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::with_capacity(128);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Ascii))?;
    out.extend_from_slice(b"\r\n");
    // The formatter's output is all ASCII.
    Ok(out.into_iter().map(char::from).collect())
}

/// Prints other characters than ASCII as `\uXXXX`.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if fragment.is_ascii() && !fragment.contains('\x7f') {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            match c {
                ' '..='~' => writer.write_all(&[c as u8])?,
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04X}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
