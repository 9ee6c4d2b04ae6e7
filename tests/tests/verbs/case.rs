//! One case: a process, its disks, and the choice of commands.
//!
//! Owns the process, the connections, the model, and the list of the commands so far, which a failure
//! prints. The other modules carry the commands out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::disk::Disk;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};
use snapblk_tests::verify::stamp::{Generation, SECTOR, stamp_run};

use crate::model::{Family, Image};
use crate::requests::Burst;

/// Bytes of the chunks of stores.
const CHUNKS: [u64; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];
/// The most commands of a case.
const COMMANDS: u64 = 40;

/// A kind of command.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// How often it is chosen.
    weight: u64,
    /// Carries it out on a disk; false if it is not possible in its present state.
    act: fn(&mut Case, usize) -> bool,
}

const fn kind(name: &'static str, weight: u64, act: fn(&mut Case, usize) -> bool) -> Kind {
    Kind { name, weight, act }
}

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    kind("requests", 26, Case::requests),
    kind("requests to a snapshot", 14, Case::requests_to_a_snapshot),
    kind("snapshot-create", 16, Case::create),
    kind("snapshot-delete", 4, Case::delete),
    kind("snapshot-merge", 12, Case::merge),
    kind("snapshot-merge, slowly", 14, Case::merge_slowly),
    kind("snapshot-merge, again", 14, Case::merge_again),
    kind("blockdev-snapshot-sync", 10, Case::overlay),
    kind("block-commit", 6, Case::commit),
    kind("block-commit, slowly", 8, Case::commit_slowly),
    kind("job-complete", 6, Case::complete),
    kind("job-pause", 8, Case::pause),
    kind("job-cancel", 10, Case::cancel),
    kind("the job's end", 3, Case::wait_for_end),
    kind("device-suspend", 4, Case::suspend),
    kind("table-load", 4, Case::reload),
    kind("table-load, a stack", 3, Case::stack),
    kind("table-load, no origin", 6, Case::flatten),
    kind("block_resize", 4, Case::resize),
    kind("transaction", 6, Case::transaction),
    kind("handover", 7, Case::hand_over),
    kind("a device on top", 2, Case::put_on_top),
    kind("refused", 4, Case::refused),
    kind("SIGTERM", 3, Case::end_and_start),
    kind("SIGKILL", 4, Case::kill_and_start),
];

/// A case.
pub(crate) struct Case {
    seed: u64,
    pub(crate) rng: Rng,
    pub(crate) scratch: Scratch,
    command: ServerCommand,
    /// The process; none while it is started again.
    pub(crate) server: Option<Server>,
    pub(crate) qmp: Option<Qmp>,
    pub(crate) families: Vec<Family>,
    /// The front-ends of the disks.
    pub(crate) fronts: Vec<Option<Disk>>,
    /// How often something was written, which identifies what was written.
    generation: u32,
    /// The files of stores that are in memory.
    pub(crate) in_memory: Vec<PathBuf>,
    /// Devices, files and jobs that were made.
    made: u32,
    log: String,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stderr = self.server.as_ref().map(Server::stderr).unwrap_or_default();
            eprintln!("SNAPBLK_SEED={}\n{}{stderr}", self.seed, self.log);
        }
    }
}

impl Case {
    /// The case of a seed, with its process.
    pub(crate) fn new(seed: u64) -> Case {
        let mut rng = Rng::new(seed);
        let place = if rng.chance(75) { Place::Memory } else { Place::Disk };
        let scratch = Scratch::new(place).unwrap_or_else(|error| panic!("no directory: {error}"));
        let command = ServerCommand::snapblk_monitor(&scratch);
        let command = command.unwrap_or_else(|error| panic!("{error}"));
        let mut case = Case {
            seed,
            rng,
            scratch,
            command,
            server: None,
            qmp: None,
            families: Vec::new(),
            fronts: Vec::new(),
            generation: 1,
            in_memory: Vec::new(),
            made: 0,
            log: String::new(),
        };
        if case.rng.chance(30) {
            case.command = case.command.clone().arg("--flush-interval").arg("5ms");
        }
        for name in ["a", "b"].into_iter().take(1 + case.rng.below(2) as usize) {
            case.disk(name);
        }
        case.start();
        case
    }

    /// Adds a disk to the command line and to the model.
    fn disk(&mut self, name: &str) {
        // From 1 to 2 MiB; usually not a whole number of chunks.
        let sectors = 2048 + self.rng.below(2048);
        let bytes = self.stamped(0, sectors);
        let file = self.scratch.file(&format!("{name}.raw"), &bytes).expect("a disk");
        let queues = 1 + self.rng.below(2);
        let mut command = self.command.clone();
        command = command.arg("--name").arg(name).arg("--blk-file").arg(&file);
        command = command.arg("--socket-path").arg(self.socket(name));
        command = command.arg("--num-queues").arg(queues.to_string());
        let golden = self.rng.chance(30).then(|| bytes.clone());
        let mut chunk = 0;
        if golden.is_some() {
            let store = self.scratch.path(&format!("{name}.cow"));
            chunk = self.chunk();
            self.offline(&[
                "create".into(),
                store.clone().into(),
                "--origin".into(),
                file.into(),
                "--chunk-size".into(),
                chunk.to_string().into(),
                "--size=full".into(),
            ]);
            command = command.arg("--overlay").arg(store);
        }
        self.command = command;
        self.note(&format!("{name}: {sectors} sectors, {queues} queues, overlay of {chunk}"));
        self.families.push(Family {
            name: name.into(),
            golden,
            top: Image::of(bytes),
            under: Vec::new(),
            origin: false,
            snaps: BTreeMap::new(),
            chain: Vec::new(),
            over: None,
            job: None,
        });
        self.fronts.push(None);
    }

    /// Commands, each followed by a comparison, and the end.
    pub(crate) fn run(mut self, done: &mut BTreeMap<&'static str, u64>) {
        self.look();
        let weights: u64 = KINDS.iter().map(|kind| kind.weight).sum();
        let commands = 10 + self.rng.below(COMMANDS - 10);
        let mut carried_out = 0;
        while carried_out < commands {
            let mut at = self.rng.below(weights);
            let chosen = KINDS.iter().find(|kind| {
                let this = at < kind.weight;
                at = at.saturating_sub(kind.weight);
                this
            });
            let chosen = chosen.expect("the weights are those of all");
            let of = self.rng.below(self.families.len() as u64) as usize;
            self.settle();
            // A job does not last long.
            let of_jobs = ["snapshot-merge, again", "job-complete", "job-pause", "job-cancel"];
            if self.families[of].job.is_some()
                && self.rng.chance(40)
                && !of_jobs.contains(&chosen.name)
            {
                continue;
            }
            if (chosen.act)(&mut self, of) {
                *done.entry(chosen.name).or_default() += 1;
                carried_out += 1;
                let all = self.rng.chance(50);
                self.look_at(all);
            }
        }
        self.look();
        self.end();
    }

    /// Starts the process and connects to it.
    pub(crate) fn start(&mut self) {
        let server = self.command.start().unwrap_or_else(|error| panic!("{error}"));
        let connected = Qmp::connect(server.monitor());
        self.qmp = Some(connected.unwrap_or_else(|error| panic!("{error}\n{}", server.stderr())));
        self.server = Some(server);
        for of in 0..self.families.len() {
            let socket = self.socket(&self.families[of].name);
            let disk = Disk::connect(&socket).unwrap_or_else(|error| panic!("{error}"));
            self.fronts[of] = Some(disk);
        }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.scratch.socket(&format!("{name}.sock"))
    }

    /// Adds to the list of commands.
    pub(crate) fn note(&mut self, what: &str) {
        let _ = writeln!(self.log, "  {what}");
    }

    /// Carries a command out; returns why it was refused.
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.note(&format!("{command} {arguments}"));
        self.quietly(command, arguments)
    }

    /// The same, without an entry in the list.
    pub(crate) fn quietly(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let qmp = self.qmp.as_mut().expect("the process runs");
        match qmp.call(command, arguments.clone()) {
            Ok(value) => Ok(value),
            Err(ClientError::Command(error)) => Err(error.desc),
            Err(error) => panic!("{command} {arguments}: {error}"),
        }
    }

    /// Carries a command out that must not be refused.
    #[track_caller]
    pub(crate) fn call(&mut self, command: &str, arguments: Value) -> Value {
        let done = self.ask(command, &arguments);
        done.unwrap_or_else(|error| panic!("{command} {arguments} is refused: {error}"))
    }

    /// Bytes for `sectors` sectors from `first`, of a generation of their own.
    pub(crate) fn stamped(&mut self, first: u64, sectors: u64) -> Vec<u8> {
        self.generation += 1;
        let mut bytes = vec![0; sectors as usize * SECTOR];
        stamp_run(first, Generation(self.generation), &mut bytes);
        bytes
    }

    /// Requests with generations of their own.
    pub(crate) fn burst(&mut self) -> Burst {
        let generation = self.generation;
        self.generation += 100;
        Burst::new(Rng::new(self.rng.next_u64()), generation)
    }

    pub(crate) fn chunk(&mut self) -> u64 {
        CHUNKS[self.rng.below(CHUNKS.len() as u64) as usize]
    }

    /// A number that no other name has.
    pub(crate) fn new_number(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    /// One of `all`; none if there are none.
    pub(crate) fn one_of<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.rng.below(all.len() as u64) as usize).cloned()
    }

    /// One of the disk's snapshots.
    pub(crate) fn snapshot(&mut self, of: usize, transient: bool) -> Option<String> {
        let snaps = self.families[of].snaps.iter();
        let names = snaps.filter(|(_, snap)| transient || !snap.transient);
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        self.one_of(&names)
    }

    /// `query-devices` for one device.
    pub(crate) fn device(&mut self, name: &str) -> Value {
        let found = self.quietly("query-devices", &json!({"name": name}));
        found.unwrap_or_else(|error| panic!("{error}"))[0].clone()
    }

    /// A device's table.
    pub(crate) fn table(&mut self, name: &str) -> Value {
        self.device(name)["table"].clone()
    }
}
