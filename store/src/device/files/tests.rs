use std::cell::RefCell;

use super::*;
use crate::cow::open::{OpenOptions as Options, open};

const SIZE: u64 = 1 << 20;

type Other = Box<dyn FnOnce()>;

thread_local! {
    static OTHER: RefCell<Option<Other>> = const { RefCell::new(None) };
}

/// Called when the path was looked at, and nothing was opened yet.
pub(super) fn looked() {
    if let Some(other) = OTHER.take() {
        other();
    }
}

/// Another server, which comes between a look at the path and what follows: it makes the store and
/// serves it, and a guest has changed `data` in it.
fn served_meanwhile(path: &Path) -> std::sync::mpsc::Receiver<(FileInfo, Lock)> {
    let (path, (send, server)) = (path.to_owned(), std::sync::mpsc::channel());
    OTHER.set(Some(Box::new(move || {
        make(&path).expect("it is made");
        let info = FileInfo::open(&path, OpenMode::ReadWrite, false).expect("it opens");
        let lock = Lock::exclusive(&info, None).expect("it is free");
        // The first exception: chunk 5 is in chunk 2.
        let entry = [5u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        info.write_at(&entry, ChunkSize::TOOLS.bytes()).expect("it is written");
        std::fs::write(owed(&path), b"what it owes").expect("it is written");
        send.send((info, lock)).expect("the test goes on");
    })));
    server
}

fn make(path: &Path) -> Result<Made, DeviceError> {
    make_store(path, ChunkSize::TOOLS, SIZE, Existing::Used)
}

fn owed(path: &Path) -> std::path::PathBuf {
    path.with_extension("cow.owed")
}

/// The store has what the other server's guest wrote.
fn is_unchanged(path: &Path) {
    let info = FileInfo::open(path, OpenMode::ReadWrite, false).expect("it opens");
    assert_eq!(open(&info, &Options::default()).expect("it is a store").count(), 1);
    assert_eq!(std::fs::read(owed(path)).expect("it is there"), b"what it owes");
}

fn paths(dir: &tempfile::TempDir) -> [std::path::PathBuf; 2] {
    let empty = dir.path().join("empty.cow");
    std::fs::write(&empty, []).expect("an empty file");
    [dir.path().join("new.cow"), empty]
}

#[test]
fn a_store_that_is_served_by_now_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    for path in paths(&dir) {
        let server = served_meanwhile(&path);
        let error = make(&path).expect_err("it is served").to_string();
        assert!(error.contains("is in use"), "{error}");
        is_unchanged(&path);
        drop(server.recv().expect("it came"));
    }
}

#[test]
fn a_store_that_was_made_by_now_is_used_or_refused_like_any() {
    let dir = tempfile::tempdir().expect("a directory");
    let stops = |path: &Path| {
        let server = served_meanwhile(path);
        let starts = OTHER.take().expect("a server");
        OTHER.set(Some(Box::new(move || {
            starts();
            drop(server.recv().expect("it came"));
        })));
    };
    let [used, refused] = paths(&dir);
    stops(&used);
    assert_eq!(make(&used).expect("it is used"), Made::Nothing);
    is_unchanged(&used);
    stops(&refused);
    let made = make_store(&refused, ChunkSize::TOOLS, SIZE, Existing::Refused);
    let error = made.expect_err("it is there").to_string();
    assert!(error.contains("there and not empty"), "{error}");
    is_unchanged(&refused);
}

#[test]
fn a_transient_store_is_made_in_nothing_that_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    for path in paths(&dir) {
        let server = served_meanwhile(&path);
        make_transient(&path, SIZE).expect_err("it is served");
        is_unchanged(&path);
        drop(server.recv().expect("it came"));
    }
}

#[test]
fn what_was_made_is_undone_unless_it_is_used_by_now() {
    let dir = tempfile::tempdir().expect("a directory");
    let [new, empty] = paths(&dir);
    make(&new).expect("it is made").undo(&new);
    assert!(!new.exists());
    make(&empty).expect("it is made").undo(&empty);
    assert_eq!(std::fs::metadata(&empty).expect("it is there").len(), 0);
    for path in [&new, &empty] {
        let made = make(path).expect("it is made");
        let server = served_meanwhile(path);
        looked();
        made.undo(path);
        is_unchanged(path);
        // Its lock is gone, and what it wrote is not.
        drop(server.recv().expect("it came"));
        made.undo(path);
        is_unchanged(path);
        // Another file under the name.
        std::fs::remove_file(owed(path)).expect("it is there");
        std::fs::rename(path, dir.path().join("kept.cow")).expect("it is there");
        make(path).expect("it is made");
        made.undo(path);
        assert!(std::fs::metadata(path).expect("it is there").len() > 0);
    }
}
