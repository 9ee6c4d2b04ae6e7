use super::*;
use crate::io::OpenMode;
use crate::units::ChunkSize;
use crate::wake::WakeSet;

/// A store's file, as if it were on a disk.
fn on_disk(dir: &Path) -> FileInfo {
    let path = dir.join("store.cow");
    std::fs::write(&path, [0; 4096]).expect("a file");
    let info = FileInfo::open(&path, OpenMode::ReadWrite, false).expect("it opens");
    FileInfo { uring: true, ..info }
}

#[test]
fn half_a_gib_may_be_owed_to_a_disk_and_less_where_a_sync_costs_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut info = on_disk(dir.path());
    let slots_of = |info: &FileInfo| [1, 8, 32, 128, 2048].map(|chunk| slots(info, chunk));
    let most = 2 * (512 << 20) / 4096;
    assert_eq!(slots_of(&info), [most, most, most / 4, RING, RING]);
    info.uring = false;
    assert_eq!(slots_of(&info), [RING; 5]);
    (info.uring, info.block_device) = (true, true);
    assert_eq!(slots_of(&info), [RING; 5]);
}

#[test]
fn the_file_has_all_slots_and_says_how_many_may_be_owed() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    assert_eq!(Owed::most(&info), 0);
    let mut owed = Owed::of(&info, 8);
    let words = owed.create(false).expect("it is made");
    let len = std::fs::metadata(owed.path()).expect("it is there").len();
    assert_eq!(len, 8 * words.len() as u64);
    assert_eq!(words.len(), words_for(8 * RING));
    let log = Log::new(words, DataIndex(0), 1 << 30);
    for old in 0..3 {
        assert!(matches!(log.allocate(1), super::super::log::Allocation::Run { .. }));
        assert_eq!(log.finish(DataIndex(old), Some(Chunk(9 - old))), WakeSet::NONE);
    }
    assert_eq!(Owed::most(&info), 3);
    log.set_committed(DataIndex(1));
    assert_eq!(Owed::most(&info), 2);
    let found = owed.find().expect("it can be read").expect("it is this store's");
    let expected = (1..3).map(|old| (DataIndex(old), Chunk(9 - old))).collect();
    assert_eq!(Log::owed(&found), (expected, DataIndex(1)));
}

#[test]
fn what_is_owed_is_found_whichever_way_leads_to_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let link = dir.path().join("link.cow");
    std::os::unix::fs::symlink("store.cow", &link).expect("a link");
    let linked = FileInfo::open(&link, OpenMode::ReadWrite, false).expect("it opens");
    let owe = |words| {
        let log = Log::new(words, DataIndex(0), 1 << 30);
        assert!(matches!(log.allocate(1), super::super::log::Allocation::Run { .. }));
        assert_eq!(log.finish(DataIndex(0), Some(Chunk(7))), WakeSet::NONE);
    };
    owe(Owed::of(&linked, 8).create(false).expect("it is made"));
    let found = Owed::of(&info, 8).find().expect("it can be read").expect("it is found");
    assert_eq!(Log::owed(&found).0, [(DataIndex(0), Chunk(7))]);
    Owed::of(&info, 8).settle().expect("it is this store's");
    assert!(Owed::of(&linked, 8).find().expect("it can be read").is_none());
    // One that a version before left beside the link.
    let old = beside(&link);
    owe(Owed { path: old.clone(), ..Owed::of(&info, 8) }.create(false).expect("it is made"));
    assert_eq!(Owed::most(&linked), 1);
    let mut owed = Owed::of(&linked, 8);
    let found = owed.find().expect("it can be read").expect("it is found");
    assert_eq!(Log::owed(&found).0, [(DataIndex(0), Chunk(7))]);
    owed.create(false).expect("it is made");
    assert!(!old.exists() && owed.path().exists());
    // One of another store is left alone.
    owe(Owed { path: old.clone(), ..Owed::of(&info, 16) }.create(false).expect("it is made"));
    owed.settle().expect("it is this store's");
    assert!(old.exists() && !owed.path().exists());
}

#[test]
fn a_store_is_removed_with_the_link_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let link = dir.path().join("link.cow");
    std::os::unix::fs::symlink("store.cow", &link).expect("a link");
    Owed::of(&info, 8).create(false).expect("it is made");
    remove_store(&link).expect("it is removed");
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
    remove_store(&link).expect("there is nothing to be removed");
}

/// Whatever is asked for: that a file has the name of a log does not make it one.
#[test]
fn a_user_s_file_with_the_name_of_a_log_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let mut owed = Owed::of(&info, 8);
    let path = owed.path().to_owned();
    for (content, stays) in
        [(&b"SnAp\x01\0\0\0 and more"[..], true), (&[0; 64], false), (b"", false)]
    {
        std::fs::write(&path, content).expect("a file");
        assert_eq!(owed.settle().is_err(), stays);
        if stays {
            owed.create(false).expect_err("its place is taken");
            Owed::forget(&info).expect_err("it is not what it forgets");
            assert_eq!(std::fs::read(&path).expect("it is there"), content);
        } else {
            assert!(!path.exists());
        }
    }
}

/// A device's node is the system's.
#[test]
fn what_is_no_regular_file_is_not_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = dir.path().join("node");
    let _socket = std::os::unix::net::UnixListener::bind(&node).expect("a socket");
    remove_store(&node).expect_err("it is not a file");
    assert!(node.exists());
}

/// The file that a killed process left, which owes a chunk to the store that `change` makes of
/// the one at hand.
fn killed(info: &FileInfo, change: impl Fn(&mut WordsHeader)) -> Owed {
    let mut owed = Owed::of(info, 8);
    // Not every file system knows it.
    owed.header.as_mut().expect("a boot").born = 7;
    let mut of = owed.clone();
    change(of.header.as_mut().expect("a boot"));
    let log = Log::new(of.create(false).expect("it is made"), DataIndex(0), 1 << 30);
    assert!(matches!(log.allocate(1), super::super::log::Allocation::Run { .. }));
    assert_eq!(log.finish(DataIndex(0), Some(Chunk(7))), WakeSet::NONE);
    owed
}

#[test]
fn what_is_owed_to_a_store_whose_disk_was_attached_again_is_not_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let owed = killed(&info, |header| header.store.dev += 1);
    let before = std::fs::read(owed.path()).expect("it is there");
    let mut store = OpenStore::empty(crate::cow::Geometry::of_len(ChunkSize::TOOLS, 1 << 20));
    let said = owed.enter(&info, &mut store, (None, Gaps::Close)).expect_err("it is refused");
    assert!(said.to_string().contains("has another device number"), "{said}");
    let said = owed.show("store".into(), &mut store, None).expect_err("it is refused");
    assert!(said.to_string().contains("has another device number"), "{said}");
    assert_eq!(std::fs::read(owed.path()).expect("it is there"), before);
    // A kill when nothing was owed.
    let owed = killed(&info, |header| header.store.dev += 1);
    std::fs::remove_file(owed.path()).expect("it is there");
    let mut of = owed.clone();
    of.header.as_mut().expect("a boot").store.dev += 1;
    of.create(false).expect("it is made");
    assert!(!owed.enter(&info, &mut store, (None, Gaps::Close)).expect("nothing is owed"));
}

/// The system reports a failed sync once, whoever gets to know of it.
#[test]
fn what_is_owed_is_left_out_once_a_sync_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let owed = killed(&info, |_| ());
    let header = owed.find().expect("it can be read").expect("it is this store's").header();
    Owed::sync(&info).expect("it succeeds");
    let found = owed.find().expect("it can be read").expect("it is this store's");
    assert_eq!((Log::was_syncing(&found), Log::owed(&found).0.len()), (false, 1));
    // Its process was killed in a sync: that a later one succeeds tells nothing of it.
    Log::sync_of_owed_begins(&found);
    Owed::sync(&info).expect("it succeeds");
    assert!(Log::was_syncing(&found));
    crate::io::durable::seen::fail(info.path.canonicalize().expect("it is there"));
    Owed::sync(&info).expect_err("it fails");
    let found = owed.find().expect("it can be read").expect("it is this store's");
    assert_eq!(found.header(), header, "it is as readable as before");
    assert_eq!((Log::owed(&found).0, Log::unsynced_owed(&found)), (vec![], 1));
    let mut store = OpenStore::empty(crate::cow::Geometry::of_len(ChunkSize::TOOLS, 1 << 20));
    assert!(!owed.enter(&info, &mut store, (None, Gaps::Close)).expect("it is left out"));
    assert_eq!(store.count(), 0);
}

#[test]
fn what_is_owed_to_another_store_is_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let aside = dir.path().join("store.cow.owed.old");
    let mut owed = killed(&info, |header| header.store.ino += 1);
    let before = std::fs::read(owed.path()).expect("it is there");
    assert!(owed.find().expect("it can be read").is_none());
    owed.create(false).expect("it is made");
    assert_eq!(std::fs::read(&aside).expect("it was set aside"), before);
    owed.remove();
    let mut owed = killed(&info, |header| header.store.ino += 2);
    let second = std::fs::read(owed.path()).expect("it is there");
    owed.create(false).expect("it is made");
    assert_eq!(std::fs::read(&aside).expect("it is there"), before);
    let aside = dir.path().join("store.cow.owed.old-2");
    assert_eq!(std::fs::read(&aside).expect("it was set aside, too"), second);
    // Of another boot: what was not flushed is lost in any case.
    std::fs::remove_file(owed.path()).expect("it is there");
    let mut owed = killed(&info, |header| (header.boot, header.store.ino) = (1, 2));
    owed.create(false).expect("it is made");
}

/// A store that is made where another was does not cost that one what it is owed: it may be moved back.
#[test]
fn what_is_owed_to_a_store_that_was_moved_away_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = on_disk(dir.path());
    let aside = dir.path().join("store.cow.owed.old");
    let owed = killed(&info, |header| header.store.ino += 1);
    let before = std::fs::read(owed.path()).expect("it is there");
    Owed::forget(&info).expect("it is set aside");
    assert_eq!(std::fs::read(&aside).expect("it was set aside"), before);
    assert!(!owed.path().exists());
    // What was owed to this very file, which is empty now, and what another boot left, is gone.
    std::fs::remove_file(&aside).expect("it is there");
    for of in [(0, 0), (1, 1)] {
        let owed = killed(&info, |header| {
            (header.boot, header.store.ino) = (header.boot + of.0, header.store.ino + of.1)
        });
        Owed::forget(&info).expect("it is removed");
        assert!(!owed.path().exists() && !aside.exists(), "{of:?}");
    }
}

/// In memory, a file that is too large is refused at once.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in memory")
}

#[test]
fn where_there_is_no_room_for_a_long_log_a_short_one_does() {
    let dir = in_memory();
    let mut owed = Owed { words: 1 << 40, ..Owed::of(&on_disk(dir.path()), 8) };
    assert_eq!(owed.create(false).expect("it is made").len(), LOG_WORDS);
}

/// The process that serves the store continues, and may be killed.
#[test]
fn a_file_that_was_set_aside_in_vain_is_where_it_was() {
    let dir = in_memory();
    let info = on_disk(dir.path());
    let mut first = Owed::of(&info, 8);
    let log = Log::new(first.create(false).expect("it is made"), DataIndex(0), 1 << 30);
    assert!(matches!(log.allocate(1), super::super::log::Allocation::Run { .. }));
    assert_eq!(log.finish(DataIndex(0), Some(Chunk(7))), WakeSet::NONE);
    let mut second = Owed { words: usize::MAX, ..Owed::of(&info, 8) };
    second.create(true).expect_err("it is too long");
    second.remove();
    assert!(!first.discard_if_replaced());
    let found = first.find().expect("it can be read").expect("it is this store's");
    assert_eq!(Log::owed(&found).0, [(DataIndex(0), Chunk(7))]);
}
