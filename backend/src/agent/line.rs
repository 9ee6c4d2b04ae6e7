//! One conversation with an agent.
//!
//! Owns the wire format (JSON objects, one answer each; `guest-sync-delimited` to find the
//! beginning of an answer again) and the time limits of answers. QEMU's "QEMU Guest Agent Protocol
//! Reference".

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use super::AgentError;

/// Marks the beginning of an answer to `guest-sync-delimited`; no JSON text has this byte.
const SENTINEL: u8 = 0xff;

/// The most bytes of an answer; all answers that are used here are short.
const MOST: usize = 64 << 10;

/// The number of synchronisations so far: each has its own number, also across connections, because
/// an answer may come late.
static SYNCS: AtomicU32 = AtomicU32::new(0);

/// A connection to an agent.
pub(super) struct Line {
    path: PathBuf,
    stream: UnixStream,
    /// Received bytes that were not read yet.
    come: Vec<u8>,
}

impl Line {
    /// Connects, without waiting if another client is connected.
    pub(super) fn connect(path: &Path) -> Result<Line, AgentError> {
        let failed = |source| AgentError::Connect { path: path.into(), source };
        let connected = || -> rustix::io::Result<_> {
            // A blocking connect() would wait while the socket's queue is full.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let stream = UnixStream::from(connected().map_err(|error| failed(error.into()))?);
        stream.set_nonblocking(false).map_err(failed)?;
        Ok(Line { path: path.into(), stream, come: Vec::new() })
    }

    /// Makes room for another client: QEMU serves one at a time.
    pub(super) fn close(&self) {
        // Fails if it is closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Finds the beginning of the next answer, whatever was sent before.
    pub(super) fn sync(&mut self, bound: Duration) -> Result<(), AgentError> {
        const COMMAND: &str = "guest-sync-delimited";
        let deadline = Instant::now() + bound;
        let count = u64::from(SYNCS.fetch_add(1, Ordering::Relaxed));
        let number = u64::from(std::process::id()) << 32 | count;
        // The byte ends half a command that another client may have left behind.
        self.send(COMMAND, &[SENTINEL], &json!({"id": number}), deadline, bound)?;
        loop {
            match self.answer(COMMAND, deadline, bound) {
                Ok(Value::Number(said)) if said.as_u64() == Some(number) => return Ok(()),
                // Answers for others, and the answer to the first byte.
                Ok(_) | Err(AgentError::Refused { .. } | AgentError::Garbage { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Freezes all file systems; returns when they have written their data.
    pub(super) fn freeze(&mut self, bound: Duration) -> Result<(), AgentError> {
        self.call("guest-fsfreeze-freeze", bound).map(|_| ())
    }

    /// Thaws all file systems.
    pub(super) fn thaw(&mut self, bound: Duration) -> Result<(), AgentError> {
        self.call("guest-fsfreeze-thaw", bound).map(|_| ())
    }

    /// `frozen` or `thawed`.
    pub(super) fn status(&mut self, bound: Duration) -> Result<String, AgentError> {
        const COMMAND: &str = "guest-fsfreeze-status";
        let said = self.call(COMMAND, bound)?;
        let word = said.as_str().map(str::to_owned);
        word.ok_or_else(|| AgentError::Garbage { path: self.path.clone(), command: COMMAND })
    }

    fn call(&mut self, command: &'static str, bound: Duration) -> Result<Value, AgentError> {
        let deadline = Instant::now() + bound;
        self.send(command, &[], &json!({}), deadline, bound)?;
        self.answer(command, deadline, bound)
    }

    fn send(
        &mut self,
        command: &'static str,
        before: &[u8],
        arguments: &Value,
        deadline: Instant,
        bound: Duration,
    ) -> Result<(), AgentError> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        let bytes = [before, line.as_bytes(), b"\n"].concat();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let sent = self.stream.set_write_timeout(Some(left));
        sent.and_then(|()| self.stream.write_all(&bytes))
            .map_err(|source| self.failed(command, bound, source))
    }

    /// The value that the next answer returns.
    fn answer(
        &mut self,
        command: &'static str,
        deadline: Instant,
        bound: Duration,
    ) -> Result<Value, AgentError> {
        let path = self.path.clone();
        let bytes = self.next_line(command, deadline, bound)?;
        let mut answer: Value = match serde_json::from_slice(&bytes) {
            Ok(answer) => answer,
            Err(_) => return Err(AgentError::Garbage { path, command }),
        };
        if let Some(error) = answer.get("error") {
            let desc = error.get("desc").and_then(Value::as_str).unwrap_or("no reason").to_owned();
            return Err(AgentError::Refused { path, command, desc });
        }
        let returned = answer.get_mut("return").map(Value::take);
        returned.ok_or(AgentError::Garbage { path, command })
    }

    /// The next line; bytes in front of a sentinel in it are dropped.
    fn next_line(
        &mut self,
        command: &'static str,
        deadline: Instant,
        bound: Duration,
    ) -> Result<Vec<u8>, AgentError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.come.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.come.drain(..=end).collect();
                if let Some(at) = line.iter().rposition(|byte| *byte == SENTINEL) {
                    line.drain(..=at);
                }
                return Ok(line);
            }
            if self.come.len() > MOST {
                self.come.clear();
                return Err(AgentError::Garbage { path: self.path.clone(), command });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.failed(command, bound, io::ErrorKind::TimedOut.into()));
            }
            let read = self.stream.set_read_timeout(Some(left));
            match read.and_then(|()| self.stream.read(&mut buffer)) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(self.failed(command, bound, source));
                }
                Ok(count) => self.come.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(command, bound, error)),
            }
        }
    }

    fn failed(&self, command: &'static str, bound: Duration, source: io::Error) -> AgentError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                AgentError::Silent { path, command, bound }
            }
            _ => AgentError::Broken { path, command, source },
        }
    }
}
