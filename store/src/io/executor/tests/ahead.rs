//! Space that is reserved before it is written.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::*;
use crate::io::Late;

const LEN: u64 = 64 << 20;
const WRITTEN: usize = 4096;
/// The space of one write, with the file system's metadata.
const LITTLE: u64 = 256 << 10;

/// A hole of [`LEN`] bytes, of which the first 4 KiB are written; `fills` says whether the file is
/// declared to fill up.
fn written(uring: bool, fills: bool) -> Rig {
    let mut rig = rig(DISK, true, uring, &[]);
    std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(LEN).unwrap();
    if fills {
        rig.io.files.get(rig.file).unwrap().ahead.begin(0, None);
    }
    let guest = Guest::new(WRITTEN, 0, WRITTEN, 1);
    guest.fill(Token(0), &[7; WRITTEN]);
    let segs = [guest_seg(0, WRITTEN)];
    assert_eq!(rig.run(IoOp::Write, 0, WRITTEN as u64, &segs, &guest), Ok(()), "{}", rig.what);
    assert_eq!(rig.run(IoOp::Sync, 0, 0, &[], &guest), Ok(()), "{}", rig.what);
    rig
}

fn room(rig: &Rig) -> u64 {
    std::fs::metadata(&rig.path).unwrap().blocks() * 512
}

#[test]
fn a_file_that_fills_up_has_room_before_it_is_written() {
    let mut rig = written(true, true);
    if !rig.io.uses_uring() {
        return;
    }
    let begin = Instant::now();
    while room(&rig) < 4 << 20 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{} bytes of room", room(&rig));
        rig.io.wait(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(room(&rig) <= (4 << 20) + LITTLE, "{} bytes of room", room(&rig));
    let bytes = rig.on_disk();
    assert_eq!(bytes.len() as u64, LEN, "it is as long as it was");
    assert!(bytes[..WRITTEN].iter().all(|&byte| byte == 7));
    assert!(bytes[WRITTEN..].iter().all(|&byte| byte == 0), "what is reserved reads as a hole");
}

#[test]
fn no_other_file_gets_room() {
    for (uring, fills) in [(true, false), (false, false), (false, true)] {
        let rig = written(uring, fills);
        drop(rig.io);
        let room = std::fs::metadata(&rig.path).unwrap().blocks() * 512;
        assert!(room <= LITTLE, "{}: {room} bytes of room", rig.what);
    }
}

/// A file in memory whose late parts are larger than any memory: the system refuses them at once.
#[test]
fn what_needs_a_later_part_is_refused_where_that_has_no_room() {
    let late = Late { len: 1 << 46, every: 1 << 47, full: 1, gap: 0 };
    let mut rig = rig("/dev/shm", true, true, &[]);
    let file = std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap();
    file.set_len(1 << 49).unwrap();
    rig.io.adopt_files(&[]);
    rig.io.adopt_files(&[rig.file]);
    let info = rig.io.files.get(rig.file).unwrap();
    info.ahead.begin(2 * late.len, Some(late));
    info.make_room(2 * late.len + 1);
    let guest = Guest::new(WRITTEN, 0, WRITTEN, 1);
    guest.fill(Token(0), &[7; WRITTEN]);
    let segs = [guest_seg(0, WRITTEN)];
    let len = WRITTEN as u64;
    let mut write = |at| rig.run(IoOp::Write, at, len, &segs, &guest);
    assert_eq!(write(2 * late.len - len), Ok(()), "what was there is written as ever");
    assert_eq!(write(2 * late.len), Err(Errno::ENOSPC));
    assert_eq!(write(0), Ok(()), "and after that");
    assert_eq!(room(&rig), 2 * len, "{}: of the second nothing was written", rig.what);
    // If the file ends before the next part, no part needs room.
    file.set_len(2 * late.len + late.every - 1).unwrap();
    rig.io.adopt_files(&[]);
    rig.io.adopt_files(&[rig.file]);
    assert_eq!(rig.run(IoOp::Write, 2 * late.len, len, &segs, &guest), Ok(()));
}

/// Space reserved in advance needs no second call, and other space is reserved by the write.
#[test]
fn later_parts_have_room_before_what_lies_between_is_written() {
    const EVERY: u64 = 1 << 20;
    for (uring, place) in [(true, DISK), (false, DISK), (false, "/dev/shm")] {
        let late = Late { len: 4096, every: EVERY, full: 0, gap: 0 };
        let mut rig = rig(place, true, uring, &[]);
        std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(LEN).unwrap();
        let info = rig.io.files.get(rig.file).unwrap();
        info.ahead.begin(8192, Some(late));
        let guest = Guest::new(WRITTEN, 0, WRITTEN, 1);
        guest.fill(Token(0), &[7; WRITTEN]);
        let segs = [guest_seg(0, WRITTEN)];
        for (at, pages) in [(8192, 3), (EVERY + 8192, 5), (6 * EVERY + 8192, 11)] {
            assert_eq!(rig.run(IoOp::Write, at, WRITTEN as u64, &segs, &guest), Ok(()));
            let next = at / EVERY * EVERY + EVERY + 4096;
            assert!(info.ahead.allows(next) && info.ahead.allows(next + 4096), "{} {at}", rig.what);
            if place == "/dev/shm" {
                // The written bytes, and a part after each stretch up to there.
                assert_eq!(room(&rig), pages * 4096, "{at}");
            }
            let begin = Instant::now();
            while rig.io.uses_uring() && !info.ahead.allows(at + (2 << 20)) {
                assert!(
                    begin.elapsed() < Duration::from_secs(20),
                    "what was reserved is not known"
                );
                rig.io.wait(Some(Duration::from_millis(5))).unwrap();
            }
        }
    }
}
