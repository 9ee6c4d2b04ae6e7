//! Chains that a process had in flight, and that the next one completes.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;

use super::*;
use crate::testing::SIZE;

fn layout(queues: u16, descriptors: u16) -> VhostUserInflight {
    VhostUserInflight::new(0, 0, queues, descriptors)
}

/// The front-end's side of a back-end's death: the same memory and rings with another process. A
/// process that never continues is as good as dead, so it gets no more kicks.
fn reconnect(front: &mut FrontEnd, server: &Server) {
    front.vhost = Frontend::connect(server.path(), 8).unwrap();
    for (driver, kick) in front.drivers.iter_mut().zip(&mut front.kicks) {
        (*kick, driver.kick) = event();
    }
    front.negotiate();
}

/// A server that does nothing any more, until the end of the test.
struct Dead(Server);

impl Drop for Dead {
    fn drop(&mut self) {
        self.0.disk.hold(false);
    }
}

#[test]
fn what_a_process_had_in_flight_is_done_by_the_next() {
    let (dead, next) = (Dead(Server::new(2)), Server::new(2));
    let mut front = dead.0.connect();
    front.negotiate();
    let (area, file) = front.vhost.get_inflight_fd(&layout(2, SIZE)).unwrap();
    // 16 bytes per descriptor and 16 more, rounded up to a multiple of 64.
    assert_eq!((area.mmap_size, area.mmap_offset), (2 * 2112, 0));
    assert_eq!((area.num_queues, area.queue_size), (2, SIZE));
    assert!(fcntl_get_seals(&file).unwrap().contains(SealFlags::SHRINK));
    front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    front.start(2);
    assert_eq!(front.drivers[1].run(1, 0, &[1; 512]).0, 0);
    dead.0.disk.hold(true);
    for (slot, sector) in [(3, 8), (1, 16), (2, 8)] {
        front.drivers[1].ask(slot, 1, sector, &[slot as u8; 512]);
    }
    front.drivers[1].kick();
    dead.0.disk.await_count(IoOp::Write, 4);

    reconnect(&mut front, &next);
    front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    front.set_memory();
    for (queue, used) in [0, 1].into_iter().enumerate() {
        // All that a front-end knows if the process did not report its position.
        front.describe(queue, used);
        front.kick_off(queue);
        front.vhost.set_vring_enable(queue, true).unwrap();
    }
    assert_eq!([(); 3].map(|()| front.drivers[1].await_used().0), [9, 3, 6]);
    assert_eq!([1, 2, 3].map(|slot| front.drivers[1].status(slot)), [0; 3]);
    assert_eq!(next.disk.bytes(8, 512), [2; 512], "in the order in which they were asked for");
    assert_eq!(next.disk.bytes(16, 512), [1; 512]);
    assert_eq!(next.disk.bytes(0, 512), [0; 512], "what had ended is not done again");
    assert_eq!(front.drivers[1].run(1, 0, &[5; 512]).0, 0);
    assert_eq!(front.drivers[0].run(1, 24, &[6; 512]).0, 0);
    assert_eq!(front.stop(2), [1, 5]);
}

/// A device reset sets the rings up again: chains left from before are not carried out.
#[test]
fn a_reset_forgets_what_is_noted() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    let (area, file) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    let version = || {
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, area.mmap_offset + 8).unwrap();
        u16::from_ne_bytes(bytes)
    };
    front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(front.stop(1), [1]);
    assert_eq!(version(), 1);
    front.vhost.reset_device().unwrap();
    assert_eq!(front.vhost.get_vring_base(0).unwrap(), 0, "it was followed");
    assert_eq!(version(), 0, "as new memory has it");
}

/// The last interrupt may be the one that the process did not get to.
#[test]
fn who_resumes_a_ring_interrupts_its_driver() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    let (area, file) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    front.start(1);
    let mut fds = [rustix::event::PollFd::new(&front.drivers[0].call, PollFlags::IN)];
    let limit = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1));
}

#[test]
fn areas_that_cannot_be_are_refused() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    for bad in [layout(2, 64), layout(1, 63), layout(1, 2048), layout(u16::MAX, u16::MAX)] {
        assert!(front.vhost.get_inflight_fd(&bad).is_err(), "no descriptor comes with it");
    }
    let (area, file) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    let short = File::from(memfd_create("short", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&short, area.mmap_size - 1).unwrap();
    let mut refused = |change: fn(&mut VhostUserInflight), file: &File| {
        let mut area = area;
        change(&mut area);
        front.vhost.set_inflight_fd(&area, file.as_raw_fd()).is_err()
    };
    assert!(refused(|_| (), &short), "shorter than it says");
    assert!(refused(|area| area.mmap_size -= 64, &file));
    assert!(refused(|area| area.mmap_offset = 4096, &file));
    assert!(refused(|area| area.mmap_offset = 64, &file), "not aligned");
    assert!(refused(|area| area.mmap_offset = u64::MAX - 63, &file));
    assert!(refused(|area| area.num_queues = 2, &file));
    assert!(refused(|area| area.queue_size = 2 * SIZE, &file));
    assert!(refused(|area| area.queue_size = 48, &file));
    assert!(refused(|_| (), &File::open("/dev/null").unwrap()));
    assert!(!refused(|_| (), &file));

    // The region has fewer descriptors than the ring.
    let (half, file) = front.vhost.get_inflight_fd(&layout(1, 32)).unwrap();
    front.vhost.set_inflight_fd(&half, file.as_raw_fd()).unwrap();
    front.set_memory();
    front.describe(0, 0);
    assert!(front.vhost.set_vring_kick(0, &front.kicks[0]).is_err());
    front.vhost.get_vring_base(0).unwrap();
    let (area, file) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    front.start(1);
    assert!(front.vhost.set_inflight_fd(&area, file.as_raw_fd()).is_err(), "it is in use");
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
}

/// Blocks of the file that take memory.
fn taken(file: &File) -> u64 {
    file.metadata().unwrap().blocks()
}

/// A front-end may ask for memory without end: what it got before takes none of this process's.
#[test]
fn memory_that_nobody_gave_back_is_given_again() {
    let server = Server::new(2);
    let mut front = server.connect();
    front.negotiate();
    let number = |file: &File| file.metadata().unwrap().ino();
    let (area, first) = front.vhost.get_inflight_fd(&layout(2, SIZE)).unwrap();
    let whole = taken(&first);
    assert!(whole * 512 >= area.mmap_size, "a store to it cannot fail");
    first.write_all_at(&[1; 100], 8).unwrap();
    let (again, second) = front.vhost.get_inflight_fd(&layout(2, SIZE)).unwrap();
    assert_eq!((number(&second), again.mmap_size), (number(&first), area.mmap_size));
    let mut bytes = vec![1; area.mmap_size as usize];
    second.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "as new memory is");
    assert_eq!(taken(&second), whole);
    // Another layout needs another file.
    let (half, third) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    assert_ne!(number(&third), number(&first));
    assert_eq!(taken(&first), 0);
    // And so does a front-end that goes on with its rings as they were.
    front.vhost.set_inflight_fd(&half, third.as_raw_fd()).unwrap();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    let (_, fourth) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
    assert_ne!(number(&fourth), number(&third));
    assert!(taken(&third) > 0);
    front.stop(1);
    front.vhost.set_inflight_fd(&half, third.as_raw_fd()).unwrap();
    assert!(taken(&third) > 0 && taken(&fourth) > 0, "the same as before");
    front.vhost.set_inflight_fd(&half, fourth.as_raw_fd()).unwrap();
    assert_eq!(taken(&third), 0);
}

/// The memory of one that is gone is kept, since it may come back with it, until another is used.
#[test]
fn each_front_end_gets_memory_of_its_own() {
    let server = Server::new(1);
    let mut files = Vec::new();
    for given_back in [true, true, false, false] {
        let mut front = server.connect();
        front.negotiate();
        let (area, file) = front.vhost.get_inflight_fd(&layout(1, SIZE)).unwrap();
        if given_back {
            front.vhost.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
        }
        files.push(file);
        drop(front);
        eventually("it is gone", || {
            server.events.try_iter().any(|event| event == SessionEvent::Disconnected)
        });
    }
    assert_eq!(
        files.iter().map(|file| taken(file) > 0).collect::<Vec<_>>(),
        [false, true, false, false]
    );
}
