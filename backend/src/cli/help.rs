//! `snapblk completions` and `snapblk man`: documentation generated from the command line itself.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::{Cli, CliError, output};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    /// Prints it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::definition(), "snapblk", &mut script);
        output::checked(io::Write::write_all(&mut io::stdout().lock(), &script))
    }
}

/// Print or write the manual pages.
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this folder, which is made where missing
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints the program's page, or writes all pages.
    ///
    /// # Errors
    /// A system call failed.
    pub fn run(&self) -> Result<(), CliError> {
        match &self.dir {
            Some(dir) => write_pages(dir).map_err(CliError::io("write manual pages to", dir)),
            None => {
                let mut page = Vec::new();
                let rendered = clap_mangen::Man::new(definition()).render(&mut page);
                output::checked(rendered)?;
                output::checked(io::Write::write_all(&mut io::stdout().lock(), &page))
            }
        }
    }
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    write_page(definition(), dir)
}

/// The command line for the pages: the synopsis of each command is its usage.
fn definition() -> clap::Command {
    let mut program = Cli::definition().disable_help_subcommand(true);
    program.build();
    with_usage(program)
}

fn with_usage(mut command: clap::Command) -> clap::Command {
    let usage = command.render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    command.override_usage(usage).mut_subcommands(with_usage)
}

/// The page of `command`, and those of its own commands.
fn write_page(command: clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        write_page(below.clone(), dir)?;
    }
    clap_mangen::Man::new(command).generate_to(dir).map(drop)
}
