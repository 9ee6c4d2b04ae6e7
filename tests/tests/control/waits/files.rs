//! `--on-full wait` where the file that is full is no store: plain disks, and files below origins.

use super::*;

/// A disk without a store on a small file system, of which nothing is left, and which no write has
/// touched; the server's `on_full`.
fn on_a_full_one(scratch: &Scratch, on_full: &str) -> (Small, World) {
    let small = Small::new(scratch);
    let file = std::fs::File::create(small.seen("disk.raw")).unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let command = small.command(scratch, on_full).arg("--blk-file").arg(small.at.join("disk.raw"));
    let world = World::start(&command);
    world.disk().write(8 * 4096, &stamped(64, 8, 1)).unwrap();
    small.fill_up();
    (small, world)
}

#[test]
fn scenario_78_a_plain_disk_on_a_full_file_system_waits_for_room() {
    let scratch = scratch();
    let (small, mut world) = on_a_full_one(&scratch, LONG);
    let mut held = world.disk();
    held.begin_write(4096, &stamped(8, 8, 2)).unwrap();
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &small.at.join("disk.raw"));
    assert!(held.end(MOMENT).is_err(), "it is held");
    let began = Instant::now();
    world.call("device-suspend", json!({"name": "disk0"}));
    assert!(began.elapsed() < Duration::from_secs(10), "the suspend waits for the held write");
    world.call("device-resume", json!({"name": "disk0"}));
    assert!(held.end(MOMENT).is_err(), "there is no room yet");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    chunk_is(&mut held, 1, 2);
    chunk_is(&mut held, 8, 1);
    world.stop();
}

/// And so does what comes behind, until there is room: what finds none after that waits again.
#[test]
fn scenario_78_a_plain_disk_fails_its_writes_when_the_time_is_over() {
    let scratch = scratch();
    let (small, mut world) = on_a_full_one(&scratch, "wait=2s");
    let mut held = world.disk();
    let began = Instant::now();
    held.begin_write(4096, &stamped(8, 8, 2)).unwrap();
    world.event("BLOCK_IO_ERROR");
    assert!(held.end(Duration::from_secs(20)).is_err_and(|error| error.is_refused()));
    assert!(began.elapsed() >= Duration::from_secs(2));
    let data = world.event("BLOCK_IO_ERROR")["data"].clone();
    assert_eq!((&data["action"], &data["nospace"]), (&json!("report"), &json!(true)), "{data}");
    small.make_room();
    held.write(4096, &stamped(8, 8, 3)).unwrap();
    chunk_is(&mut held, 1, 3);
    world.call("block_resize", json!({"device": "disk0", "size": SECTORS * 512}));
    small.fill_up();
    held.begin_write(4 * 4096, &stamped(32, 8, 2)).unwrap();
    while world.event("BLOCK_IO_ERROR")["data"]["action"] != "stop" {}
    world.call("device-message", json!({"name": "disk0", "message": "on-full fail"}));
    assert!(held.end(Duration::from_secs(20)).is_err_and(|error| error.is_refused()));
    world.stop();
}

#[test]
fn scenario_78_who_leaves_a_plain_disk_does_not_wait() {
    let scratch = scratch();
    let (_small, mut world) = on_a_full_one(&scratch, LONG);
    let mut held = world.disk();
    held.begin_write(4096, &stamped(8, 8, 2)).unwrap();
    world.event("BLOCK_IO_ERROR");
    let began = Instant::now();
    drop(held);
    let mut next = world.disk();
    chunk_is(&mut next, 8, 1);
    next.begin_write(4096, &stamped(8, 8, 2)).unwrap();
    assert!(next.end(MOMENT).is_err(), "it is held");
    world.stop();
    assert!(began.elapsed() < Duration::from_secs(30));
}

/// A write over two lines, of which one has its room elsewhere: that line's file is not full.
#[test]
fn scenario_78_only_the_store_that_has_no_room_is_full() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let small = Small::new(&scratch);
    let stores = [scratch.path("roomy.cow"), small.at.join("store.cow")];
    let table = scratch.path("table");
    let line = |n: usize| {
        let (base, store) = (word(&base), word(&stores[n]));
        format!("{} {SECTORS} snapshot {base} {store} PO 8\n", n as u64 * SECTORS)
    };
    std::fs::write(&table, [line(0), line(1)].concat()).unwrap();
    for store in [stores[0].clone(), small.seen("store.cow")] {
        std::fs::File::create(store).unwrap().set_len(40 * 4096).unwrap();
    }
    let table = format!("@{}", word(&table));
    let mut world = World::start(&small.command(&scratch, LONG).arg("--table").arg(table));
    let mut held = world.disk();
    let both = (SECTORS - 8) * 512;
    held.write(both, &stamped(0, 16, 2)).unwrap();
    // Where the chunk lies that was written first.
    small.punch("store.cow", 2 * 4096, 4096);
    small.fill_up();
    held.begin_write(both, &stamped(0, 16, 3)).unwrap();
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &stores[1]);
    assert!(held.end(MOMENT).is_err(), "it is held");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    assert_same("both", &held.read(both, 8192).unwrap(), &stamped(0, 16, 3));
    world.stop();
}

/// A file that is full leaves the table, and comes back while there is still no room: writes wait again.
#[test]
fn scenario_78_a_plain_disk_that_comes_back_without_room_waits_again() {
    let scratch = scratch();
    let (small, mut world) = on_a_full_one(&scratch, LONG);
    let mut held = world.disk();
    held.begin_write(4096, &stamped(8, 8, 2)).unwrap();
    world.event("BLOCK_IO_ERROR");
    let top = scratch.path("top.cow");
    world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": top}));
    held.end(Duration::from_secs(20)).unwrap();
    chunk_is(&mut held, 1, 2);
    let plain = format!("0 {SECTORS} linear {} 0", word(&small.at.join("disk.raw")));
    world.swap("disk0", &[plain]);
    held.begin_write(2 * 4096, &stamped(16, 8, 3)).unwrap();
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &small.at.join("disk.raw"));
    assert!(held.end(MOMENT).is_err(), "it is held");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    chunk_is(&mut held, 2, 3);
    world.stop();
}
