//! The device-mapper verbs through the monitor.

use std::time::Duration;

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;
use snapblk_store::control::ErrorClass;
use snapblk_tests::client::Connect;
use snapblk_tests::disk::DiskError;
use snapblk_tests::rng::Rng;

use crate::common::*;
use crate::history::{Clock, History};

const SECTORS: u64 = 2048;

#[test]
fn a_device_from_its_creation_to_its_removal() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    let id = "0f0e0d0c-0b0a-0908-0706-050403020100";
    world.call("device-create", json!({"name": "d", "uuid": id}));
    let line = format!("0 {SECTORS} linear {} 0", word(&a));
    let empty = world.device("d");
    assert_eq!((&empty["uuid"], &empty["size"]), (&json!(id), &json!(0)));
    assert_eq!(empty["has-inactive-table"], false);

    world.call("table-load", json!({"name": "d", "table": [line]}));
    let loaded = world.device("d");
    assert_eq!(loaded["has-inactive-table"], true);
    assert_eq!(texts(&loaded["table"]), [""; 0]);
    let inactive = world.call("query-devices", json!({"name": "d", "inactive": true}));
    assert_eq!(texts(&inactive[0]["table"]), [line.as_str()]);

    world.call("device-resume", json!({"name": "d"}));
    assert_eq!(world.event("DEVICE_RESUMED")["data"], json!({"device": "d"}));
    let active = world.device("d");
    assert_eq!(active["size"], SECTORS * 512);
    assert_eq!(active["state"], "active");
    assert_eq!(active["has-inactive-table"], false);
    assert_eq!(texts(&active["table"]), [line.as_str()]);
    assert_eq!(texts(&active["status"]), [format!("0 {SECTORS} linear")]);
    assert_same("d", &world.content(&scratch, "d"), &stamped(0, SECTORS, 1));

    world.call("device-suspend", json!({"name": "d"}));
    assert_eq!(world.event("DEVICE_SUSPENDED")["data"], json!({"device": "d"}));
    assert_eq!(world.device("d")["state"], "suspended");
    world.call("device-resume", json!({"name": "d"}));
    assert_eq!(world.device("d")["state"], "active");
    world.call("device-remove", json!({"name": "d"}));
    world.refused_as(ErrorClass::DeviceNotFound, "query-devices", json!({"name": "d"}));
    assert_eq!(world.call("query-devices", json!({})), json!([]));
    world.stop();
}

#[test]
fn scenario_55_the_inactive_query_shows_the_new_table_the_live_one_the_old() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &["0 8 zero".into()]);
    world.call("table-load", json!({"name": "d", "table": ["0 16 error"]}));
    world.call("table-load", json!({"name": "d", "table": ["0 32 error"]}));
    let inactive = world.call("query-devices", json!({"name": "d", "inactive": true}));
    assert_eq!(texts(&inactive[0]["table"]), ["0 32 error"], "a load replaces an earlier one");
    assert_eq!(world.table("d"), ["0 8 zero"]);
    world.call("table-clear", json!({"name": "d"}));
    let inactive = world.call("query-devices", json!({"name": "d", "inactive": true}));
    assert_eq!(texts(&inactive[0]["table"]), [""; 0]);
    world.call("device-resume", json!({"name": "d"}));
    assert_eq!(world.table("d"), ["0 8 zero"]);
    world.stop();
}

#[test]
fn what_cannot_be_a_device_is_refused() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    for name in ["", "a/b", "a b", &"x".repeat(128)] {
        world.refused("device-create", json!({"name": name}));
    }
    world.call("device-create", json!({"name": "d"}));
    let said = world.refused("device-create", json!({"name": "d"}));
    assert!(said.contains("'d' already"), "{said}");

    let none = ErrorClass::DeviceNotActive;
    let said = world.refused_as(none, "device-resume", json!({"name": "d"}));
    assert!(said.contains("no active table"), "{said}");
    let socket = scratch.socket("d.sock");
    world.refused_as(none, "block-export-add", export_args("d", "d", &socket, true));
    assert!(!socket.exists());

    let mut load =
        |table: &[&str]| world.refused("table-load", json!({"name": "d", "table": table}));
    assert!(load(&[]).contains("empty"));
    assert!(load(&["0 8 zero", "9 8 zero"]).contains("line 2 starts at sector 9"));
    assert!(load(&["0 8 zero", "7 8 zero"]).contains("line 2"));
    assert!(load(&["8 8 zero"]).contains("line 1"));
    assert!(load(&["0 8 snapshot /o /c P 3"]).contains("'3' is not a chunk size"));
    assert!(load(&["0 8 snapshot /o /c P 4194304"]).contains("'4194304' is not a chunk size"));
    assert!(load(&["0 8 snapshot /o /c N 0"]).contains("needs one"));
    assert!(load(&["0 8 mirage"]).contains("'mirage' is not a target"));
    assert!(load(&["0 8 linear /no/such/file 0"]).contains("/no/such/file"));
    world.refused_as(
        ErrorClass::DeviceNotFound,
        "table-load",
        json!({"name": "d", "table": ["0 8 linear nobody 0"]}),
    );

    // A range that exceeds the file.
    let a = word(&a);
    for line in [format!("0 {SECTORS} linear {a} 1"), format!("0 2049 snapshot-origin {a}")] {
        let said = world.refused("table-load", json!({"name": "d", "table": [line]}));
        assert!(said.contains("needs 2049 sectors") && said.contains("has 2048"), "{said}");
    }
    // A file that becomes shorter between load and resume.
    let whole = format!("0 {SECTORS} linear {a} 0");
    world.call("table-load", json!({"name": "d", "table": [whole]}));
    std::fs::File::options().write(true).open(a).unwrap().set_len(512).unwrap();
    let said = world.refused("device-resume", json!({"name": "d"}));
    assert!(said.contains("needs 2048 sectors") && said.contains("has 1"), "{said}");
    world.stop();
}

#[test]
fn a_table_that_maps_a_device_onto_itself_is_refused() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("a", &["0 8 zero".into()]);
    world.make("b", &["0 8 linear a 0".into()]);
    world.make("c", &["0 8 linear b 0".into()]);
    // Onto itself, whatever the other devices become: nothing is loaded, and a resume suspends
    // nothing.
    let said =
        world.refused("table-load", json!({"name": "a", "table": ["0 8 linear a 0".to_owned()]}));
    assert!(said.contains("onto itself"), "{said}");
    assert_eq!(world.device("a")["has-inactive-table"], false);
    // Through other devices, which may change before the resume.
    world.call("table-load", json!({"name": "a", "table": ["0 8 linear c 0".to_owned()]}));
    let said = world.refused("device-resume", json!({"name": "a"}));
    assert!(said.contains("onto itself"), "{said}");
    world.call("table-clear", json!({"name": "a"}));
    world.call("device-resume", json!({"name": "a"}));
    assert_eq!(world.table("a"), ["0 8 zero"]);
    assert_eq!(world.device("a")["open-count"], 1);
    let said = world.refused("device-remove", json!({"name": "a"}));
    assert!(said.contains("in use by the device 'b'"), "{said}");
    world.call("device-remove", json!({"name": "c"}));
    world.call("device-remove", json!({"name": "b"}));
    assert_eq!(world.device("a")["open-count"], 0);
    world.call("device-remove", json!({"name": "a"}));
    world.stop();
}

#[test]
fn linear_concatenates_and_zero_and_error_do_what_they_say() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, 64, 1)).unwrap();
    let b = scratch.file("b.raw", &stamped(0, 64, 2)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    let table = [
        format!("0 32 linear {} 32", word(&b)),
        format!("32 48 linear {} 3", word(&a)),
        "80 16 zero".to_owned(),
        "96 16 error".to_owned(),
    ];
    world.make("d", &table);
    assert_eq!(world.table("d"), table);
    let socket = world.export(&scratch, "d", true);
    let mut disk = disk(&socket);
    assert_eq!(disk.info().capacity, 112 * 512);
    let mut wanted = stamped(32, 32, 2);
    wanted.extend(stamped(3, 48, 1));
    wanted.extend(vec![0; 16 * 512]);
    assert_same("d", &disk.read(0, 96 * 512).unwrap(), &wanted);
    assert!(disk.read(95 * 512, 1024).is_err_and(|error| error.is_refused()));
    assert!(disk.write(96 * 512, &[1; 512]).is_err_and(|error| error.is_refused()));
    // One write across the boundary, and one into the zeroes, which keep nothing.
    disk.write(31 * 512, &[7; 1024]).unwrap();
    disk.write(80 * 512, &[7; 512]).unwrap();
    assert_eq!(disk.read(80 * 512, 512).unwrap(), [0; 512]);
    let read = |path| std::fs::read(path).unwrap();
    assert_eq!(read(&b)[63 * 512..], [7; 512]);
    assert_eq!(read(&a)[3 * 512..4 * 512], [7; 512]);
    drop(disk);
    world.stop();
}

#[test]
fn scenario_56_io_during_a_suspend_waits_and_is_served_by_the_new_table() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let b = scratch.file("b.raw", &stamped(0, SECTORS, 2)).unwrap();
    let mut world = World::start(&plain(&scratch, &a));
    let mut disk = world.disk();
    assert_same("before", &disk.read(0, 4096).unwrap(), &stamped(0, 8, 1));
    for noflush in [false, true] {
        world.call("device-suspend", json!({"name": "disk0", "noflush": noflush}));
        disk.begin_read(4096, 4096).unwrap();
        let silent = disk.end(Duration::from_millis(200));
        assert!(matches!(silent, Err(DiskError::Silent)), "{silent:?}");
        let (file, generation) = if noflush { (&a, 1) } else { (&b, 2) };
        world.swap("disk0", &[format!("0 {SECTORS} linear {} 0", word(file))]);
        disk.end(Duration::from_secs(10)).unwrap();
        assert_same("after", &disk.read(4096, 4096).unwrap(), &stamped(8, 8, generation));
    }
    // Without a new table the old one serves.
    world.call("device-suspend", json!({"name": "disk0"}));
    disk.begin_write(0, &stamped(0, 8, 3)).unwrap();
    world.call("device-resume", json!({"name": "disk0"}));
    disk.end(Duration::from_secs(10)).unwrap();
    assert_same("a", &std::fs::read(&a).unwrap()[..4096], &stamped(0, 8, 3));
    world.stop();
}

#[test]
fn a_failed_resume_leaves_the_old_table_suspended_and_a_plain_resume_serves_it() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let b = scratch.sparse("b.raw", 0).unwrap();
    let cut = |sectors: u64| {
        std::fs::File::options().write(true).open(&b).unwrap().set_len(sectors * 512).unwrap();
    };
    let mut world = World::start(&plain(&scratch, &a));
    let mut disk = world.disk();
    let old = world.table("disk0");
    for suspended_before in [false, true] {
        if suspended_before {
            world.call("device-suspend", json!({"name": "disk0"}));
        }
        cut(SECTORS + 1);
        let new = format!("0 {} linear {} 0", SECTORS + 1, word(&b));
        world.call("table-load", json!({"name": "disk0", "table": [new]}));
        cut(SECTORS);
        let said = world.refused("device-resume", json!({"name": "disk0"}));
        assert!(said.contains("has 2048"), "{said}");
        let device = world.device("disk0");
        assert_eq!(device["state"], "suspended");
        assert_eq!(device["has-inactive-table"], true, "the new one is back in its slot");
        assert_eq!(texts(&device["table"]), old);
        disk.begin_read(0, 4096).unwrap();
        let silent = disk.end(Duration::from_millis(200));
        assert!(matches!(silent, Err(DiskError::Silent)), "{silent:?}");
        world.call("table-clear", json!({"name": "disk0"}));
        world.call("device-resume", json!({"name": "disk0"}));
        disk.end(Duration::from_secs(10)).unwrap();
        assert_same("as before", &disk.read(0, 4096).unwrap(), &stamped(0, 8, 1));
    }
    world.stop();
}

#[test]
fn a_device_in_use_is_not_removed_nor_touched_by_force() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &a);
    let mut world = World::start(&command);
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    assert_eq!(world.device("disk0")["open-count"], 2);
    let mut disk = world.disk();
    let tables = world.tables();
    for force in [false, true] {
        let said = world.refused("device-remove", json!({"name": "disk0", "force": force}));
        for part in ["export 'disk0'", "device 'snap'", "delete what exports it"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(world.tables(), tables);
        assert_same("as before", &disk.read(0, 4096).unwrap(), &stamped(0, 8, 1));
    }
    drop(disk);
    world.stop();
    // Nor by the next start.
    let mut world = World::start(&command);
    assert_same("as before", &world.disk().read(0, 4096).unwrap(), &stamped(0, 8, 1));
    world.call("block-export-del", json!({"id": "disk0", "mode": "hard"}));
    world.call("device-remove", json!({"name": "snap", "force": true}));
    world.call("device-remove", json!({"name": "disk0", "force": true}));
    world.stop();
}

/// A file for `ctl load` serves as a first table, too.
#[test]
fn a_table_s_file_may_have_comments_and_empty_lines() {
    let scratch = scratch();
    let file = scratch.path("table");
    std::fs::write(&file, "# two disks\n\n 0 8 zero\n  # and\n8 8 error\n").unwrap();
    let at = format!("@{}", word(&file));
    let mut world = World::start(&serve(&scratch).arg("--table").arg(&at));
    assert_eq!(world.table("disk0"), ["0 8 zero", "8 8 error"]);
    world.stop();
    let config = scratch.path("c.toml");
    std::fs::write(&config, format!("[[disk]]\nname = \"d\"\ntable = [\"{at}\"]\n")).unwrap();
    let mut world = World::start(&monitor_only(&scratch).arg("--config").arg(&config));
    assert_eq!(world.table("d"), ["0 8 zero", "8 8 error"]);
    world.stop();
}

/// A closed terminal must not lose owed chunks or leave sockets behind.
#[test]
fn a_hang_up_ends_it_in_order() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    // Also if the tests run with SIGHUP ignored.
    let default = ["--default-signal=HUP".into()];
    let command = plain(&scratch, &a).run_by("/usr/bin/env".into(), default);
    let mut world = World::start(&command);
    let socket = world.server.socket().to_owned();
    let said = world.server.stderr();
    world.server.signal(rustix::process::Signal::HUP).unwrap();
    world.event("SHUTDOWN");
    let status = world.server.wait("end after SIGHUP").unwrap();
    assert!(status.success(), "{status}: {said}");
    assert!(!socket.exists());
}

/// A server started under `nohup` must stay.
#[test]
fn a_hang_up_that_is_ignored_from_the_start_does_not_end_it() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let ignored = ["--ignore-signal=HUP".into()];
    let mut world = World::start(&plain(&scratch, &a).run_by("/usr/bin/env".into(), ignored));
    world.server.signal(rustix::process::Signal::HUP).unwrap();
    while let Some(event) = world.qmp.event(Some(Duration::from_millis(300))).unwrap() {
        assert_ne!(event["event"], "SHUTDOWN");
    }
    assert_same("it serves", &world.disk().read(0, 512).unwrap(), &stamped(0, 1, 1));
    world.stop();
}

#[test]
fn scenario_57_a_device_grows_by_a_reload() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &a));
    drop(world.disk());
    std::fs::OpenOptions::new().write(true).open(&a).unwrap().set_len(SECTORS * 1024).unwrap();
    world.swap("disk0", &[format!("0 {} linear {} 0", SECTORS * 2, word(&a))]);
    assert_eq!(world.device("disk0")["size"], SECTORS * 1024);
    let mut disk = world.disk();
    assert_eq!(disk.info().capacity, SECTORS * 1024);
    disk.write((SECTORS * 2 - 8) * 512, &stamped(SECTORS * 2 - 8, 8, 2)).unwrap();
    let tail = &std::fs::read(&a).unwrap()[(SECTORS as usize * 2 - 8) * 512..];
    assert_same("the new range", tail, &stamped(SECTORS * 2 - 8, 8, 2));
    world.stop();
}

#[test]
fn a_message_that_no_target_knows_is_refused() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &["0 8 zero".into()]);
    let said = world.refused("device-message", json!({"name": "d", "message": "hello"}));
    assert!(said.contains("'hello'") && said.contains("'on-full fail'"), "{said}");
    let beyond = json!({"name": "d", "sector": 8, "message": "on-full fail"});
    let said = world.refused("device-message", beyond);
    assert!(said.contains("sector 8 is outside of 'd', which has 8"), "{said}");
    world.call("device-message", json!({"name": "d", "sector": 7, "message": "on-full fail"}));
    world.stop();
}

#[test]
fn a_suspended_device_holds_what_lies_on_it_too() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &a));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let socket = world.export(&scratch, "snap", false);
    let (mut origin, mut snap) = (world.disk(), disk(&socket));
    world.call("device-suspend", json!({"name": "disk0-real"}));
    // Resuming the upper device does not bypass the suspended lower one.
    world.call("device-resume", json!({"name": "disk0"}));
    origin.begin_write(0, &stamped(0, 8, 2)).unwrap();
    snap.begin_read(0, 4096).unwrap();
    for disk in [&mut origin, &mut snap] {
        assert!(matches!(disk.end(Duration::from_millis(200)), Err(DiskError::Silent)));
    }
    world.call("device-resume", json!({"name": "disk0-real"}));
    for disk in [&mut origin, &mut snap] {
        disk.end(Duration::from_secs(10)).unwrap();
    }
    assert_same("snap", &snap.read_all().unwrap(), &stamped(0, SECTORS, 1));
    world.stop();
}

#[test]
fn an_exported_device_does_not_shrink() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &a));
    let line = format!("0 {} linear {} 0", SECTORS - 1, word(&a));
    world.call("table-load", json!({"name": "disk0", "table": [line]}));
    let said = world.refused("device-resume", json!({"name": "disk0"}));
    assert!(said.contains("2048 sectors and would have 2047"), "{said}");
    world.call("block-export-del", json!({"id": "disk0"}));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(world.device("disk0")["size"], (SECTORS - 1) * 512);
    world.stop();
}

/// Every verb under load, from two clients at once; no write is lost.
#[test]
fn verbs_under_load_lose_nothing() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &a));
    let mut second = Qmp::connect(world.server.monitor()).unwrap();
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        let other = scope.spawn(|| {
            for round in 0..15 {
                let noflush = round % 2 == 0;
                let disk0 = json!({"name": "disk0", "noflush": noflush});
                second.call("device-suspend", disk0).unwrap();
                second.call("device-resume", json!({"name": "disk0"})).unwrap();
                // It serves already.
                second.call("device-resume", json!({"name": "disk0"})).unwrap();
            }
        });
        for round in 0..15 {
            let (name, cow) = (format!("s{round}"), format!("s{round}.cow"));
            let create = json!({"device": "disk0", "name": name, "cow": cow});
            // The other client may have suspended it.
            while let Err(error) = world.qmp.call("snapshot-create", create.clone()) {
                assert!(error.to_string().contains("suspended"), "{error}");
            }
            clock.wait_for(5);
            let delete = json!({"device": "disk0", "snapshot": name, "delete-store": true});
            world.call("snapshot-delete", delete);
        }
        other.join().expect("the other client does not panic");
        clock.end();
        load.join().expect("the load does not panic")
    });
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    assert_eq!(world.tables().len(), 2);
    world.stop();
    assert_same("the file", &std::fs::read(&a).unwrap(), &history.last_content());
}
