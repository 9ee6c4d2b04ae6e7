//! A disk whose size changes under a connected front-end (scenario 57).

use std::sync::Mutex;
use std::sync::mpsc::Sender;

use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandlerMut};

use super::*;

/// Reports each notification of a change.
struct Told(Sender<()>);

impl VhostUserFrontendReqHandlerMut for Told {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        let _ = self.0.send(());
        Ok(0)
    }
}

impl FrontEnd {
    /// Negotiates all features except `without`, and sends `socket` for the back-end channel.
    fn open_channel(&mut self, without: VhostUserProtocolFeatures, socket: &impl AsRawFd) {
        self.vhost.set_owner().unwrap();
        self.features = self.vhost.get_features().unwrap();
        self.vhost.set_features(self.features).unwrap();
        let offered = self.vhost.get_protocol_features().unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::BACKEND_REQ));
        self.vhost.set_protocol_features(offered.difference(without)).unwrap();
        if !without.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.vhost.set_backend_request_fd(socket).unwrap();
    }

    fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(read_config(self)[..8].try_into().unwrap())
    }
}

impl Server {
    fn resize(&self, sectors: u64) {
        self.disk.resize(sectors);
        self.export.size_changed()();
    }
}

/// One message of the back-end channel: its number, its flags, the bytes after its header.
fn message(channel: &mut UnixStream) -> [u32; 3] {
    let mut bytes = [0; 12];
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.read_exact(&mut bytes).unwrap();
    std::array::from_fn(|n| u32::from_ne_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap()))
}

fn is_silent(channel: &mut UnixStream) -> bool {
    channel.set_nonblocking(true).unwrap();
    let nothing = channel.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    channel.set_nonblocking(false).unwrap();
    nothing
}

/// The `vhost` crate's own handler is called once per change, and finds the new size.
#[test]
fn scenario_57_a_front_end_is_told_of_another_size() {
    for without in [VhostUserProtocolFeatures::empty(), VhostUserProtocolFeatures::REPLY_ACK] {
        let server = Server::new(1);
        let mut front = server.connect();
        let (send, told) = channel();
        let mut handler = FrontendReqHandler::new(Arc::new(Mutex::new(Told(send)))).unwrap();
        handler.set_reply_ack_flag(without.is_empty());
        front.open_channel(without, &handler.get_tx_raw_fd());
        std::thread::spawn(move || while handler.handle_request().is_ok() {});
        assert_eq!(front.capacity(), 4096);
        front.start(1);
        for (n, sectors) in [8192, 16384, 4096].into_iter().enumerate() {
            server.resize(sectors);
            told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(front.capacity(), sectors);
            assert_eq!(front.drivers[0].run(1, n as u64, &[1; 512]).0, 0);
        }
        server.resize(4096);
        front.vhost.get_features().unwrap();
        assert!(told.try_recv().is_err(), "it has not changed");
    }
}

/// A reply is requested only if the front-end can send one; and no notification is sent for a size
/// that the front-end has not seen.
#[test]
fn what_is_sent_is_as_negotiated() {
    for (without, flags) in [
        (VhostUserProtocolFeatures::empty(), 1 | NEED_REPLY),
        (VhostUserProtocolFeatures::REPLY_ACK, 1),
    ] {
        let server = Server::new(1);
        let mut front = server.connect();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        front.open_channel(without, &theirs);
        server.resize(8192);
        front.vhost.get_features().unwrap();
        assert!(is_silent(&mut ours), "it never looked at the size");
        assert_eq!(front.capacity(), 8192);
        server.resize(4096);
        assert_eq!(message(&mut ours), [2, flags, 0]);
        assert!(is_silent(&mut ours));
        // A failure: it is only logged.
        let answer = [2u32, 5, 8, 1, 0].map(u32::to_ne_bytes);
        ours.write_all(answer.as_flattened()).unwrap();
        server.resize(8192);
        assert_eq!(message(&mut ours), [2, flags, 0]);
    }
}

/// vhost-user: the message is sent where CONFIG was negotiated.
#[test]
fn who_cannot_read_the_size_is_not_told_that_it_changed() {
    let server = Server::new(1);
    let mut front = server.connect();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    front.open_channel(VhostUserProtocolFeatures::CONFIG, &theirs);
    front.start(1);
    server.resize(8192);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    front.vhost.get_features().unwrap();
    assert!(is_silent(&mut ours));
}

/// A change between the read of the configuration and the opening of the channel is not missed.
#[test]
fn a_channel_that_opens_late_says_what_was_missed() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    assert_eq!(front.capacity(), 4096);
    server.resize(8192);
    front.vhost.get_features().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    front.vhost.set_backend_request_fd(&theirs).unwrap();
    assert_eq!(message(&mut ours), [2, 1 | NEED_REPLY, 0]);
}

/// Thousands of changes that it never reads or answers, then a closed channel: requests and
/// messages are served all the time.
#[test]
fn a_front_end_that_does_not_listen_holds_nothing_up() {
    let server = Server::new(1);
    let mut front = server.connect();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    front.open_channel(VhostUserProtocolFeatures::empty(), &theirs);
    drop(theirs);
    front.start(1);
    for n in 0..2000u64 {
        assert_ne!(front.capacity(), 4096 + n % 2 + 1);
        server.resize(4096 + n % 2 + 1);
        front.vhost.get_features().unwrap();
    }
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(message(&mut ours), [2, 1 | NEED_REPLY, 0]);
    drop(ours);
    for sectors in [8192, 4096] {
        server.resize(sectors);
        assert_eq!(front.capacity(), sectors);
        assert_eq!(front.drivers[0].run(1, 0, &[2; 512]).0, 0);
    }
    assert!(server.export.is_connected());
}

/// Without the feature, the message that opens the channel is refused.
#[test]
fn a_channel_must_be_negotiated() {
    let server = Server::new(1);
    let mut raw = server.raw();
    let offered = u64::from_ne_bytes(raw.ask(15, &[]).try_into().unwrap());
    let protocol = offered & !VhostUserProtocolFeatures::BACKEND_REQ.bits();
    assert_ne!(protocol, offered);
    raw.send(16, 0, &protocol.to_ne_bytes());
    raw.send(21, NEED_REPLY, &[]);
    assert_eq!(raw.reply(), (21, 1u64.to_ne_bytes().to_vec()));
}

/// A front-end that continues with rings of an earlier connection does not read the configuration
/// on this one.
#[test]
fn scenario_57_who_reconnects_is_told_to_look() {
    let server = Server::new(1);
    let mut front = server.connect();
    let (socket, mut channel) = UnixStream::pair().unwrap();
    front.open_channel(VhostUserProtocolFeatures::REPLY_ACK, &socket);
    front.vhost.get_features().unwrap();
    assert!(is_silent(&mut channel), "there may be no device yet");
    front.vhost.set_hdr_flags(VhostUserHeaderFlag::empty());
    front.start(1);
    assert_eq!(message(&mut channel), [2, 1, 0]);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert!(is_silent(&mut channel), "once");
    assert_eq!(front.capacity(), 4096);
    server.resize(8192);
    assert_eq!(message(&mut channel)[0], 2);
}
