//! Rounds of serving and killing: the budget, the moments, and the concurrent load.
//!
//! Owns the process of a round and the ledger of its disk. Never knows which commands run beside
//! the load.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::client::{Client, Connect};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Server, ServerCommand};
use snapblk_tests::verify::{self, Ledger, Load, Mix, Watch};

/// 4 MiB and some sectors: not a whole number of chunks of any size.
pub(crate) const SECTORS: u64 = (4 << 20) / 512 + 24;
const QUEUES: usize = 2;
/// The default duration of a test.
const SECONDS: u64 = 5;
/// Rounds after which every event must have been met.
const MANY: u64 = 400;

/// The interval of commits without a flush: on one kind of disk so short that they are frequent, on
/// the other longer than the life of a process.
pub(crate) fn flush_interval(place: Place) -> &'static str {
    if place == Place::Memory { "5ms" } else { "30s" }
}

/// The duration, the choices, and the events that were met.
pub(crate) struct Rounds {
    pub(crate) rng: Rng,
    seed: u64,
    until: Instant,
    met: BTreeMap<&'static str, u64>,
    done: u64,
}

impl Rounds {
    /// From `SNAPBLK_SECONDS` and `SNAPBLK_SEED`. A test with many rounds must meet each of
    /// `events`.
    pub(crate) fn new(events: &[&'static str]) -> Self {
        let number = |name| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        let seed = number("SNAPBLK_SEED").unwrap_or_else(Rng::fresh_seed);
        let seconds = number("SNAPBLK_SECONDS").unwrap_or(SECONDS);
        let until = Instant::now() + Duration::from_secs(seconds);
        let met = events.iter().map(|&event| (event, 0)).collect();
        Self { rng: Rng::new(seed), seed, until, met, done: 0 }
    }

    /// Whether there is another round.
    pub(crate) fn another(&mut self) -> bool {
        self.done += 1;
        self.done <= 3 || Instant::now() < self.until
    }

    /// `event` happened.
    pub(crate) fn met(&mut self, event: &'static str) {
        let count = self.met.get_mut(event).unwrap_or_else(|| panic!("nobody looks for {event}"));
        *count += 1;
    }

    /// Prints the events that were met; fails if any is missing.
    pub(crate) fn end(self) {
        println!("{self}");
        if self.done > MANY {
            let never: Vec<_> = self.met.iter().filter(|&(_, &n)| n == 0).collect();
            assert!(never.is_empty(), "in {} rounds never met: {never:?}", self.done);
        }
    }

    /// A duration, more often short than long.
    pub(crate) fn moment(&mut self, most: Duration) -> Duration {
        let scale = most.as_micros() as u64 >> self.rng.below(6);
        Duration::from_micros(self.rng.below(scale.max(1)))
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SNAPBLK_SEED={}: {} rounds", self.seed, self.done - 1)?;
        self.met.iter().try_for_each(|(event, count)| write!(f, ", {event} {count}"))
    }
}

/// The result of a command that the kill may have interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was answered.
    Done,
    /// The process was killed before it answered.
    Nothing,
}

/// A process that serves `disk0` and will be killed.
pub(crate) struct World<'a> {
    server: Server,
    ledger: &'a Mutex<Ledger>,
}

impl<'a> World<'a> {
    /// Starts it, sometimes after other processes that were killed during their start.
    pub(crate) fn start(
        command: &ServerCommand,
        ledger: &'a Mutex<Ledger>,
        rounds: &mut Rounds,
    ) -> Self {
        while rounds.rng.chance(25) {
            let life = rounds.moment(Duration::from_millis(60));
            command.start_and_kill(life).unwrap_or_else(|error| panic!("{rounds}: {error}"));
        }
        let server = command.start().unwrap_or_else(|error| panic!("{rounds}: {error}"));
        Self { server, ledger }
    }

    /// A client of its monitor.
    pub(crate) fn monitor(&self) -> Qmp {
        Qmp::connect(self.server.monitor())
            .unwrap_or_else(|error| panic!("{error}\n{}", self.server.stderr()))
    }

    /// Carries a command out that must not be refused.
    #[track_caller]
    pub(crate) fn call(&self, qmp: &mut Qmp, command: &str, arguments: Value) -> Value {
        match qmp.call(command, arguments.clone()) {
            Ok(value) => value,
            Err(error) => panic!("{command} {arguments}: {error}\n{}", self.server.stderr()),
        }
    }

    /// Checks that every sector of the disk at `socket` is as in `ledger`.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, socket: &Path, ledger: &Mutex<Ledger>) {
        verify::read_back(connect(&self.server, socket, 1, 2 << 20), ledger, 0)
            .unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.server.stderr()));
    }

    /// Checks that every acknowledged write is there.
    #[track_caller]
    pub(crate) fn check_disk(&self) {
        self.check("disk0", self.server.socket(), self.ledger);
        assert_eq!(lock(self.ledger).uncertain(), 0);
    }

    /// Runs `f` on an export of the device `node`.
    pub(crate) fn exported<T>(&self, node: &str, socket: &Path, f: impl FnOnce(&Path) -> T) -> T {
        let mut qmp = self.monitor();
        let export = json!({
            "type": "vhost-user-blk", "id": "look", "node-name": node, "writable": false,
            "addr": {"type": "unix", "path": socket},
        });
        self.call(&mut qmp, "block-export-add", export);
        let answer = f(socket);
        self.call(&mut qmp, "block-export-del", json!({"id": "look", "mode": "hard"}));
        answer
    }

    /// The first disk's socket.
    pub(crate) fn socket(&self) -> &Path {
        self.server.socket()
    }

    /// Some writes, all acknowledged, none necessarily durable.
    pub(crate) fn write(&self, rounds: &mut Rounds, mix: Mix) {
        let load = load(rounds, mix).requests(20 + rounds.rng.below(200));
        let client = connect(&self.server, self.server.socket(), QUEUES, load.pool(QUEUES));
        verify::run(client, self.ledger, &load, &Watch::default())
            .unwrap_or_else(|error| panic!("{rounds}: {error}\n{}", self.server.stderr()));
    }

    /// Kills it under load. `beside` runs meanwhile and ends with it; returns its result.
    pub(crate) fn kill_in_load<T>(
        mut self,
        rounds: &mut Rounds,
        mix: Mix,
        beside: impl FnOnce(&mut Qmp) -> T,
    ) -> T {
        let load = load(rounds, mix).requests(1 << 22);
        let (acknowledged, later) =
            (rounds.rng.below(600), rounds.moment(Duration::from_millis(40)));
        let client = connect(&self.server, self.server.socket(), QUEUES, load.pool(QUEUES));
        let mut qmp = self.monitor();
        let watch = Watch::default();
        let (server, ledger) = (&mut self.server, self.ledger);
        let told = std::thread::scope(|scope| {
            let running = scope.spawn(|| verify::run(client, ledger, &load, &watch));
            let killer = scope.spawn(|| {
                let alive = watch.wait_for(acknowledged);
                std::thread::sleep(later);
                server.signal(Signal::KILL).expect("SIGKILL");
                server.wait("end after SIGKILL").expect("it is reaped");
                watch.server_is_gone();
                alive
            });
            let told = beside(&mut qmp);
            let alive = killer.join().expect("the killer does not panic");
            let done = running.join().expect("the load does not panic");
            done.unwrap_or_else(|error| panic!("{rounds}: {error}"));
            assert!(alive, "{rounds}: the load ended before the kill");
            told
        });
        lock(self.ledger).lose_in_flight();
        told
    }

    /// Kills it during `beside`, without a load.
    pub(crate) fn kill_in<T>(
        mut self,
        rounds: &mut Rounds,
        beside: impl FnOnce(&mut Qmp) -> T,
    ) -> T {
        let later = rounds.moment(Duration::from_millis(60));
        let mut qmp = self.monitor();
        let server = &mut self.server;
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(later);
                server.signal(Signal::KILL).expect("SIGKILL");
                server.wait("end after SIGKILL").expect("it is reaped");
            });
            let told = beside(&mut qmp);
            killer.join().expect("the killer does not panic");
            told
        })
    }
}

/// Carries a command out that the kill may interrupt.
#[track_caller]
pub(crate) fn tell(qmp: &mut Qmp, command: &str, arguments: Value) -> Told {
    match qmp.call(command, arguments.clone()) {
        Ok(_) => Told::Done,
        Err(ClientError::Io(_) | ClientError::HungUp) => Told::Nothing,
        Err(error) => panic!("{command} {arguments}: {error}"),
    }
}

/// Loads the present table again and swaps it in, until the kill; returns how often.
pub(crate) fn reload_until_killed(qmp: &mut Qmp, device: &str) -> u64 {
    let mut swaps = 0;
    loop {
        let Ok(devices) = qmp.call("query-devices", json!({"name": device})) else { return swaps };
        let load = json!({"name": device, "table": devices[0]["table"]});
        if tell(qmp, "table-load", load) == Told::Nothing
            || tell(qmp, "device-resume", json!({"name": device})) == Told::Nothing
        {
            return swaps;
        }
        swaps += 1;
    }
}

/// The ledger, even if a thread panicked while it held the lock.
pub(crate) fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn load(rounds: &mut Rounds, mix: Mix) -> Load {
    Load { max_len: 16 << 10, ..Load::new(rounds.rng.next_u64()) }.depth(16).mix(mix)
}

fn connect(server: &Server, socket: &Path, queues: usize, pool: usize) -> Client {
    let connect = Connect::to(socket).queues(queues).pool(pool);
    let mut connected = Client::connect(&connect);
    for _ in 0..3 {
        // The end of the previous connection may not be seen yet: a front end retries as well.
        connected = connected.or_else(|_| Client::connect(&connect));
    }
    connected.unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()))
}
