use super::*;
use crate::io::buffer::Memory;
use crate::io::{FileId, IoOp, Pages, ScratchConfig, Tag};

fn read() -> Action {
    Action { op: IoOp::Read, file: FileId(0), offset: 0, len: 0, segs: (0, 0), tag: Tag(0) }
}

fn memory() -> Memory {
    Memory::new(ScratchConfig { buffers: 1, size: 4096, pages: Pages::Small }).expect("memory")
}

/// Gives one this many pieces.
fn fill(transfers: &mut Transfers, slot: u32, memory: &Memory, pieces: usize) {
    for _ in 0..pieces {
        transfers[slot].pieces.push_zeroes(memory, 512);
    }
}

#[test]
fn each_has_room_for_what_any_of_them_had() {
    let (mut transfers, memory) = (Transfers::default(), memory());
    let taken: Vec<u32> = (0..5).map(|_| transfers.take(read())).collect();
    fill(&mut transfers, taken[2], &memory, 40);
    transfers.give_back(taken[2]);
    let room = transfers.room;
    assert!(room >= 40, "{room}");
    for slot in [0, 1, 3, 4] {
        transfers.give_back(taken[slot]);
    }
    let all: Vec<usize> = transfers.all.iter().map(Transfer::room).collect();
    assert_eq!(all, vec![room; 8], "five make eight");
    let taken: Vec<u32> = (0..9).map(|_| transfers.take(read())).collect();
    assert!(taken.iter().all(|slot| transfers[*slot].room() == room));
}

#[test]
fn pieces_of_one_in_flight_stay_where_they_are() {
    let (mut transfers, memory) = (Transfers::default(), memory());
    let (one, other) = (transfers.take(read()), transfers.take(read()));
    fill(&mut transfers, one, &memory, 2);
    let before = transfers[one].pieces.window().as_ptr();
    fill(&mut transfers, other, &memory, 40);
    transfers.give_back(other);
    let many: Vec<u32> = (0..20).map(|_| transfers.take(read())).collect();
    assert!(!many.contains(&one), "{many:?}");
    assert_eq!(transfers[one].pieces.window().as_ptr(), before);
    assert_eq!(transfers[one].pieces.window().len(), 2);
}
