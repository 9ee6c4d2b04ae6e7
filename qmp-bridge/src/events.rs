//! Events for the clients.
//!
//! Owns the listeners, the timestamps, and the rate of events that a guest can provoke: of events
//! about the same subject, one per period is sent at once, and the last of the others at the end of
//! the period, as in QEMU. A sender waits for no listener: each accepts or refuses a line at once.
//! Never knows what happens to a line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use snapblk_store::control::Event;
use snapblk_store::control::event::ErrorAction;

use crate::wire;

/// The period in which only one of many similar events is sent (one second in QEMU).
const PERIOD: Duration = Duration::from_secs(1);

/// Receives the lines of events.
pub trait Listener: Send + Sync {
    /// Receives an event, as a line of the wire format. Must not wait.
    fn hear(&self, line: &Arc<str>);
}

/// Sends events to all listeners. Every listener gets them in the same order.
pub struct Events {
    hub: Arc<Hub>,
    period: Duration,
}

/// The state shared by the senders and the thread that sends delayed events.
#[derive(Default)]
struct Hub {
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    held: Mutex<Held>,
}

/// Delayed events.
#[derive(Default)]
struct Held {
    /// For each subject of a recent event: the time until which others wait, and the last of those.
    by_subject: HashMap<Subject, (Instant, Option<Event>)>,
    /// Whether a thread will send them.
    attended: bool,
}

/// An event as printed.
#[derive(Serialize)]
struct Stamped<'a> {
    timestamp: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

/// Time since the epoch; both −1 if the clock is not available.
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
    /// Has no listeners yet.
    pub fn new() -> Arc<Self> {
        Events::with_period(PERIOD)
    }

    fn with_period(period: Duration) -> Arc<Self> {
        Arc::new(Events { hub: Arc::default(), period })
    }

    /// Sends an event to all listeners.
    pub fn emit(&self, event: &Event) {
        if let Some(subject) = subject(event)
            && self.hold(subject, event)
        {
            return;
        }
        self.hub.send(event);
    }

    /// From now on `listener` gets every event, as long as another owner keeps it.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        self.hub.listeners.lock().expect("listeners lock poisoned").push(listener);
    }

    /// Whether this event is delayed because of a recent one about `subject`.
    fn hold(&self, subject: Subject, event: &Event) -> bool {
        let mut held = self.hub.held.lock().expect("held events lock poisoned");
        if let Some((_, last)) = held.by_subject.get_mut(&subject) {
            *last = Some(event.clone());
            return true;
        }
        if !held.attended {
            let (hub, period) = (self.hub.clone(), self.period);
            let attendant = thread::Builder::new().name("monitor-events".to_owned());
            match attendant.spawn(move || hub.attend(period)) {
                Ok(_) => held.attended = true,
                Err(error) => {
                    // Too many events are better than a lost one.
                    tracing::warn!(%error, "events cannot be held back");
                    return false;
                }
            }
        }
        held.by_subject.insert(subject, (Instant::now() + self.period, None));
        false
    }
}

/// The subject of an event: a device and the required reaction. A full store must not be hidden by
/// other failed requests.
#[derive(PartialEq, Eq, Hash)]
struct Subject {
    device: String,
    action: ErrorAction,
    nospace: Option<bool>,
}

/// The subject of an event, if a guest can provoke any number of them.
fn subject(event: &Event) -> Option<Subject> {
    match event {
        Event::BlockIoError(error) => Some(Subject {
            device: error.device.clone(),
            action: error.action,
            nospace: error.nospace,
        }),
        _ => None,
    }
}

impl Hub {
    /// Sends delayed events when they are due, until there are none.
    fn attend(&self, period: Duration) {
        loop {
            let mut due = Vec::new();
            let next = {
                let mut held = self.held.lock().expect("held events lock poisoned");
                let now = Instant::now();
                held.by_subject.retain(|_, (until, last)| {
                    if *until > now {
                        return true;
                    }
                    *until = now + period;
                    last.take().map(|event| due.push(event)).is_some()
                });
                let next = held.by_subject.values().map(|(until, _)| *until).min();
                held.attended = next.is_some();
                next
            };
            due.iter().for_each(|event| self.send(event));
            match next {
                Some(next) => thread::sleep(next.saturating_duration_since(Instant::now())),
                None => return,
            }
        }
    }

    fn send(&self, event: &Event) {
        // Stamped under the lock: the order of lines is the order of timestamps.
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
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use serde_json::Value;
    use snapblk_store::control::event::{BlockIoError, DeviceChanged, IoOperation};

    use super::*;

    const FOREVER: Duration = Duration::from_secs(30);

    struct Ear(Mutex<Sender<Value>>);

    impl Listener for Ear {
        fn hear(&self, line: &Arc<str>) {
            self.0.lock().unwrap().send(serde_json::from_str(line).unwrap()).unwrap();
        }
    }

    fn ear(events: &Events) -> (Arc<Ear>, Receiver<Value>) {
        let (heard, hear) = channel();
        let ear = Arc::new(Ear(Mutex::new(heard)));
        let listener: Arc<dyn Listener> = ear.clone();
        events.listen(Arc::downgrade(&listener));
        (ear, hear)
    }

    fn error(device: &str, reason: usize) -> Event {
        Event::BlockIoError(BlockIoError {
            device: device.to_owned(),
            node_name: None,
            operation: IoOperation::Write,
            action: ErrorAction::Report,
            nospace: None,
            reason: reason.to_string(),
        })
    }

    #[test]
    fn of_many_errors_of_one_device_the_first_and_the_last_are_told() {
        let period = Duration::from_millis(500);
        let events = Events::with_period(period);
        let (_ear, hear) = ear(&events);
        let began = Instant::now();
        for reason in 0..1000 {
            events.emit(&error("a", reason));
        }
        events.emit(&error("b", 7));
        let resumed = DeviceChanged { device: "a".to_owned() };
        events.emit(&Event::DeviceResumed(resumed.clone()));
        events.emit(&Event::DeviceResumed(resumed));
        let next = || hear.recv_timeout(FOREVER).unwrap()["data"].clone();
        assert_eq!((next()["reason"].as_str(), next()["device"].as_str()), (Some("0"), Some("b")));
        next();
        next();
        assert_eq!(next()["reason"], "999");
        assert!(began.elapsed() >= period, "the last one is delayed");
        // Delayed again in the next period, and sent at its end.
        events.emit(&error("a", 1));
        assert_eq!(next()["reason"], "1");
        assert!(began.elapsed() >= 2 * period);
    }

    #[test]
    fn a_full_store_is_told_of_among_errors() {
        let events = Events::with_period(FOREVER);
        let (_ear, hear) = ear(&events);
        let mut full = error("a", 1);
        if let Event::BlockIoError(full) = &mut full {
            (full.action, full.nospace) = (ErrorAction::Stop, Some(true));
        }
        [error("a", 0), full.clone(), error("a", 2), full].iter().for_each(|it| events.emit(it));
        let heard: Vec<_> = hear.try_iter().map(|line| line["data"]["action"].clone()).collect();
        assert_eq!(heard, ["report", "stop"]);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let events = Events::new();
        let (ear, hear) = ear(&events);
        drop(ear);
        events.emit(&error("a", 0));
        assert!(hear.recv().is_err());
        assert!(events.hub.listeners.lock().unwrap().is_empty());
    }
}
