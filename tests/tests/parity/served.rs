//! The scripts as executed by snapblk, with its monitor's verbs and a vhost-user client.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::disk::{Disk, DiskError};
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};
use snapblk_tests::verify::stamp::{Generation, SECTOR, stamp_run};

use crate::script::{Device, SECTORS, Script, Seen, Step};

struct World {
    scratch: Scratch,
    server: Server,
    qmp: Qmp,
}

/// The observations after each step.
pub(crate) fn run(script: &Script) -> Vec<Seen> {
    let scratch = Scratch::new(Place::Memory).expect("a directory for the test");
    scratch.file("ORIGIN", &pattern(0, SECTORS, 1)).expect("a disk");
    for (number, sectors) in (1..).zip(&script.stores) {
        scratch.sparse(&format!("COW{number}"), sectors * 512).expect("a store");
    }
    let command = ServerCommand::snapblk_monitor(&scratch).unwrap_or_else(|e| panic!("{e}"));
    let server = command.start().unwrap_or_else(|error| panic!("{error}"));
    let qmp = Qmp::connect(server.monitor()).unwrap_or_else(|error| panic!("{error}"));
    let mut world = World { scratch, server, qmp };
    let devices = script.devices();
    let steps = script.steps.iter().zip(&devices);
    steps
        .map(|(step, names)| {
            let answer = world.carry_out(step);
            let devices = names.iter().map(|&name| (name.to_owned(), world.look(name)));
            Seen { answer, devices: devices.collect::<BTreeMap<_, _>>() }
        })
        .collect()
}

fn pattern(first: u64, sectors: u64, generation: u32) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * SECTOR];
    stamp_run(first, Generation(generation), &mut bytes);
    bytes
}

/// A table for the monitor.
fn table(line: &str) -> Vec<String> {
    let words = line.split(' ').map(|word| match word.strip_prefix('@') {
        Some(name) => name.to_owned(),
        None if word == "ORIGIN" || word.starts_with("COW") => format!("./{word}"),
        None => word.to_owned(),
    });
    vec![words.collect::<Vec<_>>().join(" ")]
}

impl World {
    fn carry_out(&mut self, step: &Step) -> String {
        let done = match step {
            Step::Make(name, line) => self
                .call("device-create", json!({"name": name}))
                .and_then(|_| self.swap(name, line)),
            Step::Swap(name, line) => self.swap(name, line),
            Step::Remove(name) => self.call("device-remove", json!({"name": name})),
            Step::Write { device, first, each, times, generation } => {
                return self.fill(device, *first, *each, *times, *generation).to_string();
            }
            Step::Grow(store, sectors) => {
                let file = File::options().write(true).open(self.path(&format!("COW{store}")));
                file.and_then(|file| file.set_len(sectors * 512)).expect("it grows");
                return "ok".to_owned();
            }
            Step::Merge { origin, snapshot, .. } => self.merge(origin, snapshot),
            Step::Finish { origin, .. } => self.finish(origin),
        };
        match done {
            Ok(_) => "ok".to_owned(),
            Err(ClientError::Command(_)) => "error".to_owned(),
            Err(error) => panic!("{step:?}: {error}\n{}", self.server.stderr()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        self.qmp.call(command, arguments)
    }

    fn swap(&mut self, name: &str, line: &str) -> Result<Value, ClientError> {
        self.call("table-load", json!({"name": name, "table": table(line)}))?;
        self.call("device-suspend", json!({"name": name}))?;
        self.call("device-resume", json!({"name": name}))
    }

    /// Merges completely, and keeps the merging table.
    fn merge(&mut self, origin: &str, snapshot: &str) -> Result<Value, ClientError> {
        let merge = json!({
            "device": origin, "snapshot": snapshot, "job-id": origin, "auto-finalize": false,
        });
        let begun = self.call("snapshot-merge", merge)?;
        self.job_is("pending");
        Ok(begun)
    }

    fn finish(&mut self, origin: &str) -> Result<Value, ClientError> {
        let finished = self.call("job-finalize", json!({"id": origin}))?;
        self.job_is("null");
        Ok(finished)
    }

    fn job_is(&mut self, status: &str) {
        loop {
            let event = self.qmp.event(None).expect("the monitor lives").expect("an event");
            if event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == status {
                return;
            }
        }
    }

    /// Runs `f` with its own front end.
    fn on<T>(&mut self, name: &str, writable: bool, f: impl FnOnce(&mut Disk) -> T) -> T {
        let socket = self.scratch.socket(&format!("{name}.sock"));
        let export = json!({
            "type": "vhost-user-blk", "id": name, "node-name": name, "writable": writable,
            "num-queues": 1, "addr": {"type": "unix", "path": socket},
        });
        let failed = |error| panic!("{name}: {error}");
        self.call("block-export-add", export).unwrap_or_else(failed);
        let mut disk = Disk::connect(&socket).unwrap_or_else(|error| panic!("{name}: {error}"));
        let answer = f(&mut disk);
        self.call("block-export-del", json!({"id": name, "mode": "hard"})).unwrap_or_else(failed);
        answer
    }

    fn fill(&mut self, device: &str, first: u64, each: u64, times: u64, generation: u32) -> u64 {
        self.on(device, true, |disk| {
            let write = |n: &u64| {
                let at = first + n * each;
                let written = disk.write(at * SECTOR as u64, &pattern(at, each, generation));
                refused(&written).is_none()
            };
            (0..times).take_while(write).count() as u64
        })
    }

    fn look(&mut self, name: &str) -> Device {
        let devices = self.call("query-devices", json!({"name": name}));
        let devices = devices.unwrap_or_else(|error| panic!("{name}: {error}"));
        let status = devices[0]["status"][0].as_str().expect("a status").trim().to_owned();
        let content = self.on(name, false, |disk| {
            let all = disk.read_all();
            refused(&all).unwrap_or_else(|| {
                let sum = Sha256::digest(all.unwrap_or_default());
                sum.iter().map(|byte| format!("{byte:02x}")).collect()
            })
        });
        Device { status, content }
    }
}

/// `EIO` if the device reported an error; panics if it did not answer.
fn refused<T>(result: &Result<T, DiskError>) -> Option<String> {
    match result {
        Ok(_) => None,
        Err(error) if error.is_refused() => Some("EIO".to_owned()),
        Err(error) => panic!("{error}"),
    }
}
