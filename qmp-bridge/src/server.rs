//! The monitor's socket, and a thread or two for each client.
//!
//! Owns the socket's file from start to stop, the list of clients, and which thread reads, executes
//! and writes. A client has a thread that reads and executes, one that writes, and, after it has
//! enabled out-of-band execution, one more that executes in order while the first continues to
//! read. So no client ever waits for another, except inside the [`Handler`](crate::Handler). Never
//! knows the content of a message.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde_json::Value;

use crate::events::Listener;
use crate::outbox::{Closed, Outbox};
use crate::session::{Monitor, Session};
use crate::wire::{self, ParseError, Parser};

/// The most clients at a time; further ones are disconnected.
pub const MAX_CLIENTS: usize = 64;
/// The most in-band commands of one client that wait for execution (QEMU's number).
const MAX_QUEUED: usize = 8;
/// How long the acceptor pauses if the system has no descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Why there is no monitor.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process serves the socket.
    #[error("monitor socket {path:?} is served by another process; stop it or choose another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is not that of a socket, and must not be replaced.
    #[error("{path:?} is there and is no socket; remove it or choose another monitor socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("monitor socket {path:?} cannot be made: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A monitor that is served on a socket. Dropping it disconnects all clients at once.
pub struct Server {
    clients: Arc<Clients>,
    acceptor: Option<JoinHandle<()>>,
    wake: Arc<OwnedFd>,
}

/// A monitor's socket, on which nobody is served yet. Its file is removed when this is dropped.
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: another process's is not removed.
    identity: (u64, u64),
}

/// The connected clients.
struct Clients {
    monitor: Arc<Monitor>,
    list: Mutex<List>,
    left: Condvar,
}

#[derive(Default)]
struct List {
    outboxes: HashMap<u64, Arc<Outbox>>,
    /// The number of clients so far.
    came: u64,
}

impl Server {
    /// [`Bound::new`], and serves `monitor` there.
    pub fn start(path: &Path, monitor: Arc<Monitor>) -> Result<Server, StartError> {
        Bound::new(path)?.serve(monitor)
    }

    /// Whether [`start`](Self::start) could create its socket, as far as can be checked without
    /// creating it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(path: &Path) -> Result<(), StartError> {
        let failed = |source| StartError::Io { path: path.to_owned(), source };
        SocketAddr::from_pathname(path).map_err(failed)?;
        if fs::symlink_metadata(path).is_ok() {
            return check_dead(path);
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        let asked = Access::WRITE_OK | Access::EXEC_OK;
        accessat(CWD, dir, asked, AtFlags::EACCESS).map_err(|errno| failed(errno.into()))
    }

    /// Accepts no more clients or commands, gives pending replies and events at most `patience` to
    /// be sent, disconnects all clients and removes the socket. Must not be called by a handler,
    /// whose own reply it would wait for.
    pub fn stop(mut self, patience: Duration) {
        self.stop_accepting();
        let list = self.clients.lock();
        for outbox in list.outboxes.values() {
            outbox.stop_reading();
        }
        let waited =
            self.clients.left.wait_timeout_while(list, patience, |list| !list.outboxes.is_empty());
        drop(waited);
        // `drop` disconnects the remaining clients.
    }

    fn stop_accepting(&mut self) {
        // The counter cannot overflow by one or two signals.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            tracing::error!("the monitor's acceptor panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        for outbox in self.clients.lock().outboxes.values() {
            outbox.close();
        }
    }
}

impl Bound {
    /// Creates the socket `path`. A socket that no process serves any more is replaced, but no other
    /// file.
    pub fn new(path: &Path) -> Result<Bound, StartError> {
        let failed = |source| StartError::Io { path: path.to_owned(), source };
        let listener = bind(path)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Bound { listener, path: path.to_owned(), identity })
    }

    /// Serves `monitor` to those who have connected, and will.
    pub fn serve(self, monitor: Arc<Monitor>) -> Result<Server, StartError> {
        let path = self.path.clone();
        let failed = |source| StartError::Io { path, source };
        let wake = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(wake) => Arc::new(wake),
            Err(errno) => return Err(failed(errno.into())),
        };
        let clients = Arc::new(Clients { monitor, list: Mutex::default(), left: Condvar::new() });
        let acceptor = Acceptor { socket: self, wake: wake.clone(), clients: clients.clone() };
        let acceptor = thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || acceptor.run())
            .map_err(failed)?;
        Ok(Server { clients, acceptor: Some(acceptor), wake })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = ?self.path, %error, "the monitor socket cannot be removed");
        }
    }
}

/// Creates the socket, replacing a stale one.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |source| StartError::Io { path: path.to_owned(), source };
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other.map_err(failed),
    }
    check_dead(path)?;
    tracing::info!(?path, "replacing a monitor socket that nobody serves");
    fs::remove_file(path).map_err(failed)?;
    UnixListener::bind(path).map_err(failed)
}

/// Refuses a file that is not a socket, or that is served.
fn check_dead(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Io { path: path.to_owned(), source };
    if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(StartError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(StartError::InUse { path: path.to_owned() }),
    }
}

/// Accepts clients until it is woken.
struct Acceptor {
    socket: Bound,
    wake: Arc<OwnedFd>,
    clients: Arc<Clients>,
}

impl Acceptor {
    fn run(self) {
        while self.wait(None) {
            match self.socket.listener.accept() {
                Ok((stream, _)) => Clients::welcome(&self.clients, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a monitor client cannot be taken in");
                    if !self.wait(Some(BACK_OFF)) {
                        break;
                    }
                }
            }
        }
    }

    /// Waits for a client, at most for `pause`; false when the server stops.
    fn wait(&self, pause: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        if pause.is_none() {
            fds.push(PollFd::new(&self.socket.listener, PollFlags::IN));
        }
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match poll(&mut fds, pause.as_ref()) {
            Ok(_) => fds[0].revents().is_empty(),
            Err(errno) => errno == rustix::io::Errno::INTR,
        }
    }
}

impl Clients {
    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.list.lock().expect("clients lock poisoned")
    }

    /// Starts the threads of a new client, unless there are too many clients.
    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let mut list = self.lock();
        if list.outboxes.len() >= MAX_CLIENTS {
            tracing::warn!("a monitor client is turned away: {MAX_CLIENTS} are connected");
            return;
        }
        list.came += 1;
        let number = list.came;
        let begun = stream.set_nonblocking(false).and_then(|()| {
            let outbox = Arc::new(Outbox::new(stream.try_clone()?));
            let client = Client {
                stream,
                outbox: outbox.clone(),
                session: Arc::new(Session::new(self.monitor.clone())),
                monitor: self.monitor.clone(),
            };
            let clients = self.clone();
            thread::Builder::new().name(format!("monitor-{number}")).spawn(move || {
                client.converse();
                clients.lock().outboxes.remove(&number);
                clients.left.notify_all();
            })?;
            Ok(outbox)
        });
        match begun {
            Ok(outbox) => {
                list.outboxes.insert(number, outbox);
            }
            Err(error) => tracing::warn!(%error, "a monitor client cannot be served"),
        }
    }
}

/// A client, as its reading thread sees it.
struct Client {
    stream: UnixStream,
    outbox: Arc<Outbox>,
    session: Arc<Session>,
    monitor: Arc<Monitor>,
}

/// Input that waits for its execution.
type Message = Result<Value, ParseError>;

impl Client {
    /// Serves the client until it disconnects, and writes its queued lines.
    fn converse(self) {
        let writer = self.stream.try_clone().and_then(|stream| {
            let outbox = self.outbox.clone();
            thread::Builder::new()
                .name("monitor-write".to_owned())
                .spawn(move || write_all(stream, &outbox))
        });
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!(%error, "a monitor client cannot be served");
                return self.outbox.close();
            }
        };
        // The client has disconnected, or must be: the error cannot be reported.
        let _: Result<(), Closed> = self.listen();
        self.outbox.finish();
        if writer.join().is_err() {
            tracing::error!("a monitor client's writer panicked");
        }
    }

    /// Reads and answers until the client disconnects.
    fn listen(&self) -> Result<(), Closed> {
        reply(&self.outbox, &self.session.greeting())?;
        let mut parser = Parser::default();
        let mut executor: Option<Executor> = None;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match (&self.stream).read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let mut messages = Vec::new();
            parser.feed(&buffer[..count], |message| messages.push(message));
            for message in messages {
                self.take(message, &mut executor)?;
            }
        }
        // Messages received before the client stopped sending are still executed.
        if let Some(Executor { queue, thread }) = executor {
            drop(queue);
            if thread.join().is_err() {
                tracing::error!("a monitor client's executor panicked");
            }
        }
        Ok(())
    }

    /// Handles one message: executes it here, or queues it.
    fn take(&self, message: Message, executor: &mut Option<Executor>) -> Result<(), Closed> {
        let overtakes = matches!(&message, Ok(value) if self.session.overtakes(value));
        if let (Some(executor), false) = (&*executor, overtakes) {
            return executor.queue.send(message).map_err(|_| Closed);
        }
        let was_negotiated = self.session.is_negotiated();
        answer(&self.session, &self.outbox, message)?;
        if !was_negotiated && self.session.is_negotiated() {
            // Events only after the reply to the negotiation: clients expect that first.
            let listener: Arc<dyn Listener> = self.outbox.clone();
            self.monitor.events().listen(Arc::downgrade(&listener));
            if self.session.is_out_of_band() {
                *executor = Some(self.start_executor()?);
            }
        }
        Ok(())
    }

    fn start_executor(&self) -> Result<Executor, Closed> {
        let (queue, messages) = sync_channel(MAX_QUEUED);
        let (session, outbox) = (self.session.clone(), self.outbox.clone());
        let thread = thread::Builder::new()
            .name("monitor-exec".to_owned())
            .spawn(move || execute_all(&session, &outbox, &messages))
            .map_err(|error| {
                tracing::warn!(%error, "a monitor client cannot be served");
                Closed
            })?;
        Ok(Executor { queue, thread })
    }
}

/// The thread that executes in-band commands while the client's other thread reads.
struct Executor {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

fn execute_all(session: &Session, outbox: &Outbox, messages: &Receiver<Message>) {
    for message in messages {
        // A disconnected client's commands are dropped.
        if outbox.is_closed() || answer(session, outbox, message).is_err() {
            return;
        }
    }
}

fn answer(session: &Session, outbox: &Outbox, message: Message) -> Result<(), Closed> {
    match message {
        Ok(value) => reply(outbox, &session.answer(value)),
        Err(error) => reply(outbox, &session.refuse(&error)),
    }
}

fn reply(outbox: &Outbox, reply: &impl serde::Serialize) -> Result<(), Closed> {
    match wire::line(reply) {
        Ok(line) => outbox.reply(line),
        Err(error) => {
            tracing::error!(%error, "a reply cannot be printed");
            outbox.close();
            Err(Closed)
        }
    }
}

fn write_all(mut stream: UnixStream, outbox: &Outbox) {
    while let Some(line) = outbox.next() {
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    outbox.close();
}

#[cfg(test)]
mod tests;
