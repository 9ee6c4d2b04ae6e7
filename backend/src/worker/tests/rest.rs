//! What is asked of a worker that rests.

use super::*;

/// A table that was given up without a flush has its files synced with the next, before that serves.
#[test]
fn a_cache_that_is_turned_off_meanwhile_is_flushed_by_the_next_table() {
    let mut bench = Bench::new(true);
    bench.start();
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    bench.suspend(false);
    bench.worker.set_write_through(true).wait(PATIENCE).unwrap().unwrap();
    assert_eq!(bench.disk.count(IoOp::Sync), 0);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.kick();
    bench.resume();
    bench.driver.await_used();
    let done = bench.disk.done.lock().unwrap().clone();
    assert_eq!(done, [IoOp::Write, IoOp::Sync, IoOp::Write, IoOp::Sync]);
    // One that is on again by then owes nothing.
    bench.suspend(false);
    bench.worker.set_write_through(true).wait(PATIENCE).unwrap().unwrap();
    bench.worker.set_write_through(false).wait(PATIENCE).unwrap().unwrap();
    bench.resume();
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(bench.disk.count(IoOp::Sync), 2);
}
