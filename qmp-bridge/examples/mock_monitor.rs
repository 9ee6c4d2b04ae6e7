//! A monitor without a server: `mock_monitor SOCKET`.
//!
//! Devices are names in a list, and a merge is a thread that counts. For trying clients, and for
//! the interoperability tests. `device-suspend` waits until another client resumes the device.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use snapblk_qmp::jobs::Outcome;
use snapblk_qmp::{
    Commands, Events, Handler, JobDriver, JobHandle, JobSpec, Jobs, Monitor, Server,
};
use snapblk_store::control::answer::{
    BlockExportInfo, BlockExportType, DeviceInfo, DeviceState, LinearTarget, Target, TargetInfo,
};
use snapblk_store::control::command::{BlockExportRemoveMode, NewImageMode, SnapshotMerge};
use snapblk_store::control::event::{
    BlockExportDeleted, DeviceChanged, MergeCompleted, Shutdown, ShutdownCause,
};
use snapblk_store::control::job::JobType;
use snapblk_store::control::{Answer, Command, CommandError, Event};

/// The steps of a merge, and the duration of each.
const STEPS: u64 = 20;
const STEP: Duration = Duration::from_millis(10);

struct Mock {
    devices: Mutex<BTreeMap<String, DeviceInfo>>,
    exports: Mutex<BTreeMap<String, BlockExportInfo>>,
    resumed: Condvar,
    jobs: Arc<Jobs>,
    quit: Sender<()>,
}

impl Mock {
    fn emit(&self, event: &Event) {
        self.jobs.events().emit(event);
    }

    fn suspend(&self, name: String) -> Result<Answer, CommandError> {
        let mut devices = self.devices.lock().expect("devices");
        let device = devices.get_mut(&name).ok_or(CommandError::device_not_found(&name))?;
        device.state = DeviceState::Suspended;
        self.emit(&Event::DeviceSuspended(DeviceChanged { device: name.clone() }));
        let is_suspended = |devices: &mut BTreeMap<String, DeviceInfo>| {
            devices.get(&name).is_some_and(|device| device.state == DeviceState::Suspended)
        };
        drop(self.resumed.wait_while(devices, is_suspended).expect("devices"));
        Ok(Answer::DONE)
    }

    fn resume(&self, name: &str) -> Result<Answer, CommandError> {
        let mut devices = self.devices.lock().expect("devices");
        let device = devices.get_mut(name).ok_or(CommandError::device_not_found(name))?;
        device.state = DeviceState::Active;
        self.emit(&Event::DeviceResumed(DeviceChanged { device: name.to_owned() }));
        self.resumed.notify_all();
        Ok(Answer::DONE)
    }

    fn merge(&self, merge: SnapshotMerge) -> Result<Answer, CommandError> {
        let SnapshotMerge { device, snapshot, job_id, speed, auto_finalize, auto_dismiss } = merge;
        for name in [&device, &snapshot] {
            if !self.devices.lock().expect("devices").contains_key(name) {
                return Err(CommandError::device_not_found(name));
            }
        }
        let spec = JobSpec {
            id: job_id,
            kind: JobType::SnapshotMerge,
            speed: speed.unwrap_or(0),
            auto_finalize: auto_finalize.unwrap_or(true),
            auto_dismiss: auto_dismiss.unwrap_or(true),
            paused: false,
        };
        let wish = Arc::new(Wish::default());
        let job = self.jobs.create(spec, |_| wish.clone())?;
        let events = self.jobs.events().clone();
        let cow = format!("{snapshot}.cow");
        let done = Event::MergeCompleted(MergeCompleted { device, snapshot, cow });
        thread::spawn(move || count(&job, &wish, || events.emit(&done)));
        Ok(Answer::DONE)
    }

    fn linear(name: &str, uuid: Option<String>) -> DeviceInfo {
        let target = Target::Linear(LinearTarget { device: "/tmp/disk".to_owned(), offset: 0 });
        DeviceInfo {
            name: name.to_owned(),
            uuid,
            state: DeviceState::Active,
            size: 1 << 30,
            has_inactive_table: false,
            open_count: 0,
            table: vec!["0 2097152 linear /tmp/disk 0".to_owned()],
            status: vec!["0 2097152 linear".to_owned()],
            targets: vec![TargetInfo { start: 0, length: 1 << 30, target }],
        }
    }

    fn add(&self, name: &str, uuid: Option<String>) -> Result<Answer, CommandError> {
        let mut devices = self.devices.lock().expect("devices");
        if devices.contains_key(name) {
            return Err(CommandError::generic(format!("Device '{name}' already exists")));
        }
        devices.insert(name.to_owned(), Mock::linear(name, uuid));
        Ok(Answer::DONE)
    }
}

impl Handler for Mock {
    fn execute(&self, command: Command) -> Result<Answer, CommandError> {
        match command {
            Command::DeviceCreate(create) => self.add(&create.name, create.uuid),
            Command::DeviceRemove(remove) => {
                match self.devices.lock().expect("devices").remove(&remove.name) {
                    Some(_) => Ok(Answer::DONE),
                    None => Err(CommandError::device_not_found(&remove.name)),
                }
            }
            Command::DeviceSuspend(suspend) => self.suspend(suspend.name),
            Command::DeviceResume(resume) => self.resume(&resume.name),
            Command::DeviceMessage(message) => Ok(Answer::Message(message.message)),
            Command::QueryDevices(query) => {
                let devices = self.devices.lock().expect("devices");
                let wanted = |device: &&DeviceInfo| {
                    query.name.as_ref().is_none_or(|name| *name == device.name)
                };
                Ok(Answer::Devices(devices.values().filter(wanted).cloned().collect()))
            }
            Command::SnapshotCreate(create) => {
                if create.mode != Some(NewImageMode::Existing) && Path::new(&create.cow).exists() {
                    let desc = format!("{:?} is there and not empty", create.cow);
                    return Err(CommandError::generic(desc));
                }
                self.add(&create.name, None)
            }
            Command::SnapshotMerge(merge) => self.merge(merge),
            Command::BlockExportAdd(add) => {
                let info = BlockExportInfo {
                    id: add.id.clone(),
                    kind: BlockExportType::VhostUserBlk,
                    node_name: add.node_name,
                    shutting_down: false,
                    connected: false,
                };
                self.exports.lock().expect("exports").insert(add.id, info);
                Ok(Answer::DONE)
            }
            Command::BlockExportDel(del) => {
                let hard = del.mode == Some(BlockExportRemoveMode::Hard);
                if self.exports.lock().expect("exports").remove(&del.id).is_none() {
                    let desc = format!("Export '{}' is not found (hard: {hard})", del.id);
                    return Err(CommandError::generic(desc));
                }
                self.emit(&Event::BlockExportDeleted(BlockExportDeleted { id: del.id }));
                Ok(Answer::DONE)
            }
            Command::QueryBlockExports => {
                let exports = self.exports.lock().expect("exports");
                Ok(Answer::Exports(exports.values().cloned().collect()))
            }
            Command::Quit => {
                let reason = ShutdownCause::HostQmpQuit;
                self.emit(&Event::Shutdown(Shutdown { guest: false, reason }));
                // If the main thread has ended, the process is about to end.
                let _ = self.quit.send(());
                Ok(Answer::DONE)
            }
            _ => Ok(Answer::DONE),
        }
    }
}

/// The user's commands to a merge.
#[derive(Default)]
struct Wish {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Wish {
    fn change(&self, change: impl FnOnce(&mut (bool, bool))) {
        change(&mut self.state.lock().expect("wish"));
        self.changed.notify_all();
    }
}

impl JobDriver for Wish {
    fn pause(&self) {
        self.change(|(paused, _)| *paused = true);
    }

    fn resume(&self) {
        self.change(|(paused, _)| *paused = false);
    }

    /// Each step takes its time, whatever the speed.
    fn set_speed(&self, _: u64) {}

    fn cancel(&self) -> Result<(), String> {
        self.change(|(_, cancelled)| *cancelled = true);
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        Err("a merge completes by itself".to_owned())
    }
}

/// The work of a merge.
fn count(job: &JobHandle, wish: &Wish, done: impl Fn()) {
    if !job.start() {
        return;
    }
    for step in 1..=STEPS {
        let mut state = wish.state.lock().expect("wish");
        while state.0 && !state.1 {
            drop(state);
            job.paused();
            state = wish.state.lock().expect("wish");
            if state.0 && !state.1 {
                state = wish.changed.wait(state).expect("wish");
            }
        }
        if state.1 {
            drop(state);
            return job.finish(Outcome::Cancelled);
        }
        drop(state);
        thread::sleep(STEP);
        job.progress(step << 20, STEPS << 20);
    }
    done();
    job.finish(Outcome::Completed);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: mock_monitor SOCKET")?;
    let jobs = Jobs::new(Events::new());
    let (quit, quitting) = channel();
    let disk0 = BTreeMap::from([("disk0".to_owned(), Mock::linear("disk0", None))]);
    let mock = Mock {
        devices: Mutex::new(disk0),
        exports: Mutex::default(),
        resumed: Condvar::new(),
        jobs: jobs.clone(),
        quit,
    };
    let monitor = Monitor::new(Commands::default(), Arc::new(mock), jobs);
    let server = Server::start(Path::new(&path), monitor.clone())?;
    quitting.recv()?;
    monitor.announce_stop();
    server.stop(Duration::from_secs(5));
    Ok(())
}
