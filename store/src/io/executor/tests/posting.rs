//! The time at which completions are posted.

use super::*;

#[test]
fn completions_are_posted_as_they_come_where_that_is_asked_for() {
    let file = content(1 << 20);
    let mut rig = rig(DISK, true, true, &file);
    // The kernel may support no ring, or only one way.
    if !rig.io.uses_uring() || rig.io.posts_at_once() {
        return;
    }
    let kick = event(EventfdFlags::NONBLOCK);
    rig.io.watch(kick.as_fd(), 5).unwrap();
    let guest = Guest::new(4096, 0, 4096, 1);
    let read = [guest_seg(0, 4096)];
    for on in [false, true, false, true] {
        rig.io.post_at_once(on);
        assert_eq!(rig.io.posts_at_once(), on);
        let fixed: Vec<_> = rig.io.adopted.iter().flatten().map(|file| file.fixed).collect();
        assert!(fixed.iter().all(Option::is_some), "files are registered with either ring");
        // Watched descriptors are still watched.
        signal(&kick);
        rig.io.wait(None).unwrap();
        assert_eq!((rig.io.fired(), rig.io.fired()), (Some(5), None));
        rig.run(IoOp::Write, 8192, 4096, &read, &guest).unwrap();
        guest.fill(Token(0), &[0; 4096]);
        rig.io.submit(&rig.action(IoOp::Read, 4096, 4096, 3), &read, &[], &guest);
        // Not while something is in flight.
        rig.io.post_at_once(!on);
        assert_eq!(rig.io.posts_at_once(), on);
        rig.io.enter().unwrap();
        let calls = rig.io.syscalls();
        let begin = std::time::Instant::now();
        while on && rig.io.completed().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it is not posted");
        }
        assert_eq!(rig.io.syscalls(), calls, "to look takes none");
        if !on {
            rig.one();
        }
        assert!(guest.bytes(Token(0), 4096) == file[4096..8192]);
    }
}
