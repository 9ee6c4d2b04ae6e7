//! Drivers that sleep and drivers that poll.

use super::*;

/// A worker over a disk with latency, with its ring started.
fn over_a_disk() -> Bench {
    let bench = Bench::new(true);
    bench.disk.takes_time.store(true, Ordering::SeqCst);
    bench.start();
    bench
}

/// Submits eight writes at once, `rounds` times; the driver waits for their ends by `wait`.
fn eight_at_once(bench: &mut Bench, rounds: u64, wait: fn(&mut Driver) -> (u32, u32)) {
    for round in 0..rounds {
        let since = bench.driver.available();
        (0..8).for_each(|n| bench.driver.prepare(n, 1, n.into(), &[round as u8; 512]));
        bench.driver.show();
        bench.driver.kick_if_asked(since);
        (0..8).for_each(|_| _ = wait(&mut bench.driver));
        let slots = 0..8;
        assert!(slots.map(|n| bench.driver.status(n)).all(|status| status == 0));
    }
    let last = rounds.wrapping_sub(1) as u8;
    assert_eq!(bench.disk.bytes(0, 8 * 512), [last; 8 * 512]);
}

#[test]
fn a_driver_that_polls_has_completions_posted_at_once() {
    let mut bench = over_a_disk();
    eight_at_once(&mut bench, 600, Driver::await_used);
    let at_once = |bench: &Bench| bench.disk.posts_at_once.load(Ordering::SeqCst);
    assert!(!at_once(&bench), "it sleeps");
    eight_at_once(&mut bench, 600, Driver::spin_for_used);
    assert!(at_once(&bench));
    // It is suspended as usual, and a driver that sets the ring up again is another one.
    bench.suspend(true);
    bench.resume();
    eight_at_once(&mut bench, 10, Driver::spin_for_used);
    assert!(at_once(&bench));
    bench.worker.stop_ring().wait(PATIENCE).unwrap();
    bench.driver.restart();
    bench.start();
    assert!(!at_once(&bench));
    eight_at_once(&mut bench, 10, Driver::await_used);
}

/// A worker whose driver submits many requests at once, and counts its interrupts.
struct Sleeper {
    bench: Bench,
}

impl Sleeper {
    fn new() -> Sleeper {
        let bench = Bench::new(false);
        bench.start();
        Sleeper { bench }
    }

    /// `batch` reads of `len` bytes each, followed by a flush with `flush`.
    fn told_of(&mut self, batch: u16, len: usize, flush: bool) -> u64 {
        let all = batch + u16::from(flush);
        self.bench.suspend(true);
        let driver = &mut self.bench.driver;
        (0..batch).for_each(|n| driver.prepare(n, 0, u64::from(n) * 32, &vec![0; len]));
        (batch..all).for_each(|n| driver.prepare(n, 4, 0, &[]));
        driver.show();
        driver.kick();
        self.bench.resume();
        (0..all).for_each(|_| _ = self.bench.driver.spin_for_used());
        self.bench.pass_turns();
        take_calls(&self.bench.driver.call)
    }
}

/// A wake-up costs more than a request on tmpfs; for slower requests, fewer are gathered.
#[test]
fn a_driver_that_sleeps_is_told_of_many_at_once() {
    for (batch, told) in [(40, 3), (24, 2), (16, 2), (12, 2), (8, 2), (4, 1), (2, 1)] {
        assert_eq!(Sleeper::new().told_of(batch, 512, false), told, "{batch} small ones");
    }
    for (batch, told) in [(24, 6), (12, 3), (8, 2)] {
        assert_eq!(Sleeper::new().told_of(batch, 0x4000, false), told, "{batch} large ones");
    }
    for (batch, told) in [(24, 6), (12, 3), (8, 2)] {
        let mut moved = Sleeper::new();
        moved.bench.disk.indirect.store(true, Ordering::SeqCst);
        assert_eq!(moved.told_of(batch, 0x4000, false), told, "{batch} that the engine has");
    }
    let mut slow = Sleeper::new();
    slow.bench.disk.is_slow.store(true, Ordering::SeqCst);
    assert_eq!(slow.told_of(24, 512, false), 6, "from a disk");
}

#[test]
fn nobody_waits_for_another_s_flush() {
    let mut sleeper = Sleeper::new();
    sleeper.told_of(40, 512, false);
    let call = sleeper.bench.driver.call.try_clone().unwrap();
    *sleeper.bench.disk.watched.lock().unwrap() = Some((call, 0));
    assert_eq!(sleeper.told_of(12, 512, true), 1, "behind the flush");
    let watched = sleeper.bench.disk.watched.lock().unwrap();
    assert_eq!(watched.as_ref().unwrap().1, 1, "before it");
}

/// Some of the chains are with the driver when a batch begins.
#[test]
fn how_many_a_driver_keeps_in_flight_is_remembered() {
    let mut sleeper = Sleeper::new();
    assert_eq!(sleeper.told_of(40, 512, false), 3);
    assert_eq!(sleeper.told_of(12, 512, false), 1, "half of some 35 is more");
    let told: Vec<_> = (0..20).map(|_| sleeper.told_of(12, 512, false)).collect();
    assert_eq!(told.last(), Some(&2), "it keeps 12: {told:?}");
}

/// Its limit is system calls: the disk gets no part of a batch ahead of the rest.
#[test]
fn a_driver_that_polls_has_a_batch_as_a_whole() {
    let mut bench = over_a_disk();
    eight_at_once(&mut bench, 600, Driver::spin_for_used);
    bench.suspend(true);
    bench.disk.steps.lock().unwrap().clear();
    let since = bench.driver.available();
    (0..24).for_each(|n| bench.driver.prepare(n, 0, n.into(), &[0; 512]));
    bench.driver.show();
    bench.driver.kick_if_asked(since);
    bench.resume();
    (0..24).for_each(|_| _ = bench.driver.spin_for_used());
    let counts: Vec<_> = submissions(&bench.disk).iter().map(|&(count, ..)| count).collect();
    assert_eq!(counts, [24]);
}

#[test]
fn nothing_in_flight_is_not_waited_for_without_end() {
    let mut bench = Bench::new(true);
    bench.disk.takes_time.store(true, Ordering::SeqCst);
    bench.disk.always_busy.store(true, Ordering::SeqCst);
    bench.start();
    eight_at_once(&mut bench, 600, Driver::spin_for_used);
    assert!(!bench.disk.posts_at_once.load(Ordering::SeqCst));
    bench.disk.always_busy.store(false, Ordering::SeqCst);
}
