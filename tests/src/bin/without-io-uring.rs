//! Runs a program for which the system refuses io_uring, as containers often do.
//!
//!   without-io-uring PROGRAM [ARGUMENT]...

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// The refused system calls, and the error of containers' default filter.
const REFUSED: [i64; 1] = [libc::SYS_io_uring_setup];
const SAYS: u32 = libc::EPERM as u32;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("usage: without-io-uring PROGRAM [ARGUMENT]...");
        return ExitCode::from(2);
    };
    let failed: Box<dyn std::error::Error> = match refuse() {
        Ok(()) => Command::new(&program).args(args).exec().into(),
        Err(error) => error,
    };
    eprintln!("cannot run {} without io_uring: {failed}", program.display());
    ExitCode::FAILURE
}

/// Applies to this process and the program that it executes.
fn refuse() -> Result<(), Box<dyn std::error::Error>> {
    let rules = REFUSED.map(|call| (call, Vec::new()));
    let filter = SeccompFilter::new(
        BTreeMap::from(rules),
        SeccompAction::Allow,
        SeccompAction::Errno(SAYS),
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}
