//! The vhost-user session of one export: one front-end at a time, one after another.
//!
//! Owns the listening socket, the connection and the thread that serves both. Never touches a
//! ring: see [`worker`](crate::worker). Keeps: the socket exists from start to stop; a second
//! front-end is refused at once without any effect on the first; a front-end that connects after
//! the first has left, or during its tear-down, is served; no message ends more than its
//! connection.
//!
//! Messages are parsed here and not by the `vhost` crate's handler: see
//! `docs/adr/0001-session.md`.

mod channel;
mod connection;
mod inflight;
mod listener;
mod message;
mod setup;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::binding::Geometry;
use crate::config::LogicalBlock;
use crate::worker::{PendingReply, WorkerError, WorkerHandle};

use channel::Channel;
use connection::{Connection, Ended, Envelope, has_hung_up};
use inflight::Areas;
pub use listener::{ListenError, Listener, SocketAddress, check_inherited, check_socket};
use message::{Refusal, decode, refused_reply};
use setup::{Answer, Setup};

#[cfg(test)]
mod tests;

/// How long a new front-end waits for the tear-down of the previous one.
const TEAR_DOWN_LIMIT: Duration = Duration::from_secs(60);
/// Messages, or answers, that are handled before the session checks anything else: a peer may send
/// them without end.
const AT_ONCE: usize = 32;
/// Refused messages of one connection that are logged: a front-end may send them without end.
const COMPLAINTS: u64 = 8;
/// The interval between two checks for new front-ends after that time, or while the session waits
/// for a worker.
const REFUSE_EVERY: Duration = Duration::from_millis(50);
/// The log text for a new front-end.
const SECOND: &str = "a second front-end was refused: one is connected already";

/// The disk as a session presents it.
pub(crate) struct Disk {
    /// Returns the size.
    pub geometry: Box<dyn Fn() -> Geometry + Send + Sync>,
    /// Logical block.
    pub block: LogicalBlock,
    /// The `writeback` field, whichever front-end set it: one that reconnects does not repeat it.
    pub writeback: AtomicBool,
    /// Keeps that field.
    pub keep_writeback: Box<dyn Fn(bool) + Send + Sync>,
}

impl Disk {
    fn geometry(&self) -> Geometry {
        (self.geometry)()
    }
}

/// Events of front-ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// One has connected.
    Connected,
    /// It is gone, and its requests in flight have ended.
    Disconnected,
}

/// The part of a session that its starter shares.
pub(crate) struct SessionControl {
    stop: AtomicBool,
    connected: AtomicBool,
    wake: OwnedFd,
}

impl SessionControl {
    pub(crate) fn new() -> std::io::Result<SessionControl> {
        Ok(SessionControl {
            stop: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            wake: crate::worker::new_eventfd()?,
        })
    }

    /// Ends the session: drains its rings and returns from [`Session::run`].
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        crate::worker::signal(&self.wake);
    }

    /// The disk may have another size: tells the front-end.
    pub(crate) fn size_changed(&self) {
        crate::worker::signal(&self.wake);
    }

    /// Whether a front-end is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A session.
pub(crate) struct Session<T> {
    pub(crate) control: Arc<SessionControl>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) workers: Vec<WorkerHandle<T>>,
    pub(crate) events: Box<dyn Fn(SessionEvent) + Send>,
    listener: Arc<Listener>,
}

/// What happened while waiting.
struct Ready {
    woken: bool,
    listener: bool,
    connection: bool,
    channel: bool,
}

impl<T> Session<T> {
    pub(crate) fn new(
        listener: Listener,
        control: Arc<SessionControl>,
        disk: Arc<Disk>,
        workers: Vec<WorkerHandle<T>>,
        events: Box<dyn Fn(SessionEvent) + Send>,
    ) -> Session<T> {
        Session { control, disk, workers, events, listener: Arc::new(listener) }
    }

    /// Serves until stopped.
    pub(crate) fn run(self) {
        let mut areas = Areas::default();
        while !self.control.is_stopped() {
            if !self.wait(None, None).listener {
                continue;
            }
            if let Some(connection) = self.accept().and_then(|socket| Connection::new(socket).ok())
            {
                self.host(connection, &mut areas);
            }
        }
    }

    /// Serves one front-end from its first message to the end of its requests in flight.
    fn host(&self, connection: Connection, areas: &mut Areas) {
        self.control.connected.store(true, Ordering::Release);
        (self.events)(SessionEvent::Connected);
        let meanwhile = self.refusals(&connection);
        let mut setup = Setup::new(self.disk.clone(), self.workers.clone(), meanwhile);
        setup.areas = std::mem::take(areas);
        match self.serve(connection, &mut setup) {
            None => {}
            Some(Ended::HungUp) => tracing::debug!("the front-end hung up"),
            Some(why) => tracing::warn!("connection ended: {why}"),
        }
        self.await_tear_down(&setup.tear_down());
        *areas = setup.areas;
        areas.end_connection();
        self.control.connected.store(false, Ordering::Release);
        (self.events)(SessionEvent::Disconnected);
    }

    /// Handles messages until the front-end disconnects; none if the session is stopped.
    fn serve(&self, mut connection: Connection, setup: &mut Setup<T>) -> Option<Ended> {
        while !self.control.is_stopped() {
            let ready = self.wait(Some(&connection), setup.channel());
            if ready.woken {
                setup.tell_size();
            }
            if ready.channel {
                setup.take_answers();
            }
            if ready.listener {
                // A front-end may reconnect before the end of its old connection was seen.
                if connection.has_hung_up() {
                    return Some(Ended::HungUp);
                }
                self.refuse();
            }
            if ready.connection
                && let Err(ended) = self.follow_some(&mut connection, setup)
            {
                return Some(ended);
            }
        }
        None
    }

    /// Handles a few of the messages that have arrived; the rest is there at the next check.
    fn follow_some(&self, connection: &mut Connection, setup: &mut Setup<T>) -> Result<(), Ended> {
        for _ in 0..AT_ONCE {
            if self.control.is_stopped() {
                break;
            }
            let Some(envelope) = connection.receive()? else { break };
            follow(connection, setup, envelope)?;
        }
        Ok(())
    }

    fn accept(&self) -> Option<UnixStream> {
        self.listener.accept().unwrap_or_else(|e| {
            tracing::warn!("a front-end could not be accepted: {e}");
            // It is still in the queue; do not spin while the process is out of descriptors.
            std::thread::sleep(REFUSE_EVERY);
            None
        })
    }

    fn refuse(&self) {
        if self.accept().is_some() {
            tracing::warn!("{SECOND}");
        }
    }

    /// Refuses new front-ends while `first` is still connected.
    fn refusals(&self, first: &Connection) -> Box<dyn Fn()> {
        let Ok(first) = first.as_fd().try_clone_to_owned() else { return Box::new(|| {}) };
        let listener = self.listener.clone();
        Box::new(move || {
            let mut fds = [PollFd::new(&*listener, PollFlags::IN)];
            // Check for them before checking the first: a front-end that reconnects has left by
            // then.
            let comes = matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..));
            if comes && !has_hung_up(&first) && matches!(listener.accept(), Ok(Some(_))) {
                tracing::warn!("{SECOND}");
            }
        })
    }

    /// Waits until something can be read, or the session is woken.
    fn wait(&self, connection: Option<&Connection>, channel: Option<&Channel>) -> Ready {
        let either = PollFlags::IN | PollFlags::RDHUP;
        let mut fds = vec![
            PollFd::new(&self.control.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(connection.map(|it| PollFd::from_borrowed_fd(it.as_fd(), either)));
        fds.extend(channel.map(|it| PollFd::from_borrowed_fd(it.as_fd(), either)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => tracing::error!("waiting for front-ends failed: {e}"),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        let ready =
            Ready { woken: ready(0), listener: ready(1), connection: ready(2), channel: ready(3) };
        if ready.woken {
            // Emptied before its cause is checked: a later signal is seen later.
            let _ = rustix::io::read(&self.control.wake, &mut [0; 8]);
        }
        ready
    }

    /// Waits for the rings of a front-end that is gone. New front-ends wait in the socket's queue,
    /// but not forever.
    fn await_tear_down(&self, replies: &[PendingReply<Option<u16>>]) {
        let begin = Instant::now();
        let mut complained = false;
        for reply in replies {
            while reply.wait(REFUSE_EVERY) == Err(WorkerError::TimedOut) {
                if begin.elapsed() < TEAR_DOWN_LIMIT {
                    continue;
                }
                if !complained {
                    complained = true;
                    tracing::error!("requests of a front-end that is gone do not end");
                }
                while let Ok(Some(_)) = self.listener.accept() {}
            }
        }
    }
}

/// Handles one message.
fn follow<T>(
    connection: &mut Connection,
    setup: &mut Setup<T>,
    envelope: Envelope,
) -> Result<(), Ended> {
    let Envelope { header, payload, fds } = envelope;
    let followed =
        decode(header, &payload, fds, setup.protocol()).and_then(|message| setup.follow(message));
    match followed {
        Ok(Answer::Done) => {
            if header.need_reply && setup.acknowledges() {
                connection.reply(&header, &0u64.to_ne_bytes())?;
            }
        }
        Ok(Answer::Inflight(layout, memory)) => {
            let payload = layout.encode(header.size);
            connection.reply_with(&header, &payload, Some(memory.as_fd()))?;
        }
        Ok(Answer::U64(value)) => connection.reply(&header, &value.to_ne_bytes())?,
        Ok(Answer::Vring(state)) => {
            let words = [state.index, state.value].map(u32::to_ne_bytes);
            connection.reply(&header, words.as_flattened())?;
        }
        Ok(Answer::Config { offset, flags, data }) => {
            let head = [offset, data.len() as u32, flags].map(u32::to_ne_bytes);
            connection.reply(&header, &[head.as_flattened(), &data].concat())?;
        }
        Err(refusal) => refuse_message(connection, setup, &header, &refusal)?,
    }
    Ok(())
}

/// A refused message has no other effect: if the front-end waits for a reply, it gets one.
fn refuse_message<T>(
    connection: &mut Connection,
    setup: &Setup<T>,
    header: &message::Header,
    refusal: &Refusal,
) -> Result<(), Ended> {
    connection.refused += 1;
    if connection.refused <= COMPLAINTS {
        tracing::warn!("a message of the front-end was refused: {refusal}");
    }
    if connection.refused == COMPLAINTS {
        tracing::warn!("what else is refused of this connection is not logged");
    }
    if matches!(refusal, Refusal::Hangs(_)) {
        return Err(Ended::Hangs);
    }
    if let Some(reply) = refused_reply(header) {
        return connection.reply(header, &reply);
    }
    if header.need_reply && setup.acknowledges() {
        return connection.reply(header, &1u64.to_ne_bytes());
    }
    Ok(())
}
