//! `snapblk completions` and `snapblk man`: documentation made from the command line itself.

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
    /// Prints the page of the program, or writes all pages.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn run(&self) -> Result<(), CliError> {
        match &self.dir {
            Some(dir) => write_pages(dir).map_err(CliError::io("write manual pages to", dir)),
            None => {
                let mut page = Vec::new();
                let rendered = clap_mangen::Man::new(Cli::definition()).render(&mut page);
                output::checked(rendered)?;
                output::checked(io::Write::write_all(&mut io::stdout().lock(), &page))
            }
        }
    }
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::definition(), dir)
}
