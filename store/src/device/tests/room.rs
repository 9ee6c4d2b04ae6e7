//! The room that an opened store reserves, and the part of its file that may be written.

use super::*;

#[test]
fn room_is_reserved_behind_what_a_store_holds_and_in_no_origin() {
    let world = World::new();
    world.file("disk", LEN);
    std::fs::write(world.path("store"), store_of(&[9, 3])).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let table = world.table("snap");
    let store = table.exceptions()[0].layers[0].file();
    // Header, area, and two chunks of data.
    let end = 4 * 4096;
    for &file in table.files() {
        // A write to its present content.
        let room = world.devices.files().get(file).unwrap().ahead.next(end - 4096, end);
        let expected = (file == store).then_some(end..end + (4 << 20));
        assert_eq!(room, expected, "of the store: {}", file == store);
        // Its area has room, and there is no other after it until the file has grown.
        let ahead = &world.devices.files().get(file).unwrap().ahead;
        assert!(ahead.allows(64 * 4096));
        let area = 4096 * 258..4096 * 259;
        assert_eq!(ahead.lacks(65 * 4096), (file == store).then_some(area));
    }
}

/// A list may be valid, and name a distant chunk: the gap before it needs no areas.
#[test]
fn a_store_with_a_gap_takes_no_room_for_it() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.file("disk", LEN);
    let mut bytes = store_of(&[9]);
    bytes[4096 + 8..][..8].copy_from_slice(&(2u64 + (257 << 20)).to_le_bytes());
    std::fs::write(world.path("store"), bytes).unwrap();
    let store = File::options().write(true).open(world.path("store")).unwrap();
    store.set_len((257 << 32) + (1 << 20)).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let taken = store.metadata().unwrap().blocks() * 512;
    assert!(taken <= 1 << 20, "{taken} bytes");
    let store = world.table("snap").exceptions()[0].layers[0].file();
    let ahead = &world.devices.files().get(store).unwrap().ahead;
    assert!(ahead.allows((257 << 32) + 257 * 4096), "one area behind is enough for as many chunks");
    assert!(!ahead.allows((257 << 32) + 260 * 4096));
}
