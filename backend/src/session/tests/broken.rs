//! Rings that the guest breaks.

use super::*;
use crate::testing::take_calls;

const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
const DRIVER_OK: u64 = 0xf;
const NEEDS_RESET: u64 = 64;

/// The front-end is told through the ring's error descriptor, at whatever time it sends that, and
/// by the status field; other rings continue; once set up again, the ring is served again.
#[test]
fn a_broken_ring_is_told_of_and_the_others_go_on() {
    let server = Server::new(2);
    let socket = UnixStream::connect(server.path()).unwrap();
    let mut raw = Raw(socket.try_clone().unwrap());
    let mut front = FrontEnd::new(Frontend::from_stream(socket, 8));
    front.negotiate();
    front.start(2);
    raw.send(SET_STATUS, NEED_REPLY, &DRIVER_OK.to_ne_bytes());
    assert_eq!(raw.reply(), (SET_STATUS, vec![0; 8]));
    let (err, its_err) = event();
    front.vhost.set_vring_err(0, &err).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(take_calls(&its_err), 0);

    front.drivers[0].claim_too_many();
    front.drivers[0].kick();
    eventually("the error descriptor is signalled", || take_calls(&its_err) == 1);
    assert_eq!(raw.ask(GET_STATUS, &[]), (DRIVER_OK | NEEDS_RESET).to_ne_bytes());
    let (late, its_late) = event();
    front.vhost.set_vring_err(0, &late).unwrap();
    eventually("so is one that comes later", || take_calls(&its_late) == 1);
    assert_eq!(front.drivers[1].run(1, 8, &[2; 512]).0, 0, "the other ring goes on");

    // The device owns this bit, not the driver.
    raw.send(SET_STATUS, NEED_REPLY, &NEEDS_RESET.to_ne_bytes());
    assert_eq!(raw.reply(), (SET_STATUS, vec![0; 8]));
    raw.send(SET_STATUS, NEED_REPLY, &0u64.to_ne_bytes());
    assert_eq!(raw.reply(), (SET_STATUS, vec![0; 8]));
    assert_eq!(raw.ask(GET_STATUS, &[]), [0; 8]);
    front.drivers.iter_mut().for_each(Driver::restart);
    front.start(2);
    assert_eq!(raw.ask(GET_STATUS, &[]), [0; 8]);
    assert_eq!(front.drivers[0].run(1, 0, &[3; 512]).0, 0);
}
