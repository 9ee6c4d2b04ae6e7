//! `transaction`: one moment of several disks, or no effect.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use snapblk_store::control::ErrorClass;
use snapblk_tests::client::{Buffer, Client, Connect, Queue};
use snapblk_tests::server::{Place, Scratch, ServerCommand};

use crate::common::*;

/// Queues of each disk, each with its own writer.
const WRITERS: usize = 4;
/// Places of each writer, one after the other on a disk.
const PLACES: u64 = 8;
/// Bytes between the starts of two places: a chunk and a half, so that some writes share chunks.
const STRIDE: u64 = 6144;
/// Bytes of a write.
const WRITE: usize = 2048;
/// Bytes of a disk.
const DISK: u64 = 1 << 20;

/// The kind of moment.
#[derive(Clone, Copy)]
enum How {
    Snapshot,
    Overlay,
}

/// Two disks, `a` and `b`, plain or with one overlay each.
fn two_disks(scratch: &Scratch, how: How) -> ServerCommand {
    let mut command = monitor_only(scratch);
    for name in ["a", "b"] {
        let file = scratch.path(&format!("{name}.raw"));
        if !file.exists() {
            scratch.sparse(&format!("{name}.raw"), DISK).unwrap();
        }
        command = command.arg("--name").arg(name).arg("--blk-file").arg(file);
        command = command.arg("--socket-path").arg(socket(scratch, name));
        command = command.arg("--num-queues").arg(WRITERS.to_string());
        if let How::Overlay = how {
            command = command.arg("--overlay").arg(scratch.path(&format!("{name}.cow")));
        }
    }
    command
}

fn socket(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.socket(&format!("{name}.sock"))
}

fn create(device: &str, name: &str, cow: &str) -> Value {
    json!({"type": "snapshot-create", "data": {"device": device, "name": name, "cow": cow}})
}

fn overlay_on(device: &str, cow: &str) -> Value {
    json!({"type": "blockdev-snapshot-sync", "data": {"device": device, "snapshot-file": cow}})
}

/// The content of place `place` of a disk after the writes 1 to `last` of its writer.
fn expected(last: u64, place: u64) -> u64 {
    // The largest number up to `last` that is written to `place`.
    last.saturating_sub((last + PLACES - place) % PLACES)
}

/// One queue of each disk. Number `n` is written to `a`, then to `b` after the acknowledgement of
/// `a`, and only then the next number.
struct Writer {
    number: u64,
    queues: [Queue; 2],
    buffers: [Option<Buffer>; 2],
}

impl Writer {
    fn run(mut self, acknowledged: &AtomicU64, ended: &AtomicBool) -> u64 {
        let mut n = 0;
        while !ended.load(Ordering::SeqCst) {
            n += 1;
            for disk in 0..2 {
                self.write(disk, n);
            }
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        n
    }

    fn write(&mut self, disk: usize, n: u64) {
        let at = (self.number * PLACES + n % PLACES) * STRIDE;
        let mut buffer = self.buffers[disk].take().expect("one request at a time");
        buffer.set_part(0, WRITE);
        buffer.store(&n.to_le_bytes().repeat(WRITE / 8));
        let queue = &mut self.queues[disk];
        queue.write(at, buffer, n).expect("room on the ring");
        queue.kick().expect("the server hears");
        let done = loop {
            match queue.reap() {
                Some(done) => break done,
                None => assert!(queue.wait(Duration::from_secs(30)).expect("a wait"), "it hangs"),
            }
        };
        done.result.unwrap_or_else(|error| panic!("write {n}: {error}"));
        self.buffers[disk] = done.buffer;
    }
}

fn writers(scratch: &Scratch) -> Vec<Writer> {
    let parts = |name| {
        let connect = Connect::to(socket(scratch, name)).queues(WRITERS).pool(1 << 16);
        Client::connect(&connect).unwrap_or_else(|error| panic!("{error}")).into_parts()
    };
    let ((a, mut of_a), (b, mut of_b)) = (parts("a"), parts("b"));
    let both = a.into_iter().zip(b).enumerate();
    let writer = |(number, (a, b))| {
        let buffers = [&mut of_a, &mut of_b].map(|pool| pool.buffer(WRITE).ok());
        Writer { number: number as u64, queues: [a, b], buffers }
    };
    both.map(writer).collect()
}

/// The newest number of each writer in an image, which must contain all numbers before it and none
/// after it.
fn newest(image: &[u8]) -> Vec<u64> {
    let number = |writer: u64, place: u64| {
        let at = ((writer * PLACES + place) * STRIDE) as usize;
        let words: Vec<u64> = image[at..at + WRITE]
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        assert!(words.iter().all(|word| *word == words[0]), "half a write at {at}");
        words[0]
    };
    let of = |writer: u64| {
        let places: Vec<u64> = (0..PLACES).map(|place| number(writer, place)).collect();
        let last = places.iter().copied().max().unwrap_or(0);
        let wanted: Vec<u64> = (0..PLACES).map(|place| expected(last, place)).collect();
        assert_eq!(places, wanted, "writer {writer}: a write is missing");
        last
    };
    (0..WRITERS as u64).map(of).collect()
}

#[test]
fn what_is_expected_of_a_disk() {
    let all = |last| (0..PLACES).map(|place| expected(last, place)).collect::<Vec<_>>();
    assert_eq!(all(0), [0; 8]);
    assert_eq!(all(3), [0, 1, 2, 3, 0, 0, 0, 0]);
    assert_eq!(all(8), [8, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(all(18), [16, 17, 18, 11, 12, 13, 14, 15]);
}

#[test]
fn scenario_67_snapshots_of_two_disks_are_of_one_moment() {
    one_moment(How::Snapshot, Place::Memory);
}

#[test]
fn scenario_67_snapshots_of_two_disks_are_of_one_moment_on_disk() {
    one_moment(How::Snapshot, Place::Disk);
}

#[test]
fn scenario_67_overlays_on_two_disks_are_of_one_moment() {
    one_moment(How::Overlay, Place::Memory);
}

fn one_moment(how: How, place: Place) {
    const ROUNDS: usize = 12;
    let scratch = scratch_on(place);
    let mut world = World::start(&two_disks(&scratch, how));
    let (acknowledged, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let writers = writers(&scratch);
    let mut reached = Vec::new();
    let lasts: Vec<u64> = std::thread::scope(|scope| {
        let load: Vec<_> = writers
            .into_iter()
            .map(|writer| scope.spawn(|| writer.run(&acknowledged, &ended)))
            .collect();
        for round in 0..ROUNDS {
            let until = acknowledged.load(Ordering::SeqCst) + 100;
            while acknowledged.load(Ordering::SeqCst) < until {
                assert!(!load.iter().any(|writer| writer.is_finished()), "a writer has ended");
                std::thread::yield_now();
            }
            reached.push(acknowledged.load(Ordering::SeqCst));
            let of = |disk: &str| match how {
                How::Snapshot => {
                    create(disk, &format!("{disk}{round}"), &format!("{disk}{round}.cow"))
                }
                How::Overlay => overlay_on(disk, &format!("{disk}{round}.cow")),
            };
            // In either order of their names.
            let names = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            world.call("transaction", json!({"actions": names.map(of)}));
        }
        ended.store(true, Ordering::SeqCst);
        load.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });
    let check = |world: &mut World| {
        for (round, reached) in reached.iter().enumerate() {
            let names = ["a", "b"].map(|disk| match how {
                How::Snapshot => format!("{disk}{round}"),
                How::Overlay => format!("{disk}.{}", round + 1),
            });
            let [a, b] = names.map(|name| newest(&world.content(&scratch, &name)));
            for (writer, (a, b)) in a.iter().zip(&b).enumerate() {
                assert!(b <= a, "round {round}, writer {writer}: b has {b}, but a only {a}");
                assert!(*a <= b + 1, "round {round}, writer {writer}: a has {a}, but b only {b}");
            }
            assert!(
                b.iter().sum::<u64>() >= *reached,
                "round {round}: acknowledged, and not there"
            );
        }
        for disk in ["a", "b"] {
            assert_eq!(newest(&world.content(&scratch, disk)), lasts, "{disk} as it is now");
        }
    };
    check(&mut world);
    world.kill();
    let mut world = World::start(&two_disks(&scratch, how));
    check(&mut world);
    world.stop();
}

/// All files that a transaction could leave behind.
fn files(scratch: &Scratch) -> Vec<(String, Vec<u8>)> {
    let state = |name: &str| name.ends_with(".state");
    let mut all: Vec<_> = fs::read_dir(scratch.dir())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, path)| path.is_file() && !state(name) && name != "stderr.log")
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_transaction_that_fails_leaves_nothing() {
    let scratch = scratch();
    let mut world = World::start(&two_disks(&scratch, How::Snapshot));
    let (mut a, mut b) = (disk(&socket(&scratch, "a")), disk(&socket(&scratch, "b")));
    a.write(0, &stamped(0, 64, 1)).unwrap();
    b.write(0, &stamped(0, 64, 1)).unwrap();
    scratch.file("full.cow", b"something").unwrap();
    scratch.file("empty.cow", b"").unwrap();
    let (tables, before) = (world.tables(), files(&scratch));
    let abort = json!({"type": "abort", "data": {}});
    let good = [create("a", "sa", "sa.cow"), overlay_on("a", "empty.cow")];
    let not_found = ErrorClass::DeviceNotFound;
    let bad = [
        (
            create("b", "sb", "full.cow"),
            ErrorClass::GenericError,
            "full.cow is there and not empty",
        ),
        (overlay_on("b", "full.cow"), ErrorClass::GenericError, "full.cow is there and not empty"),
        (create("c", "sc", "sc.cow"), not_found, "'c'"),
        (overlay_on("b", "nowhere/b.cow"), ErrorClass::GenericError, "nowhere/b.cow"),
        (create("b", "sa", "sb.cow"), ErrorClass::GenericError, "'sa' already"),
        (create("b", "a-real", "sb.cow"), ErrorClass::GenericError, "'a-real' already"),
        (create("b", "sb", "sa.cow"), ErrorClass::GenericError, "sa.cow is there and not empty"),
        (overlay_on("a", "again.cow"), ErrorClass::GenericError, "two actions"),
        (abort, ErrorClass::GenericError, "'abort'"),
    ];
    for first in &good {
        for (second, class, wanted) in &bad {
            // The second action can conflict only with things that the first one creates.
            let depends = first["type"] != "snapshot-create"
                && ["'sa' already", "'a-real' already", "sa.cow is there and not empty"]
                    .contains(wanted);
            if depends {
                continue;
            }
            let actions = json!({"actions": [first, second]});
            let said = world.refused_as(*class, "transaction", actions.clone());
            assert!(said.contains(wanted), "{actions}: {said}");
            assert_eq!(world.tables(), tables, "{actions}");
            assert_eq!(files(&scratch), before, "{actions}");
        }
    }
    // The guests are not affected, and the same works afterwards, also after a restart in between.
    a.write(4096, &stamped(8, 8, 2)).unwrap();
    b.write(4096, &stamped(8, 8, 2)).unwrap();
    drop((a, b));
    world.stop();
    let mut world = World::start(&two_disks(&scratch, How::Snapshot));
    assert_eq!(world.tables(), tables);
    let actions = [create("a", "sa", "sa.cow"), overlay_on("b", "empty.cow")];
    world.call("transaction", json!({"actions": actions}));
    let names: Vec<String> = world.tables().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "a-real", "b", "b.1", "sa"]);
    world.stop();
}

#[test]
fn what_is_no_transaction_is_refused_before_any_effect() {
    let scratch = scratch();
    let mut world = World::start(&two_disks(&scratch, How::Snapshot));
    let before = files(&scratch);
    let first = create("a", "sa", "sa.cow");
    let unknown = json!({"type": "blockdev-backup", "data": {"device": "b"}});
    let said = world.refused("transaction", json!({"actions": [first, unknown]}));
    assert!(said.contains("'actions[1].type'") && said.contains("blockdev-backup"), "{said}");
    let grouped = json!({"actions": [first], "properties": {"completion-mode": "grouped"}});
    let said = world.refused("transaction", grouped);
    assert!(said.contains("'grouped'"), "{said}");
    assert_eq!(files(&scratch), before);
    world.call("transaction", json!({"actions": []}));
    assert_eq!(files(&scratch), before);
    let individual = json!({"actions": [first], "properties": {"completion-mode": "individual"}});
    world.call("transaction", individual);
    assert!(scratch.path("sa.cow").exists());
    world.stop();
}

/// A device and another on top of it, in both orders: the upper is built on what the lower becomes.
#[test]
fn a_transaction_of_devices_that_lie_on_each_other() {
    for order in [["a", "top"], ["top", "a"]] {
        let scratch = scratch();
        let mut world = World::start(&two_disks(&scratch, How::Snapshot));
        let sectors = DISK / 512;
        world.make("top", &[format!("0 {} linear a 0", sectors / 2)]);
        let actions = order.map(|disk| create(disk, &format!("s-{disk}"), &format!("{disk}.s")));
        let refused = world.qmp.call("transaction", json!({"actions": actions})).is_err();
        let names: Vec<String> = world.tables().into_iter().map(|(name, _)| name).collect();
        if refused {
            // As if carried out one after the other.
            assert_eq!(names, ["a", "b", "top"]);
            world.stop();
            continue;
        }
        let socket = world.export(&scratch, "top", true);
        disk(&socket).write(0, &stamped(0, 64, 2)).unwrap();
        for snapshot in ["s-a", "s-top"] {
            let image = world.content(&scratch, snapshot);
            assert!(image.iter().all(|byte| *byte == 0), "{snapshot}, in the order {order:?}");
        }
        assert_same("a", &world.content(&scratch, "a")[..64 * 512], &stamped(0, 64, 2));
        world.stop();
    }
}
