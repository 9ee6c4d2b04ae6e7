//! A monitor that is used while a disk is driven: nothing here waits.
//!
//! Owns the connection and the received part of a message.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// A negotiated QMP connection that never waits for a reply.
pub(super) struct Monitor {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Monitor {
    /// Connects, and negotiates, which does wait.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let mut monitor = Self { stream: UnixStream::connect(path)?, pending: Vec::new() };
        monitor.send(&json!({"execute": "qmp_capabilities"}))?;
        while monitor.take()?.is_none_or(|message| message.get("return").is_none()) {}
        monitor.stream.set_nonblocking(true)?;
        Ok(monitor)
    }

    /// Sends a command.
    pub(super) fn send(&mut self, command: &Value) -> io::Result<()> {
        let mut line = command.to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes())
    }

    /// The next complete message, either a reply or an event.
    pub(super) fn take(&mut self) -> io::Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.pending.extend(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Like [`Monitor::take`], but a refusal is an error.
    pub(super) fn answer(&mut self) -> io::Result<Option<Value>> {
        let message = self.take()?;
        match message.as_ref().and_then(|message| message.get("error")) {
            Some(error) => Err(io::Error::other(format!("the monitor refused: {error}"))),
            None => Ok(message),
        }
    }
}
