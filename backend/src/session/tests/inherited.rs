//! Sockets that a process inherited.

use super::*;

/// As if it was there when the process began.
fn inherited(fd: &impl std::os::fd::AsFd) -> SocketAddress {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    SocketAddress::inherited(fd.as_fd().as_raw_fd()).unwrap()
}

#[test]
fn an_inherited_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("disk.sock")).unwrap();
    let address = inherited(&listener);
    let server = Server::on(dir, address, 1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
}

/// The inherited descriptor stays open in this process; still, the front-end sees the end.
#[test]
fn a_connection_that_was_handed_over_ends_for_its_front_end() {
    let ends: [fn(&mut Server, &mut Raw); 3] = [
        |_, raw| raw.0.write_all(&[0xff; 12]).unwrap(),
        |server, raw| {
            raw.ask(1, &[]);
            server.export.stop(StopMode::Hard).unwrap();
        },
        |server, _| server.export.stop(StopMode::Hard).unwrap(),
    ];
    for end in ends {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut raw = Raw(peer);
        let address = inherited(&ours);
        let mut server = Server::on(tempfile::tempdir().unwrap(), address, 1);
        end(&mut server, &mut raw);
        assert!(raw.is_closed());
    }
}
