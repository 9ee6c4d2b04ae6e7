//! A guest's agent that a test scripts; like QEMU's, it has one client at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Agent, AgentError, AgentEvent, Bounds};

/// The reaction to a command.
enum Reply {
    Answer(Value),
    Refuse,
    Bytes(&'static [u8]),
    Silence,
    Close,
}

use Reply::{Answer, Bytes, Close, Refuse, Silence};

const SYNC: &str = "guest-sync-delimited";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";
const STATUS: &str = "guest-fsfreeze-status";

/// Longer than any operation here.
const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: Bounds = Bounds { answer: Duration::from_millis(700), frozen: PATIENCE };

struct World {
    agent: Arc<Agent>,
    /// The received commands.
    heard: Receiver<String>,
    events: Receiver<AgentEvent>,
    _dir: tempfile::TempDir,
}

impl World {
    /// An agent that answers the `n`-th command of each name (from 0) as `script` says, or as usual
    /// if it says nothing.
    fn new(
        bounds: Bounds,
        script: impl Fn(&str, usize) -> Option<Reply> + Send + 'static,
    ) -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (hear, heard) = channel();
        std::thread::spawn(move || {
            let mut before: Vec<String> = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, |command| {
                    let n = before.iter().filter(|known| *known == command).count();
                    before.push(command.into());
                    if command != SYNC && hear.send(command.to_owned()).is_err() {
                        return Some(Close);
                    }
                    script(command, n)
                });
            }
        });
        let (happen, events) = channel();
        let happen = Mutex::new(happen);
        let sink = Box::new(move |event| drop(happen.lock().unwrap().send(event)));
        World { agent: Agent::new(&path, bounds, sink), heard, events, _dir: dir }
    }

    fn heard(&self) -> String {
        self.heard.recv_timeout(PATIENCE).expect("the agent hears something")
    }

    fn heard_no_more(&self) {
        assert_eq!(self.heard.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
    }

    fn event(&self) -> AgentEvent {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    /// The error of a freeze that fails.
    fn refused(&self) -> String {
        self.agent.freeze().expect_err("it cannot freeze").to_string()
    }
}

fn serve(stream: UnixStream, mut script: impl FnMut(&str) -> Option<Reply>) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let text: Vec<u8> = line.iter().copied().filter(|byte| *byte != 0xff).collect();
        let said: Value = serde_json::from_slice(&text).expect("a command");
        let command = said["execute"].as_str().expect("its name");
        let usual = match command {
            SYNC => {
                assert_eq!(line[0], 0xff, "what stood before is ended");
                Answer(said["arguments"]["id"].clone())
            }
            _ => Answer(json!(1)),
        };
        let written = match script(command).unwrap_or(usual) {
            Answer(value) => {
                let marked: &[u8] = if command == SYNC { &[0xff] } else { &[] };
                let line = format!("{}\n", json!({"return": value}));
                out.write_all(&[marked, line.as_bytes()].concat())
            }
            Refuse => writeln!(out, "{}", json!({"error": {"class": "x", "desc": "not today"}})),
            Bytes(bytes) => out.write_all(bytes),
            Silence => Ok(()),
            Close => return,
        };
        if written.is_err() {
            return;
        }
    }
}

#[test]
fn a_freeze_lasts_as_long_as_its_guard() {
    let world = World::new(BOUNDS, |_, _| None);
    let frozen = world.agent.freeze().unwrap();
    frozen.check().unwrap();
    assert_eq!(world.heard(), FREEZE);
    world.heard_no_more();
    drop(frozen);
    assert_eq!(world.heard(), THAW);
    world.heard_no_more();
    assert!(world.events.try_recv().is_err());
    drop(world.agent.freeze().unwrap());
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW], "and once more");
}

#[test]
fn two_disks_of_a_guest_share_a_freeze() {
    let world = World::new(BOUNDS, |_, _| None);
    let one = world.agent.freeze().unwrap();
    let other = world.agent.freeze().unwrap();
    assert_eq!(world.heard(), FREEZE);
    drop(one);
    world.heard_no_more();
    other.check().unwrap();
    drop(other);
    assert_eq!(world.heard(), THAW);
    world.heard_no_more();
}

#[test]
fn whoever_panics_thaws() {
    let world = World::new(BOUNDS, |_, _| None);
    let agent = world.agent.clone();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _frozen = agent.freeze().unwrap();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW]);
}

#[test]
fn an_agent_that_is_not_there_or_does_not_answer_is_not_asked_to_freeze() {
    let sink = || Box::new(|_| ());
    let nowhere = Agent::new(Path::new("/nonexistent/agent.sock"), BOUNDS, sink());
    assert!(matches!(nowhere.freeze(), Err(AgentError::Connect { .. })));

    let world = World::new(BOUNDS, |command, _| (command == SYNC).then_some(Silence));
    assert!(world.refused().contains("did not answer 'guest-sync-delimited'"));
    world.heard_no_more();
}

#[test]
fn a_freeze_that_fails_is_thawed() {
    for (reply, wanted) in [
        ((|| Refuse) as fn() -> Reply, "refused 'guest-fsfreeze-freeze': not today"),
        (|| Bytes(b"what?\n"), "is no answer"),
        (|| Bytes(b"{\"else\": 1}\n"), "is no answer"),
        (|| Close, "broke at 'guest-fsfreeze-freeze'"),
    ] {
        let world = World::new(BOUNDS, move |command, _| (command == FREEZE).then(reply));
        let said = world.refused();
        assert!(said.contains(wanted) && said.contains("skip-lockfs"), "{said}");
        assert_eq!([world.heard(), world.heard()], [FREEZE, THAW], "{wanted}");
        assert!(world.events.try_recv().is_err(), "{wanted}");
    }
}

#[test]
fn a_freeze_that_hangs_is_given_up_and_thawed() {
    let frozen = Duration::from_millis(600);
    let world = World::new(Bounds { frozen, ..BOUNDS }, |command, _| {
        (command == FREEZE).then_some(Silence)
    });
    assert!(world.refused().contains("did not answer 'guest-fsfreeze-freeze'"));
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW]);
}

/// The agent dies during the freeze: it is told to thaw, and the missing answer is reported.
#[test]
fn an_agent_that_never_answers_again_is_reported() {
    let frozen = Duration::from_millis(600);
    let dead = |command: &str, n| (command == FREEZE || n > 0).then_some(Silence);
    let world = World::new(Bounds { frozen, ..BOUNDS }, dead);
    assert!(world.refused().contains("did not answer 'guest-fsfreeze-freeze'"));
    assert!(matches!(world.event(), AgentEvent::ThawFailed(_)));
}

#[test]
fn a_guest_is_frozen_no_longer_than_the_bound() {
    let frozen = Duration::from_millis(600);
    let world = World::new(Bounds { frozen, ..BOUNDS }, |_, _| None);
    let guard = world.agent.freeze().unwrap();
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW], "while somebody still holds it");
    assert_eq!(world.event(), AgentEvent::ThawedEarly);
    assert!(guard.check().is_err_and(|error| error.to_string().contains("the most")));
    // The next freeze is a new one.
    let again = world.agent.freeze().unwrap();
    again.check().unwrap();
    again.served();
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW]);
    drop((guard, again));
    assert!(world.events.try_recv().is_err(), "what was served is no news");
    world.heard_no_more();
}

/// A guest whose disk is suspended cannot thaw before the disk continues.
#[test]
fn a_thaw_that_was_not_confirmed_is_repeated_when_the_guard_goes() {
    let frozen = Duration::from_millis(600);
    let world = World::new(Bounds { frozen, ..BOUNDS }, |command, n| {
        (command == THAW && n < 2).then_some(Silence)
    });
    let guard = world.agent.freeze().unwrap();
    assert_eq!([world.heard(), world.heard(), world.heard()], [FREEZE, THAW, THAW]);
    assert_eq!(world.event(), AgentEvent::ThawedEarly);
    assert!(matches!(world.event(), AgentEvent::ThawFailed(_)));
    drop(guard);
    assert_eq!(world.heard(), THAW);
    assert!(world.events.try_recv().is_err());
}

#[test]
fn a_thaw_goes_over_a_new_connection_where_the_first_breaks() {
    let world = World::new(BOUNDS, |command, n| (command == THAW && n == 0).then_some(Close));
    drop(world.agent.freeze().unwrap());
    assert_eq!([world.heard(), world.heard(), world.heard()], [FREEZE, THAW, THAW]);
    assert!(world.events.try_recv().is_err());
}

#[test]
fn what_was_said_to_others_is_passed_over() {
    const OLD: &[u8] = b"{\"return\": 7}\nhalf a li\xff{\"return\": 7}\n{\"error\": {}}\n";
    let world = World::new(BOUNDS, |command, n| match (command, n) {
        (SYNC, 0) => Some(Bytes(OLD)),
        _ => None,
    });
    // The first synchronisation is never answered; another answer is not mistaken for its own.
    assert!(world.refused().contains("did not answer 'guest-sync-delimited'"));
    world.heard_no_more();
    drop(world.agent.freeze().unwrap());
    assert_eq!([world.heard(), world.heard()], [FREEZE, THAW]);
}

#[test]
fn a_guest_that_a_killed_process_left_frozen_is_thawed() {
    let world = World::new(BOUNDS, |command, n| match (command, n) {
        (STATUS, 0) => Some(Answer(json!("thawed"))),
        (STATUS, _) => Some(Answer(json!("frozen"))),
        _ => None,
    });
    assert!(!world.agent.thaw_what_was_left().unwrap());
    assert_eq!(world.heard(), STATUS);
    world.heard_no_more();
    assert!(world.agent.thaw_what_was_left().unwrap());
    assert_eq!([world.heard(), world.heard()], [STATUS, THAW]);
}
