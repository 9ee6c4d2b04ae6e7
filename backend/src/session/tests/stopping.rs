//! Exports that stop together.

use super::*;
use crate::export::stop_all;

/// An export that does not stop is named in the error, and the others have stopped.
#[test]
fn an_export_that_does_not_stop_holds_up_no_other() {
    let (stuck, dir) = (Server::new(1), tempfile::tempdir().unwrap());
    let socket = SocketAddress::Path(dir.path().join("disk.sock"));
    let config = ExportConfig { id: "other".into(), ..export_config(socket, 1) };
    let other = Server::serving(dir, TestDisk::new(4096), config);
    let mut front = stuck.connect();
    front.negotiate();
    front.start(1);
    stuck.disk.hold(true);
    front.drivers[0].ask(0, 1, 0, &[1; 512]);
    front.drivers[0].kick();
    stuck.disk.await_count(IoOp::Write, 1);
    let mut front_of_other = other.connect();
    front_of_other.negotiate();
    front_of_other.start(1);
    assert_eq!(front_of_other.drivers[0].run(1, 0, &[1; 512]).0, 0);
    let (disk, of_other) = (stuck.disk.clone(), other.disk.clone());
    let late = stop_all([stuck.export, other.export], Duration::from_millis(500));
    assert_eq!(Vec::from_iter(late), ["export0"]);
    assert_eq!(of_other.count(IoOp::Sync), 1, "it was drained and flushed");
    disk.hold(false);
    // It continues to stop.
    eventually("the stuck one has flushed", || disk.count(IoOp::Sync) == 1);
}

#[test]
fn an_export_that_nobody_uses_stops_safely() {
    let mut server = Server::new(1);
    drop(server.connect());
    eventually("nobody is connected", || {
        server.events.try_iter().any(|event| event == SessionEvent::Disconnected)
    });
    server.export.stop(StopMode::Safe).unwrap();
}
