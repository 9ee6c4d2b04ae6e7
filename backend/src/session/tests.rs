use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use snapblk_store::io::IoOp;
use snapblk_store::units::Sector;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::config;
use crate::export::{Export, ExportConfig, ExportError, StopMode};
use crate::testing::{
    Driver, MEMORY_SIZE, PATIENCE, TestBinding, TestDisk, TestTable, USER_BASE, eventually,
    shared_memory,
};

mod broken;
mod held_up;
mod inflight;
mod inherited;
mod reconnect;
mod refused;
mod reset;
mod resize;
mod stopping;

struct Server {
    dir: tempfile::TempDir,
    disk: Arc<TestDisk>,
    binding: Arc<TestBinding>,
    export: Export,
    events: Receiver<SessionEvent>,
}

impl Server {
    fn new(num_queues: u16) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = SocketAddress::Path(dir.path().join("disk.sock"));
        Server::on(dir, socket, num_queues)
    }

    fn on(dir: tempfile::TempDir, socket: SocketAddress, num_queues: u16) -> Server {
        Server::serving(dir, TestDisk::new(4096), export_config(socket, num_queues))
    }

    /// One queue of `disk`.
    fn of(disk: Arc<TestDisk>, writable: bool) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = SocketAddress::Path(dir.path().join("disk.sock"));
        let config = ExportConfig { writable, ..export_config(socket, 1) };
        Server::serving(dir, disk, config)
    }

    fn serving(dir: tempfile::TempDir, disk: Arc<TestDisk>, config: ExportConfig) -> Server {
        let (send, events) = channel();
        let binding = TestBinding::new(&disk);
        let export = Export::start(config, binding.clone(), move |event| {
            let _ = send.send(event);
        });
        Server { dir, disk, binding, export: export.unwrap(), events }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    fn raw(&self) -> Raw {
        Raw(UnixStream::connect(self.path()).unwrap())
    }

    fn connect(&self) -> FrontEnd {
        FrontEnd::new(Frontend::connect(self.path(), 8).unwrap())
    }
}

fn export_config(socket: SocketAddress, num_queues: u16) -> ExportConfig {
    ExportConfig {
        id: "export0".into(),
        socket: Listener::open(socket).unwrap(),
        num_queues,
        writable: true,
        logical_block: LogicalBlock::B512,
        serial: "snapblk-test".into(),
        polling: crate::export::Polling::Adaptive,
    }
}

/// A virtual machine monitor: the `vhost` crate's front-end, in cloud-hypervisor's order.
struct FrontEnd {
    vhost: Frontend,
    file: OwnedFd,
    drivers: Vec<Driver>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    features: u64,
}

impl FrontEnd {
    fn new(vhost: Frontend) -> FrontEnd {
        let (file, memory) = shared_memory();
        let mut front = FrontEnd {
            vhost,
            file,
            drivers: (0..2).map(|queue| Driver::new(&memory, queue, true)).collect(),
            kicks: Vec::new(),
            calls: Vec::new(),
            features: 0,
        };
        for driver in &mut front.drivers {
            let ((kick, its_kick), (call, its_call)) = (event(), event());
            (driver.kick, driver.call) = (its_kick, its_call);
            front.kicks.push(kick);
            front.calls.push(call);
        }
        front
    }

    /// Negotiates all offered features, and has every message acknowledged.
    fn negotiate(&mut self) {
        self.negotiate_without(0);
    }

    fn negotiate_without(&mut self, features: u64) {
        self.vhost.set_owner().unwrap();
        self.features = self.vhost.get_features().unwrap() & !features;
        self.vhost.set_features(self.features).unwrap();
        let protocol = self.vhost.get_protocol_features().unwrap();
        self.vhost.set_protocol_features(protocol).unwrap();
        self.vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn set_memory(&self) {
        self.vhost.set_mem_table(&[self.region()]).unwrap();
    }

    fn place(&self, queue: usize) {
        let setup = self.drivers[queue].setup(0);
        self.vhost.set_vring_num(queue, setup.size).unwrap();
        let addresses = VringConfigData {
            queue_max_size: setup.size,
            queue_size: setup.size,
            flags: 0,
            desc_table_addr: setup.descriptor,
            used_ring_addr: setup.used,
            avail_ring_addr: setup.available,
            log_addr: None,
        };
        self.vhost.set_vring_addr(queue, &addresses).unwrap();
    }

    fn describe(&self, queue: usize, base: u16) {
        self.place(queue);
        self.vhost.set_vring_base(queue, base).unwrap();
        self.vhost.set_vring_call(queue, &self.calls[queue]).unwrap();
    }

    fn kick_off(&self, queue: usize) {
        self.vhost.set_vring_kick(queue, &self.kicks[queue]).unwrap();
    }

    fn start(&mut self, queues: usize) {
        self.set_memory();
        for queue in 0..queues {
            self.describe(queue, 0);
            self.kick_off(queue);
        }
        for queue in 0..queues {
            self.vhost.set_vring_enable(queue, true).unwrap();
        }
    }

    fn stop(&mut self, queues: usize) -> Vec<u32> {
        for queue in 0..queues {
            self.vhost.set_vring_enable(queue, false).unwrap();
        }
        (0..queues).map(|queue| self.vhost.get_vring_base(queue).unwrap()).collect()
    }
}

/// An eventfd in the two types that the two sides need. Sending a descriptor to oneself changes its
/// type without `unsafe`.
fn event() -> (EventFd, OwnedFd) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    here.send_with_fd(&[0u8][..], event.as_raw_fd()).unwrap();
    let (_, file) = there.recv_with_fd(&mut [0u8]).unwrap();
    (event, file.unwrap().into())
}

/// A front-end that sends arbitrary messages.
struct Raw(UnixStream);

impl Raw {
    fn send(&mut self, code: u32, flags: u32, payload: &[u8]) {
        let words = [code, 1 | flags, payload.len() as u32].map(u32::to_ne_bytes);
        self.0.write_all(&[words.as_flattened(), payload].concat()).unwrap();
    }

    fn reply(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 5, "version 1, a reply");
        let mut payload = vec![0; word(8) as usize];
        self.0.read_exact(&mut payload).unwrap();
        (word(0), payload)
    }

    fn ask(&mut self, code: u32, payload: &[u8]) -> Vec<u8> {
        self.send(code, 0, payload);
        let (replied, payload) = self.reply();
        assert_eq!(replied, code);
        payload
    }

    fn is_closed(&mut self) -> bool {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

const NEED_REPLY: u32 = 8;

/// A front-end whose ring has a write that does not end while the disk is held.
fn with_a_write_held(server: &Server) -> FrontEnd {
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    server.disk.hold(true);
    front.drivers[0].ask(0, 1, 0, &[1; 512]);
    front.drivers[0].kick();
    server.disk.await_count(IoOp::Write, 1);
    front
}

/// Verified reads and writes, flush, discard, identification, on two queues, in two start and
/// stop cycles.
#[test]
fn cloud_hypervisors_order() {
    let server = Server::new(2);
    let mut front = server.connect();
    front.negotiate();
    assert_eq!(front.vhost.get_queue_num().unwrap(), 2);
    let config = read_config(&mut front);
    assert_eq!(config[..8], 4096u64.to_le_bytes());
    assert_eq!(config[34..36], [2, 0]);
    for cycle in 1..=2u8 {
        front.start(2);
        for queue in 0..2u8 {
            let driver = &mut front.drivers[usize::from(queue)];
            for n in 0..30 {
                let data = vec![cycle * 80 + queue * 40 + n; 8192];
                let sector = u64::from(queue) * 2048 + u64::from(n) * 16;
                assert_eq!(driver.run(1, sector, &data).0, 0);
                assert_eq!(server.disk.bytes(sector, 8192), data);
                assert_eq!(driver.run(0, sector, &[0; 8192]), (0, data));
            }
            assert_eq!(driver.run(4, 0, &[]).0, 0);
            let range = [&2000u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
            assert_eq!(driver.run(11, 0, &range).0, 0);
            assert_eq!(&driver.run(8, 0, &[0; 20]).1, b"snapblk-test\0\0\0\0\0\0\0\0");
        }
        assert_eq!(front.stop(2), [63, 63]);
        front.drivers.iter_mut().for_each(Driver::restart);
    }
    assert_eq!(server.disk.count(IoOp::Discard), 4);
}

fn read_config(front: &mut FrontEnd) -> Vec<u8> {
    let flags = VhostUserConfigFlags::empty();
    front.vhost.get_config(0, 60, flags, &[0; 60]).unwrap().1
}

/// SeaBIOS, then a kernel: the firmware negotiates few features and uses one queue of two; its
/// monitor enables the other, which has no address and is never kicked.
#[test]
fn a_firmware_before_the_kernel() {
    let server = Server::new(2);
    let mut front = server.connect();
    front.negotiate();
    let firmware = (1 << 1) | (1 << 2) | (1 << 6) | config::PROTOCOL_FEATURES | (1 << 32);
    front.vhost.set_features(firmware).unwrap();
    front.drivers[0].event_idx = false;
    front.set_memory();
    for queue in 0..2 {
        front.vhost.set_vring_enable(queue, true).unwrap();
    }
    front.describe(0, 0);
    front.kick_off(0);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 1, "no FLUSH negotiated: write-through");
    assert_eq!(front.vhost.get_vring_base(0).unwrap(), 1);
    assert_eq!(front.vhost.get_vring_base(1).unwrap(), 0);
    front.vhost.set_features(front.features).unwrap();
    front.drivers[0].event_idx = true;
    front.drivers[0].restart();
    front.start(1);
    let syncs = server.disk.count(IoOp::Sync);
    assert_eq!(front.drivers[0].run(1, 0, &[2; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), syncs);
}

/// Known bug 20: a second front-end.
#[test]
fn a_second_front_end_is_refused_and_the_first_notices_nothing() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    for n in 0..5 {
        assert!(server.raw().is_closed(), "the second is turned away");
        assert_eq!(front.drivers[0].run(1, n, &[n as u8; 512]).0, 0);
        front.vhost.get_features().unwrap();
    }
    assert!(server.path().exists());
}

/// Front-ends reconnect within microseconds.
#[test]
fn who_reconnects_is_served() {
    let server = Server::new(1);
    for n in 0..50u8 {
        let mut front = server.connect();
        front.negotiate();
        front.start(1);
        assert_eq!(front.drivers[0].run(1, 0, &[n; 512]).0, 0);
        // Dropped while its ring is running.
    }
    assert_eq!(server.disk.bytes(0, 512), [49; 512]);
}

#[test]
fn who_comes_during_a_tear_down_waits_for_it() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    server.disk.hold(true);
    front.drivers[0].ask(0, 1, 0, &[9; 512]);
    front.drivers[0].kick();
    server.disk.await_count(IoOp::Write, 1);
    drop(front);
    let mut next = server.raw();
    next.send(1, 0, &[]);
    next.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let early = next.0.read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock, "neither refused nor served yet");
    server.disk.hold(false);
    next.0.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(next.reply().0, 1);
    assert_eq!(server.disk.count(IoOp::Sync), 1, "what the first owed is durable");
    let seen: Vec<_> = server.events.try_iter().collect();
    assert_eq!(
        seen,
        [SessionEvent::Connected, SessionEvent::Disconnected, SessionEvent::Connected]
    );
}

/// Known bug 20: a message that is not understood has no effect beyond itself.
#[test]
fn messages_that_were_not_negotiated() {
    let server = Server::new(1);
    let mut raw = server.raw();
    // Nothing is negotiated and no reply is awaited: ignored, as are unknown messages, and odd
    // payloads.
    for code in [4711, 0, u32::MAX, 6, 22, 28, 35, 37, 38, 39, 25, 32, 34] {
        raw.send(code, 0, &[0xff; 40]);
        raw.send(code, NEED_REPLY, &[]);
    }
    // Requests that always have a reply get one.
    for (code, len) in [(17, 8), (36, 8), (40, 8), (24, 12), (31, 20), (43, 8), (42, 8)] {
        assert_eq!(raw.ask(code, &[]).len(), len, "request {code}");
    }
    assert_eq!(raw.ask(11, &77u64.to_ne_bytes()).len(), 8, "a vring there is not");
    raw.send(16, 0, &8u64.to_ne_bytes());
    for code in [4711, 37, 19, 18, 8] {
        raw.send(code, NEED_REPLY, &[0xff; 40]);
        assert_eq!(raw.reply(), (code, 1u64.to_ne_bytes().to_vec()), "refused");
    }
    raw.send(3, NEED_REPLY, &[]);
    assert_eq!(raw.reply(), (3, vec![0; 8]), "and this is followed");
    assert_ne!(raw.ask(1, &[]), [0; 8]);
}

/// Known bug 20: a stream that cannot be parsed ends its connection, and nothing else.
#[test]
fn nonsense_ends_its_connection_only() {
    let server = Server::new(1);
    for bytes in [&[0xff; 64][..], &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut raw = server.raw();
        raw.0.write_all(bytes).unwrap();
        let ended = raw.0.read(&mut [0]);
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    assert!(server.path().exists());
    assert_ne!(server.raw().ask(1, &[]), [0; 8]);
}

#[test]
fn status_is_kept_and_zero_resets() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    front.vhost.reset_device().unwrap();
    assert_eq!(front.vhost.get_vring_base(0).unwrap(), 0, "a reset stops the ring");
    drop(front);
    let mut raw = server.raw();
    let all = setup::PROTOCOL_FEATURES.bits();
    raw.send(16, 0, &all.to_ne_bytes());
    raw.send(39, NEED_REPLY, &0xfu64.to_ne_bytes());
    assert_eq!(raw.reply(), (39, vec![0; 8]));
    assert_eq!(raw.ask(40, &[]), 0xfu64.to_ne_bytes());
    raw.send(39, 0, &0u64.to_ne_bytes());
    assert_eq!(raw.ask(40, &[]), [0; 8]);
}

/// Known bug 21.
#[test]
fn the_write_cache_is_turned_off_and_on() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(read_config(&mut front)[32], 1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 0);
    let writable = VhostUserConfigFlags::WRITABLE;
    front.vhost.set_config(32, writable, &[0]).unwrap();
    assert_eq!(server.disk.count(IoOp::Sync), 1, "1 -> 0 makes durable what was written");
    assert_eq!(read_config(&mut front)[32], 0);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 2);
    front.vhost.set_config(32, writable, &[1]).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 2);
    assert!(front.vhost.set_config(0, writable, &[0]).is_err(), "nothing else is writable");
    server.disk.fails.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(front.vhost.set_config(32, writable, &[0]).is_err(), "it could not be flushed");
    assert_eq!(read_config(&mut front)[32], 1);
}

#[test]
fn memory_comes_and_goes_a_region_at_a_time() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    assert_eq!(front.vhost.get_max_mem_slots().unwrap(), 509);
    let region = front.region();
    front.vhost.add_mem_region(&region).unwrap();
    assert!(front.vhost.add_mem_region(&region).is_err(), "twice the same");
    front.describe(0, 0);
    front.kick_off(0);
    front.vhost.set_vring_enable(0, true).unwrap();
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(front.vhost.get_vring_base(0).unwrap(), 1);
    front.vhost.remove_mem_region(&region).unwrap();
    assert!(front.vhost.remove_mem_region(&region).is_err());
}

/// Known bug 22: a kick before the ring is enabled, and one before it is started.
#[test]
fn no_kick_is_lost() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.set_memory();
    front.describe(0, 0);
    front.drivers[0].ask(0, 1, 0, &[1; 512]);
    front.kick_off(0);
    front.drivers[0].kick();
    front.drivers[0].ask(1, 1, 0, &[1; 512]);
    front.vhost.set_vring_enable(0, true).unwrap();
    assert_eq!([(); 2].map(|()| front.drivers[0].await_used().0), [0, 3]);
}

/// Without protocol features, rings need no enabling, and the message does not exist.
#[test]
fn without_protocol_features_a_ring_is_enabled_from_the_start() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.vhost.set_owner().unwrap();
    let features = front.vhost.get_features().unwrap() & !config::PROTOCOL_FEATURES;
    front.vhost.set_features(features).unwrap();
    front.set_memory();
    front.describe(0, 0);
    front.kick_off(0);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
}

#[test]
fn a_guest_without_flush_writes_through() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate_without(config::FLUSH | config::CONFIG_WCE);
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    assert_eq!(server.disk.count(IoOp::Sync), 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    // ZONED, RING_PACKED
    for bit in [17, 34] {
        assert!(front.vhost.set_features(front.features | 1 << bit).is_err(), "bit {bit}");
    }
    let unknown = VhostUserProtocolFeatures::LOG_SHMFD;
    assert!(!setup::PROTOCOL_FEATURES.contains(unknown));
    front.vhost.set_features(front.features).unwrap();
}

#[test]
fn an_export_in_use_stops_hard_only() {
    let mut server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.start(1);
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    let safe = server.export.stop(StopMode::Safe);
    assert!(matches!(safe, Err(ExportError::InUse(_))));
    assert_eq!(front.drivers[0].run(1, 0, &[1; 512]).0, 0);
    server.export.stop(StopMode::Hard).unwrap();
    assert_eq!(server.disk.count(IoOp::Sync), 1);
    assert!(front.vhost.get_features().is_err());
    assert!(!server.path().exists());
}

/// A disk that no worker serves.
fn nothing() -> Arc<Disk> {
    Arc::new(Disk {
        geometry: Box::new(|| Geometry { size: Sector(8), read_only: false }),
        block: LogicalBlock::B512,
        writeback: AtomicBool::new(true),
        keep_writeback: Box::new(|_| ()),
    })
}

/// A front-end may send messages faster than they are handled, without end.
#[test]
fn messages_without_end_are_followed_a_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let control = Arc::new(SessionControl::new().unwrap());
    let disk = nothing();
    let address = SocketAddress::Path(dir.path().join("disk.sock"));
    let session = Session::<TestTable>::new(
        Listener::open(address).unwrap(),
        control.clone(),
        disk.clone(),
        Vec::new(),
        Box::new(|_| {}),
    );
    let mut setup = Setup::new(disk, Vec::new(), Box::new(|| {}));
    let (peer, ours) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours).unwrap();
    let mut raw = Raw(peer);
    (0..=AT_ONCE).for_each(|_| raw.send(1, 0, &[]));
    session.follow_some(&mut connection, &mut setup).unwrap();
    raw.0.set_nonblocking(true).unwrap();
    let answers = |raw: &mut Raw| raw.0.read(&mut [0; 64 * 20]).unwrap_or(0) / 20;
    assert_eq!(answers(&mut raw), AT_ONCE, "then the session looks at what else there is");
    control.stop();
    session.follow_some(&mut connection, &mut setup).unwrap();
    assert_eq!(answers(&mut raw), 0, "a session that is stopped follows nothing more");
}

#[test]
fn an_export_needs_a_socket_and_queues() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = SocketAddress::Path(dir.path().join("no/such/disk.sock"));
    assert!(matches!(Listener::open(nowhere), Err(ListenError::System { .. })));
    let disk = TestDisk::new(8);
    for queues in [0, 63] {
        let socket = SocketAddress::Path(dir.path().join("disk.sock"));
        let bad = Export::start(export_config(socket, queues), TestBinding::new(&disk), |_| {});
        assert!(matches!(bad, Err(ExportError::Queues { .. })));
    }
}
