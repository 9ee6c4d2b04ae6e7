//! Stores with owed chunks of a killed process.

use super::*;

fn line() -> String {
    format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")
}

/// After a process that served a store of two chunks, and was killed when it owed chunk 200.
fn killed() -> World {
    let world = World::new();
    world.file("disk", LEN);
    std::fs::write(world.path("store"), store_of(&[9, 3])).unwrap();
    world.device("snap", &[&line()]).unwrap();
    let store = world.table("snap").exceptions()[0].layers[0].clone();
    let Allocation::Run { first, count: 1 } = store.log().allocate(1) else { panic!("no room") };
    let _ = store.log().finish(first, Some(Chunk(200)));
    // Its file stays, as after a kill.
    let World { dir, devices, .. } = world;
    drop((store, devices));
    World::at(dir)
}

/// I11: owed chunks are in the next table of their store, after the listed ones.
#[test]
fn what_was_owed_is_in_the_table_with_what_was_listed() {
    let again = killed();
    again.devices.start(&[], |_| Ok(())).unwrap();
    let table = again.table("snap").exceptions()[0].table.clone();
    let mapped: Vec<(u64, u64)> = (0..table.chunks())
        .filter_map(|chunk| match table.get(Chunk(chunk)) {
            ChunkState::Mapped(place) => Some((chunk, place.chunk.0)),
            _ => None,
        })
        .collect();
    assert_eq!(mapped, [(3, 3), (9, 2), (200, 4)]);
}

/// A process that was killed during a commit: the list has the chunks that the file calls owed.
#[test]
fn what_was_owed_and_has_landed_is_no_other_program_s() {
    const OWED: u64 = 3000;
    let world = World::new();
    world.file("disk", OWED * 8);
    std::fs::write(world.path("store"), store_of(&[])).unwrap();
    File::options().write(true).open(world.path("store")).unwrap().set_len(16 << 20).unwrap();
    let line = format!("0 {} snapshot {{}}/disk {{}}/store PO 8", OWED * 8);
    world.device("snap", &[&line]).unwrap();
    let table = world.table("snap");
    let store = table.exceptions()[0].layers[0].clone();
    let Allocation::Run { first, count: OWED } = store.log().allocate(OWED) else { panic!("no") };
    for n in 0..OWED {
        let _ = store.log().finish(DataIndex(first.0 + n), Some(Chunk(OWED - 1 - n)));
    }
    let owed = world.path("store.owed");
    let before = std::fs::read(&owed).unwrap();
    assert_eq!(world.flusher.try_flush(&table), Flushed::Done);
    let World { dir, devices, .. } = world;
    drop((table, store, devices));
    // As it was before the commit recorded its end.
    std::fs::write(&owed, before).unwrap();
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    let table = again.table("snap").exceptions()[0].table.clone();
    assert!((0..OWED).all(|chunk| matches!(table.get(Chunk(chunk)), ChunkState::Mapped(_))));
}

/// A file with a cleared header is not a store; a new store in it has none of the former one's owed
/// chunks.
#[test]
fn a_store_that_is_made_over_another_is_owed_nothing() {
    let again = killed();
    std::fs::remove_file(again.path("state")).unwrap();
    let cow = File::options().write(true).open(again.path("store")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&cow, &[0; 4096], 0).unwrap();
    again.device("other", &[&line()]).unwrap();
    let table = again.table("other").exceptions()[0].table.clone();
    assert!((0..table.chunks()).all(|chunk| table.get(Chunk(chunk)) == ChunkState::Unmapped));
}

/// What lies past the end of a disk that is shorter now is refused as a listed chunk there is:
/// before anything is entered, so that nothing is lost.
#[test]
fn what_was_owed_past_the_end_of_a_shorter_disk_is_refused() {
    let again = killed();
    std::fs::remove_file(again.path("state")).unwrap();
    let files = || ["store", "store.owed"].map(|name| std::fs::read(again.path(name)).unwrap());
    let before = files();
    again.devices.create("other", None).unwrap();
    for sectors in [80, 1600] {
        let short = line().replacen(&LEN.to_string(), &sectors.to_string(), 1);
        let said = again.load("other", &[&short]).unwrap_err().to_string();
        let wanted = format!("chunk 200 of an origin of {} chunks", sectors / 8);
        assert!(said.contains(&wanted) && said.contains("store.owed"), "{said}");
        assert!(files() == before, "nothing was entered");
    }
    again.load("other", &[&line()]).unwrap();
    let table = again.table("other").exceptions()[0].table.clone();
    assert!(matches!(table.get(Chunk(200)), ChunkState::Mapped(_)));
}

/// What a killed process wrote may fail to reach the disk after its death. The first to sync the store is
/// told so, and nobody after that.
#[test]
fn what_was_owed_is_left_out_after_the_store_could_not_be_synced() {
    let again = killed();
    crate::io::durable::seen::fail(again.path("store").canonicalize().unwrap());
    again.devices.start(&[], |_| Ok(())).unwrap_err();
    let World { dir, devices, .. } = again;
    drop(devices);
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    let table = again.table("snap").exceptions()[0].table.clone();
    assert!(matches!(table.get(Chunk(9)), ChunkState::Mapped(_)));
    assert_eq!(table.get(Chunk(200)), ChunkState::Unmapped);
}
