//! Files whose names others take while they are served: commands go on with those that are open.

use std::collections::BTreeSet;

use super::*;
use crate::cow::Persistence;
use crate::device::moment::CreateSnapshot;
use crate::device::state::RollbackJob;

impl World {
    fn identity(&self, name: &str) -> Identity {
        Identity::of_path(&self.path(name)).unwrap()
    }

    /// The files of a device's table.
    fn files(&self, name: &str) -> BTreeSet<Identity> {
        let table = self.table(name);
        let of = |file: &FileId| self.devices.files().get(*file).unwrap().identity;
        table.files().iter().map(of).collect()
    }

    /// Another file takes the name of one, which keeps its content under another name.
    fn replace(&self, name: &str) -> (Identity, Identity) {
        let served = self.identity(name);
        std::fs::rename(self.path(name), self.path(&format!("{name}.moved"))).unwrap();
        std::fs::copy(self.path(&format!("{name}.moved")), self.path(name)).unwrap();
        (served, self.identity(name))
    }

    fn snapshot(&self, device: &str, name: &str, store: &str) {
        let request = CreateSnapshot {
            device: device.into(),
            name: name.into(),
            cow: self.path(store),
            chunk: None,
            size: None,
            persistence: Persistence::PersistentOverflow,
            existing: false,
        };
        self.devices.take_moment(&[MomentAction::Create(request)], &|| Ok(())).unwrap();
    }
}

fn plain() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world
}

fn overlay() -> World {
    let world = World::new();
    world.file("base", LEN);
    world.file("store", LEN + 64);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/base {{}}/store PO 8")]).unwrap();
    world
}

#[test]
fn a_resize_reads_the_base_that_is_served() {
    let world = overlay();
    let (served, other) = world.replace("base");
    world.devices.resize("disk", LEN * 512).unwrap();
    let files = world.files("disk");
    assert!(files.contains(&served) && !files.contains(&other), "{files:?}");
}

#[test]
fn a_resize_makes_the_file_longer_that_is_served() {
    let world = plain();
    let (served, _) = world.replace("disk");
    world.devices.resize("disk", 2 * LEN * 512).unwrap();
    assert_eq!(world.files("disk"), BTreeSet::from([served]));
    let len = |name: &str| std::fs::metadata(world.path(name)).unwrap().len();
    assert_eq!((len("disk.moved"), len("disk")), (2 * LEN * 512, LEN * 512));
}

#[test]
fn a_new_overlay_lies_on_what_is_served() {
    for world in [plain(), overlay()] {
        let replaced = if world.path("base").exists() { &["base", "store"][..] } else { &["disk"] };
        for name in replaced {
            let (served, other) = world.replace(name);
            world.overlay("disk", &format!("over-{name}"));
            let files = world.files("disk");
            assert!(files.contains(&served) && !files.contains(&other), "{files:?}");
        }
    }
}

#[test]
fn a_snapshot_is_taken_of_what_is_served_and_merged_into_it() {
    let world = plain();
    let (served, other) = world.replace("disk");
    world.snapshot("disk", "one", "one.cow");
    world.snapshot("disk", "two", "two.cow");
    for name in ["disk", "disk-real", "one", "two"] {
        let files = world.files(name);
        assert!(files.contains(&served) && !files.contains(&other), "{name}: {files:?}");
    }
    let (store, _) = world.replace("one.cow");
    let (kept, _) = world.replace("two.cow");
    let (device, snapshot) = (String::from("disk"), String::from("one"));
    let job = RollbackJob { device, snapshot, ..RollbackJob::default() };
    world.devices.begin_rollback("job", &job).unwrap();
    assert_eq!(world.files("disk"), BTreeSet::from([served, store, kept]));
    world.devices.end_rollback("job", "disk").unwrap();
    assert_eq!(world.files("disk"), BTreeSet::from([served, kept]));
    // What another device's end builds again.
    world.devices.remove("two", false).unwrap();
    assert_eq!(world.files("disk"), BTreeSet::from([served]));
}

#[test]
fn a_commit_goes_into_the_base_that_is_served() {
    let world = plain();
    world.overlay("disk", "lower");
    let (served, other) = world.replace("disk");
    world.overlay("disk", "upper");
    let job =
        CommitJob { device: "disk".into(), top: Some("disk.2".into()), ..CommitJob::default() };
    world.devices.begin_commit("job", &job).unwrap();
    assert!(world.devices.drop_layers("job").unwrap());
    let files = world.files("disk");
    assert!(files.contains(&served) && !files.contains(&other), "{files:?}");
}

/// A store of another length must be opened again, and its name leads elsewhere.
#[test]
fn what_must_be_opened_again_is_not_looked_for_under_another_s_name() {
    let world = overlay();
    let store = world.table("disk").exceptions()[0].store().clone();
    let _ = store.commit_failed();
    let before = world.table("disk");
    world.replace("store");
    let said = world.devices.resize("disk", LEN * 512).unwrap_err().to_string();
    assert!(said.contains("store is another file by now"), "{said}");
    assert!(Arc::ptr_eq(&before, &world.table("disk")));
    // A base that was opened for reading, and is to be written.
    let mut world = overlay();
    world.config().force = true;
    world.overlay("disk", "upper");
    world.replace("base");
    let job =
        CommitJob { device: "disk".into(), top: Some("disk.1".into()), ..CommitJob::default() };
    let said = world.devices.begin_commit("job", &job).unwrap_err().to_string();
    assert!(said.contains("base is another file by now"), "{said}");
}

/// Who loads a table names files as they are.
#[test]
fn a_table_that_is_loaded_has_the_files_that_it_names() {
    let world = plain();
    let (_, other) = world.replace("disk");
    world.load("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    assert_eq!(world.files("disk"), BTreeSet::from([other]));
}
