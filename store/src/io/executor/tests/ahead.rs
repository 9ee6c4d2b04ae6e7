//! Room that is reserved ahead of what is written.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::*;

const LEN: u64 = 64 << 20;
const WRITTEN: usize = 4096;
/// What one write takes, with what a file system keeps beside it.
const LITTLE: u64 = 256 << 10;

/// A hole of [`LEN`] bytes, of which the first 4 KiB are written; `fills` says whether the file is
/// said to fill up.
fn written(uring: bool, fills: bool) -> Rig {
    let mut rig = rig(DISK, true, uring, &[]);
    std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(LEN).unwrap();
    if fills {
        rig.io.files.get(rig.file).unwrap().ahead.begin(0);
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
