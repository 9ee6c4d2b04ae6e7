//! Starts that do not come to their end.

use std::fs::File;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::common::*;

/// It waits for a table, as another may for the locks of a disk.
#[test]
fn a_signal_ends_a_start_at_once() {
    let scratch = scratch();
    let table = scratch.path("table");
    mknodat(CWD, &table, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let command = monitor_only(&scratch).arg("--table").arg(format!("@{}", table.display()));
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2)] {
        let mut server = command.begin().unwrap();
        // Nobody reads it before the server does.
        let _nothing = File::options().write(true).open(&table).unwrap();
        server.signal(signal).unwrap();
        let status = server.wait("end instead of starting").unwrap();
        assert_eq!(status.code(), Some(128 + number), "{}", server.stderr());
    }
}
