//! The client's end of a monitor: the part of QMP that a command-line tool or a test needs.
//!
//! Owns one connection, from the negotiation to the replies and events that arrive on it. Waits for
//! every reply; never knows which commands exist.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use snapblk_store::control::{CommandError, ErrorClass};

use crate::wire::{self, Parser};

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection cannot be made, or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The monitor disconnected.
    #[error("the monitor closed the connection")]
    HungUp,
    /// There is no greeting: another kind of socket, which may accept only one connection.
    #[error("nobody greets there as a monitor does at once")]
    Silent,
    /// A message is not what the protocol requires here.
    #[error("the monitor's answer cannot be understood: {0}")]
    Protocol(String),
    /// The command was refused.
    #[error("{0}")]
    Command(#[from] CommandError),
}

/// The most bytes of one answer. The server is trusted: its answers are as long as what they tell of,
/// which may be the largest tables that its clients can load.
const MAX_ANSWER: usize = 1 << 30;

/// How long to wait for a connection, and then for a greeting. A monitor greets every client, whatever
/// it is doing. A disk's socket, taken for a monitor's, is kept from its front-end meanwhile.
const GREETING: Duration = Duration::from_secs(5);

/// A connection to a monitor, negotiated.
pub struct Client {
    stream: UnixStream,
    parser: Parser,
    /// Received messages that were not read yet.
    messages: VecDeque<Value>,
    events: VecDeque<Value>,
    requests: u64,
}

impl Client {
    /// Connects to the socket `path` and negotiates.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::connect_within(path, GREETING)
    }

    fn connect_within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let mut client = Client {
            stream: connect_within(path, patience)?,
            parser: Parser::new(MAX_ANSWER),
            messages: VecDeque::new(),
            events: VecDeque::new(),
            requests: 0,
        };
        let greeting = client.message(Some(patience))?.ok_or(ClientError::Silent)?;
        if greeting.get("QMP").is_none() {
            return Err(ClientError::Protocol(format!("no QMP greeting, but {greeting}")));
        }
        client.call("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Carries a command out and returns its result.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        self.requests += 1;
        let request = json!({"execute": command, "arguments": arguments, "id": self.requests});
        let line = wire::line(&request).map_err(io::Error::from)?;
        self.stream.write_all(line.as_bytes()).map_err(broken)?;
        loop {
            let Some(mut message) = self.message(None)? else { return Err(ClientError::HungUp) };
            if message.get("event").is_some() {
                self.events.push_back(message);
                continue;
            }
            if message.get("id").is_some_and(|id| *id != self.requests) {
                continue;
            }
            if let Some(error) = message.get("error") {
                return Err(ClientError::Command(command_error(error)));
            }
            return match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(ClientError::Protocol(message.to_string())),
            };
        }
    }

    /// [`call`](Self::call), decoded.
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, ClientError> {
        let value = self.call(command, arguments)?;
        serde_json::from_value(value).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// The next event, as received; `None` if there was none within `patience`, which is unlimited
    /// if `None`.
    pub fn event(&mut self, patience: Option<Duration>) -> Result<Option<Value>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.message(patience)
    }

    /// The next message; `None` if there was none within `patience`.
    fn message(&mut self, patience: Option<Duration>) -> Result<Option<Value>, ClientError> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(Some(message));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.stream.set_read_timeout(left)?;
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::HungUp),
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    _ => return Err(broken(error)),
                },
            };
            let mut wrong = None;
            let messages = &mut self.messages;
            self.parser.feed(&buffer[..count], |message| match message {
                Ok(message) => messages.push_back(message),
                Err(error) => wrong = Some(error),
            });
            if let Some(error) = wrong {
                return Err(ClientError::Protocol(error.to_string()));
            }
        }
    }
}

/// Connects. Where nobody accepts, a socket has room for few connections, and the next one would wait
/// for room for ever.
fn connect_within(path: &Path, patience: Duration) -> Result<UnixStream, ClientError> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(io::Error::from)?;
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    let limit = |limit| set_socket_timeout(&socket, Timeout::Send, limit).map_err(io::Error::from);
    limit(Some(patience))?;
    match retry_on_intr(|| connect(&socket, &address)) {
        Err(Errno::AGAIN) => return Err(ClientError::Silent),
        connected => connected.map_err(io::Error::from)?,
    }
    limit(None)?;
    Ok(socket.into())
}

/// A disconnection is found by the next write, or read.
fn broken(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::HungUp,
        _ => error.into(),
    }
}

/// An error as sent over the wire.
fn command_error(error: &Value) -> CommandError {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    let class = ErrorClass::ALL.iter().find(|class| class.as_str() == text("class"));
    CommandError {
        class: class.copied().unwrap_or(ErrorClass::GenericError),
        desc: text("desc").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Like the socket of a disk, whose front-end speaks first.
    #[test]
    fn a_socket_where_nobody_greets_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Client::connect_within(&path, Duration::from_millis(10)).err().unwrap();
        assert!(matches!(error, ClientError::Silent), "{error:?}");
        let (mut left, _) = listener.accept().unwrap();
        assert_eq!(left.read(&mut [0]).unwrap(), 0, "it is free for others");
        // As many wait to be accepted as may: the next one would wait to be one of them.
        rustix::net::listen(&listener, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        let error = Client::connect_within(&path, Duration::from_millis(10)).err().unwrap();
        assert!(matches!(error, ClientError::Silent), "{error:?}");
    }

    /// Larger than any command may be.
    #[test]
    fn an_answer_is_as_long_as_what_it_tells_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let length = wire::MAX_MESSAGE + 1;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut server, _) = listener.accept().unwrap();
                server.write_all(b"{\"QMP\": {}}\r\n").unwrap();
                let long = "x".repeat(length);
                for answer in [json!({}), json!(long)] {
                    let _ = server.read(&mut [0; 4096]).unwrap();
                    let line = wire::line(&json!({ "return": answer })).unwrap();
                    server.write_all(line.as_bytes()).unwrap();
                }
            });
            let mut client = Client::connect(&path).unwrap();
            let answer = client.call("query-devices", json!({})).unwrap();
            assert_eq!(answer.as_str().map(str::len), Some(length));
        });
    }

    /// It is found by the command after the last reply.
    #[test]
    fn a_monitor_that_is_gone_hung_up() {
        let (stream, other) = UnixStream::pair().unwrap();
        drop(other);
        let (parser, requests) = (Parser::default(), 0);
        let (messages, events) = (VecDeque::new(), VecDeque::new());
        let mut client = Client { stream, parser, messages, events, requests };
        for _ in 0..2 {
            let error = client.call("query-jobs", json!({})).unwrap_err();
            assert!(matches!(error, ClientError::HungUp), "{error:?}");
        }
    }
}
