//! The snapblk program.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapblk::cli::main()
}
