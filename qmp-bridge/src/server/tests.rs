use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use snapblk_store::control::event::{BlockExportDeleted, DeviceChanged};
use snapblk_store::control::{Answer, Command, CommandError, Event};

use super::{Server, StartError};
use crate::client::{Client, ClientError};
use crate::commands::Commands;
use crate::events::Events;
use crate::jobs::Jobs;
use crate::outbox::MAX_EVENTS;
use crate::session::{Handler, Monitor};

/// Longer than any test takes: a longer wait has failed.
const FOREVER: Duration = Duration::from_secs(30);

/// A handler whose `device-suspend` waits until the test opens the gate.
#[derive(Default)]
struct Gate {
    state: Mutex<(u32, bool)>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    /// Waits until `count` commands are waiting at the gate.
    fn wait_for(&self, count: u32) {
        let state = self.state.lock().unwrap();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, FOREVER, |(waiting, _)| *waiting < count)
            .unwrap();
        assert_eq!(state.0, count);
    }
}

impl Handler for Gate {
    fn execute(&self, command: Command) -> Result<Answer, CommandError> {
        if let Command::DeviceSuspend(_) = command {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap());
        }
        Ok(Answer::DONE)
    }
}

struct Bench {
    dir: tempfile::TempDir,
    gate: Arc<Gate>,
    events: Arc<Events>,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Bench {
            dir: tempfile::tempdir().unwrap(),
            gate: Arc::default(),
            events: Events::new(),
            server: None,
        };
        bench.server = Some(bench.start().unwrap());
        bench
    }

    fn start(&self) -> Result<Server, StartError> {
        let jobs = Jobs::new(self.events.clone());
        let monitor = Monitor::new(Commands::default(), self.gate.clone(), jobs);
        Server::start(&self.path(), monitor)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("monitor.sock")
    }

    fn connect(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    /// A plain connection, not through [`Client`].
    fn raw(&self) -> (UnixStream, BufReader<UnixStream>) {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(FOREVER)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        assert!(line(&mut lines).starts_with("{\"QMP\": "));
        (stream, lines)
    }

    fn resumed(&self, device: &str) {
        let device = device.to_owned();
        self.events.emit(&Event::DeviceResumed(DeviceChanged { device }));
    }
}

fn line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.is_empty() || line.ends_with("\r\n"), "{line:?} ends with CRLF");
    line
}

fn value(lines: &mut impl BufRead) -> Value {
    serde_json::from_str(&line(lines)).unwrap()
}

#[test]
fn commands_may_come_in_one_write_and_are_answered_in_order() {
    let bench = Bench::new();
    let (mut stream, mut lines) = bench.raw();
    stream
        .write_all(
            b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-jobs\",\"id\":1} x \
              {\"execute\":\"quit\",\"id\":2}",
        )
        .unwrap();
    assert_eq!(line(&mut lines), "{\"return\": {}}\r\n");
    assert_eq!(value(&mut lines), json!({"return": [], "id": 1}));
    assert_eq!(value(&mut lines)["error"]["class"], "GenericError");
    assert_eq!(value(&mut lines), json!({"return": {}, "id": 2}));
}

#[test]
fn who_stops_sending_still_gets_the_replies() {
    let bench = Bench::new();
    let (mut stream, mut lines) = bench.raw();
    stream
        .write_all(
            b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}
              {\"execute\":\"query-jobs\",\"id\":1}",
        )
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    value(&mut lines);
    assert_eq!(value(&mut lines), json!({"return": [], "id": 1}));
    assert_eq!(line(&mut lines), "");
}

#[test]
fn events_reach_all_who_negotiated_in_order_with_a_timestamp() {
    let bench = Bench::new();
    let (mut quiet, mut quiet_lines) = bench.raw();
    let mut clients = [bench.connect(), bench.connect()];
    for client in &mut clients {
        // The reply to a further command shows that the server has completed the negotiation.
        client.call("query-jobs", json!({})).unwrap();
    }
    for device in ["a", "b"] {
        bench.resumed(device);
    }
    let id = "e".to_owned();
    bench.events.emit(&Event::BlockExportDeleted(BlockExportDeleted { id }));
    for client in &mut clients {
        let mut next = || client.event(Some(FOREVER)).unwrap().unwrap();
        let first = next();
        assert_eq!(first["event"], "DEVICE_RESUMED");
        assert_eq!(first["data"], json!({"device": "a"}));
        assert!(first["timestamp"]["seconds"].as_i64().unwrap() > 1_600_000_000);
        assert!((0..1_000_000).contains(&first["timestamp"]["microseconds"].as_i64().unwrap()));
        assert_eq!(next()["data"], json!({"device": "b"}));
        assert_eq!(next()["event"], "BLOCK_EXPORT_DELETED");
    }
    quiet.write_all(b"{\"execute\":\"qmp_capabilities\"}").unwrap();
    assert_eq!(line(&mut quiet_lines), "{\"return\": {}}\r\n", "no event before that");
}

#[test]
fn one_client_s_long_command_holds_nobody_else_up() {
    let bench = Bench::new();
    let path = bench.path();
    let slow = std::thread::spawn(move || {
        Client::connect(&path).unwrap().call("device-suspend", json!({"name": "d"})).unwrap()
    });
    bench.gate.wait_for(1);
    bench.connect().call("device-resume", json!({"name": "d"})).unwrap();
    bench.gate.open();
    assert_eq!(slow.join().unwrap(), json!({}));
}

#[test]
fn out_of_band_commands_overtake_and_others_keep_their_order() {
    let bench = Bench::new();
    let (mut stream, mut lines) = bench.raw();
    stream
        .write_all(
            b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}
              {\"execute\":\"device-suspend\",\"arguments\":{\"name\":\"d\"},\"id\":1}
              {\"execute\":\"query-status\",\"id\":2}
              {\"exec-oob\":\"query-jobs\",\"id\":3}",
        )
        .unwrap();
    value(&mut lines);
    assert_eq!(value(&mut lines), json!({"return": [], "id": 3}));
    bench.gate.wait_for(1);
    bench.gate.open();
    assert_eq!(value(&mut lines)["id"], 1);
    assert_eq!(value(&mut lines)["id"], 2);
}

#[test]
fn a_client_that_does_not_read_is_disconnected_and_nobody_waits_for_it() {
    let bench = Bench::new();
    let mut reader = bench.connect();
    let (mut deaf, mut deaf_lines) = bench.raw();
    deaf.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-jobs\"}").unwrap();
    value(&mut deaf_lines);
    value(&mut deaf_lines);
    reader.call("query-jobs", json!({})).unwrap();
    // More than the socket's buffers and the queue hold, in bursts that a reader can follow.
    let long = "x".repeat(4096);
    for _ in 0..8 {
        for _ in 0..MAX_EVENTS / 4 {
            bench.resumed(&long);
        }
        for _ in 0..MAX_EVENTS / 4 {
            assert!(reader.event(Some(FOREVER)).unwrap().is_some());
        }
    }
    let mut heard = 0;
    while deaf_lines.read_line(&mut String::new()).is_ok_and(|count| count > 0) {
        heard += 1;
    }
    assert!(heard < 2 * MAX_EVENTS, "it was disconnected after {heard} events");
    reader.call("query-jobs", json!({})).unwrap();
}

#[test]
fn stopping_lets_replies_out_disconnects_and_removes_the_socket() {
    let mut bench = Bench::new();
    let path = bench.path();
    let slow = std::thread::spawn(move || {
        Client::connect(&path).unwrap().call("device-suspend", json!({"name": "d"}))
    });
    let mut idle = bench.connect();
    bench.gate.wait_for(1);
    let server = bench.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.stop(FOREVER));
    assert!(matches!(idle.event(Some(FOREVER)), Err(ClientError::HungUp)));
    bench.gate.open();
    assert_eq!(slow.join().unwrap().unwrap(), json!({}));
    stopping.join().unwrap();
    assert!(!bench.path().exists());
}

#[test]
fn patience_with_a_stuck_command_ends() {
    let mut bench = Bench::new();
    let (mut stream, mut lines) = bench.raw();
    stream
        .write_all(
            b"{\"execute\":\"qmp_capabilities\"}
              {\"execute\":\"device-suspend\",\"arguments\":{\"name\":\"d\"}}",
        )
        .unwrap();
    value(&mut lines);
    bench.gate.wait_for(1);
    bench.server.take().unwrap().stop(Duration::from_millis(10));
    assert_eq!(line(&mut lines), "");
    bench.gate.open();
}

#[test]
fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
    let mut bench = Bench::new();
    assert!(matches!(bench.start(), Err(StartError::InUse { .. })));
    bench.connect().call("query-jobs", json!({})).unwrap();
    bench.server.take().unwrap().stop(FOREVER);
    // A socket left by a process that has ended.
    drop(UnixListener::bind(bench.path()).unwrap());
    assert!(bench.path().exists());
    bench.server = Some(bench.start().unwrap());
    bench.connect().call("query-jobs", json!({})).unwrap();
}

#[test]
fn what_is_no_socket_is_never_replaced() {
    let mut bench = Bench::new();
    bench.server.take().unwrap().stop(FOREVER);
    std::fs::write(bench.path(), "precious").unwrap();
    assert!(matches!(bench.start(), Err(StartError::NotASocket { .. })));
    assert_eq!(std::fs::read(bench.path()).unwrap(), b"precious");
}

#[test]
fn another_s_socket_is_not_removed_at_the_end() {
    let mut bench = Bench::new();
    std::fs::remove_file(bench.path()).unwrap();
    let _other = UnixListener::bind(bench.path()).unwrap();
    bench.server.take().unwrap().stop(FOREVER);
    assert!(bench.path().exists());
}
