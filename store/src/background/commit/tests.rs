//! What a commit copies next, and that a limit on its speed never passes for its end.

use std::time::Duration;

use super::super::tests::{Case, LEN, ORIGIN, STORE, case, origin};
use super::super::{Executor, FileExecutor};
use super::*;
use crate::io::{Files, IoOptions, OpenMode, Pages, ScratchConfig};
use crate::table::Line;
use crate::target::Target;
use crate::units::ChunkSize;

/// A commit of the case's store to its origin, in two copies at a time.
fn job(case: &Case) -> (Job<FileExecutor>, Arc<Table>) {
    let files = Arc::new(Files::default());
    let open =
        |name: &str| files.open(&case.dir.path().join(name), OpenMode::ReadWrite, false).unwrap();
    assert_eq!((open("origin"), open("store")), (ORIGIN, STORE));
    let options = IoOptions { uring: false, ..IoOptions::default() };
    let config = EngineConfig::default();
    let scratch = ScratchConfig::one(config.scratch, Pages::Small);
    let executor = FileExecutor::copying(files, scratch, options, 2).unwrap();
    let (pacing, progress) = (Pacing::default(), CommitProgress::default());
    let control = Control::new(executor.waker(), pacing, Phase::Running, progress);
    let host = Host::new(&case.workers, executor, config).unwrap();
    let exceptions = case.mapped();
    let job = Job::of(host, control, CommitSource { exceptions, above: Layer(0) });
    let line = Line { start: 0, len: LEN, target: Target::Plain(origin()) };
    (job, Arc::new(Table::new(vec![line], vec![])))
}

/// At the highest speed there is, after a time in which nothing was copied.
#[test]
fn a_commit_that_may_copy_more_than_can_be_counted_copies_all() {
    let case = case(700);
    let (mut job, table) = job(&case);
    job.control.lock().requests.speed = Some(u64::MAX);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
    assert_eq!(job.pace.due(Some(u64::MAX), long_ago), Allowance::Bytes(0));
    let end = job.write_to(table);
    assert!(matches!(end, CommitEnd::Finished), "{end}");
    assert_eq!(case.home(), 700);
}

/// Nothing is begun where nothing is allowed, whole chunks else; never more than a copy holds.
#[test]
fn room_is_whole_chunks_that_a_copy_holds() {
    let slice = SLICE as u64;
    let room = |allowed, sectors| {
        let size = ChunkSize::from_sectors(sectors).unwrap();
        room(allowed, size).map(NonZeroU64::get)
    };
    for sectors in [1, 8, 2048, 4096, ChunkSize::MAX_SECTORS] {
        assert_eq!(room(Some(0), sectors), None);
        assert_eq!(room(None, sectors), Some(slice));
        for allowed in [slice, slice + 1, u64::MAX - 4095, u64::MAX - 1, u64::MAX] {
            assert_eq!(room(Some(allowed), sectors), Some(slice), "{allowed}, {sectors}");
        }
    }
    assert_eq!(room(Some(1), 8), Some(4096));
    assert_eq!(room(Some(4097), 8), Some(8192));
    assert_eq!(room(Some(1), 4096), Some(slice), "a part of a chunk of two copies");
}

/// The end of a source is behind its last chunk, wherever one looks from.
#[test]
fn a_source_ends_behind_its_last_chunk() {
    let case = case(3);
    let exceptions = case.mapped();
    let mut source = CommitSource { exceptions, above: Layer(0) };
    let mut pieces = Vec::new();
    let one = NonZeroU64::MIN;
    for (at, start) in [(0, 0), (1, 1), (4095, 4095), (4096, 7 * 4096), (14 * 4096 + 4095, 61439)] {
        assert_eq!(source.pieces(at, one, &mut pieces), Left::More, "{at}");
        assert_eq!((pieces[0].start, pieces[0].len, pieces.len()), (start, 1, 1), "{at}");
    }
    for at in [15 * 4096, LEN, LEN + 1] {
        assert_eq!(source.pieces(at, one, &mut pieces), Left::Nothing, "{at}");
    }
    source.above = Layer::FIRST;
    assert_eq!(source.pieces(0, one, &mut pieces), Left::Nothing);
}
