use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use super::*;

#[test]
fn words_outlive_their_mapping() {
    for root in ["/dev/shm", concat!(env!("CARGO_MANIFEST_DIR"), "/../target")] {
        std::fs::create_dir_all(root).unwrap();
        let dir = tempfile::tempdir_in(root).unwrap();
        let path = dir.path().join("owed");
        let words = SharedWords::create(&path, 3000).unwrap();
        assert_eq!(words.words().len(), 3000);
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 24_000);
        assert!(meta.blocks() * 512 >= 24_000, "its space is there from the start");
        words[2999].store(7, Ordering::Relaxed);
        // Another one sees it at once, and a later one too.
        let other = SharedWords::open(&path).unwrap();
        assert_eq!(other[2999].load(Ordering::Relaxed), 7);
        drop((words, other));
        assert_eq!(SharedWords::open(&path).unwrap()[2999].load(Ordering::Relaxed), 7);
        let again = SharedWords::create(&path, 1).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 24_000, "and left alone");
    }
}

#[test]
fn there_are_words_without_a_file() {
    let words = SharedWords::anonymous(8).unwrap();
    words[7].fetch_or(1, Ordering::AcqRel);
    assert_eq!(words.len(), 8);
    assert!(SharedWords::anonymous(0).is_err());
    assert!(SharedWords::anonymous(usize::MAX).is_err());
}

#[test]
fn an_empty_file_is_not_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    File::create(&path).unwrap();
    let refused = SharedWords::open(&path).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "whoever made it was killed");
}
