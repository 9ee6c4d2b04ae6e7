//! The available versions of qemu-storage-daemon.
//!
//! Owns finding and distinguishing them. Never runs one as a server.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::BenchError;
use super::peer::said_by;
use crate::server::{absolute, find_in_path, named_qemu_storage_daemons};

/// Debian's, as fetched by `images/qemu-storage-daemon`, and the script that becomes it.
const FETCHED: [&str; 2] =
    ["../images/cache/debian/usr/bin/qemu-storage-daemon", "../images/qemu-storage-daemon"];

/// One qemu-storage-daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its name in the report: its version, unless given.
    pub name: String,
    /// The program.
    pub program: PathBuf,
}

impl Daemon {
    /// A chosen one: `NAME=PATH`.
    pub fn named(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), program: absolute(path.into()) })
            }
            _ => Err(format!("{text:?} is not of the form NAME=PATH")),
        }
    }

    /// Those in `$QEMU_STORAGE_DAEMON`; otherwise the one in `PATH` and Debian's from the cache of
    /// `images`. Of two with the same version, the first.
    pub fn at_hand() -> Result<Vec<Self>, BenchError> {
        let mut programs = named_qemu_storage_daemons();
        if programs.is_empty() {
            programs.extend(find_in_path("qemu-storage-daemon"));
            let [program, script] =
                FETCHED.map(|path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
            if program.is_file() {
                programs.push(script);
            }
        }
        let mut found: Vec<Self> = Vec::new();
        for program in programs {
            let said = said_by(Command::new(&program).arg("--version"))?;
            let name = version_in(&said).unwrap_or_else(|| program.display().to_string());
            if found.iter().all(|other| other.name != name) {
                found.push(Self { name, program });
            }
        }
        Ok(found)
    }
}

/// `7.2` of `qemu-storage-daemon version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn version_in(said: &str) -> Option<String> {
    let number = said.split_once(" version ")?.1.split_whitespace().next()?;
    let mut parts = number.split('.');
    Some(format!("{}.{}", parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_called_by_its_version() {
        let said = "qemu-storage-daemon version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n";
        assert_eq!(version_in(said).as_deref(), Some("7.2"));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn a_chosen_daemon_has_a_name_and_a_program() {
        let daemon = Daemon::named("new=/opt/qsd").unwrap();
        assert_eq!((&*daemon.name, &*daemon.program), ("new", Path::new("/opt/qsd")));
        assert!(Daemon::named("/opt/qsd").is_err() && Daemon::named("=/opt/qsd").is_err());
    }
}
