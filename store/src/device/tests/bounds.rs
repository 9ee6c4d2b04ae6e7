//! Chunks that a table cannot name.

use super::*;

/// A list may be valid, but exceed the range of a table's word.
#[test]
fn an_exception_beyond_what_a_table_can_say_is_refused() {
    // In memory, a file may have any length.
    let dir = || tempfile::tempdir_in("/dev/shm").unwrap();
    let arena = Arena::new(dir().path(), Arena::LEAST).unwrap();
    for memory in [Memory::Heap, Memory::Arena(arena)] {
        let world = World::with(dir(), memory);
        world.file("disk", LEN);
        let mut bytes = vec![0; 1024];
        bytes[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        bytes[512..520].copy_from_slice(&7u64.to_le_bytes());
        bytes[520..528].copy_from_slice(&(1u64 << 37).to_le_bytes());
        std::fs::write(world.path("store"), bytes).unwrap();
        let store = File::options().write(true).open(world.path("store")).unwrap();
        store.set_len(512 * ((1 << 37) + 100)).unwrap();
        let error = world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 1")]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("an exception beyond its chunk 137438953471"), "{error}");
    }
}

/// The same for chunks that are given out later, also after the store has grown.
#[test]
fn no_exception_is_made_beyond_what_a_table_can_say() {
    for persistence in ["PO", "N"] {
        // In memory, a file may have any length.
        let world = World::at(tempfile::tempdir_in("/dev/shm").unwrap());
        world.file("disk", LEN);
        world.file("store", 1 << 37);
        let line = format!("0 {LEN} snapshot {{}}/disk {{}}/store {persistence} 1");
        world.device("snap", &[&line]).unwrap();
        let store = world.table("snap").exceptions()[0].store().clone();
        let last = || store.place_of(DataIndex(store.log().capacity() - 1), 1).0.0;
        let most = Place::MAX_CHUNK;
        assert!((most - 2..=most).contains(&last()), "{persistence}: {}", last());
        let file = File::options().write(true).open(world.path("store")).unwrap();
        file.set_len(512 * ((1 << 37) + 100)).unwrap();
        world.devices.resize("snap", LEN * 512).unwrap();
        assert_eq!(store.geometry().device_chunks, (1 << 37) + 100);
        assert!((most - 2..=most).contains(&last()), "{persistence}: {}", last());
    }
}
