//! The same tests for every way of doing I/O: tmpfs, the disk through the page cache and with
//! O_DIRECT, with io_uring and without.

mod ahead;
mod block_devices;
mod posting;
mod watch;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::io::files::OpenMode;
use crate::io::{FileInfo, IoOp, Pages, Storage, Tag};
use crate::request::Token;

const DISK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
const SCRATCH: ScratchConfig = ScratchConfig { buffers: 4, size: 64 << 10, pages: Pages::Small };

/// The data of requests: each token has its own bytes, handed out in pieces of `piece` bytes.
struct Guest {
    data: RefCell<Vec<Vec<u8>>>,
    piece: usize,
    /// Added to the first address, so that nothing is aligned.
    skew: usize,
}

impl Guest {
    fn new(piece: usize, skew: usize, len: usize, requests: usize) -> Guest {
        Guest { data: RefCell::new(vec![vec![0; len + skew + 4096]; requests]), piece, skew }
    }

    /// The start of a request's bytes in its vector.
    fn start(&self, token: Token) -> usize {
        self.data.borrow()[token.0 as usize].as_ptr().align_offset(4096) + self.skew
    }

    fn fill(&self, token: Token, bytes: &[u8]) {
        let start = self.start(token);
        self.data.borrow_mut()[token.0 as usize][start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn bytes(&self, token: Token, len: usize) -> Vec<u8> {
        let start = self.start(token);
        self.data.borrow()[token.0 as usize][start..start + len].to_vec()
    }
}

impl GuestData for Guest {
    fn push_iovecs(&self, token: Token, offset: u32, len: u32, out: &mut Vec<libc::iovec>) {
        let start = self.start(token);
        let base = self.data.borrow_mut()[token.0 as usize].as_mut_ptr();
        let (mut at, end) = (offset as usize, (offset + len) as usize);
        while at < end {
            let count = self.piece.min(end - at);
            let iov_base = base.wrapping_add(start + at).cast();
            out.push(libc::iovec { iov_base, iov_len: count });
            at += count;
        }
    }
}

struct Rig {
    io: Io,
    file: FileId,
    path: PathBuf,
    _dir: tempfile::TempDir,
    what: String,
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 9)) as u8).collect()
}

fn rig(root: &str, direct: bool, uring: bool, content: &[u8]) -> Rig {
    rig_with(root, direct, OpenMode::ReadWrite, IoOptions { uring, ..Default::default() }, content)
}

fn rig_with(root: &str, direct: bool, mode: OpenMode, options: IoOptions, bytes: &[u8]) -> Rig {
    std::fs::create_dir_all(root).unwrap();
    let dir = tempfile::tempdir_in(root).unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let files = Arc::new(Files::default());
    let file = files.open(&path, mode, direct).unwrap();
    let mut io = Io::new(files, SCRATCH, options).unwrap();
    io.adopt_files(&[file]);
    let what = format!("{root} direct={direct} uring={}", io.uses_uring());
    Rig { io, file, path, _dir: dir, what }
}

/// Every way of doing I/O, on a new file of `content`.
fn everywhere(content: &[u8], test: impl Fn(&mut Rig)) {
    for (root, direct) in [("/dev/shm", false), (DISK, false), (DISK, true)] {
        for uring in [true, false] {
            test(&mut rig(root, direct, uring, content));
        }
    }
}

impl Rig {
    fn action(&self, op: IoOp, offset: u64, len: u64, tag: u64) -> Action {
        Action { op, file: self.file, offset, len, segs: (0, 0), tag: Tag(tag) }
    }

    /// Submits one action and waits for it.
    fn run<G: GuestData>(
        &mut self,
        op: IoOp,
        offset: u64,
        len: u64,
        segs: &[Seg],
        guest: &G,
    ) -> Result<(), Errno> {
        let action = self.action(op, offset, len, 77);
        self.io.submit(&action, segs, &[], guest);
        let completion = self.one();
        assert_eq!(completion.tag, Tag(77), "{}", self.what);
        assert_eq!(self.io.in_flight(), 0);
        completion.result
    }

    fn one(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.io.completed() {
                return completion;
            }
            self.io.wait(None).unwrap();
        }
    }

    fn on_disk(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

fn guest_seg(token: u32, len: usize) -> Seg {
    Seg::Guest { token: Token(token), offset: 0, len: len as u32 }
}

#[test]
fn io_uring_is_in_use_where_it_can_be() {
    // Fails if the tests below would silently run without io_uring.
    let allowed = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|text| text.trim() == "0");
    let rig = rig("/dev/shm", false, true, &[0; 512]);
    assert_eq!(rig.io.uses_uring(), allowed && Ring::new(8, Posting::Deferred).is_ok());
}

#[test]
fn what_is_read_is_what_the_file_holds() {
    let file = content(1 << 20);
    everywhere(&file, |rig| {
        for (piece, skew) in [(1 << 20, 0), (4096, 0), (512, 0), (1000, 3)] {
            let guest = Guest::new(piece, skew, 256 << 10, 1);
            for (offset, len) in [(0, 512), (4096, 4096), (512, 3 * 512), (65536, 256 << 10)] {
                let result =
                    rig.run(IoOp::Read, offset as u64, len as u64, &[guest_seg(0, len)], &guest);
                assert_eq!(result, Ok(()), "{}", rig.what);
                assert!(guest.bytes(Token(0), len) == file[offset..offset + len], "{}", rig.what);
            }
        }
    });
}

#[test]
fn what_is_written_is_there_and_nothing_else() {
    let mut new = content(1 << 20);
    new.reverse();
    for (piece, skew, offset, len) in
        [(1 << 20, 0, 0, 512), (4096, 0, 4096, 65536), (700, 5, 512, 300 * 512)]
    {
        everywhere(&content(1 << 20), |rig| {
            let guest = Guest::new(piece, skew, len, 1);
            guest.fill(Token(0), &new[..len]);
            let result =
                rig.run(IoOp::Write, offset as u64, len as u64, &[guest_seg(0, len)], &guest);
            assert_eq!(result, Ok(()), "{}", rig.what);
            assert_eq!(rig.run(IoOp::Sync, 0, 0, &[], &guest), Ok(()), "{}", rig.what);
            let mut expected = content(1 << 20);
            expected[offset..offset + len].copy_from_slice(&new[..len]);
            assert!(rig.on_disk() == expected, "{}", rig.what);
        });
    }
}

#[test]
fn a_guest_s_bytes_are_laid_over_a_scratch_buffer_in_one_write() {
    everywhere(&content(1 << 20), |rig| {
        let guest = Guest::new(4096, 0, 4096, 1);
        guest.fill(Token(0), &[0xee; 4096]);
        let buf = BufId(3);
        let scratch = |offset, len| Seg::Scratch { buf, offset, len };
        let read = rig.run(IoOp::Read, 65536, 65536, &[scratch(0, 65536)], &guest);
        assert_eq!(read, Ok(()));
        let mut seen = [0; 16];
        assert!(rig.io.get_scratch(buf, 4096, &mut seen));
        assert_eq!(seen, content(1 << 20)[65536 + 4096..65536 + 4096 + 16]);
        assert!(rig.io.put_scratch(buf, 65535, &[0xdd]));
        assert!(!rig.io.put_scratch(buf, 65535, &[0xdd, 0xdd]), "buffers do not run over");
        let segs =
            [scratch(0, 8192), guest_seg(0, 4096), Seg::Zero { len: 4096 }, scratch(16384, 49152)];
        assert_eq!(rig.run(IoOp::Write, 0, 65536, &segs, &guest), Ok(()), "{}", rig.what);
        let mut expected = content(1 << 20);
        expected.copy_within(65536..131_072, 0);
        expected[8192..12288].fill(0xee);
        expected[12288..16384].fill(0);
        expected[65535] = 0xdd;
        assert!(rig.on_disk() == expected, "{}", rig.what);
    });
}

#[test]
fn memory_that_direct_io_can_use_is_not_copied() {
    for uring in [true, false] {
        let mut rig = rig(DISK, true, uring, &content(1 << 20));
        let guest = Guest::new(4096, 0, 65536, 1);
        let laid_over = [
            Seg::Scratch { buf: BufId(0), offset: 0, len: 4096 },
            Seg::Guest { token: Token(0), offset: 4096, len: 4096 },
            Seg::Scratch { buf: BufId(0), offset: 8192, len: 8192 },
        ];
        let whole = [guest_seg(0, 65536)];
        for (op, segs, len) in [
            (IoOp::Read, &whole[..], 65536),
            (IoOp::Write, &whole[..], 65536),
            (IoOp::Write, &laid_over[..], 16384),
        ] {
            assert_eq!(rig.run(op, 65536, len, segs, &guest), Ok(()));
            assert_eq!(rig.io.memory.bounces(), 0, "{} {op:?}", rig.what);
        }
        let misaligned = Guest::new(4096, 1, 4096, 1);
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &[guest_seg(0, 4096)], &misaligned), Ok(()));
        assert_eq!(rig.io.memory.bounces(), 1, "{}", rig.what);
    }
}

#[test]
fn more_pieces_than_one_call_takes_are_done_in_several() {
    let file = content(3 << 20);
    everywhere(&file, |rig| {
        let len = 3 << 20;
        let guest = Guest::new(512, 0, len, 1); // 6144 pieces
        let read = rig.run(IoOp::Read, 0, len as u64, &[guest_seg(0, len)], &guest);
        assert_eq!(read, Ok(()), "{}", rig.what);
        assert!(guest.bytes(Token(0), len) == file, "{}", rig.what);
    });
}

#[test]
fn long_runs_of_misaligned_memory_bounce_piece_by_piece() {
    let file = content(3 << 20);
    everywhere(&file, |rig| {
        let len = (3 << 20) - 4096;
        let guest = Guest::new(10_000, 1, len, 1);
        let read = rig.run(IoOp::Read, 4096, len as u64, &[guest_seg(0, len)], &guest);
        assert_eq!(read, Ok(()), "{}", rig.what);
        assert!(guest.bytes(Token(0), len) == file[4096..], "{}", rig.what);
        assert_eq!(rig.run(IoOp::Write, 0, len as u64, &[guest_seg(0, len)], &guest), Ok(()));
        let mut expected = file.clone();
        expected.copy_within(4096.., 0);
        assert!(rig.on_disk() == expected, "{}", rig.what);
    });
}

/// A polling worker enters the kernel where [`Io::is_ready`] says so, and nowhere else.
#[test]
fn who_polls_hands_every_step_over() {
    let file = content(1 << 20);
    everywhere(&file, |rig| {
        let guest = Guest::new(10_000, 1, 1 << 20, 1);
        let action = rig.action(IoOp::Read, 0, 1 << 20, 5);
        rig.io.submit(&action, &[guest_seg(0, 1 << 20)], &[], &guest);
        rig.io.enter().unwrap();
        let begin = std::time::Instant::now();
        while rig.io.completed().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}: it stands still", rig.what);
            if rig.io.is_ready() {
                rig.io.enter().unwrap();
            }
        }
        assert!(guest.bytes(Token(0), 1 << 20) == file, "{}", rig.what);
    });
}

#[test]
fn zeroing_and_punching_leave_zeroes() {
    for op in [IoOp::Zero, IoOp::Punch] {
        everywhere(&content(1 << 20), |rig| {
            let guest = Guest::new(4096, 0, 0, 1);
            assert_eq!(rig.run(op, 8192, 65536, &[], &guest), Ok(()), "{}", rig.what);
            assert_eq!(rig.run(op, 512, 512, &[], &guest), Ok(()), "{}", rig.what);
            let mut expected = content(1 << 20);
            expected[8192..8192 + 65536].fill(0);
            expected[512..1024].fill(0);
            assert!(rig.on_disk() == expected, "{op:?} {}", rig.what);
        });
    }
    everywhere(&content(1 << 20), |rig| {
        let guest = Guest::new(4096, 0, 0, 1);
        assert_eq!(rig.run(IoOp::Discard, 8192, 65536, &[], &guest), Ok(()), "{}", rig.what);
        let now = rig.on_disk();
        assert!(now[..8192] == content(1 << 20)[..8192], "{}", rig.what);
        assert_eq!(now.len(), 1 << 20);
    });
}

#[test]
fn beyond_the_end_is_an_error_and_the_file_does_not_grow() {
    everywhere(&content(1 << 20), |rig| {
        let guest = Guest::new(4096, 0, 8192, 1);
        let end = (1 << 20) - 4096;
        let segs = [guest_seg(0, 8192)];
        assert_eq!(rig.run(IoOp::Read, end, 8192, &segs, &guest), Err(Errno::EIO));
        assert_eq!(rig.run(IoOp::Write, end, 8192, &segs, &guest), Err(Errno::ENOSPC));
        assert_eq!(rig.run(IoOp::Zero, end, 8192, &[], &guest), Err(Errno::ENOSPC));
        assert_eq!(rig.run(IoOp::Write, u64::MAX, 8192, &segs, &guest), Err(Errno::ENOSPC));
        assert_eq!(rig.on_disk().len(), 1 << 20, "{}", rig.what);
        // A file that another program extended has its new length.
        let longer = std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap();
        longer.set_len((1 << 20) + 4096).unwrap();
        assert_eq!(rig.run(IoOp::Write, end, 8192, &segs, &guest), Ok(()), "{}", rig.what);
        // And a file that was truncated ends early: EIO, not zeroes, not success.
        longer.set_len(1 << 19).unwrap();
        assert_eq!(rig.run(IoOp::Read, end - 4096, 8192, &segs, &guest), Err(Errno::EIO));
    });
}

#[test]
fn errors_are_positive_numbers() {
    for (root, uring) in [("/dev/shm", true), (DISK, true), (DISK, false)] {
        let options = IoOptions { uring, ..Default::default() };
        let mut rig = rig_with(root, false, OpenMode::ReadOnly, options, &content(8192));
        let guest = Guest::new(4096, 0, 4096, 1);
        let segs = [guest_seg(0, 4096)];
        assert_eq!(rig.run(IoOp::Write, 0, 4096, &segs, &guest), Err(Errno(9)), "{}", rig.what);
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &segs, &guest), Ok(()));
        // An unknown file, a wrong sum of the segments, a missing scratch buffer.
        rig.file = FileId(99);
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &segs, &guest), Err(Errno(9)));
        rig.file = FileId(0);
        assert_eq!(rig.run(IoOp::Read, 0, 8192, &segs, &guest), Err(Errno(14)));
        let wrong = [Seg::Scratch { buf: BufId(4), offset: 0, len: 4096 }];
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &wrong, &guest), Err(Errno(14)));
        rig.io.adopt_files(&[]);
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &segs, &guest), Err(Errno(9)));
    }
}

#[test]
fn a_range_that_direct_io_cannot_serve_goes_through_the_page_cache() {
    // The last sector is not a whole block of 4096; on a disk of 512-byte blocks it is.
    let file = content((64 << 10) + 512);
    everywhere(&file, |rig| {
        let guest = Guest::new(4096, 0, 1024, 1);
        let segs = [guest_seg(0, 1024)];
        let at = (64 << 10) - 512;
        assert_eq!(rig.run(IoOp::Read, at, 1024, &segs, &guest), Ok(()), "{}", rig.what);
        assert!(guest.bytes(Token(0), 1024) == file[at as usize..], "{}", rig.what);
        guest.fill(Token(0), &[7; 1024]);
        assert_eq!(rig.run(IoOp::Write, at, 1024, &segs, &guest), Ok(()), "{}", rig.what);
        assert!(rig.on_disk()[at as usize..].iter().all(|&byte| byte == 7), "{}", rig.what);
    });
}

#[test]
fn a_batch_costs_one_system_call() {
    let file = content(1 << 20);
    let mut rig = rig(DISK, true, true, &file);
    if !rig.io.uses_uring() {
        return;
    }
    let guest = Guest::new(4096, 0, 4096, 32);
    let before = rig.io.syscalls();
    for n in 0..32 {
        let action = rig.action(IoOp::Read, u64::from(n) * 4096, 4096, u64::from(n));
        rig.io.submit(&action, &[guest_seg(n, 4096)], &[], &guest);
    }
    assert_eq!(rig.io.syscalls(), before, "submitting is none");
    assert_eq!(rig.io.in_flight(), 32);
    rig.io.wait(None).unwrap();
    assert_eq!(rig.io.syscalls(), before + 1);
    let mut seen = 0u32;
    let mut waits = 0;
    while seen != u32::MAX {
        match rig.io.completed() {
            Some(Completion { tag, result }) => {
                assert_eq!(result, Ok(()));
                seen |= 1 << tag.0;
            }
            None => {
                rig.io.wait(None).unwrap();
                waits += 1;
            }
        }
    }
    assert_eq!(rig.io.syscalls(), before + 1 + waits);
    for n in 0..32 {
        let at = n as usize * 4096;
        assert!(guest.bytes(Token(n), 4096) == file[at..at + 4096]);
    }
}

#[test]
fn more_than_the_ring_holds_waits_its_turn() {
    let file = content(1 << 20);
    for direct in [true, false] {
        let options = IoOptions { uring: true, entries: 8 };
        let mut rig = rig_with(DISK, direct, OpenMode::ReadWrite, options, &file);
        let guest = Guest::new(4096, 0, 4096, 256);
        for n in 0..256 {
            let action = rig.action(IoOp::Read, u64::from(n) * 4096, 4096, u64::from(n));
            rig.io.submit(&action, &[guest_seg(n, 4096)], &[], &guest);
        }
        let mut seen = [false; 256];
        for _ in 0..256 {
            let completion = rig.one();
            assert_eq!(completion.result, Ok(()));
            assert!(!std::mem::replace(&mut seen[completion.tag.0 as usize], true));
        }
        assert_eq!((rig.io.in_flight(), rig.io.completed()), (0, None));
        for n in 0..256 {
            let at = n as usize * 4096;
            assert!(guest.bytes(Token(n), 4096) == file[at..at + 4096], "{n}");
        }
    }
}

/// Also where all that the queue holds ends as it is submitted, so that no answer is left to come.
#[test]
fn who_polls_submits_what_found_no_room_as_well() {
    let options = IoOptions { uring: true, entries: 8 };
    let mut rig = rig_with(DISK, false, OpenMode::ReadWrite, options, &content(1 << 20));
    let guest = Guest::new(4096, 0, 4096, 256);
    for n in 0..256 {
        let action = rig.action(IoOp::Read, u64::from(n) * 4096, 4096, u64::from(n));
        rig.io.submit(&action, &[guest_seg(n, 4096)], &[], &guest);
    }
    let begin = std::time::Instant::now();
    while rig.io.in_flight() > 0 {
        let left = rig.io.in_flight();
        assert!(begin.elapsed() < Duration::from_secs(20), "{left} are left, and it stands still");
        if rig.io.is_ready() {
            rig.io.enter().unwrap();
        }
        while rig.io.completed().is_some() {}
    }
}

fn event(flags: EventfdFlags) -> std::os::fd::OwnedFd {
    eventfd(0, flags).unwrap()
}

fn signal(fd: &impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

#[test]
fn an_executor_can_be_made_by_another_thread_and_dropped_in_flight() {
    for uring in [true, false] {
        let mut rig = rig_with(
            DISK,
            true,
            OpenMode::ReadWrite,
            IoOptions { uring, ..Default::default() },
            &content(1 << 20),
        );
        let files = rig.io.files.clone();
        let io = Io::new(files, SCRATCH, IoOptions { uring, ..Default::default() }).unwrap();
        let file = rig.file;
        std::thread::spawn(move || {
            let mut io = io;
            io.adopt_files(&[file]);
            let guest = Guest::new(4096, 0, 4096, 8);
            for n in 0..8 {
                let action = Action {
                    op: IoOp::Read,
                    file,
                    offset: u64::from(n) * 4096,
                    len: 4096,
                    segs: (0, 0),
                    tag: Tag(u64::from(n)),
                };
                io.submit(&action, &[guest_seg(n, 4096)], &[], &guest);
            }
            io.enter().unwrap();
            drop(io); // before the guest's memory
            drop(guest);
        })
        .join()
        .unwrap();
        let guest = Guest::new(4096, 0, 4096, 1);
        assert_eq!(rig.run(IoOp::Read, 0, 4096, &[guest_seg(0, 4096)], &guest), Ok(()));
    }
}

#[test]
fn a_flush_follows_the_writes_that_completed() {
    everywhere(&content(1 << 20), |rig| {
        let guest = Guest::new(4096, 0, 4096, 1);
        assert_eq!(rig.run(IoOp::Sync, 0, 0, &[], &guest), Ok(()), "{}", rig.what);
        assert_eq!(rig.run(IoOp::Write, 0, 0, &[], &guest), Ok(()), "nothing is soon done");
    });
}

/// The effect of a sync is visible only after a power cut; a refusal shows that the system is
/// called.
#[test]
fn a_sync_is_the_system_s() {
    for uring in [true, false] {
        let mut rig = rig(DISK, false, uring, &content(4096));
        let files = rig.io.files.clone();
        // A pipe cannot be synced.
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        let mut info = FileInfo::open(&rig.path, OpenMode::ReadWrite, false).unwrap();
        info.file = pipe.into();
        assert_eq!(info.sync().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        rig.file = files.add(info);
        rig.io.adopt_files(&[rig.file]);
        let guest = Guest::new(4096, 0, 4096, 1);
        let synced = rig.run(IoOp::Sync, 0, 0, &[], &guest);
        assert_eq!(synced, Err(Errno(libc::EINVAL)), "{}", rig.what);
    }
}
