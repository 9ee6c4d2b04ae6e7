//! Block devices: loop devices, if this machine permits them.

use super::*;

/// A loop device over a file, if this machine permits it.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &std::path::Path, sector: u32) -> Option<Loop> {
        let made = std::process::Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(file)
            .output();
        match made {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            refused => {
                eprintln!("skipped: no loop device: {refused:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn block_devices_are_served_with_their_blocks() {
    for (sector, uring) in [(512, true), (4096, true), (4096, false)] {
        std::fs::create_dir_all(DISK).unwrap();
        let dir = tempfile::tempdir_in(DISK).unwrap();
        let path = dir.path().join("file");
        let mut model = content(1 << 20);
        std::fs::write(&path, &model).unwrap();
        let Some(device) = Loop::new(&path, sector) else { return };
        let files = Arc::new(Files::default());
        let file = files.open(&device.0, OpenMode::ReadWrite, true).unwrap();
        let info = files.get(file).unwrap();
        assert!(info.block_device);
        assert_eq!((info.len, info.logical_block()), (1 << 20, sector));
        assert!(!info.direct || info.align >= sector, "{info:?}");
        let mut io = Io::new(files, SCRATCH, IoOptions { uring, ..Default::default() }).unwrap();
        io.adopt_files(&[file]);
        let what = format!("{sector} {uring}");
        let mut rig = Rig { io, file, path: device.0.clone(), _dir: dir, what };
        let guest = Guest::new(4096, 0, 64 << 10, 1);
        guest.fill(Token(0), &[0x5a; 64 << 10]);
        // Whole blocks, and sectors of a block that direct I/O cannot serve.
        for (offset, len) in [(8192, 65536), (512, 512), (131_072 - 512, 1024)] {
            let segs = [guest_seg(0, len)];
            let wrote = rig.run(IoOp::Write, offset as u64, len as u64, &segs, &guest);
            assert_eq!(wrote, Ok(()), "{} {offset}", rig.what);
            model[offset..offset + len].fill(0x5a);
        }
        for (op, offset, len) in
            [(IoOp::Zero, 16384, 8192), (IoOp::Punch, 262_144, 4096), (IoOp::Zero, 300_032, 512)]
        {
            let zeroed = rig.run(op, offset as u64, len as u64, &[], &guest);
            assert_eq!(zeroed, Ok(()), "{} {op:?} {offset}", rig.what);
            model[offset..offset + len].fill(0);
        }
        assert_eq!(rig.run(IoOp::Discard, 524_288, 65536, &[], &guest), Ok(()));
        assert_eq!(rig.run(IoOp::Sync, 0, 0, &[], &guest), Ok(()));
        for (offset, len) in [(0, 65536), (65536, 65536), (131_072, 65536), (299_520, 1536)] {
            let segs = [guest_seg(0, len)];
            let read = rig.run(IoOp::Read, offset as u64, len as u64, &segs, &guest);
            assert_eq!(read, Ok(()));
            let same = guest.bytes(Token(0), len) == model[offset..offset + len];
            assert!(same, "{} {offset}", rig.what);
        }
        let beyond = rig.run(IoOp::Write, 1 << 20, 4096, &[guest_seg(0, 4096)], &guest);
        assert_eq!(beyond, Err(Errno::ENOSPC));
    }
}
