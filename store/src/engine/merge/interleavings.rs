//! A merge and a guest in two threads; every atomic access is a point where the other may run.

use std::sync::Arc;

use shuttle::sync::Mutex;

use super::MergeState;
use super::world::{Disk, SECTOR, data_chunk, open, store_image};
use crate::cow::Entry;
use crate::engine::{Engine, EngineConfig};
use crate::io::{Completion, FileId, IoOp, Seg};
use crate::request::{Op, Request, Status, Token};
use crate::table::{Line, Table};
use crate::target::{Backing, Content, Exceptions, ExceptionsId, Medium, Merge, Origin, Target};
use crate::units::{Chunk, ChunkSize, Sector};
use crate::workers::{TrackedObject, Wake, Workers};

const CHUNKS: usize = 2;
const LEN: u64 = (CHUNKS * SECTOR) as u64;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

type Files = Arc<Mutex<Vec<Vec<u8>>>>;

/// Carries out the actions of `engine`, one at a time and each after a pause, until `over`.
fn drive(
    engine: &mut Engine,
    files: &Files,
    data: &mut [u8],
    mut over: impl FnMut(&mut Engine) -> bool,
) {
    let mut scratch = vec![0; 8192];
    let mut queue = Vec::new();
    loop {
        engine.step();
        while let Some(wants) = engine.merge_wants() {
            let Seg::Scratch { offset, len, .. } = wants else { panic!("that is not scratch") };
            engine.merge_supply(&scratch[offset as usize..][..len as usize]);
            engine.step();
        }
        while let Some(action) = engine.pop_action() {
            let segs = engine.segs(&action).to_vec();
            let meta = engine.meta_of(&action).to_vec();
            queue.push((action, segs, meta));
        }
        if over(engine) {
            return;
        }
        shuttle::thread::yield_now();
        let Some((action, segs, meta)) = queue.pop() else { continue };
        let mut at = action.offset as usize;
        for seg in segs {
            let file = &mut files.lock().unwrap()[action.file.0 as usize];
            let len = seg.len() as usize;
            let memory = match seg {
                Seg::Guest { offset, .. } => &mut data[offset as usize..][..len],
                Seg::Scratch { offset, .. } => &mut scratch[offset as usize..][..len],
                Seg::Meta { .. } => &mut meta.clone()[..],
                Seg::Zero { .. } => &mut vec![0; len][..],
            };
            match action.op {
                IoOp::Read => memory.copy_from_slice(&file[at..at + len]),
                _ => file[at..at + len].copy_from_slice(memory),
            }
            at += len;
        }
        engine.complete(Completion { tag: action.tag, result: Ok(()) });
    }
}

fn world() -> (Arc<Table>, Files) {
    let chunk = ChunkSize::from_sectors(1).unwrap();
    let entries: Vec<(Entry, Vec<u8>)> = (0..CHUNKS as u64)
        .map(|n| (Entry { old: Chunk(n), new: data_chunk(chunk, n) }, vec![2; SECTOR]))
        .collect();
    let mut disk = Disk::new(store_image(chunk, 8, &entries));
    let (exceptions, store) = open(&mut disk, FileId(1), LEN);
    let medium = Arc::new(Medium::new(FileId(0)));
    let mut backing = Backing::default();
    backing.push(LEN, Content::File { medium, offset: 0 });
    let ex =
        Exceptions { table: exceptions, layers: vec![store], origin: backing.clone(), len: LEN };
    let origin = Origin { backing, start: 0, tracked: TrackedObject(1), snapshots: vec![] };
    let merge = Merge {
        exceptions: ExceptionsId(0),
        origin,
        writes: TrackedObject(2),
        in_use: Default::default(),
    };
    let line = Line { start: 0, len: LEN, target: Target::Merge(merge) };
    let files = vec![vec![1; LEN as usize], disk.now];
    (Arc::new(Table::new(vec![line], vec![ex])), Arc::new(Mutex::new(files)))
}

fn engine(workers: &Arc<Workers>, table: &Arc<Table>) -> Engine {
    let config = EngineConfig { scratch: 8192, requests: 4, claims: 4 };
    let mut engine = Engine::new(workers, Box::new(Nobody), config).unwrap();
    engine.bind(Some(table.clone()));
    engine
}

/// I7: a write to a chunk that is being merged ends up on the origin, whenever it comes.
#[test]
fn no_write_is_lost_to_a_merge() {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new(2000);
    shuttle::Runner::new(scheduler, config).run(|| {
        let (table, files) = world();
        let workers = Arc::new(Workers::with_capacity(2));
        let (mut merging, mut serving) = (engine(&workers, &table), engine(&workers, &table));
        let disks = files.clone();
        let merge = shuttle::thread::spawn(move || {
            merging.start_merge().unwrap();
            drive(&mut merging, &disks, &mut [], |engine| {
                engine.merge().unwrap().state == MergeState::Finished
            });
        });
        for value in 3..5 {
            let (sector, len) = (Sector(0), LEN);
            let request = Request { token: Token(0), op: Op::Write, sector, len, durable: false };
            serving.submit(request);
            let mut data = vec![value; LEN as usize];
            drive(&mut serving, &files, &mut data, |engine| {
                engine.pop_finished().is_some_and(|(_, status)| {
                    assert_eq!(status, Status::Ok);
                    true
                })
            });
        }
        merge.join().unwrap();
        assert!(files.lock().unwrap()[0].iter().all(|&byte| byte == 4));
    });
}
