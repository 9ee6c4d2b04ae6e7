//! The command line, for people and scripts.
//!
//! Owns words, exit statuses and the form of answers. Never knows how a store is laid out or
//! served: each command is one file that asks the store's crate. Exit status: 0 done, 1 failed, 2
//! usage.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub mod check;
pub mod create;
pub mod ctl;
pub mod dump;
pub mod error;
pub mod help;
pub mod info;
pub mod merge;
pub mod output;
pub mod serve;
pub mod size;
pub mod store_file;

pub use error::CliError;

/// The output of `--print-capabilities` (QEMU, docs/interop/vhost-user.json).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

/// The disk under a virtual machine: snapshots, rollback and overlays while the guest runs.
#[derive(Debug, Parser)]
#[command(name = "snapblk", version, about, propagate_version = true, subcommand_required = false)]
pub struct Cli {
    /// Print what this back end can do, for management software, and exit
    #[arg(long)]
    print_capabilities: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The commands. What the help says of one stands at its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve disks to virtual machines
    Serve(serve::Serve),
    Create(create::Create),
    Info(info::Info),
    Check(check::Check),
    Dump(dump::Dump),
    Merge(merge::Merge),
    Ctl(ctl::CtlArgs),
    Completions(help::Completions),
    Man(help::Man),
}

impl Cli {
    /// The whole command line, for the documentation.
    pub fn definition() -> clap::Command {
        Cli::command()
    }

    fn run(&self) -> Result<(), CliError> {
        if self.print_capabilities {
            return output::line(CAPABILITIES);
        }
        match &self.command {
            Some(Command::Serve(command)) => command.run(),
            Some(Command::Create(command)) => command.run(),
            Some(Command::Info(command)) => command.run(),
            Some(Command::Check(command)) => command.run(),
            Some(Command::Dump(command)) => command.run(),
            Some(Command::Merge(command)) => command.run(),
            Some(Command::Ctl(_)) => unreachable!("it has an exit status of its own"),
            Some(Command::Completions(command)) => command.run(),
            Some(Command::Man(command)) => command.run(),
            None => {
                Err(CliError::Usage("no command was given; 'snapblk --help' lists them".to_owned()))
            }
        }
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(by_convention(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    start_logging();
    if let Err(error) = crate::signals::block_file_size() {
        tracing::warn!("cannot block SIGXFSZ: {error}");
    }
    if let Some(Command::Ctl(command)) = &cli.command {
        return ctl::run(command);
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            error.status().into()
        }
    }
}

/// Prints a usage error under the program's name, as all others; or the help that was asked for.
fn misused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(what) if error.use_stderr() => say(&in_one_line(what)),
        // Also where the reader of the output has gone.
        _ => drop(error.print()),
    }
    ExitCode::from(error.exit_code() as u8)
}

/// A usage error as one sentence: its paragraphs, without the last, which says where help is.
fn in_one_line(text: &str) -> String {
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.contains("'--help'"));
    let lines = paragraphs.map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ").replacen("Usage:", "usage:", 1)
    });
    lines.collect::<Vec<_>>().join("; ")
}

/// Says why the program ends, if anybody can be told.
fn say(why: &str) {
    let _ = writeln!(std::io::stderr(), "snapblk: {why}");
}

/// The arguments with the command that they imply. QEMU's conventions for back-end programs
/// (docs/interop/vhost-user.rst) have no commands: options alone mean `serve`, and a request for
/// the capabilities overrides all else.
fn by_convention(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const OURS: [&str; 2] = ["--help", "--version"];
    let mut words: Vec<OsString> = given.collect();
    let first = words.get(1).map_or(&b""[..], |word| word.as_encoded_bytes());
    if !first.starts_with(b"--") || OURS.iter().any(|ours| ours.as_bytes() == first) {
        return words;
    }
    if words.iter().any(|word| word == "--print-capabilities") {
        words.truncate(1);
        words.push("--print-capabilities".into());
    } else {
        words.insert(1, "serve".into());
    }
    words
}

/// Logs warnings and errors to standard error; `SNAPBLK_LOG` selects more.
fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let asked = std::env::var_os("SNAPBLK_LOG").filter(|asked| !asked.is_empty());
    let filter = asked.as_ref().map(|asked| EnvFilter::try_new(asked.to_string_lossy()));
    let wrong = filter.as_ref().and_then(|filter| Some(filter.as_ref().err()?.to_string()));
    let filter = filter.and_then(Result::ok).unwrap_or_else(|| EnvFilter::new("warn"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for terminals; a log file or a journal gets plain text.
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // The threads of exports have the export's name, at no cost to requests.
        .with_thread_names(true)
        // A line that cannot be written is lost. Said on standard error it would be a panic.
        .log_internal_errors(false)
        .try_init();
    // This fails only for a second start in one process, where the first logger continues.
    drop(started);
    if let (Some(asked), Some(why)) = (asked, wrong) {
        tracing::warn!(
            "SNAPBLK_LOG is {asked:?}, which asks for nothing that can be logged ({why}); warnings \
             are logged, set it as 'info' or 'snapblk=debug' for more"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
