//! Drivers that sleep and drivers that poll.

use super::*;

/// A worker over a disk that takes time, with its ring started.
fn over_a_disk() -> Bench {
    let bench = Bench::new(true);
    bench.disk.takes_time.store(true, Ordering::SeqCst);
    bench.start();
    bench
}

/// `rounds` times eight writes at once, whose ends the driver waits for by `wait`.
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
    // It comes to rest as ever, and who sets the ring up anew is another driver.
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

/// To be woken costs more than a request on tmpfs; large ones are waited for less.
#[test]
fn a_driver_that_sleeps_is_told_of_many_at_once() {
    let small = [(24, 2), (16, 1), (12, 1), (4, 1)].map(|(batch, told)| (batch, 512, told));
    let large = [(12, 3), (8, 2), (5, 2)].map(|(batch, told)| (batch, 0x4000, told));
    for (batch, len, told) in small.into_iter().chain(large) {
        let mut bench = Bench::new(false);
        let data = vec![0; len];
        (0..batch).for_each(|n| bench.driver.prepare(n, 0, u64::from(n) * 32, &data));
        bench.driver.show();
        bench.start();
        (0..batch).for_each(|_| _ = bench.driver.spin_for_used());
        bench.pass_turns();
        let mut count = [0; 8];
        rustix::io::read(&bench.driver.call, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), told, "{batch} of {len} bytes");
    }
}

/// Its limit is system calls: an idle disk has no head start.
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
    let counts: Vec<_> = handed_over(&bench.disk).iter().map(|&(count, ..)| count).collect();
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
