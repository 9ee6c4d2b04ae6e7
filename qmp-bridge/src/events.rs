//! Events on their way to the clients.
//!
//! Owns who listens, and the stamp of time. Whoever emits waits for nobody: each listener takes
//! or refuses a line at once. Never knows what an event means.

use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use snapblk_store::control::Event;

use crate::wire;

/// Takes the lines of events.
pub trait Listener: Send + Sync {
    /// An event, as a line of the wire. Must not wait.
    fn hear(&self, line: &Arc<str>);
}

/// Spreads events to all who listen. Every listener gets them in the same order.
#[derive(Default)]
pub struct Events {
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
}

/// An event as it is printed.
#[derive(Serialize)]
struct Stamped<'a> {
    timestamp: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

/// Time since the epoch; both −1 where the clock cannot tell.
#[derive(Serialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

impl Timestamp {
    fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp {
                seconds: since.as_secs() as i64,
                microseconds: i64::from(since.subsec_micros()),
            },
            Err(_) => Timestamp { seconds: -1, microseconds: -1 },
        }
    }
}

impl Events {
    /// Nobody listens yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Tells everybody who listens.
    pub fn emit(&self, event: &Event) {
        // Stamped under the lock: the order of the lines is the order of the stamps.
        let mut listeners = self.listeners.lock().expect("listeners lock poisoned");
        tracing::debug!(event = event.name(), "event");
        let line: Arc<str> = match wire::line(&Stamped { timestamp: Timestamp::now(), event }) {
            Ok(line) => line.into(),
            Err(error) => {
                tracing::error!(event = event.name(), %error, "an event cannot be printed");
                return;
            }
        };
        listeners.retain(|listener| match listener.upgrade() {
            Some(listener) => {
                listener.hear(&line);
                true
            }
            None => false,
        });
    }

    /// From now on `listener` hears every event, as long as somebody else keeps it.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        self.listeners.lock().expect("listeners lock poisoned").push(listener);
    }
}
