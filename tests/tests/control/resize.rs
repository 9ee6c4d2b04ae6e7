//! Devices that grow under a connected front end.

use std::fs::metadata;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};

use super::common::{
    World, assert_same, does_not_start, monitor_only, overlay, plain, scratch, serve, stamped, word,
};

const SECTORS: u64 = 1024;
const MORE: u64 = 1536;
/// A limit for what takes no time.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn scenario_57_a_plain_disk_grows_with_its_file() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    assert!(disk.write(SECTORS * 512, &stamped(SECTORS, 8, 2)).is_err_and(|e| e.is_refused()));
    world.call("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert_eq!(metadata(&file).unwrap().len(), MORE * 512);
    assert_eq!(world.device("disk0")["size"], MORE * 512);
    // The connected session reads and writes the new range, and nothing past it.
    assert_same("new", &disk.read(SECTORS * 512, 4096).unwrap(), &[0; 4096]);
    let more = stamped(SECTORS, MORE - SECTORS, 2);
    disk.write(SECTORS * 512, &more).unwrap();
    assert!(disk.write(MORE * 512, &[0; 512]).is_err_and(|e| e.is_refused()));
    let wanted = [stamped(0, SECTORS, 1), more].concat();
    drop(disk);
    assert_eq!(world.disk().info().capacity, MORE * 512);

    // The same size with the other name changes nothing; other sizes and names are refused.
    world.call("block_resize", json!({"node-name": "disk0", "size": MORE * 512}));
    for (arguments, why) in [
        (json!({"device": "disk0", "size": SECTORS * 512}), "not made smaller"),
        (json!({"device": "disk0", "size": MORE * 512 + 1}), "multiple of 512"),
        (json!({"size": MORE * 512}), "one of 'device' and 'node-name'"),
        (json!({"device": "disk0", "node-name": "disk0", "size": 0}), "one of"),
        (json!({"device": "disk0", "size": 1u64 << 63}), "at most 8 PiB"),
    ] {
        let said = world.refused("block_resize", arguments);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(metadata(&file).unwrap().len(), MORE * 512);
    world.kill();
    let world = World::start(&plain(&scratch, &file));
    assert_same("after a restart", &world.disk().read_all().unwrap(), &wanted);
    world.stop();
}

#[test]
fn scenario_57_a_longer_table_serves_the_session_that_is_there() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, MORE, 1)).unwrap();
    let line = |sectors: u64| format!("0 {sectors} linear {} 0", word(&file));
    let mut world = World::start(&serve(&scratch).arg("--table").arg(line(SECTORS)));
    let mut disk = world.disk();
    assert!(disk.read(SECTORS * 512, 512).is_err_and(|error| error.is_refused()));
    world.swap("disk0", &[line(MORE)]);
    assert_same("new", &disk.read(SECTORS * 512, 512).unwrap(), &stamped(SECTORS, 1, 1));
    world.stop();
}

/// The device below a disk grows with it, also one left by a finished merge or a deleted snapshot;
/// an origin with snapshots does not, because no rollback would be possible any more.
#[test]
fn a_disk_grows_through_the_devices_below_it() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    let snapshot = json!({"device": "disk0", "name": "before", "cow": "before.cow"});
    world.call("snapshot-create", snapshot);
    let said = world.refused("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert!(
        said.contains("'before' is a snapshot of 'disk0'") && said.contains("delete"),
        "{said}"
    );
    assert_eq!(metadata(&file).unwrap().len(), SECTORS * 512);
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "before"}));
    world.call("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert_eq!(world.table("disk0"), [format!("0 {MORE} snapshot-origin disk0-real")]);
    assert_eq!(world.table("disk0-real"), [format!("0 {MORE} linear {} 0", word(&file))]);
    disk.write(SECTORS * 512, &stamped(SECTORS, MORE - SECTORS, 2)).unwrap();
    let wanted = [stamped(0, SECTORS, 1), stamped(SECTORS, MORE - SECTORS, 2)].concat();
    drop(disk);
    assert_same("disk0", &world.disk().read_all().unwrap(), &wanted);
    world.stop();
}

/// The last line grows, if its end can grow.
#[test]
fn the_end_of_a_table_grows() {
    let scratch = scratch();
    let file = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    let linear = format!("8 8 linear {} 16", word(&file));
    world.make("d", &["0 8 zero".into(), linear]);
    world.call("block_resize", json!({"device": "d", "size": 1016 * 512}));
    let grown = format!("8 1008 linear {} 16", word(&file));
    assert_eq!(world.table("d"), ["0 8 zero".to_owned(), grown]);
    assert_eq!(metadata(&file).unwrap().len(), SECTORS * 512, "it was long enough");
    world.call("block_resize", json!({"device": "d", "size": 1017 * 512}));
    assert_eq!(metadata(&file).unwrap().len(), (SECTORS + 1) * 512);
    world.make("z", &["0 8 zero".into()]);
    world.call("block_resize", json!({"device": "z", "size": 1 << 20}));
    assert_eq!(world.device("z")["size"], 1 << 20);
    world.stop();

    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&overlay(&scratch, &base));
    let said = world.refused("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert!(said.contains("is a snapshot") && said.contains(word(&base)), "{said}");
    assert_eq!(metadata(&base).unwrap().len(), SECTORS * 512);
    world.stop();
}

/// If the table cannot be built, the file keeps its length, and the disk keeps serving.
#[test]
fn a_resize_that_fails_leaves_everything_as_it_was() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let state = scratch.path("state");
    let mut world = World::start(&plain(&scratch, &file).arg("--state").arg(&state));
    let mut disk = world.disk();
    // The state file cannot be written, because its path is taken.
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("in the way"), "").unwrap();
    world.refused("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert_eq!(metadata(&file).unwrap().len(), SECTORS * 512);
    assert_same("disk0", &disk.read_all().unwrap(), &stamped(0, SECTORS, 1));
    assert!(disk.write(SECTORS * 512, &[0; 512]).is_err_and(|error| error.is_refused()));
    world.kill();
}

/// Killed after the file was extended and before the table was recorded: the disk is unchanged, and
/// can grow.
#[test]
fn a_file_that_grew_alone_is_served_as_it_was() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    // The state is recorded from the first change on.
    world.call("device-create", json!({"name": "extra"}));
    world.kill();
    let longer = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    longer.set_len(MORE * 512).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
    world.call("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    assert_eq!(world.disk().info().capacity, MORE * 512);
    world.stop();
    longer.set_len((SECTORS - 8) * 512).unwrap();
    let said = does_not_start(&plain(&scratch, &file));
    assert!(said.contains("disk.raw became shorter"), "{said}");
}

/// Like a front-end whose guest turns its write cache `on`, or off: `SET_CONFIG`, and its reply.
pub(crate) fn set_write_cache(world: &World, on: bool) {
    const SET_PROTOCOL_FEATURES: u32 = 16;
    const SET_CONFIG: u32 = 25;
    const VERSION_AND_NEED_REPLY: u32 = 1 | 1 << 3;
    let mut socket = UnixStream::connect(world.server.socket()).unwrap();
    // REPLY_ACK and CONFIG.
    let protocol = (1u64 << 3 | 1 << 9).to_ne_bytes();
    // One writable byte, at offset 32.
    let config = [[32u32, 1, 1].map(u32::to_ne_bytes).as_flattened(), &[u8::from(on)]].concat();
    for (request, payload) in [(SET_PROTOCOL_FEATURES, &protocol[..]), (SET_CONFIG, &config[..])] {
        let header = [request, VERSION_AND_NEED_REPLY, payload.len() as u32].map(u32::to_ne_bytes);
        socket.write_all(&[header.as_flattened(), payload].concat()).unwrap();
        let mut answer = [0; 12 + 8];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer[12..], [0; 8], "request {request} is refused");
    }
}

/// A guest's write cache setting is not an operator's command: the next start uses its own
/// arguments.
#[test]
fn a_file_grows_between_two_starts_whatever_its_guest_s_write_cache() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let state = scratch.path("disk.raw.state");
    let world = World::start(&plain(&scratch, &file));
    set_write_cache(&world, false);
    assert!(state.exists());
    world.stop();
    let file_of = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    for (sectors, read_only) in [(MORE, false), (MORE, true), (SECTORS - 8, false)] {
        file_of.set_len(sectors * 512).unwrap();
        let command = plain(&scratch, &file);
        let world = World::start(&if read_only { command.arg("--read-only") } else { command });
        let info = world.disk().info();
        assert_eq!((info.capacity, info.read_only), (sectors * 512, read_only));
        assert_eq!(world.server.stderr(), "");
        world.kill();
    }
    let world = World::start(&plain(&scratch, &file));
    set_write_cache(&world, true);
    assert!(!state.exists());
    world.stop();
    assert!(!state.exists());
}

/// Reports each notification of a change.
struct Told(Sender<()>);

impl VhostUserFrontendReqHandlerMut for Told {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        let _ = self.0.send(());
        Ok(0)
    }
}

/// A front end is told of a size that its disk got while it was suspended, when it is served again.
#[test]
fn scenario_57_a_disk_that_grew_while_it_was_suspended_is_told_of() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut front = Frontend::connect(world.server.socket(), 1).unwrap();
    front.set_owner().unwrap();
    front.set_features(front.get_features().unwrap()).unwrap();
    let offered = front.get_protocol_features().unwrap();
    front.set_protocol_features(offered.difference(VhostUserProtocolFeatures::REPLY_ACK)).unwrap();
    let (send, told) = channel();
    let mut handler = FrontendReqHandler::new(Arc::new(Mutex::new(Told(send)))).unwrap();
    front.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    std::thread::spawn(move || while handler.handle_request().is_ok() {});
    let mut capacity = || {
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = front.get_config(0, 8, flags, &[0; 8]).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(capacity(), SECTORS);
    world.call("device-suspend", json!({"name": "disk0"}));
    world.call("block_resize", json!({"device": "disk0", "size": MORE * 512}));
    world.call("device-resume", json!({"name": "disk0"}));
    told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!(capacity(), MORE);
    world.stop();
}
