//! What a session knows of its rings after a reset.

use super::*;

/// The next driver's rings are elsewhere, and begin at their beginning.
#[test]
fn a_device_that_was_reset_knows_nothing_of_its_rings() {
    let server = Server::new(2);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    front.vhost.reset_device().unwrap();
    front.drivers.swap(0, 1);
    front.kicks.swap(0, 1);
    front.calls.swap(0, 1);
    // Before its addresses: they are not those of before.
    front.kick_off(0);
    front.place(0);
    front.vhost.set_vring_call(0, &front.calls[0]).unwrap();
    front.vhost.set_vring_enable(0, true).unwrap();
    assert_eq!(front.drivers[0].run(1, 8, &[2; 512]).0, 0);
    assert_eq!(front.stop(1), [1]);
}

/// Other back ends keep them, too.
#[test]
fn a_ring_that_only_stopped_goes_on_where_it_is() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(front.stop(1), [1]);
    front.kick_off(0);
    front.vhost.set_vring_enable(0, true).unwrap();
    assert_eq!(front.drivers[0].run(1, 8, &[2; 512]).0, 0);
    assert_eq!(front.stop(1), [2]);
}
