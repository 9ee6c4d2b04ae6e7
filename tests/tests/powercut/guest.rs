//! The guest: its disks, its programs, and the log of its requests to the disks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use snapblk_tests::disklog::{self, Record};
use snapblk_tests::guest::{Disk, Guest, GuestConfig};
use snapblk_tests::server::{Place, Scratch};
use snapblk_tests::verify::Ledger;

/// Sectors of the disk under test.
pub(crate) const SECTORS: u64 = 2048;
/// Bytes of a store: room for every chunk of the disk.
const STORE: usize = 2 << 20;
/// The disks by their numbers.
pub(crate) const ORIGIN: usize = 0;
pub(crate) const FIRST: usize = 1;
pub(crate) const SECOND: usize = 2;
pub(crate) const MARKS: usize = 3;

/// snapblk is built as shipped; the crate of the load's driver supports only GNU's C library.
const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// The disk that is served in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// An overlay with chunks of one sector.
    Overlay,
    /// A disk with two snapshots, of which one is merged.
    Origin,
}

/// One run of the guest.
pub(crate) struct Setup {
    pub(crate) mode: Mode,
    pub(crate) seed: u64,
}

impl Setup {
    /// The first content of the disks.
    pub(crate) fn disks(&self) -> Vec<Vec<u8>> {
        vec![Ledger::image(SECTORS), vec![0; STORE], vec![0; STORE], vec![0; 64 << 10]]
    }

    fn script(&self) -> String {
        let rounds = 12;
        let (name, serve, more) = match self.mode {
            Mode::Overlay => {
                let table = format!("0 {SECTORS} snapshot /dev/vda /dev/vdb PO 1");
                ("overlay", format!("--table \\'{table}\\'"), "")
            }
            Mode::Origin => (
                "origin",
                "--blk-file /dev/vda".to_owned(),
                "/tmp/tools/snapblk m.sock /dev/vdb /dev/vdc",
            ),
        };
        let load = format!("{name} v.sock /dev/vdd {} {rounds} {more}", self.seed);
        let serve = serve.replace("\\'", "'\\''");
        format!("SERVE='{serve}' LOAD='{load}'\n{}", include_str!("../../guest/powercut.sh"))
    }
}

/// Runs the load in a guest; returns all requests to its disks.
pub(crate) fn run(setup: &Setup) -> Vec<Record> {
    let scratch = Scratch::new(Place::Memory).expect("a directory for the test");
    let socket = scratch.socket("nbd.sock");
    let logged = disklog::serve(&socket, setup.disks()).expect("a server for the disks");
    let mut config = GuestConfig::new(setup.script());
    for disk in 0..setup.disks().len() {
        let export = disklog::export_name(disk);
        config = config.disk(Disk::Nbd { socket: socket.clone(), export });
    }
    config = config.disk(Disk::ReadOnly(programs(&scratch)));
    config.timeout = Duration::from_secs(600);
    let result = Guest::boot(&config).and_then(Guest::finish);
    result.unwrap_or_else(|error| panic!("{error}")).expect_success();
    logged.take()
}

/// A tar of the two static programs that run in the guest.
fn programs(scratch: &Scratch) -> PathBuf {
    let load = build("snapblk-tests", "powercut-load", GNU);
    let snapblk = std::env::var_os("SNAPBLK").map(PathBuf::from);
    let snapblk = snapblk.unwrap_or_else(|| build("snapblk", "snapblk", MUSL));
    for (program, name) in [(load, "powercut-load"), (snapblk, "snapblk")] {
        // Debug information would fill the guest's memory.
        run_tool(Command::new("strip").arg("-o").arg(scratch.path(name)).arg(program));
    }
    let tar = scratch.path("programs.tar");
    let mut pack = Command::new("tar");
    run_tool(
        pack.arg("-cf").arg(&tar).arg("-C").arg(scratch.dir()).args(["powercut-load", "snapblk"]),
    );
    tar
}

/// Builds a static program, and returns its path.
fn build(package: &str, name: &str, target: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", package, "--bin", name, "--target", target]);
    run_tool(build.env("RUSTFLAGS", "-C target-feature=+crt-static").current_dir(&workspace));
    let built = std::env::var_os("CARGO_TARGET_DIR");
    let built = built.map_or_else(|| workspace.join("target"), PathBuf::from);
    built.join(target).join("debug").join(name)
}

fn run_tool(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
