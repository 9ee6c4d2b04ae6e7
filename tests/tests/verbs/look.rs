//! The comparison of the devices with the model, and what jobs did meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snapblk_tests::disk::{Disk, DiskError, MOST};
use snapblk_tests::server::{find_snapblk, output};

use crate::case::Case;
use crate::model::{Family, Job};

/// How long a job may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Events that no command here may cause.
const BAD: [&str; 5] = [
    "BLOCK_JOB_ERROR",
    "BLOCK_IO_ERROR",
    "SNAPSHOT_INVALIDATED",
    "SNAPSHOT_OVERFLOW",
    "BLOCK_WRITE_THRESHOLD",
];

/// The whole content through a front-end; `len` is the present one.
pub(crate) fn read_all(disk: &mut Disk, len: usize) -> Result<Vec<u8>, DiskError> {
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let at = all.len();
        all.extend(disk.read(at as u64, (len - at).min(MOST))?);
    }
    Ok(all)
}

/// The name of the job of a disk.
pub(crate) fn job_of(family: &Family) -> String {
    format!("job-{}", family.name)
}

impl Case {
    /// Compares everything with the model.
    pub(crate) fn look(&mut self) {
        self.look_at(true);
    }

    /// Compares all devices with the model, and the content of the disks; if `all` is set, also
    /// that of the devices below and beside them.
    pub(crate) fn look_at(&mut self, all: bool) {
        self.settle();
        self.look_at_events();
        let families = std::mem::take(&mut self.families);
        for (of, family) in families.iter().enumerate() {
            for (name, wanted) in family.devices() {
                let Some(image) = wanted.image else { continue };
                if !all && name != family.name {
                    continue;
                }
                let found = if name == family.name {
                    let front = self.fronts[of].as_mut().expect("it is connected");
                    read_all(front, image.bytes.len()).unwrap_or_else(|e| panic!("{name}: {e}"))
                } else {
                    self.exported(name, false, |disk| {
                        read_all(disk, disk.info().capacity as usize).map_err(|e| e.to_string())
                    })
                };
                if let Some(why) = image.differs(&found) {
                    panic!("{name} {why}");
                }
            }
        }
        self.families = families;
    }

    /// Runs `act` on an export of the device `name`.
    pub(crate) fn exported<T>(
        &mut self,
        name: &str,
        writable: bool,
        act: impl FnOnce(&mut Disk) -> Result<T, String>,
    ) -> T {
        let socket = self.socket("look");
        let export = json!({
            "type": "vhost-user-blk", "id": "look", "node-name": name, "writable": writable,
            "addr": {"type": "unix", "path": socket},
        });
        let added = self.quietly("block-export-add", &export);
        added.unwrap_or_else(|error| panic!("{name} cannot be exported: {error}"));
        let mut disk = Disk::connect(&socket).unwrap_or_else(|error| panic!("{name}: {error}"));
        let result = act(&mut disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        drop(disk);
        let ended = self.quietly("block-export-del", &json!({"id": "look", "mode": "hard"}));
        ended.unwrap_or_else(|error| panic!("{name}: {error}"));
        result
    }

    /// Brings the model to where the jobs are, and compares the devices' names and kinds.
    pub(crate) fn settle(&mut self) {
        let wrong = |case: &mut Case| {
            case.follow_jobs();
            let (found, wanted) = (case.found(), case.wanted());
            (found != wanted).then(|| format!("the devices are {found:?}, not {wanted:?}"))
        };
        let begin = Instant::now();
        while let Some(why) = wrong(self) {
            // A job that ends changes the devices first, and then goes.
            let ends = self.families.iter().any(Family::job_runs);
            assert!(ends && begin.elapsed() < Duration::from_secs(5), "{why}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn follow_jobs(&mut self) {
        if !self.families.iter().any(Family::job_runs) {
            return;
        }
        let jobs = self.quietly("query-jobs", &json!({})).expect("the jobs");
        for of in 0..self.families.len() {
            if !self.families[of].job_runs() {
                continue;
            }
            let id = job_of(&self.families[of]);
            let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == id.as_str());
            match job {
                None => {
                    self.note(&format!("({id} has ended)"));
                    self.families[of].has_ended();
                }
                Some(job) if job["status"] == "ready" => {
                    let family = &mut self.families[of];
                    if matches!(family.job, Some(Job::Commit { ready: false, .. })) {
                        family.is_ready();
                        self.note(&format!("({id} is ready)"));
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn found(&mut self) -> BTreeMap<String, String> {
        let all = self.quietly("query-devices", &json!({})).expect("the devices");
        let all = all.as_array().expect("an array").iter();
        let of = |device: &Value| {
            let kind = device["targets"][0]["type"].as_str().unwrap_or("none");
            let state = device["state"].as_str().unwrap_or("none");
            let suspended = if state == "active" { "" } else { " (suspended)" };
            (device["name"].as_str().unwrap_or("?").to_owned(), format!("{kind}{suspended}"))
        };
        all.map(of).collect()
    }

    fn wanted(&self) -> BTreeMap<String, String> {
        let all = self.families.iter().flat_map(Family::devices);
        all.map(|(name, wanted)| (name.to_owned(), wanted.kind.to_owned())).collect()
    }

    fn look_at_events(&mut self) {
        let qmp = self.qmp.as_mut().expect("the process runs");
        while let Some(event) = qmp.event(Some(Duration::ZERO)).expect("the monitor lives") {
            let name = event["event"].as_str().unwrap_or("");
            let failed = name == "BLOCK_JOB_COMPLETED" && !event["data"]["error"].is_null();
            assert!(!failed && !BAD.contains(&name), "{event}");
        }
    }

    /// Waits until the disk's job has ended, or is ready if `ready` is set; finalizes it.
    pub(crate) fn until_job(&mut self, of: usize, ready: bool) {
        let id = job_of(&self.families[of]);
        let begin = Instant::now();
        loop {
            let jobs = self.quietly("query-jobs", &json!({})).expect("the jobs");
            let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == id.as_str());
            let Some(job) = job else { return };
            if ready && job["status"] == "ready" {
                return;
            }
            if job["status"] == "pending" {
                // Refused if it is being finalized, which every job is for a moment.
                let finalize = self.quietly("job-finalize", &json!({"id": id}));
                if finalize.is_ok() {
                    self.note(&format!("job-finalize {id}"));
                }
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end: {job}");
            // An event may have come to a client before this one.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The end: an orderly stop, the stores and the files.
    pub(crate) fn end(&mut self) {
        self.fronts.iter_mut().for_each(|front| *front = None);
        self.stop();
        let files = std::fs::read_dir(self.scratch.dir()).expect("the directory");
        let paths = files.map(|file| file.expect("a file").path());
        let stores = paths.filter(|path| is_store(path) && !self.in_memory.contains(path));
        let stores: Vec<_> = stores.collect();
        for store in stores {
            self.offline(&["check".into(), store.into()]);
        }
        for family in &self.families {
            let file = self.scratch.path(&format!("{}.raw", family.name));
            let (found, wanted) = (std::fs::read(&file).expect("the file"), family.file());
            if let Some(why) = wanted.and_then(|wanted| wanted.differs(&found)) {
                panic!("{} {why}", file.display());
            }
        }
    }

    /// Runs one of the offline tools, which succeeds.
    pub(crate) fn offline(&mut self, arguments: &[OsString]) {
        let program = find_snapblk().unwrap_or_else(|error| panic!("{error}"));
        let run = || output(Command::new(&program).args(arguments)).expect("it runs");
        let (mut done, begin) = (run(), Instant::now());
        // The files of a process whose I/O was by io_uring may be locked for some time after it.
        let in_use = |said: &[u8]| String::from_utf8_lossy(said).contains("is in use");
        while in_use(&done.stderr) && begin.elapsed() < PATIENCE {
            done = run();
        }
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let more = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}{more}");
    }
}

fn is_store(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "cow")
}
