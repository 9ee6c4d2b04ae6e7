//! What is asked of a worker that rests.

use super::*;

/// A table that was given up without a flush has its files synced with the next.
#[test]
fn who_turns_the_cache_off_meanwhile_waits_for_a_table() {
    let mut bench = Bench::new(true);
    bench.start();
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    bench.suspend(false);
    let asked = bench.worker.set_write_through(true);
    let back = bench.worker.set_write_through(false);
    back.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(asked.wait(Duration::from_millis(100)), Err(WorkerError::TimedOut));
    assert_eq!(bench.disk.count(IoOp::Sync), 0);
    bench.resume();
    asked.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(bench.disk.count(IoOp::Sync), 1);
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(bench.disk.count(IoOp::Sync), 2);
}
