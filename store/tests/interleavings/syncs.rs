//! Syncs of one file by several workers: the system tells one of them of an error.

use super::*;

/// A disk that lost a write, and tells the next sync of it, once.
struct Lossy {
    table: Arc<Table>,
    lost: AtomicU64,
}

/// Flushes; returns whether that succeeded. An error is known to the system some time before it is known
/// to the engine.
fn flush(engine: &mut Engine, bell: &Bell, disk: &Lossy) -> bool {
    engine.submit(Request {
        token: Token(1),
        op: Op::Flush,
        sector: Sector(0),
        len: 0,
        durable: false,
    });
    let mut status = None;
    loop {
        engine.step();
        while let Some(action) = engine.pop_action() {
            let told = action.op == IoOp::Sync && disk.lost.swap(0, Ordering::SeqCst) != 0;
            (0..3 * u32::from(told)).for_each(|_| thread::yield_now());
            let result = if told { Err(Errno::EIO) } else { Ok(()) };
            engine.complete(Completion { tag: action.tag, result });
            engine.step();
        }
        status = engine.pop_finished().map(|(_, status)| status).or(status);
        match status {
            // A sync that it leads for others goes on to its end.
            Some(status) if engine.is_quiet() => return status == Status::Ok,
            _ if engine.may_sleep() => {
                bell.wait();
                engine.woke();
            }
            _ => {}
        }
    }
}

/// Runs `count` workers that flush a disk twice, the first one as one that is about to stop; `ok` is
/// the result of all flushes.
fn flushes(table: Arc<Table>, count: usize, lost: u64, ok: bool) {
    let disk = Arc::new(Lossy { table, lost: AtomicU64::new(lost) });
    let workers = Arc::new(Workers::with_capacity(count));
    let worker = |number| {
        let bell = Arc::new(Bell::default());
        let config = EngineConfig { scratch: 128 << 10, requests: 4, claims: 4 };
        let mut engine = Engine::new(&workers, Box::new(Ring(bell.clone())), config).unwrap();
        engine.bind(Some(disk.table.clone()));
        engine.set_stopping(number == 0);
        let disk = disk.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                assert_eq!(flush(&mut engine, &bell, &disk), ok);
            }
            engine
        })
    };
    let threads: Vec<_> = (0..count).map(worker).collect();
    let engines: Vec<Engine> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(engines);
}

/// A table of a file that is no store.
fn plain() -> Arc<Table> {
    let medium = Arc::new(Medium::new(BASE));
    let target = Target::Plain(Backing::file(medium, 0, CHUNK));
    Arc::new(Table::new(vec![Line { start: 0, len: CHUNK, target }], Vec::new()))
}

/// The write was acknowledged before all the flushes, so none of them may succeed.
#[test]
fn a_flush_knows_what_another_was_told() {
    check_more(20, || flushes(plain(), 2, 1, false));
}

/// I17: no flush waits forever for the end of another's sync, also where that worker stops.
#[test]
fn a_flush_outlives_who_syncs_for_it() {
    check(|| flushes(plain(), 3, 0, true));
}

/// The data of a chunk was lost, and a commit was told so: a worker that leads the next round, although it
/// saw the store before that, does not enter the chunk.
#[test]
fn what_a_failed_commit_left_is_not_committed_by_the_next_leader() {
    check_more(20, || {
        let pair = Pair::new();
        pair.store.set_guest_disk(true);
        let Allocation::Run { first, .. } = pair.store.log().allocate(1) else { panic!("no room") };
        let _ = pair.store.log().finish(first, Some(Chunk(0)));
        flushes(pair.tables[1].clone(), 2, 1, false);
        assert_eq!(pair.store.log().committed(), first);
    });
}
