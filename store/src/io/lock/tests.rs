//! Against this process itself and, if QEMU's tools are installed, against those.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use super::*;
use crate::io::files::OpenMode;

fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (dir, path)
}

fn open(path: &Path, mode: OpenMode) -> FileInfo {
    FileInfo::open(path, mode, false).unwrap()
}

#[test]
fn readers_go_together_and_a_writer_stands_alone() {
    let (_dir, path) = image();
    let [a, b] = [open(&path, OpenMode::ReadOnly), open(&path, OpenMode::ReadOnly)];
    let c = open(&path, OpenMode::ReadWrite);
    let first = Lock::shared_read(&a, None).unwrap();
    let second = Lock::shared_read(&b, None).unwrap();
    assert!(matches!(
        Lock::exclusive(&c, None).unwrap_err(),
        LockError::Held { reason: Reason::NotShared, .. }
    ));
    drop((first, second));
    let alone = Lock::exclusive(&c, None).unwrap();
    let error = Lock::shared_read(&a, None).unwrap_err();
    assert!(error.to_string().contains("disk.raw is in use: another process"), "{error}");
    drop(alone);
    Lock::shared_read(&a, None).unwrap();
}

#[test]
fn who_has_a_file_is_named() {
    let (_dir, path) = image();
    let (a, b) = (open(&path, OpenMode::ReadWrite), open(&path, OpenMode::ReadWrite));
    let _held = Lock::exclusive(&a, None).unwrap();
    let input = Stdio::from(a.file.try_clone().unwrap());
    let child = |input| Command::new("sleep").arg("600").stdin(input).spawn().unwrap();
    let mut one = child(input);
    let said = Lock::exclusive(&b, None).unwrap_err().to_string();
    // Another test's child may have it, too, until it executes its program.
    let named = format!("{} (sleep)", one.id());
    let renamed = path.with_file_name("other");
    std::fs::rename(&path, &renamed).unwrap();
    let mut two = child(Stdio::from(File::open(&renamed).unwrap()));
    let both = Lock::exclusive(&b, None).unwrap_err().to_string();
    for child in [&mut one, &mut two] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(said.contains("disk.raw is in use: ") && said.contains(&named), "{said}");
    assert!(said.contains(" has it open and does not share it; stop that first"), "{said}");
    let all = [one.id(), two.id()].map(|pid| format!("{pid} (sleep)"));
    assert!(all.iter().all(|pid| both.contains(pid)), "{both}");
    assert!(both.contains("in use: one of the processes "), "{both}");
}

#[test]
fn what_failed_leaves_no_lock_behind() {
    let (_dir, path) = image();
    let (a, b) = (open(&path, OpenMode::ReadWrite), open(&path, OpenMode::ReadWrite));
    let held = Lock::exclusive(&a, None).unwrap();
    Lock::exclusive(&b, None).unwrap_err();
    drop(held);
    Lock::exclusive(&a, None).unwrap();
}

#[test]
fn waiting_ends_when_the_other_lets_go() {
    let (_dir, path) = image();
    let (a, b) = (open(&path, OpenMode::ReadWrite), open(&path, OpenMode::ReadWrite));
    let held = Lock::exclusive(&a, None).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| Lock::exclusive(&b, Some(Duration::from_secs(20))).map(drop));
        drop(held);
        waiter.join().unwrap().unwrap();
    });
}

fn qemu(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        result => Some(result.unwrap()),
    }
}

// `qemu-img info` of a raw image reads no data and takes no permission, whatever has the image
// open, even another QEMU: only a command that reads data proves anything.
#[test]
fn qemu_img_sees_our_exclusive_lock() {
    let (dir, path) = image();
    let info = open(&path, OpenMode::ReadWrite);
    let lock = Lock::exclusive(&info, None).unwrap();
    let copy = dir.path().join("copy");
    let convert =
        ["convert", "-f", "raw", "-O", "raw", path.to_str().unwrap(), copy.to_str().unwrap()];
    let Some(refused) = qemu("qemu-img", &convert) else { return };
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("Failed to get \"consistent read\" lock"), "{said}");
    drop(lock);
    assert!(qemu("qemu-img", &convert).unwrap().status.success());
}

#[test]
fn qemu_reads_beside_our_shared_lock_and_does_not_write() {
    let (dir, path) = image();
    let info = open(&path, OpenMode::ReadOnly);
    let lock = Lock::shared_read(&info, None).unwrap();
    let name = path.to_str().unwrap();
    let Some(read) = qemu("qemu-img", &["info", name]) else { return };
    assert!(read.status.success(), "{read:?}");
    let copy = dir.path().join("copy");
    let convert = ["convert", "-f", "raw", "-O", "raw", name, copy.to_str().unwrap()];
    assert!(qemu("qemu-img", &convert).unwrap().status.success());
    let write = ["-f", "raw", "-c", "write 0 4096", name];
    let refused = qemu("qemu-io", &write).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr) + String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    drop(lock);
    let written = qemu("qemu-io", &write).unwrap();
    assert!(String::from_utf8_lossy(&written.stdout).contains("wrote 4096/4096"));
}

#[test]
fn we_see_the_locks_of_qemu() {
    let (_dir, path) = image();
    let name = path.to_str().unwrap();
    for (writable, reading_goes) in [(true, false), (false, true)] {
        // An interactive qemu-io keeps the image open until its input ends.
        let mode: &[&str] = if writable { &[] } else { &["-r"] };
        let spawned = Command::new("qemu-io")
            .args(mode)
            .args(["-f", "raw", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: qemu-io is not installed");
            return;
        };
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "length").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "qemu-io ended");
        }
        let ours = open(&path, OpenMode::ReadWrite);
        assert!(matches!(Lock::exclusive(&ours, None), Err(LockError::Held { .. })));
        assert_eq!(Lock::shared_read(&ours, None).is_ok(), reading_goes);
        drop(input);
        child.wait().unwrap();
        Lock::exclusive(&ours, None).unwrap();
    }
}

#[test]
fn neighbouring_bytes_are_locked_at_once_and_no_others() {
    let runs = |bits| super::runs(100, bits).collect::<Vec<_>>();
    assert_eq!(runs(0), []);
    assert_eq!(runs(0b1111_1111), [(100, 8)]);
    assert_eq!(runs(0b0001_1110), [(101, 4)]);
    assert_eq!(runs(0b1010_0001), [(100, 1), (105, 1), (107, 1)]);
}
