//! Lines to be sent to one client.
//!
//! Owns the order of replies and events, and the limits of both. A reply waits for room, which
//! delays only its own client. An event never waits: a client with more than [`MAX_EVENTS`] unread
//! events is disconnected, so that it knows that it missed some; other clients are not affected.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::events::Listener;

/// The most events that wait for one client.
pub const MAX_EVENTS: usize = 1024;
/// The most replies that wait for one client.
pub const MAX_REPLIES: usize = 16;

/// The client is gone, or was disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// The lines for one client.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// For disconnecting the client while another thread writes to it.
    stream: UnixStream,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<(Kind, Arc<str>)>,
    replies: usize,
    events: usize,
    /// No more lines are added; those in the queue are still written.
    finished: bool,
    /// No more lines are written.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reply,
    Event,
}

impl Outbox {
    /// An empty outbox for the client at the other end of `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Outbox { queue: Mutex::default(), changed: Condvar::new(), stream }
    }

    /// Adds a reply, once there is room for it.
    pub fn reply(&self, line: String) -> Result<(), Closed> {
        let queue = self.queue.lock().expect("outbox lock poisoned");
        let mut queue = self
            .changed
            .wait_while(queue, |queue| queue.replies >= MAX_REPLIES && !queue.closed)
            .expect("outbox lock poisoned");
        if queue.closed {
            return Err(Closed);
        }
        queue.replies += 1;
        queue.lines.push_back((Kind::Reply, line.into()));
        self.changed.notify_all();
        Ok(())
    }

    /// The next line to write, once there is one; `None` after the last.
    pub fn next(&self) -> Option<Arc<str>> {
        let queue = self.queue.lock().expect("outbox lock poisoned");
        let mut queue = self
            .changed
            .wait_while(queue, |queue| queue.lines.is_empty() && !queue.finished && !queue.closed)
            .expect("outbox lock poisoned");
        if queue.closed {
            return None;
        }
        let (kind, line) = queue.lines.pop_front()?;
        match kind {
            Kind::Reply => queue.replies -= 1,
            Kind::Event => queue.events -= 1,
        }
        self.changed.notify_all();
        Some(line)
    }

    /// No more lines are added; those in the queue are still written.
    pub fn finish(&self) {
        self.queue.lock().expect("outbox lock poisoned").finished = true;
        self.changed.notify_all();
    }

    /// Disconnects the client now.
    pub fn close(&self) {
        self.close_locked(self.queue.lock().expect("outbox lock poisoned"));
    }

    /// No more input of the client is read; its queued lines are still written.
    pub fn stop_reading(&self) {
        // This fails only if the client is gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Read);
    }

    /// Whether the client is disconnected.
    pub fn is_closed(&self) -> bool {
        self.queue.lock().expect("outbox lock poisoned").closed
    }

    fn close_locked(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.closed = true;
        queue.lines.clear();
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.changed.notify_all();
    }
}

impl Listener for Outbox {
    fn hear(&self, line: &Arc<str>) {
        let mut queue = self.queue.lock().expect("outbox lock poisoned");
        if queue.closed || queue.finished {
            return;
        }
        if queue.events >= MAX_EVENTS {
            tracing::warn!(
                "a monitor client does not read: disconnected with {MAX_EVENTS} events unread"
            );
            return self.close_locked(queue);
        }
        queue.events += 1;
        queue.lines.push_back((Kind::Event, line.clone()));
        self.changed.notify_all();
    }
}
