use super::*;

/// A folder on the disk (the build's own), and one on tmpfs.
fn on_disk() -> tempfile::TempDir {
    let root = env!("CARGO_MANIFEST_DIR").to_owned() + "/../target";
    std::fs::create_dir_all(&root).unwrap();
    tempfile::tempdir_in(root).unwrap()
}

fn on_tmpfs() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn file(dir: &tempfile::TempDir, len: u64) -> PathBuf {
    let path = dir.path().join("file");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

#[test]
fn tmpfs_is_served_by_plain_calls() {
    let dir = on_tmpfs();
    let info = FileInfo::open(&file(&dir, 4096), OpenMode::ReadWrite, true).unwrap();
    assert!(!info.uring && !info.direct);
    assert_eq!((info.align, info.len), (1, 4096));
}

#[test]
fn a_disk_s_file_is_opened_around_the_page_cache() {
    let dir = on_disk();
    let path = file(&dir, 1 << 20);
    let info = FileInfo::open(&path, OpenMode::ReadWrite, true).unwrap();
    assert!(info.uring);
    if info.direct {
        assert!(info.align.is_power_of_two() && (512..=4096).contains(&info.align));
        let flags = rustix::fs::fcntl_getfl(&info.file).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::DIRECT));
    }
    let buffered = FileInfo::open(&path, OpenMode::ReadOnly, false).unwrap();
    assert!(!buffered.direct && !buffered.writable && buffered.uring);
}

#[test]
fn two_names_of_one_file_have_one_identity() {
    let dir = on_tmpfs();
    let path = file(&dir, 0);
    let (hard, soft) = (dir.path().join("hard"), dir.path().join("soft"));
    std::fs::hard_link(&path, &hard).unwrap();
    std::os::unix::fs::symlink(&path, &soft).unwrap();
    let open = |path: &Path| FileInfo::open(path, OpenMode::ReadOnly, false).unwrap().identity;
    assert_eq!(open(&path), open(&hard));
    assert_eq!(open(&path), open(&soft));
    assert_eq!(open(&path), Identity::of_path(&soft).unwrap());
    let other = dir.path().join("other");
    File::create(&other).unwrap();
    assert_ne!(open(&path), open(&other));
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = on_tmpfs();
    let error = FileInfo::open(dir.path(), OpenMode::ReadOnly, false).unwrap_err();
    assert!(matches!(error, FileError::Kind { .. }));
    let missing = dir.path().join("missing");
    let error = FileInfo::open(&missing, OpenMode::ReadWrite, false).unwrap_err();
    let sentence = error.to_string();
    assert!(sentence.contains("missing for reading and writing: No such file"), "{sentence}");
    assert!(sentence.ends_with("; name a file that is there"), "{sentence}");
    let error = FileInfo::open(dir.path(), OpenMode::ReadWrite, false).unwrap_err();
    assert!(error.to_string().ends_with("a block device; name one of these"), "{error}");
    let error = FileInfo::open(Path::new("/dev/null"), OpenMode::ReadOnly, false).unwrap_err();
    assert!(matches!(error, FileError::Kind { .. }), "a character device holds no bytes");
}

#[test]
fn an_id_is_never_used_again() {
    let dir = on_tmpfs();
    let path = file(&dir, 512);
    let files = Files::default();
    let first = files.open(&path, OpenMode::ReadWrite, false).unwrap();
    let held = files.get(first).unwrap();
    files.remove(first);
    assert!(files.get(first).is_none());
    let second = files.open(&path, OpenMode::ReadWrite, false).unwrap();
    assert_ne!(first, second);
    held.file.set_len(1024).unwrap();
    assert_eq!(files.current_len(second).unwrap(), 1024);
    assert_eq!(files.get(second).unwrap().len, 512, "as it was when it was opened");
    assert_eq!(files.current_len(first).unwrap_err().kind(), io::ErrorKind::NotFound);
}
