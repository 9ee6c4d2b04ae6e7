//! Events on their way to the clients.
//!
//! Owns who listens, the stamp of time, and the rate of events that a guest can provoke: of
//! those about the same thing one a period goes out at once, and the last of the others when
//! the period is over, as in QEMU. Whoever emits waits for nobody: each listener takes or
//! refuses a line at once. Never knows what becomes of a line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use snapblk_store::control::Event;
use snapblk_store::control::event::ErrorAction;

use crate::wire;

/// Time in which only one of many similar events goes out (QEMU's second).
const PERIOD: Duration = Duration::from_secs(1);

/// Takes the lines of events.
pub trait Listener: Send + Sync {
    /// An event, as a line of the wire. Must not wait.
    fn hear(&self, line: &Arc<str>);
}

/// Spreads events to all who listen. Every listener gets them in the same order.
pub struct Events {
    hub: Arc<Hub>,
    period: Duration,
}

/// What the thread that sends delayed events shares with those who emit.
#[derive(Default)]
struct Hub {
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    held: Mutex<Held>,
}

/// Events that are held back.
#[derive(Default)]
struct Held {
    /// For each thing about which an event went out lately: until when others wait, and the
    /// last of them.
    by_subject: HashMap<Subject, (Instant, Option<Event>)>,
    /// A thread will see to them.
    attended: bool,
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
        Events::with_period(PERIOD)
    }

    fn with_period(period: Duration) -> Arc<Self> {
        Arc::new(Events { hub: Arc::default(), period })
    }

    /// Tells everybody who listens.
    pub fn emit(&self, event: &Event) {
        if let Some(subject) = subject(event)
            && self.hold(subject, event)
        {
            return;
        }
        self.hub.send(event);
    }

    /// From now on `listener` hears every event, as long as somebody else keeps it.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        self.hub.listeners.lock().expect("listeners lock poisoned").push(listener);
    }

    /// Whether another event about `subject` went out so lately that this one is held back.
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
                    // Rather too many events than one that is lost.
                    tracing::warn!(%error, "events cannot be held back");
                    return false;
                }
            }
        }
        held.by_subject.insert(subject, (Instant::now() + self.period, None));
        false
    }
}

/// What an event is about: a device, and what whoever hears of it is to do. That a store is full
/// shall not be lost among requests that failed.
#[derive(PartialEq, Eq, Hash)]
struct Subject {
    device: String,
    action: ErrorAction,
    nospace: Option<bool>,
}

/// What an event is about, where a guest can provoke any number of them.
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
    /// Sends events that were held back, each when its time has come, until there are none.
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
        // Held back again within the next period, and told at its end.
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
