//! Signals of watched descriptors.

use super::*;

#[test]
fn a_signal_wakes_the_waiter_each_time() {
    for uring in [true, false] {
        for flags in [EventfdFlags::NONBLOCK, EventfdFlags::empty()] {
            let mut rig = rig("/dev/shm", false, uring, &[0; 512]);
            let (kick, other) = (event(flags), event(flags));
            rig.io.watch(kick.as_fd(), 5).unwrap();
            rig.io.watch(other.as_fd(), 6).unwrap();
            assert!(rig.io.is_watched(5) && !rig.io.is_watched(4), "{}", rig.what);
            for _ in 0..3 {
                signal(&kick);
                signal(&kick);
                rig.io.wait(None).unwrap();
                assert_eq!(rig.io.fired(), Some(5), "{}", rig.what);
                assert_eq!(rig.io.fired(), None, "once for what came together");
                rig.io.fill_queue();
                assert!(!rig.io.is_ready(), "it is watched on, with nothing more to hand over");
            }
            rig.io.wait(Some(Duration::from_millis(1))).unwrap();
            assert_eq!(rig.io.fired(), None);
            // From another thread, while asleep.
            std::thread::scope(|scope| {
                scope.spawn(|| signal(&other));
                while rig.io.fired() != Some(6) {
                    rig.io.wait(None).unwrap();
                }
            });
        }
    }
}

#[test]
fn an_unwatched_descriptor_never_fires() {
    for uring in [true, false] {
        let mut rig = rig("/dev/shm", false, uring, &[0; 512]);
        let (kick, other) = (event(EventfdFlags::NONBLOCK), event(EventfdFlags::NONBLOCK));
        rig.io.watch(kick.as_fd(), 1).unwrap();
        rig.io.watch(other.as_fd(), 2).unwrap();
        rig.io.enter().unwrap();
        // Consumed, but not returned yet: dropped with the watch.
        signal(&kick);
        rig.io.wait(None).unwrap();
        assert!(rig.io.is_watched(1));
        rig.io.unwatch(1);
        assert!(!rig.io.is_watched(1));
        assert_eq!(rig.io.fired(), None);
        signal(&kick);
        rig.io.wait(Some(Duration::from_millis(5))).unwrap();
        assert_eq!(rig.io.fired(), None, "{}", rig.what);
        // The key can be used again for another descriptor.
        let second = event(EventfdFlags::NONBLOCK);
        rig.io.watch(second.as_fd(), 1).unwrap();
        signal(&second);
        while rig.io.fired() != Some(1) {
            rig.io.wait(None).unwrap();
        }
        signal(&other);
        while rig.io.fired() != Some(2) {
            rig.io.wait(None).unwrap();
        }
    }
}

#[test]
fn what_was_signalled_is_consumed_with_the_watch() {
    for uring in [true, false] {
        // A blocking descriptor is not waited for either, whether it has a count or not.
        for (flags, signals) in [(EventfdFlags::NONBLOCK, 3), (EventfdFlags::empty(), 0)] {
            let mut rig = rig("/dev/shm", false, uring, &[0; 512]);
            let kick = event(flags);
            rig.io.watch(kick.as_fd(), 1).unwrap();
            for _ in 0..signals {
                signal(&kick);
                rig.io.wait(None).unwrap();
                assert_eq!(rig.io.fired(), Some(1), "{}", rig.what);
            }
            rig.io.unwatch(1);
            assert!(!can_be_read(&kick), "{}: its owner sees what was seen already", rig.what);
        }
    }
}

fn can_be_read(fd: &impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).unwrap() > 0
}

#[test]
fn what_can_only_fail_is_watched_no_more() {
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let at_its_end = || rustix::pipe::pipe().unwrap().0;
    for (uring, fd) in
        [(true, at_its_end()), (false, at_its_end()), (true, null()), (false, null())]
    {
        let mut rig = rig("/dev/shm", false, uring, &[0; 512]);
        let began = rig.io.watch(fd.as_fd(), 1).is_ok();
        let mut fired = 0;
        for _ in 0..3 {
            rig.io.wait(Some(Duration::from_millis(1))).unwrap();
            fired += std::iter::from_fn(|| rig.io.fired()).count();
        }
        // So that its owner, who may be about to sleep, looks at whether it is watched.
        assert_eq!(fired, usize::from(began), "{}", rig.what);
        assert!(!rig.io.is_watched(1), "{}", rig.what);
        // The teardown of a ring of this thread may interrupt a wait, once.
        let waits = (0..3).map(|_| {
            let before = std::time::Instant::now();
            rig.io.wait(Some(Duration::from_millis(20))).unwrap();
            before.elapsed()
        });
        let slept = waits.max().unwrap();
        assert!(slept >= Duration::from_millis(10), "{}: it woke after {slept:?}", rig.what);
    }
}

/// Front-ends send eventfds, but other descriptors pass for them.
#[test]
fn what_fills_up_is_emptied() {
    for uring in [true, false] {
        let mut rig = rig("/dev/shm", false, uring, &[0; 512]);
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        rig.io.watch(reader.as_fd(), 1).unwrap();
        for round in 0..20_000 {
            rustix::io::write(&writer, &1u64.to_ne_bytes())
                .unwrap_or_else(|error| panic!("{}: signal {round}: {error}", rig.what));
            rig.io.wait(None).unwrap();
            assert_eq!(rig.io.fired(), Some(1), "{}", rig.what);
        }
    }
}

/// Both of two executors that watch one descriptor see its signals.
#[test]
fn a_signal_is_not_taken_from_others() {
    for uring in [true, false] {
        let mut rigs = [(); 2].map(|()| rig("/dev/shm", false, uring, &[0; 512]));
        let kick = event(EventfdFlags::empty());
        for rig in &mut rigs {
            rig.io.watch(kick.as_fd(), 1).unwrap();
            rig.io.wait(Some(Duration::from_millis(1))).unwrap();
        }
        for _ in 0..3 {
            signal(&kick);
            for rig in &mut rigs {
                rig.io.wait(Some(Duration::from_secs(20))).unwrap();
                assert_eq!(rig.io.fired(), Some(1), "{}", rig.what);
            }
        }
    }
}

#[test]
fn one_call_waits_for_signals_and_completions() {
    let mut rig = rig(DISK, true, true, &content(1 << 20));
    if !rig.io.uses_uring() {
        return;
    }
    let kick = event(EventfdFlags::NONBLOCK);
    rig.io.watch(kick.as_fd(), 9).unwrap();
    let guest = Guest::new(4096, 0, 4096, 1);
    let before = rig.io.syscalls();
    assert_eq!(rig.run(IoOp::Read, 0, 4096, &[guest_seg(0, 4096)], &guest), Ok(()));
    signal(&kick);
    rig.io.wait(None).unwrap();
    assert_eq!(rig.io.fired(), Some(9));
    assert!(rig.io.syscalls() <= before + 3, "{}", rig.io.syscalls() - before);
}
