//! A write cache that is turned off while requests are in flight or held.

use super::*;

/// Turns the cache off, and waits until the earlier writes are durable.
fn turn_off(bench: &Bench) {
    bench.worker.set_write_through(true).wait(PATIENCE).unwrap().unwrap();
}

fn done(bench: &Bench) -> Vec<IoOp> {
    bench.disk.done.lock().unwrap().clone()
}

/// The reply does not wait for a write that is held, which is then a later write.
#[test]
fn what_is_held_while_the_cache_is_turned_off_is_durable_when_it_ends() {
    let mut bench = Bench::new(true);
    bench.disk.indirect.store(true, Ordering::SeqCst);
    bench.start();
    bench.disk.fill(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.ask(1, 0, 0, &[0; 512]);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used().0, 3, "a read passes a write that found no room");
    turn_off(&bench);
    assert_eq!(done(&bench), [IoOp::Read, IoOp::Sync]);
    bench.disk.fill(false);
    assert_eq!((bench.driver.await_used().0, bench.driver.status(0)), (0, 0));
    assert_eq!(done(&bench)[2..], [IoOp::Write, IoOp::Sync]);
}

#[test]
fn the_last_range_is_durable_when_the_cache_was_turned_off_during_the_first() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.hold(true);
    let range = |sector: u64| [&sector.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    bench.driver.ask(0, 13, 0, &[range(0), range(8), range(16)].concat());
    bench.driver.kick();
    bench.disk.await_count(IoOp::Zero, 1);
    let through = bench.worker.set_write_through(true);
    assert_eq!(through.wait(Duration::from_millis(50)), Err(WorkerError::TimedOut));
    bench.disk.hold(false);
    assert_eq!((bench.driver.await_used().0, bench.driver.status(0)), (0, 0));
    let done = done(&bench);
    let last = |op| done.iter().rposition(|done| *done == op);
    assert_eq!(bench.disk.count(IoOp::Zero), 3);
    assert!(last(IoOp::Zero) < last(IoOp::Sync), "{done:?}");
    assert_eq!(through.wait(PATIENCE), Ok(Ok(())));
}

/// Of the two syncs, one is the write's own: the other, for what was written before the suspend,
/// may end after the write does.
#[test]
fn what_is_held_over_a_suspend_is_durable_when_it_ends() {
    let mut bench = Bench::new(true);
    bench.disk.indirect.store(true, Ordering::SeqCst);
    bench.start();
    bench.disk.fill(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.ask(1, 0, 0, &[0; 512]);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used().0, 3);
    bench.suspend(false);
    turn_off(&bench);
    assert_eq!(done(&bench), [IoOp::Read]);
    bench.disk.fill(false);
    bench.resume();
    assert_eq!((bench.driver.await_used().0, bench.driver.status(0)), (0, 0));
    bench.pass_turns();
    assert_eq!(bench.disk.count(IoOp::Sync), 2);
}

/// A front-end that was told of the failure goes on with the cache.
#[test]
fn a_cache_that_could_not_be_turned_off_is_on() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.fails.store(true, Ordering::SeqCst);
    let through = bench.worker.set_write_through(true);
    assert_eq!(through.wait(PATIENCE), Ok(Err(WorkerError::FlushFailed)));
    bench.disk.fails.store(false, Ordering::SeqCst);
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(done(&bench), [IoOp::Sync, IoOp::Write]);
}
