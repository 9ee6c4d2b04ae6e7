//! Settings that a front-end does not repeat: after its rings stopped, and on a new connection.

use std::sync::atomic::Ordering;

use super::*;

const WRITABLE: VhostUserConfigFlags = VhostUserConfigFlags::WRITABLE;

/// QEMU resets a device whenever its rings stop, and repeats the guest's settings neither then nor
/// on a new connection.
#[test]
fn a_write_cache_that_is_off_stays_off() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    read_config(&mut front);
    front.vhost.set_config(32, WRITABLE, &[0]).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    let syncs = server.disk.count(IoOp::Sync);
    front.vhost.reset_device().unwrap();
    front.restart();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert!(server.disk.count(IoOp::Sync) > syncs, "after a reset");
    drop(front);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    let syncs = server.disk.count(IoOp::Sync);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), syncs + 1, "on a new connection");
    assert_eq!(read_config(&mut front)[32], 0, "who asks is told");
    front.vhost.set_config(32, WRITABLE, &[1]).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), syncs + 1);
    assert!(!server.disk.write_through.load(Ordering::SeqCst));
}

/// Nor to another process.
#[test]
fn a_write_cache_that_was_off_is_off_in_the_next_process() {
    let disk = TestDisk::new(4096);
    disk.write_through.store(true, Ordering::SeqCst);
    let server = Server::of(disk.clone(), true);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(disk.count(IoOp::Sync), 1);
}

impl FrontEnd {
    /// Starts the first ring again, as a driver that forgot everything.
    fn restart(&mut self) {
        let (file, memory) = shared_memory();
        let old = std::mem::replace(&mut self.drivers, vec![Driver::new(&memory, 0, true)]);
        for (driver, old) in self.drivers.iter_mut().zip(old) {
            (driver.kick, driver.call) = (old.kick, old.call);
        }
        self.file = file;
        self.start(1);
    }
}

/// A changed region is removed first, and added again, while its ring runs.
#[test]
fn a_ring_goes_on_when_its_memory_is_there_again() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    let region = front.region();
    front.vhost.add_mem_region(&region).unwrap();
    front.describe(0, 0);
    front.kick_off(0);
    front.vhost.set_vring_enable(0, true).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    front.vhost.remove_mem_region(&region).unwrap();
    front.vhost.add_mem_region(&region).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    // A disabled ring is not enabled by that.
    front.vhost.set_vring_enable(0, false).unwrap();
    front.vhost.remove_mem_region(&region).unwrap();
    front.vhost.add_mem_region(&region).unwrap();
    front.drivers[0].ask(0, 1, 0, &[1; 512]);
    front.drivers[0].kick();
    front.vhost.get_features().unwrap();
    assert_eq!(server.disk.count(IoOp::Write), 2);
    front.vhost.set_vring_enable(0, true).unwrap();
    front.drivers[0].await_used();
    assert_eq!(server.disk.count(IoOp::Write), 3);
}

/// The guest knows of discards, and of no features beyond those offered when it booted.
#[test]
fn features_of_before_are_taken_where_the_disk_is_read_only_by_now() {
    let writable = Server::new(1);
    let mut front = writable.connect();
    front.negotiate();
    let of_writable = front.features;
    let read_only = Server::of(TestDisk::new(4096), false);
    let mut later = read_only.connect();
    later.negotiate();
    assert_ne!(later.features, of_writable);
    later.vhost.set_features(of_writable).unwrap();
    later.start(1);
    assert_eq!(later.drivers[0].run(1, 0, &[1; 512]).0, 1, "a write is refused");
    assert_eq!(later.drivers[0].run(0, 0, &[0; 512]).0, 0);
    front.vhost.set_features(later.features).unwrap();
}

/// The position of a ring is unknown while its requests are in flight: no reply is sent.
#[test]
fn a_ring_that_does_not_stop_ends_the_connection() {
    let server = Server::new(1);
    let front = with_a_write_held(&server);
    assert!(front.vhost.get_vring_base(0).is_err());
    assert!(front.vhost.get_features().is_err(), "it is over");
    let gone = || server.events.try_iter().any(|event| event == SessionEvent::Disconnected);
    assert!(!gone(), "not before it has ended");
    server.disk.hold(false);
    eventually("it is gone", gone);
}

/// Nor does a second front-end wait, whatever the first waits for.
#[test]
fn a_second_front_end_is_refused_while_a_ring_does_not_stop() {
    let server = Server::new(1);
    let front = with_a_write_held(&server);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| front.vhost.get_vring_base(0));
        let begin = Instant::now();
        let mut refused = true;
        // The first attempt may precede the request.
        while refused && begin.elapsed() < Duration::from_millis(500) {
            let mut second = UnixStream::connect(server.path()).unwrap();
            second.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            refused = matches!(second.read(&mut [0]), Ok(0));
        }
        let waits = !stop.is_finished();
        server.disk.hold(false);
        assert!(refused && waits, "{refused} {waits}");
        assert_eq!(stop.join().unwrap().unwrap(), 1, "the first notices nothing");
    });
}

/// A driver that did not negotiate the field cannot set it, and one that cannot flush sees that the
/// cache is off.
#[test]
fn the_write_cache_is_set_by_who_negotiated_it() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate_without(config::CONFIG_WCE);
    front.start(1);
    assert!(front.vhost.set_config(32, WRITABLE, &[0]).is_err());
    assert_eq!(read_config(&mut front)[32], 1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 0);
    assert!(!server.disk.write_through.load(Ordering::SeqCst));
    drop(front);
    let mut front = server.connect();
    front.negotiate_without(config::FLUSH);
    assert_eq!(read_config(&mut front)[32], 0);
}
