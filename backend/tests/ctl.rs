//! `snapblk ctl` as a user runs it, against a monitor in this process.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use snapblk_qmp::jobs::Outcome;
use snapblk_qmp::{
    Commands, Events, Handler, JobDriver, JobHandle, JobSpec, Jobs, Monitor, Server,
};
use snapblk_store::control::answer::{
    BlockExportInfo, BlockExportType, DeviceInfo, DeviceState, OriginTarget, Resumption,
    SnapshotState, SnapshotTarget, Target, TargetInfo,
};
use snapblk_store::control::command::Persistence;
use snapblk_store::control::job::JobType;
use snapblk_store::control::{Answer, CommandError};

struct Idle;

impl JobDriver for Idle {
    fn pause(&self) {}
    fn resume(&self) {}
    fn set_speed(&self, _: u64) {}
    fn cancel(&self) -> Result<(), String> {
        Ok(())
    }
    fn complete(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Two devices and an export; merges are jobs that the test ends.
struct Mock {
    jobs: Arc<Jobs>,
    begun: Mutex<Vec<JobHandle>>,
    fail: bool,
}

impl Handler for Mock {
    fn execute(&self, command: snapblk_store::control::Command) -> Result<Answer, CommandError> {
        use snapblk_store::control::Command;
        match command {
            Command::QueryDevices(query) => {
                let mut devices = devices();
                devices
                    .retain(|device| query.name.as_ref().is_none_or(|name| *name == device.name));
                Ok(Answer::Devices(devices))
            }
            Command::QueryBlockExports => Ok(Answer::Exports(vec![BlockExportInfo {
                id: "e0".to_owned(),
                kind: BlockExportType::VhostUserBlk,
                node_name: "disk0".to_owned(),
                shutting_down: false,
                connected: true,
            }])),
            Command::DeviceMessage(message) => Ok(Answer::Message(message.message)),
            Command::DeviceResume(resume) => {
                let warning = (resume.name == "snap0").then(|| "the old table serves".to_owned());
                Ok(Answer::Resumed(Resumption { warning }))
            }
            Command::SnapshotMerge(merge) => {
                let spec = JobSpec {
                    id: merge.job_id,
                    kind: JobType::SnapshotMerge,
                    speed: 0,
                    auto_finalize: merge.auto_finalize.unwrap_or(true),
                    auto_dismiss: merge.snapshot != "later",
                    paused: false,
                };
                let job = self.jobs.create(spec, |_| Arc::new(Idle))?;
                job.start();
                job.progress(1, 4);
                if merge.snapshot == "later" {
                    self.begun.lock().unwrap().push(job);
                } else if self.fail {
                    job.finish(Outcome::Failed("the store is damaged".to_owned()));
                } else {
                    job.finish(Outcome::Completed);
                }
                Ok(Answer::DONE)
            }
            Command::DeviceRemove(remove) => Err(CommandError::device_not_found(&remove.name)),
            _ => Ok(Answer::DONE),
        }
    }
}

fn devices() -> Vec<DeviceInfo> {
    let device = |name: &str, line: &str, target| DeviceInfo {
        name: name.to_owned(),
        uuid: None,
        state: DeviceState::Active,
        size: 4 << 30,
        has_inactive_table: false,
        open_count: 1,
        table: vec![line.to_owned()],
        status: vec![],
        targets: vec![TargetInfo { start: 0, length: 4 << 30, target }],
    };
    let origin = Target::SnapshotOrigin(OriginTarget { origin: "/disk.img".to_owned() });
    let snapshot = Target::Snapshot(SnapshotTarget {
        origin: "disk0".to_owned(),
        cow: "snap0.cow".to_owned(),
        persistent: Persistence::PersistentOverflow,
        chunk_size: 4096,
        state: SnapshotState::Valid,
        allocated: Some(1 << 30),
        total: Some(4 << 30),
        metadata: Some(1 << 20),
        metadata_snapshot: "-".to_owned(),
    });
    vec![
        device("disk0", "0 8388608 snapshot-origin /disk.img", origin),
        device("snap0", "0 8388608 snapshot disk0 snap0.cow PO 8", snapshot),
    ]
}

struct Bench {
    dir: tempfile::TempDir,
    mock: Arc<Mock>,
    _server: Server,
}

impl Bench {
    fn new(fail: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(Events::new());
        let mock = Arc::new(Mock { jobs: jobs.clone(), begun: Mutex::default(), fail });
        let monitor = Monitor::new(Commands::default(), mock.clone(), jobs);
        let server = Server::start(&dir.path().join("m.sock"), monitor).unwrap();
        Bench { dir, mock, _server: server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("m.sock")
    }

    fn ctl(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_snapblk"))
            .arg("ctl")
            .arg(self.socket())
            .args(line.split(' '))
            .output()
            .unwrap()
    }

    /// Standard output of a verb that succeeds without standard error.
    fn said(&self, line: &str) -> String {
        let output = self.ctl(line);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        assert_eq!(output.status.code(), Some(0), "{line}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn status_shows_tables() {
    let bench = Bench::new(false);
    assert_eq!(
        bench.said("status"),
        "DEVICE  STATE   SIZE  OPEN  TARGET\n\
         disk0   active  4G    1     snapshot-origin /disk.img\n\
         snap0   active  4G    1     snapshot disk0 in snap0.cow (PO, 4K), 1G of 4G used (25%)\n\
         \n\
         EXPORT  TYPE            DEVICE  STATE\n\
         e0      vhost-user-blk  disk0   served, connected\n\
         \n\
         no jobs\n"
    );
    assert_eq!(
        bench.said("table"),
        "disk0: 0 8388608 snapshot-origin /disk.img\n\
         snap0: 0 8388608 snapshot disk0 snap0.cow PO 8\n"
    );
    assert_eq!(bench.said("table disk0"), "0 8388608 snapshot-origin /disk.img\n");
}

#[test]
fn json_is_what_the_monitor_answered() {
    let bench = Bench::new(false);
    let status: Value = serde_json::from_str(&bench.said("status --json")).unwrap();
    assert_eq!(status["devices"][1]["targets"][0]["chunk-size"], 4096);
    assert_eq!(status["exports"][0]["node-name"], "disk0");
    assert_eq!(bench.said("--json resume disk0"), "{}\n");
    assert_eq!(bench.said("message disk0 hello there"), "hello there\n");
}

#[test]
fn what_is_done_without_an_answer_is_silent() {
    let bench = Bench::new(false);
    for line in ["suspend disk0", "snapshot disk0 s1 --cow s1.cow", "quit"] {
        assert_eq!(bench.said(line), "", "{line}");
    }
}

/// Done, but not as whoever loaded the table expected.
#[test]
fn a_warning_of_a_resume_is_printed() {
    let output = Bench::new(false).ctl("resume snap0");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "snapblk: the old table serves\n");
}

#[test]
fn errors_are_the_monitor_s_sentence_and_a_status() {
    let bench = Bench::new(false);
    let output = bench.ctl("remove nothing");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "snapblk: Device 'nothing' not found\n");
    let output = bench.ctl("nonsense");
    assert_eq!(output.status.code(), Some(2));

    std::fs::remove_file(bench.socket()).unwrap();
    let output = bench.ctl("status");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("m.sock") && said.contains("--monitor"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn who_comes_when_all_places_are_taken_is_told_so() {
    let bench = Bench::new(false);
    let connect = || std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
    let others: Vec<_> = std::iter::repeat_with(connect).take(64).collect();
    let output = bench.ctl("status");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("64 clients at a time") && !said.contains("running?"), "{said}");
    drop(others);
}

#[test]
fn a_merge_is_waited_for() {
    let bench = Bench::new(false);
    assert_eq!(bench.said("merge disk0 snap0 --wait"), "job merge-disk0 is done\n");
    let bench = Bench::new(true);
    let output = bench.ctl("merge disk0 snap0 --wait");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "snapblk: job 'merge-disk0' failed: the store is damaged\n"
    );
}

#[test]
fn a_merge_can_be_followed_later() {
    let bench = Bench::new(false);
    assert_eq!(
        bench.said("merge disk0 later --job-id j"),
        "job j has begun; `wait j` follows it\n"
    );
    assert_eq!(
        bench.said("jobs"),
        "JOB  TYPE            STATE    DONE  ERROR\nj    snapshot-merge  running  25%\n"
    );
    let job = bench.mock.begun.lock().unwrap().pop().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bench.ctl("wait j"));
        // Before or after the other process checks: the job stays until it is dismissed.
        job.finish(Outcome::Cancelled);
        let output = waiting.join().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("job 'j'") && said.contains("cancel"), "{said}");
    });
    bench.said("job-dismiss j");
    let output = bench.ctl("wait j");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("job 'j' is not there"));
}

/// Without end otherwise: nothing but a command ends it.
#[test]
fn a_job_that_waits_for_a_command_is_not_waited_for() {
    let bench = Bench::new(false);
    let begin = |line: &str| {
        bench.said(line);
        bench.mock.begun.lock().unwrap().pop().unwrap()
    };
    let fails = |line: &str, why: &str| {
        let output = bench.ctl(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(why), "{line}: {said}");
    };
    let job = begin("merge disk0 later --job-id j --no-auto-finalize");
    job.ready();
    fails("wait j", "job 'j' is ready and waits for `job-complete j`");
    bench.said("job-pause j");
    job.paused();
    fails("wait j", "job 'j' is ready and waits");
    bench.said("job-resume j");
    // It stays ready while it completes, which is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bench.ctl("wait j --complete"));
        let completing = || bench.said("jobs").contains("ready, completing");
        while !completing() {}
        job.finish(Outcome::Completed);
        let output = waiting.join().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("job 'j' is pending and waits for `job-finalize j`"), "{said}");
    });
    fails("wait j", "job 'j' is pending and waits for `job-finalize j`");
    bench.said("job-finalize j");
    assert_eq!(bench.said("wait j"), "job j is done\n");
}

#[test]
fn a_job_that_is_paused_is_said_to_be() {
    let bench = Bench::new(false);
    bench.said("merge disk0 later --job-id j");
    let job = bench.mock.begun.lock().unwrap().pop().unwrap();
    bench.said("job-pause j");
    job.paused();
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_snapblk"))
        .arg("ctl")
        .arg(bench.socket())
        .args(["wait", "j"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "job j is paused: `job-resume j` lets it go on\n");
    bench.said("job-resume j");
    job.finish(Outcome::Completed);
    assert!(waiting.wait().unwrap().success());
    line.clear();
    std::io::Read::read_to_string(&mut said, &mut line).unwrap();
    assert_eq!(line, "", "it is said once");
}

#[test]
fn who_begins_a_job_is_told_how_it_ends() {
    let bench = Bench::new(false);
    assert_eq!(
        bench.said("commit disk0"),
        "job commit-disk0 has begun; `wait commit-disk0 --complete` follows it, and completes it \
         when it is ready\n"
    );
    assert_eq!(
        bench.said("merge disk0 later --no-auto-finalize"),
        "job merge-disk0 has begun; `wait merge-disk0` follows it, until it is pending: \
         `job-finalize merge-disk0` ends it\n"
    );
}

#[test]
fn watch_prints_events_until_the_server_ends() {
    assert!(watched(true).0);
}

#[test]
fn watch_fails_where_the_server_is_gone_without_a_word() {
    let (success, said) = watched(false);
    assert!(!success && said.contains("SHUTDOWN"), "{said}");
}

/// Whether `watch` succeeds, and what it says, while the server `says_so` before it is gone.
fn watched(says_so: bool) -> (bool, String) {
    let Bench { dir, mock, _server: server } = Bench::new(false);
    let mut watching = Command::new(env!("CARGO_BIN_EXE_snapblk"))
        .arg("ctl")
        .arg(dir.path().join("m.sock"))
        .arg("watch")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // The watcher gets no events until it has negotiated: events are repeated.
        let events = mock.jobs.events().clone();
        scope.spawn(move || {
            let event = snapblk_store::control::Event::DeviceResumed(
                snapblk_store::control::event::DeviceChanged { device: "disk0".to_owned() },
            );
            let pause = std::time::Duration::from_millis(20);
            while stopped.recv_timeout(pause).is_err() {
                events.emit(&event);
            }
        });
        let line = lines.next().unwrap().unwrap();
        assert!(line.ends_with("Z DEVICE_RESUMED device=disk0"), "{line}");
        stop.send(()).unwrap();
    });
    if says_so {
        let reason = snapblk_store::control::event::ShutdownCause::HostSignal;
        let shutdown = snapblk_store::control::event::Shutdown { guest: false, reason };
        mock.jobs.events().emit(&snapblk_store::control::Event::Shutdown(shutdown));
    }
    server.stop(std::time::Duration::from_secs(30));
    while lines.next().is_some() {}
    let output = watching.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
