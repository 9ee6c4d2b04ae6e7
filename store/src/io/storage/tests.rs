use std::path::PathBuf;

use super::*;
use crate::io::files::OpenMode;
use crate::io::{Pages, Slices};

fn filled(root: &str, len: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    std::fs::create_dir_all(root).unwrap();
    let dir = tempfile::tempdir_in(root).unwrap();
    let path = dir.path().join("file");
    let content: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    (dir, path, content)
}

const DISK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");

#[test]
fn any_range_can_be_read_and_written_however_the_file_was_opened() {
    for (root, direct) in [("/dev/shm", false), (DISK, false), (DISK, true)] {
        let (_dir, path, mut content) = filled(root, (3 << 20) + 512);
        let info = FileInfo::open(&path, OpenMode::ReadWrite, direct).unwrap();
        for (offset, len) in
            [(0, 16), (1, 1), (511, 2), (4096, 4096), (5000, 2 << 20), ((3 << 20) - 5, 517)]
        {
            let mut got = vec![0; len];
            info.read_at(&mut got, offset as u64).unwrap();
            assert!(got == content[offset..offset + len], "read {offset}+{len} {direct}");
            let new: Vec<u8> = got.iter().map(|byte| !byte).collect();
            info.write_at(&new, offset as u64).unwrap();
            content[offset..offset + len].copy_from_slice(&new);
            info.sync().unwrap();
            assert!(std::fs::read(&path).unwrap() == content, "write {offset}+{len} {direct}");
            info.write_again(offset as u64, len as u64).unwrap();
            info.sync().unwrap();
            assert!(std::fs::read(&path).unwrap() == content, "again {offset}+{len} {direct}");
        }
        let mut beyond = [0; 8];
        let error = info.read_at(&mut beyond, (3 << 20) + 508).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn direct_transfers_of_aligned_memory_take_no_other() {
    let (_dir, path, mut content) = filled(DISK, 64 << 10);
    let info = FileInfo::open(&path, OpenMode::ReadWrite, true).unwrap();
    let mut slices = Slices::new(1, Pages::Small).unwrap();
    let memory = slices.bytes_mut(0);
    let align = info.align as usize;
    for (from, len, offset, takes) in [
        (0, 8192, 4096, true),
        (0, 4096, 0, true),
        (1, 4096, 4096, false),
        (0, 8191, 4096, false),
        (0, 4096, 100, false),
    ] {
        let piece = &mut memory[from..from + len];
        assert_eq!(info.takes(piece, offset as u64), takes || align == 1, "{from} {len} {offset}");
        info.read_at(piece, offset as u64).unwrap();
        assert!(*piece == content[offset..offset + len]);
        piece.iter_mut().for_each(|byte| *byte = !*byte);
        info.write_at(piece, offset as u64).unwrap();
        content[offset..offset + len].copy_from_slice(piece);
        info.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == content, "{from} {len} {offset}");
    }
}

#[test]
fn zeroes_are_written_and_holes_skipped() {
    for (root, direct) in [("/dev/shm", false), (DISK, true)] {
        let (_dir, path, mut content) = filled(root, 1 << 20);
        let info = FileInfo::open(&path, OpenMode::ReadWrite, direct).unwrap();
        info.write_zeroes(100, (1 << 20) - 200).unwrap();
        content[100..(1 << 20) - 100].fill(0);
        assert!(std::fs::read(&path).unwrap() == content);
        let next = info.next_data(8192).unwrap();
        assert!(next <= (1 << 20) - 100, "{next}");
    }
}

/// A range zeroed before it is written must keep its space.
#[test]
fn what_has_room_keeps_it_when_it_is_zeroed() {
    use std::os::unix::fs::MetadataExt;
    for (root, direct) in [("/dev/shm", false), (DISK, false), (DISK, true)] {
        let (_dir, path, _) = filled(root, 1 << 20);
        let info = FileInfo::open(&path, OpenMode::ReadWrite, direct).unwrap();
        info.sync().unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        info.write_zeroes(4096, 512 << 10).unwrap();
        info.sync().unwrap();
        assert!(blocks() >= before, "{root}: {before} blocks, now {}", blocks());
    }
}

/// Readers that use `next_data` skip holes.
#[test]
fn what_is_far_too_much_to_be_written_is_given_back_in_memory() {
    let (_dir, path, mut content) = filled("/dev/shm", 3 << 20);
    let info = FileInfo::open(&path, OpenMode::ReadWrite, false).unwrap();
    info.write_zeroes(4096, 2 << 20).unwrap();
    content[4096..4096 + (2 << 20)].fill(0);
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(info.next_data(8192).unwrap(), 4096 + (2 << 20));
}
