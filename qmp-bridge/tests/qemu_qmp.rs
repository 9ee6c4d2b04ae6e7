//! QEMU's own client library and shell, as published on PyPI, against the monitor.
//!
//! Needs Python 3 with `venv`. The environment is created once, in the target folder, from
//! `tests/python/requirements.txt`; `SNAPBLK_PYTHON` names an interpreter that has the packages
//! already. A test without them fails; it does not skip.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const HOW: &str = "install Python 3 with venv and pip (Debian: apt-get install python3-venv), or \
                   set SNAPBLK_PYTHON to an interpreter that has the packages of \
                   tests/python/requirements.txt";

fn python_files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python")
}

/// The folder of this profile's build.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().to_owned()
}

/// An interpreter that has the packages.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| match std::env::var_os("SNAPBLK_PYTHON") {
        Some(python) => python.into(),
        None => environment(),
    })
}

fn environment() -> PathBuf {
    let venv = target().join("python-venv");
    let requirements = python_files().join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let stamp = venv.join("requirements-installed.txt");
    let python = venv.join("bin/python");
    // Other test processes may do this at the same time.
    let lock = File::create(target().join("python-venv.lock")).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
        return python;
    }
    let run = |program: &Path, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program:?}: {error}; {HOW}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {arguments:?} failed: {said}{HOW}");
    };
    run(Path::new("python3"), &["-m".as_ref(), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()]);
    run(
        &python,
        &[
            "-m".as_ref(),
            "pip".as_ref(),
            "install".as_ref(),
            "--quiet".as_ref(),
            "--requirement".as_ref(),
            requirements.as_ref(),
        ],
    );
    fs::write(&stamp, wanted).unwrap();
    python
}

/// A monitor in its own process.
struct Mock {
    dir: tempfile::TempDir,
    process: Child,
}

impl Mock {
    fn start() -> Self {
        let program = target().join("examples/mock_monitor");
        assert!(program.exists(), "{program:?} is missing: cargo build -p snapblk-qmp --examples");
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(program).arg(dir.path().join("m.sock")).spawn().unwrap();
        let mock = Mock { dir, process };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(mock.socket()).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "the mock does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        mock
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("m.sock")
    }

    /// Runs a script of `tests/python`.
    fn run(&self, script: &str) {
        let output =
            Command::new(python()).arg(python_files().join(script)).arg(self.socket()).output();
        let output = output.unwrap_or_else(|error| panic!("{:?}: {error}; {HOW}", python()));
        println!("{}", String::from_utf8_lossy(&output.stdout));
        let said = String::from_utf8_lossy(&output.stderr);
        let hint = if said.contains("ModuleNotFoundError") { HOW } else { "" };
        assert!(output.status.success(), "{script} failed: {said}{hint}");
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn qemu_qmp_negotiates_executes_hears_events_and_quits() {
    let mut mock = Mock::start();
    mock.run("qmp_client.py");
    assert!(mock.process.wait().unwrap().success());
    assert!(!mock.socket().exists());
}

#[test]
fn qemu_qmp_follows_a_job() {
    Mock::start().run("qmp_job.py");
}

#[test]
fn qmp_shell_runs_commands_from_its_standard_input() {
    let mock = Mock::start();
    let output = shell(
        &mock,
        "query-block-exports\n\
         device-create name=disk1\n\
         query-devices name=disk1\n\
         block-export-add type=vhost-user-blk id=e0 node-name=disk1 \
         addr={\"type\":\"unix\",\"path\":\"/run/e0.sock\"} writable=true num-queues=2\n\
         query-block-exports\n\
         device-remove name=nothing\n",
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}{HOW}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "Connected to QEMU",
        "{\"return\": []}",
        "\"name\": \"disk1\"",
        "\"node-name\": \"disk1\"",
        "\"type\": \"vhost-user-blk\"",
        "\"class\": \"DeviceNotFound\"",
    ] {
        assert!(said.contains(part), "{part} is in {said}");
    }
}

fn shell(mock: &Mock, input: &str) -> Output {
    let mut process = Command::new(python())
        .args(["-m", "qemu.qmp.qmp_shell"])
        .arg(mock.socket())
        .env("HOME", mock.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{:?}: {error}; {HOW}", python()));
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}
