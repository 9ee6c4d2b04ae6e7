//! The file I/O of each kind of request: how many actions, of which kinds, and where their bytes
//! are. The engine's actions are recorded as it requests them; nothing is timed.
//!
//! A write to the store with a guest's bytes refers to the guest's memory. Scratch memory holds
//! only the origin's bytes: no guest byte passes through it.
#![cfg(not(feature = "shuttle"))]

mod world;

use snapblk_store::cow::Persistence;
use snapblk_store::io::sim::Asked;
use snapblk_store::io::{FileId, IoOp, Seg};
use snapblk_store::request::Op;
use world::{Config, Req, Shape, Snap, World};

const STORE: FileId = FileId(1);
/// Bytes of a chunk of eight sectors.
const CHUNK: u64 = 4096;
/// Bytes of an entry on disk: two little-endian words of 64 bits.
const ENTRY: u64 = 16;
/// Chunks of a store.
const STORE_CHUNKS: u64 = 875;
/// Orders of events under which each count is the same.
const SEEDS: u64 = 8;

fn req(op: Op, sector: u64, count: u64) -> Req {
    Req { device: 0, op, sector, count, durable: false }
}

fn write(sector: u64, count: u64) -> Req {
    req(Op::Write, sector, count)
}

/// A write that covers a chunk of eight sectors.
fn covering(chunk: u64) -> Req {
    write(chunk * 8, 8)
}

/// Two sectors in the middle of such a chunk.
fn partial(chunk: u64) -> Req {
    write(chunk * 8 + 1, 2)
}

fn flush() -> Req {
    req(Op::Flush, 0, 0)
}

fn roomy(shape: Shape, sectors: u64) -> Config {
    Config { depth: 64, claims: 4096, scratch: 4 << 20, ..Config::new(shape, sectors) }
}

/// A new overlay with chunks of `chunk` sectors.
fn overlay(chunk: u32) -> Config {
    let chunks = u64::from(chunk);
    roomy(Shape::Overlay { chunk, store: STORE_CHUNKS * chunks }, 640 * chunks)
}

/// An origin with `count` snapshots.
fn origin(count: usize, persistence: Persistence) -> Config {
    let snap = Snap { chunk: 8, persistence, store: 3000, sectors: 512 };
    roomy(Shape::Origin(vec![snap; count]), 512)
}

fn each(config: &Config, test: impl Fn(&mut World)) {
    for seed in 0..SEEDS {
        let mut world = World::new(config.clone(), seed);
        test(&mut world);
        world.judge_all().unwrap();
        world.check_quiet().unwrap();
    }
}

fn asked(world: &mut World, reqs: impl IntoIterator<Item = Req>) -> Vec<Asked> {
    world.batch(reqs).unwrap()
}

/// The operation, the file and the bytes of each action.
fn kinds(asked: &[Asked]) -> Vec<(IoOp, FileId, u64)> {
    asked.iter().map(|asked| (asked.action.op, asked.action.file, asked.action.len)).collect()
}

fn is_guest(seg: &Seg) -> bool {
    matches!(seg, Seg::Guest { .. })
}

/// Bytes of the segments that satisfy `of`.
fn bytes(asked: &[Asked], of: impl Fn(&Seg) -> bool) -> u64 {
    asked.iter().flat_map(|one| &one.segs).filter(|seg| of(seg)).map(|seg| seg.len() as u64).sum()
}

/// Whether all segments are the guest's own memory.
fn is_all_guest(asked: &[Asked]) -> bool {
    asked.iter().all(|one| !one.segs.is_empty() && one.segs.iter().all(is_guest))
}

#[test]
fn a_first_write_that_covers_its_chunk_is_one_write_of_the_guests_memory() {
    each(&overlay(8), |world| {
        let asked = asked(world, [covering(3)]);
        assert_eq!(kinds(&asked), [(IoOp::Write, STORE, CHUNK)]);
        assert!(is_all_guest(&asked), "{asked:?}");
    });
}

#[test]
fn a_first_write_of_part_of_a_chunk_is_one_read_and_one_write() {
    each(&overlay(8), |world| {
        let base = world.base;
        let asked = asked(world, [partial(3)]);
        assert_eq!(kinds(&asked), [(IoOp::Read, base, CHUNK), (IoOp::Write, STORE, CHUNK)]);
        assert_eq!(bytes(&asked[..1], is_guest), 0, "old bytes go to scratch memory");
        let parts: Vec<(bool, u32)> =
            asked[1].segs.iter().map(|seg| (is_guest(seg), seg.len())).collect();
        assert_eq!(parts, [(false, 512), (true, 1024), (false, 2560)], "only the rest is scratch");
    });
}

/// At any places: random first writes become one sequential write.
#[test]
fn first_writes_of_a_batch_that_cover_their_chunks_are_one_write() {
    each(&overlay(8), |world| {
        let adjacent = asked(world, (16..32).map(covering));
        assert_eq!(kinds(&adjacent), [(IoOp::Write, STORE, 16 * CHUNK)]);
        let scattered = asked(world, (0..16).map(|n| covering(100 + (n * 7 % 16) * 9)));
        assert_eq!(kinds(&scattered), [(IoOp::Write, STORE, 16 * CHUNK)]);
        let large = asked(world, [write(300 * 8, 16 * 8)]);
        assert_eq!(kinds(&large), [(IoOp::Write, STORE, 16 * CHUNK)]);
        for (asked, parts) in [(adjacent, 16), (scattered, 16), (large, 1)] {
            assert!(is_all_guest(&asked) && asked[0].segs.len() == parts, "{asked:?}");
        }
    });
}

/// A store with chunks of eight sectors has an area after 256 of them; a request on both sides of
/// one is two writes.
#[test]
fn a_first_write_over_an_area_is_a_write_on_each_side() {
    each(&overlay(8), |world| {
        asked(world, [write(0, 200 * 8)]);
        let asked = asked(world, [write(200 * 8, 100 * 8)]);
        assert_eq!(
            kinds(&asked),
            [(IoOp::Write, STORE, 56 * CHUNK), (IoOp::Write, STORE, 44 * CHUNK)]
        );
        assert!(is_all_guest(&asked) && asked.iter().all(|one| one.segs.len() == 1), "{asked:?}");
        assert_eq!(asked[1].action.offset - asked[0].action.offset, 57 * CHUNK);
    });
}

/// Neighbours share a read, and all that were read together share a write.
#[test]
fn first_writes_of_a_batch_to_parts_of_neighbours_are_one_read_and_one_write() {
    each(&overlay(8), |world| {
        let base = world.base;
        let adjacent = asked(world, (16..32).map(partial));
        let expected = [(IoOp::Read, base, 16 * CHUNK), (IoOp::Write, STORE, 16 * CHUNK)];
        assert_eq!(kinds(&adjacent), expected);
        assert_eq!(bytes(&adjacent, is_guest), 16 * 1024);
        // In any order, some of them covering their chunks.
        let mixed = |n: u64| if n.is_multiple_of(3) { covering(40 + n) } else { partial(40 + n) };
        let mixed = asked(world, (0..16).map(|n| mixed(n * 7 % 16)));
        let count = |op| mixed.iter().filter(|asked| asked.action.op == op).count();
        assert_eq!(count(IoOp::Read), 5, "two neighbours each");
        assert!(count(IoOp::Write) <= 6, "{mixed:?}");
    });
}

/// Others are read one by one, and those whose reads end together share a write.
#[test]
fn first_writes_of_a_batch_to_parts_of_chunks_are_no_more_io_than_one_by_one() {
    each(&overlay(8), |world| {
        let base = world.base;
        let asked = asked(world, (0..16).map(|n| partial(16 + 2 * n)));
        let count =
            |op, file| kinds(&asked).iter().filter(|(of, on, _)| (*of, *on) == (op, file)).count();
        let (reads, writes) = (count(IoOp::Read, base), count(IoOp::Write, STORE));
        assert!(reads == 16 && (1..=16).contains(&writes), "{reads} and {writes}");
        assert_eq!(reads + writes, asked.len(), "and nothing else");
        assert_eq!(bytes(&asked, is_guest), 16 * 1024);
    });
}

#[test]
fn what_is_mapped_is_read_and_written_in_place() {
    each(&overlay(8), |world| {
        asked(world, (16..32).map(covering));
        for op in [Op::Read, Op::Write] {
            let io = if op == Op::Read { IoOp::Read } else { IoOp::Write };
            let one = asked(world, [req(op, 20 * 8 + 1, 2)]);
            assert_eq!(kinds(&one), [(io, STORE, 1024)], "not the chunk, and nothing first");
            let large = asked(world, [req(op, 16 * 8, 16 * 8)]);
            assert_eq!(kinds(&large), [(io, STORE, 16 * CHUNK)], "neighbours in one");
            let many = asked(world, (16..32).map(|chunk| req(op, chunk * 8, 8)));
            assert_eq!(kinds(&many), [(io, STORE, CHUNK); 16], "a request's I/O is its own");
            assert!([one, large, many].iter().all(|asked| is_all_guest(asked)));
        }
    });
}

#[test]
fn what_is_not_mapped_is_read_from_the_origin_into_the_guests_memory() {
    each(&overlay(8), |world| {
        let base = world.base;
        let asked = asked(world, [req(Op::Read, 5, 100)]);
        assert_eq!(kinds(&asked), [(IoOp::Read, base, 100 * 512)]);
        assert!(is_all_guest(&asked));
    });
}

/// Bytes of the blocks with entries `from..to` of a store, and the number of writes for them if an
/// area holds `per_area` entries: areas are not adjacent on disk.
fn blocks(from: u64, to: u64, per_area: u64) -> (u64, u64) {
    let per_block = per_area.min(4096 / ENTRY);
    let writes = (to - 1) / per_area - from / per_area + 1;
    (((to - 1) / per_block - from / per_block + 1) * per_block * ENTRY, writes)
}

/// A sync of the data, the blocks of the new entries, a sync of the entries; at the end of an area,
/// the next one is zeroed first. That is 16 bytes per exception, and the rest of the first and last
/// block.
#[test]
fn a_flush_writes_the_blocks_of_its_entries_between_two_syncs() {
    for (chunk, per_area) in [(8, 256), (16, 512)] {
        each(&overlay(chunk), |world| {
            let (size, mut before) = (u64::from(chunk), 0);
            for after in [1, 16, 17, 60, 150, 600] {
                asked(world, (before..after).map(|at| write(at * size, size)));
                let io = asked(world, [flush()]);
                let areas = before / per_area + 1..=after / per_area;
                let there = areas.filter(|area| 1 + area * (per_area + 1) < STORE_CHUNKS);
                assert_eq!(io.iter().filter(zeroes).count(), there.count(), "{before} to {after}");
                let io: Vec<&Asked> = io.iter().filter(|one| !zeroes(one)).collect();
                let [first, entries @ .., last] = &io[..] else { panic!("no round: {io:?}") };
                assert_eq!((first.action.op, last.action.op), (IoOp::Sync, IoOp::Sync));
                assert!(entries.iter().all(|one| one.action.op == IoOp::Write));
                let written: u64 = entries.iter().map(|one| one.action.len).sum();
                let expected = blocks(before, after, per_area);
                assert_eq!((written, entries.len() as u64), expected, "{before} to {after}");
                before = after;
            }
            assert_eq!(kinds(&asked(world, [flush()])), [(IoOp::Sync, STORE, 0)], "nothing is new");
        });
    }
}

fn zeroes(one: &&Asked) -> bool {
    matches!(one.segs[..], [Seg::Zero { .. }])
}

#[test]
fn an_origin_write_costs_a_copy_and_a_commit_once_a_chunk() {
    each(&origin(1, Persistence::Persistent), |world| {
        let base = world.base;
        for request in [covering(3), partial(9)] {
            let asked = asked(world, [request]);
            let expected = [
                (IoOp::Read, base, CHUNK),
                (IoOp::Write, STORE, CHUNK),
                (IoOp::Sync, STORE, 0),
                (IoOp::Write, STORE, 4096),
                (IoOp::Sync, STORE, 0),
                (IoOp::Write, base, request.count * 512),
            ];
            assert_eq!(kinds(&asked), expected, "copied, durable, and then overwritten");
            assert_eq!(bytes(&asked[..5], is_guest), 0);
            assert!(is_all_guest(&asked[5..]));
        }
        let again = asked(world, [covering(3), partial(9)]);
        assert_eq!(kinds(&again), [(IoOp::Write, base, CHUNK), (IoOp::Write, base, 1024)]);
    });
}

#[test]
fn an_origin_write_reads_once_for_all_snapshots() {
    each(&origin(3, Persistence::Transient), |world| {
        let base = world.base;
        let asked = asked(world, [covering(3)]);
        let mut copies: Vec<FileId> = asked[1..4].iter().map(|one| one.action.file).collect();
        copies.sort_by_key(|file| file.0);
        assert_eq!(copies, [1, 2, 3].map(FileId), "a write to each store");
        assert_eq!(kinds(&asked[..1]), [(IoOp::Read, base, CHUNK)]);
        assert_eq!(kinds(&asked[4..]), [(IoOp::Write, base, CHUNK)]);
    });
}
