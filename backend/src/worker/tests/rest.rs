//! Messages to a suspended worker, and workers that lack something.

use super::*;
use crate::vring::Vring;

/// A table that was replaced without a flush has its files synced with the next, before that
/// serves.
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
    // A cache that is on again by then requires no sync.
    bench.suspend(false);
    bench.worker.set_write_through(true).wait(PATIENCE).unwrap().unwrap();
    bench.worker.set_write_through(false).wait(PATIENCE).unwrap().unwrap();
    bench.resume();
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(bench.disk.count(IoOp::Sync), 2);
}

/// Simulates a process killed with requests in flight, none of which can be parsed: more than are
/// taken at once.
fn kill_one_with(count: u16, bench: &mut Bench, shared: &GuestMemory) {
    for head in 0..count {
        bench.driver.descriptor(head, 0xa000 + u64::from(head), 1, 2, 0);
        bench.driver.publish(head);
    }
    let region = Region::of(shared, 0, SIZE);
    let mut killed = Vring::start(bench.driver.setup(0), &bench.driver.memory, region).unwrap();
    while killed.take(&bench.driver.memory).is_some() {}
}

/// Front-ends may stop a ring before its worker had time to take anything.
#[test]
fn a_ring_that_stops_ends_first_what_a_killed_process_left() {
    let mut bench = Bench::new(true);
    let shared = GuestMemory::anonymous(0x1000, 0);
    kill_one_with(100, &mut bench, &shared);
    // Its worker reads none of the later messages before all of them are there.
    let disk = bench.disk.clone();
    let starting = disk.watching.lock().unwrap();
    let inflight = Region::of(&shared, 0, SIZE);
    let start = RingStart { inflight, enabled: false, ..bench.ring_start() };
    let started = bench.worker.start_ring(start);
    drop(bench.worker.enable(true));
    let stopped = bench.worker.stop_ring();
    // Like a session whose front-end has disconnected.
    drop(bench.worker.set_memory(Arc::default()));
    drop(starting);
    started.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(stopped.wait(PATIENCE), Ok(Some(100)));
    let heads: Vec<_> = std::iter::from_fn(|| bench.driver.next_used()).map(|it| it.0).collect();
    assert_eq!(heads, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_a_killed_process_left_is_not_counted_by_a_ring_that_is_not_served() {
    let mut bench = Bench::new(true);
    let shared = GuestMemory::anonymous(0x1000, 0);
    kill_one_with(3, &mut bench, &shared);
    let region = || Region::of(&shared, 0, SIZE);
    bench.start_with(|start| (start.enabled, start.inflight) = (false, region()));
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(0)));
    assert_eq!(bench.driver.next_used(), None);
    // The records are unchanged.
    bench.start_with(|start| start.inflight = region());
    assert_eq!([(); 3].map(|()| bench.driver.await_used().0), [0, 1, 2]);
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(3)));
}

#[test]
fn a_worker_that_ended_answers_nobody() {
    let bench = Bench::new(true);
    let worker = bench.worker.clone();
    drop(bench);
    assert_eq!(worker.suspend(true).wait(PATIENCE), Err(WorkerError::Gone));
}

/// It has no descriptor left to wait for the kicks of a ring, be it at the start or later.
#[test]
fn a_ring_whose_kicks_cannot_be_waited_for_is_polled() {
    for at_the_start in [true, false] {
        let mut bench = Bench::new(false);
        bench.disk.watches_no_more.store(at_the_start, Ordering::SeqCst);
        bench.start();
        bench.disk.watches_no_more.store(true, Ordering::SeqCst);
        if !at_the_start {
            let kick = Kick::Event(bench.driver.kick.try_clone().unwrap());
            bench.worker.set_kick(kick).wait(PATIENCE).unwrap();
        }
        for n in 0..5 {
            bench.driver.ask(n, 1, u64::from(n), &[n as u8; 512]);
            bench.driver.kick();
            assert_eq!(bench.driver.await_used(), (u32::from(n) * 3, 1));
        }
    }
}

#[test]
fn a_worker_that_cannot_be_woken_does_not_start() {
    let disk = TestDisk::new(8);
    disk.watches_no_more.store(true, Ordering::SeqCst);
    let started = spawn("worker".into(), options(Polling::Adaptive), TestBinding::new(&disk));
    assert_eq!(started.map(drop).unwrap_err().raw_os_error(), Some(libc::EMFILE));
}
