//! Descriptors that block, and that the front-end does not read.

use std::os::fd::OwnedFd;

use super::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_setfl};

/// One without room for another signal, and what empties it.
fn full_eventfd() -> (OwnedFd, OwnedFd) {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    (fd.try_clone().unwrap(), fd)
}

fn is_readable(fd: &OwnedFd) -> bool {
    let limit = Timespec::try_from(PATIENCE).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

/// Empties `fd`, so that a worker that waits for that goes on.
fn empty(fd: &OwnedFd) {
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

#[test]
fn a_call_descriptor_that_blocks_holds_up_no_worker() {
    let (mut bench, (call, reads)) = (Bench::new(false), full_eventfd());
    bench.driver.ask(0, 1, 0, &[1; 512]);
    bench.start_with(|start| start.call = Some(call.try_clone().unwrap()));
    let served = bench.worker.suspend(true).wait(PATIENCE);
    drop(bench.worker.set_call(Some(call)));
    let resumed = bench.worker.resume(ResumeWith::Table(Some(bench.binding.table())));
    let resumed = resumed.wait(PATIENCE);
    empty(&reads);
    assert_eq!((served, resumed), (Ok(Ok(())), Ok(Ok(()))));
    // When there is room again, the driver is interrupted as ever.
    bench.driver.ask(1, 1, 8, &[1; 512]);
    bench.driver.kick();
    assert!(is_readable(&reads));
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(2)));
}

#[test]
fn a_descriptor_for_errors_that_blocks_holds_up_no_worker() {
    let (bench, (err, reads)) = (Bench::new(true), full_eventfd());
    bench.start_with(|start| start.err = Some(err.try_clone().unwrap()));
    bench.driver.claim_too_many();
    bench.driver.kick();
    eventually("the ring is broken", || bench.worker.is_broken());
    drop(bench.worker.set_err(Some(err)));
    let stopped = bench.worker.stop_ring().wait(PATIENCE);
    empty(&reads);
    assert_eq!(stopped, Ok(Some(0)));
}

/// Without a watchdog a worker looks first.
#[test]
fn a_full_descriptor_that_nobody_watches_is_not_written() {
    let (call, reads) = full_eventfd();
    let notifier = Notifier::Unwatched(call);
    let (send, notified) = sync_channel(2);
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            notifier.notify();
            send.send(()).unwrap();
        }
    });
    let first = notified.recv_timeout(PATIENCE);
    empty(&reads);
    assert_eq!(first, Ok(()));
    notified.recv_timeout(PATIENCE).unwrap();
    thread.join().unwrap();
}

/// A front-end can make its descriptor block, and fill it, at any time: also between a look and a
/// notification.
#[test]
fn a_call_descriptor_that_is_filled_while_it_is_used_holds_up_no_worker() {
    let mut bench = Bench::new(false);
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let front_end = fd.try_clone().unwrap();
    bench.start_with(|start| start.call = Some(fd));
    fcntl_setfl(&front_end, OFlags::empty()).unwrap();
    for request in 0..3 {
        empty_if_any(&front_end);
        rustix::io::write(&front_end, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bench.driver.ask(request, 1, 0, &[1; 512]);
        bench.driver.kick();
        let served = bench.worker.suspend(true).wait(PATIENCE);
        let is_told = is_readable(&front_end);
        if served.is_err() {
            empty(&front_end);
        }
        assert_eq!((served, is_told), (Ok(Ok(())), true));
        let resumed = bench.worker.resume(ResumeWith::Table(Some(bench.binding.table())));
        assert_eq!(resumed.wait(PATIENCE), Ok(Ok(())));
    }
    empty_if_any(&front_end);
    assert_eq!(bench.worker.stop_ring().wait(PATIENCE), Ok(Some(3)));
}

fn empty_if_any(fd: &OwnedFd) {
    let none = Timespec::default();
    if poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&none)).unwrap() == 1 {
        empty(fd);
    }
}
