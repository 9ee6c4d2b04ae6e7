//! The snapblk program.

use std::process::ExitCode;

use clap::Parser;
use snapblk::cli::ctl;

/// Serves disks that can be snapshotted and rolled back while their guests run.
#[derive(Parser)]
#[command(name = "snapblk", version)]
enum Cli {
    /// Control a running server
    Ctl(ctl::CtlArgs),
}

fn main() -> ExitCode {
    match Cli::parse() {
        Cli::Ctl(args) => ctl::run(&args),
    }
}
