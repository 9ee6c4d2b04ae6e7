//! A real front end against a served disk: verified random I/O on one and four queues, restarts,
//! and a server that is killed under load.
//!
//! The same checks run against qemu-storage-daemon, which verifies the client: an error found with
//! snapblk is then snapblk's.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use snapblk_tests::client::{Client, Connect};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};
use snapblk_tests::verify::{self, Done, Ledger, Load, Mix, Watch};

/// 64 MiB and some sectors: not a whole number of chunks of any size.
const SECTORS: u64 = (64 << 20) / 512 + 24;

/// A seed from `SNAPBLK_SEED`, or a random one.
fn seed() -> u64 {
    std::env::var("SNAPBLK_SEED")
        .ok()
        .map_or_else(Rng::fresh_seed, |seed| seed.parse().expect("SNAPBLK_SEED is a number"))
}

fn connect(server: &Server, queues: usize, pool: usize) -> Client {
    let connect = Connect::to(server.socket()).queues(queues).pool(pool);
    Client::connect(&connect).unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()))
}

/// Runs `load` on `queues` queues until it ends.
fn run(server: &Server, queues: usize, ledger: &Mutex<Ledger>, load: &Load) -> Done {
    let client = connect(server, queues, load.pool(queues));
    verify::run(client, ledger, load, &Watch::default())
        .unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()))
}

fn read_back(server: &Server, ledger: &Mutex<Ledger>, seed: u64) {
    verify::read_back(connect(server, 1, 2 << 20), ledger, seed)
        .unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
}

fn start(command: &ServerCommand) -> Server {
    command.start().unwrap_or_else(|error| panic!("{error}"))
}

fn stop(server: Server) {
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "SIGTERM ended it with {status}");
}

/// Load, restart with the same arguments, load again, read everything back; twice, on one queue and
/// on all.
fn load_and_restart(command: &ServerCommand, ledger: Ledger, queues: usize) {
    let ledger = Mutex::new(ledger);
    let load = Load::new(seed());
    let server = start(command);
    let done = run(&server, queues, &ledger, &load);
    assert_eq!(done, Done { acknowledged: load.requests * queues as u64, lost: 0 });
    read_back(&server, &ledger, load.seed);
    stop(server);

    let server = start(command);
    read_back(&server, &ledger, load.seed);
    let load = Load { seed: load.seed ^ 1, ..load };
    run(&server, queues, &ledger, &load.requests(500));
    // Another session with the same server: no state of a session outlives it.
    run(&server, 1, &ledger, &load.requests(500).depth(1));
    read_back(&server, &ledger, load.seed);
    stop(server);
}

/// SIGKILL at a random moment of a load and a restart with the same arguments, several times: each
/// acknowledged write is there.
fn kill_under_load(command: &ServerCommand, ledger: Ledger, queues: usize, rounds: u64) {
    let ledger = Mutex::new(ledger);
    let seed = seed();
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let server = start(command);
        // Short writes, and no flushes: acknowledged writes must outlive the process.
        let load = Load { max_len: 32 << 10, ..Load::new(seed ^ round) };
        let load = load.requests(1 << 20).mix(Mix { flush: 0, ..Mix::default() });
        let client = connect(&server, queues, load.pool(queues));
        let watch = Watch::default();
        let moment = 200 + rng.below(3_000);
        let done = std::thread::scope(|scope| {
            let running = scope.spawn(|| verify::run(client, &ledger, &load, &watch));
            if watch.wait_for(moment) {
                server.kill().expect("SIGKILL");
                watch.server_is_gone();
            }
            running.join().expect("the load does not panic")
        });
        let done = done.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let all = load.requests * queues as u64;
        assert!((moment..all).contains(&done.acknowledged), "not killed in mid-load: {done:?}");

        let server = start(command);
        read_back(&server, &ledger, seed);
        assert_eq!(ledger.lock().unwrap().uncertain(), 0);
        stop(server);
    }
}

fn raw_in_qemu(scratch: &Scratch, file: &Path) -> ServerCommand {
    let command = ServerCommand::qemu_storage_daemon(scratch).unwrap_or_else(|e| panic!("{e}"));
    let socket = command.socket().display().to_string();
    command
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=disk,filename={},discard=unmap", file.display()))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=4,\
             addr.type=unix,addr.path={socket}"
        ))
}

fn plain(scratch: &Scratch, file: &Path) -> ServerCommand {
    ServerCommand::snapblk(scratch)
        .unwrap_or_else(|error| panic!("{error}"))
        .arg("--num-queues")
        .arg("4")
        .arg("--blk-file")
        .arg(file)
}

fn overlay(scratch: &Scratch, base: &Path) -> ServerCommand {
    plain(scratch, base).arg("--overlay").arg(scratch.path("store.cow"))
}

fn scratch(place: Place) -> Scratch {
    Scratch::new(place).unwrap_or_else(|error| panic!("no directory for the test: {error}"))
}

#[test]
fn client_against_qemu_storage_daemon() {
    let scratch = scratch(Place::Memory);
    let file = scratch.file("disk.raw", &Ledger::image(SECTORS)).unwrap();
    let command = raw_in_qemu(&scratch, &file);
    load_and_restart(&command, Ledger::stamped(SECTORS), 4);
}

#[test]
fn client_against_a_killed_qemu_storage_daemon() {
    let scratch = scratch(Place::Memory);
    let file = scratch.sparse("disk.raw", SECTORS * 512).unwrap();
    let command = raw_in_qemu(&scratch, &file);
    kill_under_load(&command, Ledger::zeroed(SECTORS), 1, 2);
}

/// Proves that the client detects errors.
#[test]
fn client_sees_one_wrong_sector() {
    let scratch = scratch(Place::Memory);
    let mut image = Ledger::image(SECTORS);
    image[4242 * 512 + 17] ^= 1;
    let file = scratch.file("disk.raw", &image).unwrap();
    let server = start(&raw_in_qemu(&scratch, &file));
    let ledger = Mutex::new(Ledger::stamped(SECTORS));
    let error = verify::read_back(connect(&server, 1, 2 << 20), &ledger, 0).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("sector 4242 (byte 2171904)"), "{said}");
    assert!(said.contains("must hold generation 1"), "{said}");
}

#[test]
fn plain_disk_on_one_queue() {
    let scratch = scratch(Place::Memory);
    let file = scratch.file("disk.raw", &Ledger::image(SECTORS)).unwrap();
    load_and_restart(&plain(&scratch, &file), Ledger::stamped(SECTORS), 1);
}

#[test]
fn plain_disk_on_four_queues() {
    let scratch = scratch(Place::Memory);
    let file = scratch.file("disk.raw", &Ledger::image(SECTORS)).unwrap();
    load_and_restart(&plain(&scratch, &file), Ledger::stamped(SECTORS), 4);
}

#[test]
fn plain_disk_with_direct_io_on_disk() {
    let scratch = scratch(Place::Disk);
    let file = scratch.sparse("disk.raw", SECTORS * 512).unwrap();
    load_and_restart(&plain(&scratch, &file), Ledger::zeroed(SECTORS), 4);
}

/// Workers that never sleep, on all processors.
#[test]
fn polling_workers_serve_and_stop() {
    for place in [Place::Memory, Place::Disk] {
        let scratch = scratch(place);
        let file = scratch.sparse("disk.raw", SECTORS * 512).unwrap();
        let command = plain(&scratch, &file).arg("--poll");
        load_and_restart(&command, Ledger::zeroed(SECTORS), 1);
    }
}

#[test]
fn plain_disk_outlives_a_killed_server() {
    let scratch = scratch(Place::Memory);
    let file = scratch.sparse("disk.raw", SECTORS * 512).unwrap();
    kill_under_load(&plain(&scratch, &file), Ledger::zeroed(SECTORS), 4, 3);
}

/// Runs `check` on an overlay over a stamped image, and verifies that the image is unchanged.
fn on_overlay(place: Place, check: impl FnOnce(&ServerCommand, Ledger)) {
    let scratch = scratch(place);
    let image = Ledger::image(SECTORS);
    let base = scratch.file("golden.raw", &image).unwrap();
    check(&overlay(&scratch, &base), Ledger::stamped(SECTORS));
    assert!(fs::read(&base).unwrap() == image, "the golden image was written to");
}

#[test]
fn overlay_on_one_queue() {
    on_overlay(Place::Memory, |command, ledger| load_and_restart(command, ledger, 1));
}

#[test]
fn overlay_on_four_queues() {
    on_overlay(Place::Memory, |command, ledger| load_and_restart(command, ledger, 4));
}

#[test]
fn overlay_with_direct_io_on_disk() {
    on_overlay(Place::Disk, |command, ledger| load_and_restart(command, ledger, 4));
}

#[test]
fn scenario_70_acknowledged_overlay_writes_outlive_sigkill() {
    on_overlay(Place::Memory, |command, ledger| kill_under_load(command, ledger, 1, 4));
}

#[test]
fn scenario_70_on_four_queues() {
    on_overlay(Place::Memory, |command, ledger| kill_under_load(command, ledger, 4, 4));
}

#[test]
fn scenario_70_on_disk() {
    on_overlay(Place::Disk, |command, ledger| kill_under_load(command, ledger, 4, 2));
}

/// As in most containers.
#[test]
fn overlay_on_disk_without_io_uring() {
    on_overlay(Place::Disk, |command, ledger| {
        let without = env!("CARGO_BIN_EXE_without-io-uring").into();
        let command = command.clone().run_by(without, []);
        let server = start(&command);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.stderr().contains("io_uring cannot be used here") {
            assert!(Instant::now() < deadline, "{}", server.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        stop(server);
        load_and_restart(&command, ledger, 4);
    });
}
