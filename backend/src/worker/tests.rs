use super::*;
use crate::memory::GuestMemory;
use crate::testing::{
    Driver, PATIENCE, SIZE, TestBinding, TestDisk, TestStep, TestTable, eventually, shared_memory,
    take_calls,
};
use crate::vring::{Region, VringError};
use snapblk_store::io::IoOp;
use std::sync::atomic::Ordering;

mod answers;
mod drivers;
mod notifier;
mod rest;
mod through;

struct Bench {
    disk: Arc<TestDisk>,
    binding: Arc<TestBinding>,
    driver: Driver,
    worker: WorkerHandle<TestTable>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn new(event_idx: bool) -> Bench {
        Bench::with(event_idx, Polling::Adaptive)
    }

    fn with(event_idx: bool, polling: Polling) -> Bench {
        let disk = TestDisk::new(2048);
        let binding = TestBinding::new(&disk);
        let (_, memory) = shared_memory();
        let (worker, thread) = spawn("worker".into(), options(polling), binding.clone()).unwrap();
        binding.attach("test", vec![worker.clone()]);
        worker.set_memory(Arc::new(memory.clone())).wait(PATIENCE).unwrap();
        let driver = Driver::new(&memory, 0, event_idx);
        Bench { disk, binding, driver, worker, thread: Some(thread) }
    }

    fn start(&self) {
        self.start_with(|_| {});
    }

    fn start_with(&self, change: impl FnOnce(&mut RingStart)) {
        self.try_start(change).unwrap();
    }

    fn try_start(&self, change: impl FnOnce(&mut RingStart)) -> Result<(), VringError> {
        let mut start = self.ring_start();
        change(&mut start);
        self.worker.start_ring(start).wait(PATIENCE).unwrap()
    }

    fn ring_start(&self) -> RingStart {
        RingStart {
            setup: self.driver.setup(0),
            inflight: None,
            kick: Kick::Event(self.driver.kick.try_clone().unwrap()),
            call: Some(self.driver.call.try_clone().unwrap()),
            err: None,
            enabled: true,
            write_through: false,
        }
    }

    /// Lets the worker complete a whole turn.
    fn pass_turns(&self) {
        for _ in 0..2 {
            let memory = Arc::new(self.driver.memory.clone());
            self.worker.set_memory(memory).wait(PATIENCE).unwrap();
        }
    }

    fn suspend(&self, flush: bool) {
        self.worker.suspend(flush).wait(PATIENCE).unwrap().unwrap();
    }

    fn resume(&self) {
        let table = ResumeWith::Table(Some(self.binding.table()));
        self.worker.resume(table).wait(PATIENCE).unwrap().unwrap();
    }
}

fn options(polling: Polling) -> WorkerOptions {
    let serial = *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    WorkerOptions { serial, writable: true, block: LogicalBlock::B512, polling }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.disk.hold(false);
        self.worker.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn requests_are_served_with_and_without_event_idx() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.start();
        for round in 0..200u8 {
            let data = pattern(round, 4096);
            let sector = u64::from(round) * 8;
            assert_eq!(bench.driver.run(1, sector, &data).0, 0);
            assert_eq!(bench.disk.bytes(sector, 4096), data);
            assert_eq!(bench.driver.run(0, sector, &[0; 4096]), (0, data));
        }
    }
}

/// The other half of known bug 17: a file's error fails only its own request.
#[test]
fn an_error_costs_the_request_alone() {
    for indirect in [false, true] {
        let mut bench = Bench::new(true);
        bench.disk.indirect.store(indirect, Ordering::SeqCst);
        bench.start();
        bench.disk.fails.store(true, Ordering::SeqCst);
        assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 1);
        assert_eq!(bench.driver.run(4, 0, &[]).0, 1);
        bench.disk.fails.store(false, Ordering::SeqCst);
        assert_eq!(bench.driver.run(1, 0, &[2; 512]).0, 0);
    }
}

#[test]
fn a_batch_of_all_kinds_is_answered_once_each() {
    let mut bench = Bench::new(true);
    bench.disk.indirect.store(true, Ordering::SeqCst);
    bench.start();
    let range = |sector: u64, sectors: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat()
    };
    bench.driver.ask(0, 1, 0, &[0xaa; 4096]);
    bench.driver.ask(1, 1, 64, &[0xbb; 4096]);
    bench.driver.ask(2, 8, 0, &[0; 20]);
    bench.driver.ask(3, 4711, 0, &[0; 512]);
    bench.driver.ask(4, 1, 5000, &[0; 512]);
    bench.driver.ask(5, 11, 0, &[range(512, 8), range(1024, 8)].concat());
    bench.driver.ask(6, 4, 0, &[]);
    bench.driver.kick();
    let mut used: Vec<u32> = (0..7).map(|_| bench.driver.await_used().0).collect();
    used.sort_unstable();
    assert_eq!(used, [0, 3, 6, 9, 12, 15, 18]);
    let statuses: Vec<u8> = (0..7).map(|slot| bench.driver.status(slot)).collect();
    assert_eq!(statuses, [0, 0, 0, 2, 1, 0, 0]);
    assert_eq!(bench.disk.bytes(64, 4096), [0xbb; 4096]);
    assert_eq!(&bench.driver.data(2, 20)[..6], b"serial");
    assert_eq!(bench.disk.count(IoOp::Discard), 2, "one for each range");
    assert_eq!(bench.disk.count(IoOp::Sync), 1, "of the flush");
    assert_eq!(bench.driver.next_used(), None);
}

/// The engine's words for a request are prefetched while earlier requests are carried out.
#[test]
fn a_group_is_taken_apart_before_its_first_request_is_begun() {
    let mut bench = Bench::new(true);
    for slot in 0..6 {
        bench.driver.ask(slot, 0, u64::from(slot), &[0; 512]);
    }
    bench.start();
    (0..6).for_each(|_| _ = bench.driver.await_used());
    let ahead = |slots: std::ops::Range<u64>| slots.map(|slot| TestStep::Ahead(slot * 512));
    let now = |slots: std::ops::Range<u64>| slots.map(|slot| TestStep::Now(slot * 512));
    let groups = ahead(0..4).chain(now(0..4)).chain(ahead(4..6)).chain(now(4..6));
    assert_eq!(*bench.disk.steps.lock().unwrap(), groups.collect::<Vec<_>>());
}

/// The number of actions of each submission, the prefetches before it, and whether it was made by
/// the call that waits.
fn submissions(disk: &TestDisk) -> Vec<(usize, usize, bool)> {
    let mut looks = 0;
    let mut all = Vec::new();
    for step in disk.steps.lock().unwrap().iter() {
        match *step {
            TestStep::Now(_) => looks += 1,
            TestStep::Submitted { count, waits } => all.push((count, looks, waits)),
            TestStep::Ahead(_) => {}
        }
    }
    all
}

/// The disk works on the first part of a batch while the rest is prepared; the last part is
/// submitted by the call that waits for it.
#[test]
fn a_disk_has_a_batch_in_parts() {
    let cases = [(24, &[4; 6][..]), (12, &[4; 3]), (10, &[4, 4, 2]), (4, &[4]), (3, &[3])];
    for (batch, parts) in cases {
        let mut bench = Bench::new(true);
        bench.disk.takes_time.store(true, Ordering::SeqCst);
        (0..batch).for_each(|slot| bench.driver.ask(slot, 0, u64::from(slot), &[0; 512]));
        bench.start();
        (0..batch).for_each(|_| _ = bench.driver.await_used());
        let submissions = submissions(&bench.disk);
        let ends = parts.iter().scan(0, |end, part| {
            *end += part;
            Some((*part, *end))
        });
        let counts: Vec<_> = submissions.iter().map(|&(count, looks, _)| (count, looks)).collect();
        assert_eq!(counts, ends.collect::<Vec<_>>(), "of {batch}");
        let waits: Vec<_> = submissions.iter().map(|&(.., waits)| waits).collect();
        assert_eq!(waits.iter().position(|&waits| waits), Some(parts.len() - 1), "of {batch}");
    }
}

/// Also while the disk works on other requests.
#[test]
fn a_disk_that_is_at_work_has_the_next_batch_in_parts() {
    let mut bench = Bench::new(true);
    bench.disk.takes_time.store(true, Ordering::SeqCst);
    bench.disk.hold(true);
    (24..28).for_each(|slot| bench.driver.ask(slot, 0, u64::from(slot), &[0; 512]));
    bench.start();
    bench.disk.await_count(IoOp::Read, 4);
    (0..24).for_each(|slot| bench.driver.prepare(slot, 0, u64::from(slot), &[0; 512]));
    bench.driver.show();
    bench.driver.kick();
    bench.disk.await_count(IoOp::Read, 28);
    bench.disk.hold(false);
    (0..28).for_each(|_| _ = bench.driver.await_used());
    let counts: Vec<_> = submissions(&bench.disk).iter().map(|&(count, ..)| count).collect();
    assert_eq!(counts, [4; 7]);
}

#[test]
fn write_zeroes_gives_space_back_only_where_the_guest_lets_it() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.driver.run(1, 0, &[0xaa; 4096]);
    let range = |flags: u32| [&[0; 8][..], &8u32.to_le_bytes(), &flags.to_le_bytes()].concat();
    assert_eq!(bench.driver.run(13, 0, &range(0)).0, 0);
    assert_eq!((bench.disk.count(IoOp::Zero), bench.disk.count(IoOp::Punch)), (1, 0));
    assert_eq!(bench.driver.run(13, 0, &range(1)).0, 0);
    assert_eq!((bench.disk.count(IoOp::Zero), bench.disk.count(IoOp::Punch)), (1, 1));
    assert_eq!(bench.disk.bytes(0, 4096), [0; 4096]);
}

#[test]
fn a_worker_that_never_sleeps_needs_no_kick_and_rests_all_the_same() {
    for event_idx in [false, true] {
        let mut bench = Bench::with(event_idx, Polling::Always);
        bench.disk.indirect.store(true, Ordering::SeqCst);
        bench.start();
        for round in 0..200u64 {
            let before = bench.driver.available();
            bench.driver.ask(0, 1, round, &[2; 512]);
            assert!(!bench.driver.is_asked_to_kick(before), "request {round}, {event_idx}");
            assert_eq!(bench.driver.await_used().0, 0);
        }
        // A request in flight is awaited, and a suspend is noticed.
        bench.disk.hold(true);
        bench.driver.ask(0, 1, 0, &[3; 512]);
        bench.disk.await_count(IoOp::Write, 201);
        let suspend = bench.worker.suspend(true);
        bench.disk.hold(false);
        suspend.wait(PATIENCE).unwrap().unwrap();
        assert_eq!(bench.driver.await_used().0, 0);
        assert_eq!(bench.disk.bytes(0, 512), [3; 512]);
    }
}

/// Known bug 22.
#[test]
fn what_was_made_available_before_the_start_is_served_without_a_kick() {
    let mut bench = Bench::new(true);
    bench.driver.ask(0, 1, 0, &[7; 512]);
    bench.start();
    assert_eq!(bench.driver.await_used(), (0, 1));
    // And chains that came while the ring was disabled: their kick had no effect.
    drop(bench.worker.enable(false));
    bench.pass_turns();
    bench.driver.ask(1, 1, 8, &[8; 512]);
    bench.driver.kick();
    bench.pass_turns();
    assert_eq!(bench.driver.next_used(), None, "a disabled ring is not served");
    drop(bench.worker.enable(true));
    assert_eq!(bench.driver.await_used(), (3, 1));
}

#[test]
fn a_ring_without_a_kick_is_polled() {
    let mut bench = Bench::new(false);
    bench.start_with(|start| start.kick = Kick::Poll);
    for n in 0..5 {
        bench.driver.ask(n, 1, u64::from(n), &[n as u8; 512]);
        assert_eq!(bench.driver.await_used(), (u32::from(n) * 3, 1));
    }
}

/// I9.
#[test]
fn a_suspend_waits_for_what_is_in_flight_and_the_rest_waits_in_the_ring() {
    for (indirect, flush) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut bench = Bench::new(true);
        bench.disk.indirect.store(indirect, Ordering::SeqCst);
        bench.start();
        bench.disk.hold(true);
        bench.driver.ask(0, 1, 0, &[1; 512]);
        bench.driver.kick();
        bench.disk.await_count(IoOp::Write, 1);
        let suspended = bench.worker.suspend(flush);
        bench.driver.ask(1, 1, 8, &[2; 512]);
        bench.driver.kick();
        assert_eq!(suspended.wait(Duration::from_millis(50)), Err(WorkerError::TimedOut));
        bench.disk.hold(false);
        assert_eq!(suspended.wait(PATIENCE), Ok(Ok(())));
        assert_eq!(bench.driver.await_used(), (0, 1));
        assert_eq!(bench.disk.count(IoOp::Sync), usize::from(flush));
        assert_eq!(bench.disk.count(IoOp::Write), 1, "nothing is taken while suspended");
        let other = TestDisk::new(16);
        let table = Arc::new(TestTable { disk: other, read_only: false });
        let resumed = bench.worker.resume(ResumeWith::Table(Some(table)));
        assert_eq!(resumed.wait(PATIENCE), Ok(Ok(())));
        assert_eq!(bench.driver.await_used(), (3, 1));
        // The limits are those of the new table.
        assert_eq!(bench.driver.run(0, 16, &[0; 512]).0, 1);
        assert_eq!(bench.driver.run(0, 15, &[0; 512]).0, 0);
    }
}

#[test]
fn a_suspend_that_takes_too_long_is_undone() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.hold(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.kick();
    bench.disk.await_count(IoOp::Write, 1);
    let suspended = bench.worker.suspend(true);
    let early = bench.worker.resume(ResumeWith::Table(None));
    assert_eq!(early.wait(PATIENCE), Ok(Err(WorkerError::NotSuspended)));
    let undone = bench.worker.resume(ResumeWith::Same);
    assert_eq!(undone.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(suspended.wait(PATIENCE), Ok(Err(WorkerError::TimedOut)));
    bench.disk.hold(false);
    assert_eq!(bench.driver.await_used(), (0, 1));
    assert_eq!(bench.driver.run(1, 8, &[2; 512]).0, 0);
    bench.suspend(true);
    bench.suspend(true);
    // Undone too late: it continues with its former table, if that still exists.
    assert_eq!(bench.worker.resume(ResumeWith::Same).wait(PATIENCE), Ok(Err(WorkerError::NoTable)));
    let table = bench.binding.table();
    let resumed = bench.worker.resume(ResumeWith::Table(Some(table.clone())));
    assert_eq!(resumed.wait(PATIENCE), Ok(Ok(())));
    bench.suspend(true);
    assert_eq!(Arc::strong_count(&table), 1, "a suspended worker has let go of its table");
    assert_eq!(bench.worker.resume(ResumeWith::Same).wait(PATIENCE), Ok(Ok(())));
    assert_eq!(bench.driver.run(1, 8, &[3; 512]).0, 0);
}

/// A merge continues until it is told to stop, which every suspend does.
#[test]
fn what_the_engine_does_of_its_own_accord_stops_for_a_rest() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.merges.store(true, Ordering::SeqCst);
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    let through = bench.worker.set_write_through(true);
    assert_eq!(through.wait(PATIENCE), Ok(Ok(())));
    bench.suspend(true);
    let resumed = bench.worker.resume(ResumeWith::Table(Some(bench.binding.table())));
    assert_eq!(resumed.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(1)));
}

#[test]
fn held_requests_outlive_a_suspend_and_fail_when_the_ring_stops() {
    let mut bench = Bench::new(true);
    bench.disk.indirect.store(true, Ordering::SeqCst);
    bench.start();
    bench.disk.fill(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.ask(1, 0, 0, &[0; 512]);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used().0, 3, "a read passes a write that found no room");
    bench.suspend(false);
    assert_eq!(bench.driver.next_used(), None);
    bench.disk.fill(false);
    bench.pass_turns();
    assert_eq!(bench.disk.count(IoOp::Write), 0, "suspended, although there is room now");
    let table = bench.binding.table();
    let resumed = bench.worker.resume(ResumeWith::Table(Some(table)));
    assert_eq!(resumed.wait(PATIENCE), Ok(Ok(())));
    assert_eq!((bench.driver.await_used().0, bench.driver.status(0)), (0, 0));
    bench.disk.fill(true);
    bench.driver.ask(2, 1, 0, &[3; 512]);
    bench.driver.ask(3, 0, 0, &[0; 512]);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used().0, 9, "the write before it was taken, too");
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(4)));
    assert_eq!((bench.driver.await_used().0, bench.driver.status(2)), (6, 1));
}

/// With inflight memory they wait there, for the next start or the next process.
#[test]
fn held_requests_wait_in_the_region_of_a_ring_that_stops() {
    let mut bench = Bench::new(true);
    bench.disk.indirect.store(true, Ordering::SeqCst);
    let shared = GuestMemory::anonymous(0x1000, 0);
    bench.start_with(|start| start.inflight = Region::of(&shared, 0, SIZE));
    bench.disk.fill(true);
    bench.driver.ask(0, 1, 8, &[1; 512]);
    bench.driver.ask(1, 0, 0, &[0; 512]);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used().0, 3, "a read passes a write that found no room");
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(2)));
    assert_eq!((bench.driver.next_used(), bench.driver.status(0)), (None, 0xff));
    bench.disk.fill(false);
    bench.start_with(|start| {
        start.inflight = Region::of(&shared, 0, SIZE);
        start.setup.base = 2;
    });
    assert_eq!((bench.driver.await_used().0, bench.driver.status(0)), (0, 0));
    assert_eq!(bench.disk.bytes(8, 512), [1; 512]);
    assert_eq!(bench.driver.run(1, 0, &[2; 512]).0, 0);
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(3)));
}

#[test]
fn a_ring_stops_where_it_is_and_what_it_owes_is_flushed() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.hold(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.ask(1, 1, 8, &[1; 512]);
    bench.driver.kick();
    bench.disk.await_count(IoOp::Write, 2);
    let stopped = bench.worker.stop_ring();
    bench.driver.ask(2, 1, 16, &[1; 512]);
    assert_eq!(stopped.wait(Duration::from_millis(50)), Err(WorkerError::TimedOut));
    bench.disk.hold(false);
    assert_eq!(stopped.wait(PATIENCE), Ok(Some(2)));
    assert_eq!(bench.disk.count(IoOp::Sync), 1);
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(None));
    // The next start continues there.
    bench.start_with(|start| start.setup.base = 2);
    assert_eq!([(); 3].map(|()| bench.driver.await_used().0), [0, 3, 6]);
}

/// Known bug 21.
#[test]
fn write_through_is_honoured() {
    let mut bench = Bench::new(true);
    bench.start_with(|start| start.write_through = true);
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(*bench.disk.done.lock().unwrap(), [IoOp::Write, IoOp::Sync]);
    let cached = bench.worker.set_write_through(false);
    assert_eq!(cached.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(bench.disk.count(IoOp::Sync), 1);
    // On again: earlier writes are durable before the reply.
    let through = bench.worker.set_write_through(true);
    assert_eq!(through.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(bench.disk.count(IoOp::Sync), 2);
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
    assert_eq!(bench.disk.count(IoOp::Sync), 3);
}

#[test]
fn a_worker_that_is_asked_to_commits_when_it_serves() {
    let mut bench = Bench::new(true);
    let commits = |bench: &Bench| {
        bench.pass_turns();
        bench.disk.commits.load(Ordering::SeqCst)
    };
    bench.start();
    bench.worker.commit();
    assert_eq!(commits(&bench), 1);
    bench.suspend(false);
    bench.worker.commit();
    bench.worker.commit();
    assert_eq!(commits(&bench), 1, "it rests");
    bench.resume();
    assert_eq!(commits(&bench), 2, "what it was asked for meanwhile");
    // While it is being suspended, it begins nothing either.
    bench.disk.hold(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.kick();
    bench.disk.await_count(IoOp::Write, 1);
    let suspended = bench.worker.suspend(false);
    bench.worker.commit();
    assert_eq!(suspended.wait(Duration::from_millis(50)), Err(WorkerError::TimedOut));
    bench.disk.hold(false);
    assert_eq!(suspended.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(commits(&bench), 2);
}

#[test]
fn a_flush_that_fails_is_told() {
    let bench = Bench::new(true);
    bench.start();
    bench.disk.fails.store(true, Ordering::SeqCst);
    let suspended = bench.worker.suspend(true);
    assert_eq!(suspended.wait(PATIENCE), Ok(Err(WorkerError::FlushFailed)));
    let through = bench.worker.set_write_through(true);
    assert_eq!(through.wait(PATIENCE), Ok(Err(WorkerError::FlushFailed)));
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(0)));
}

/// A request in flight pins its memory.
#[test]
fn memory_may_go_under_a_request() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.hold(true);
    bench.driver.ask(0, 0, 0, &[1; 512]);
    bench.driver.kick();
    bench.disk.await_count(IoOp::Read, 1);
    bench.worker.set_memory(Arc::default()).wait(PATIENCE).unwrap();
    bench.disk.hold(false);
    eventually("the request ended", || bench.driver.status(0) == 0);
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(1)));
    // Memory that comes back, and a ring set up again.
    let memory = Arc::new(bench.driver.memory.clone());
    bench.worker.set_memory(memory).wait(PATIENCE).unwrap();
    bench.driver.restart();
    bench.start();
    assert_eq!(bench.driver.run(1, 0, &[1; 512]).0, 0);
}

#[test]
fn a_ring_that_is_nowhere_is_refused() {
    let bench = Bench::new(true);
    let bad = bench.try_start(|start| start.setup.used += 1 << 40);
    assert!(matches!(bad, Err(VringError::Address { part: "used ring", .. })));
    let bad = bench.try_start(|start| start.setup.available += 1);
    assert!(matches!(bad, Err(VringError::Address { part: "available ring", .. })));
    let bad = bench.try_start(|start| start.setup.size = 63);
    assert_eq!(bad, Err(VringError::Size(63)));
    bench.start();
}

/// Known bug 19: the same head twice, and impossible heads; the device continues to serve.
#[test]
fn heads_that_cannot_be() {
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.hold(true);
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.driver.publish(0);
    bench.driver.publish(SIZE);
    bench.driver.publish(u16::MAX);
    bench.driver.kick();
    assert_eq!(bench.driver.await_used(), (0, 0), "the second is given back untouched");
    bench.disk.hold(false);
    assert_eq!(bench.driver.await_used(), (0, 1));
    assert_eq!(bench.driver.run(1, 8, &[1; 512]).0, 0);
}

#[test]
fn what_a_quick_disk_does_is_polled_for() {
    const REQUESTS: u64 = 1000;
    let mut bench = Bench::new(true);
    bench.start();
    bench.disk.takes_time.store(true, Ordering::SeqCst);
    for n in 0..REQUESTS {
        assert_eq!(bench.driver.run(1, n, &[n as u8; 512]).0, 0);
    }
    assert_eq!(bench.disk.bytes(999, 512), [231; 512]);
    // Some, until it has adapted, and when this processor was busy.
    let slept = bench.disk.sleeps_over_io.load(Ordering::SeqCst);
    assert!((1..REQUESTS / 2).contains(&(slept as u64)), "slept over {slept} of {REQUESTS}");
    // With a request in flight it can be suspended as usual.
    bench.disk.hold(true);
    bench.driver.ask(0, 1, 0, &[3; 512]);
    bench.driver.kick();
    bench.disk.await_count(IoOp::Write, REQUESTS as usize + 1);
    let suspend = bench.worker.suspend(true);
    bench.disk.hold(false);
    suspend.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(bench.driver.await_used().0, 0);
}

#[test]
fn an_idle_worker_sleeps() {
    let mut bench = Bench::new(true);
    bench.start();
    for n in 0..50 {
        assert_eq!(bench.driver.run(1, n, &[1; 512]).0, 0);
    }
    // Long enough for the poll to find nothing; then a sleep has no time limit.
    std::thread::sleep(Duration::from_millis(20));
    let before = bench.disk.sleeps.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(200));
    assert!(bench.disk.sleeps.load(Ordering::SeqCst) - before <= 1);
    assert_eq!(bench.driver.run(0, 0, &[0; 512]), (0, vec![1; 512]));
}
