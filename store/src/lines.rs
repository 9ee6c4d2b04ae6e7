//! Table lines as people write them, parsed and printed.
//!
//! Owns the syntax (`dmsetup`'s) and what can be checked without opening anything. Has no
//! behaviour. Source: the kernel's device-mapper manuals; `spec: targets`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cow::Persistence;
use crate::target::Features;
use crate::units::{ChunkSize, Sector};

/// What a parameter of a line names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Param {
    /// A file or block device: anything with a `/`.
    Path(PathBuf),
    /// A device of this process.
    Device(String),
}

impl Param {
    /// The device, if it names one.
    pub fn device(&self) -> Option<&str> {
        match self {
            Param::Device(name) => Some(name),
            Param::Path(_) => None,
        }
    }

    /// The path, if it names one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Param::Path(path) => Some(path),
            Param::Device(_) => None,
        }
    }

    /// The parameter for `path`: with a `/`, so that it reads as a path again.
    pub fn from_path(path: &std::path::Path) -> Param {
        let text = path.to_string_lossy();
        Param::Path(if text.contains('/') { path.into() } else { format!("./{text}").into() })
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Param::Path(path) => path.display().fmt(f),
            Param::Device(name) => name.fmt(f),
        }
    }
}

/// The parameters of `snapshot` and `snapshot-merge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// What it is a snapshot of.
    pub origin: Param,
    /// Its store.
    pub cow: Param,
    /// How the store keeps exceptions.
    pub persistence: Persistence,
    /// The chunk asked for; none takes the store's, or the default.
    pub chunk: Option<ChunkSize>,
    /// Feature words.
    pub features: Features,
}

/// A line's target with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// `linear <dev> <offset>`.
    Linear {
        /// Below.
        dev: Param,
        /// From which sector of it.
        offset: Sector,
    },
    /// `zero`.
    Zero,
    /// `error`.
    Error,
    /// `snapshot-origin <origin>`.
    Origin {
        /// Below.
        origin: Param,
    },
    /// `snapshot …`.
    Snapshot(SnapshotSpec),
    /// `snapshot-merge …`.
    Merge(SnapshotSpec),
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// First sector.
    pub start: Sector,
    /// Sectors.
    pub len: Sector,
    /// What they map to.
    pub target: TargetSpec,
}

/// What is wrong with a line or a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A word is missing.
    #[error("table line '{line}': {what} is missing")]
    Missing {
        /// The line.
        line: String,
        /// What should have been there.
        what: &'static str,
    },
    /// A word is not what it should be.
    #[error("table line '{line}': '{word}' is not {what}")]
    Bad {
        /// The line.
        line: String,
        /// The word.
        word: String,
        /// What it should have been.
        what: &'static str,
    },
    /// There are more words than the target takes.
    #[error("table line '{line}': '{word}' is one parameter too many for {target}")]
    TooMany {
        /// The line.
        line: String,
        /// The first of them.
        word: String,
        /// The target.
        target: String,
    },
    /// Lines do not follow each other.
    #[error("table: line {number} starts at sector {start}, but the one before ends at {end}")]
    Gap {
        /// Which, from 1.
        number: usize,
        /// Where it starts.
        start: Sector,
        /// Where it should.
        end: Sector,
    },
    /// There is no line.
    #[error("table: it is empty; give at least one line")]
    Empty,
}

struct Words<'a> {
    line: &'a str,
    words: std::str::SplitWhitespace<'a>,
}

impl<'a> Words<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, LineError> {
        self.words.next().ok_or(LineError::Missing { line: self.line.into(), what })
    }

    fn bad(&self, word: &str, what: &'static str) -> LineError {
        LineError::Bad { line: self.line.into(), word: word.into(), what }
    }

    fn number(&mut self, what: &'static str) -> Result<u64, LineError> {
        let word = self.next(what)?;
        word.parse().map_err(|_| self.bad(word, what))
    }

    fn param(&mut self, what: &'static str) -> Result<Param, LineError> {
        let word = self.next(what)?;
        Ok(if word.contains('/') { Param::Path(word.into()) } else { Param::Device(word.into()) })
    }

    fn snapshot(&mut self) -> Result<SnapshotSpec, LineError> {
        let origin = self.param("an origin")?;
        let cow = self.param("a store")?;
        let letters = self.next("P, PO or N")?;
        let persistence = match letters {
            "P" => Persistence::Persistent,
            "PO" => Persistence::Overflow,
            "N" => Persistence::Transient,
            _ => return Err(self.bad(letters, "P, PO or N")),
        };
        let word = self.next("a chunk size")?;
        const SIZE: &str = "a chunk size: a power of two of sectors, at most 2097152, or 0";
        let chunk = match word.parse::<u32>().map_err(|_| self.bad(word, SIZE))? {
            0 if persistence == Persistence::Transient => {
                return Err(self.bad(word, "a chunk size for a transient store, which needs one"));
            }
            0 => None,
            sectors => Some(ChunkSize::from_sectors(sectors).ok_or_else(|| self.bad(word, SIZE))?),
        };
        let mut features = Features::default();
        if let Some(word) = self.words.next() {
            let count: usize =
                word.parse().map_err(|_| self.bad(word, "the number of feature words"))?;
            for _ in 0..count {
                match self.next("a feature word")? {
                    "discard_zeroes_cow" => features.discard_zeroes_cow = true,
                    "discard_passdown_origin" => features.discard_passdown_origin = true,
                    word => {
                        return Err(self.bad(word, "discard_zeroes_cow or discard_passdown_origin"));
                    }
                }
            }
        }
        if features.discard_passdown_origin && !features.discard_zeroes_cow {
            let word = "discard_passdown_origin";
            return Err(self.bad(word, "possible without discard_zeroes_cow"));
        }
        Ok(SnapshotSpec { origin, cow, persistence, chunk, features })
    }
}

impl FromStr for TableLine {
    type Err = LineError;

    fn from_str(line: &str) -> Result<Self, LineError> {
        let line = line.trim();
        let mut words = Words { line, words: line.split_whitespace() };
        let start = Sector(words.number("a start sector")?);
        let len = Sector(words.number("a length in sectors")?);
        const LENGTH: &str = "a length: at least one sector, and no more than fit a device";
        if len.0 == 0 || start.0.checked_add(len.0).is_none_or(|end| end > u64::MAX >> 12) {
            return Err(words.bad(&len.to_string(), LENGTH));
        }
        let name = words.next("a target")?;
        let target = match name {
            "linear" => TargetSpec::Linear {
                dev: words.param("a device")?,
                offset: Sector(words.number("an offset in sectors")?),
            },
            "zero" => TargetSpec::Zero,
            "error" => TargetSpec::Error,
            "snapshot-origin" => TargetSpec::Origin { origin: words.param("an origin")? },
            "snapshot" => TargetSpec::Snapshot(words.snapshot()?),
            "snapshot-merge" => TargetSpec::Merge(words.snapshot()?),
            _ => {
                const KNOWN: &str = "a target: linear, snapshot-origin, snapshot, snapshot-merge, \
                                     zero or error";
                return Err(words.bad(name, KNOWN));
            }
        };
        if let Some(word) = words.words.next() {
            let (line, word) = (line.to_owned(), word.to_owned());
            return Err(LineError::TooMany { line, word, target: name.to_owned() });
        }
        Ok(TableLine { start, len, target })
    }
}

impl TargetSpec {
    /// Its name in a line.
    pub fn name(&self) -> &'static str {
        match self {
            TargetSpec::Linear { .. } => "linear",
            TargetSpec::Zero => "zero",
            TargetSpec::Error => "error",
            TargetSpec::Origin { .. } => "snapshot-origin",
            TargetSpec::Snapshot(_) => "snapshot",
            TargetSpec::Merge(_) => "snapshot-merge",
        }
    }

    /// What it names, files and devices.
    pub fn params(&self) -> Vec<&Param> {
        match self {
            TargetSpec::Linear { dev, .. } => vec![dev],
            TargetSpec::Zero | TargetSpec::Error => vec![],
            TargetSpec::Origin { origin } => vec![origin],
            TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => vec![&spec.origin, &spec.cow],
        }
    }

    /// The snapshot's parameters, of `snapshot` and `snapshot-merge`.
    pub fn snapshot(&self) -> Option<&SnapshotSpec> {
        match self {
            TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => Some(spec),
            _ => None,
        }
    }
}

impl fmt::Display for SnapshotSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunk = self.chunk.map_or(0, ChunkSize::sectors);
        write!(f, " {} {} {} {chunk}", self.origin, self.cow, self.persistence.letters())?;
        match self.features {
            Features { discard_zeroes_cow: true, discard_passdown_origin: true } => {
                f.write_str(" 2 discard_zeroes_cow discard_passdown_origin")
            }
            Features { discard_zeroes_cow: true, .. } => f.write_str(" 1 discard_zeroes_cow"),
            Features { .. } => Ok(()),
        }
    }
}

impl fmt::Display for TableLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.start, self.len, self.target.name())?;
        match &self.target {
            TargetSpec::Linear { dev, offset } => write!(f, " {dev} {offset}"),
            TargetSpec::Zero | TargetSpec::Error => Ok(()),
            TargetSpec::Origin { origin } => write!(f, " {origin}"),
            TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => spec.fmt(f),
        }
    }
}

/// The lines of a table: one each, empty ones left out; they follow each other from sector 0.
///
/// # Errors
/// The first line that is wrong.
pub fn parse_table<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<TableLine>, LineError> {
    let mut table = Vec::new();
    let mut end = Sector(0);
    for line in lines.into_iter().map(str::trim).filter(|line| !line.is_empty()) {
        let line: TableLine = line.parse()?;
        if line.start != end {
            return Err(LineError::Gap { number: table.len() + 1, start: line.start, end });
        }
        end = Sector(line.start.0 + line.len.0);
        table.push(line);
    }
    if table.is_empty() { Err(LineError::Empty) } else { Ok(table) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_print_as_dmsetup_prints_them() {
        for line in [
            "0 2048 linear /dev/sdb 384",
            "0 2048 snapshot-origin disk0-real",
            "0 2048 snapshot disk0 /var/cow P 8",
            "0 2048 snapshot disk0 /var/cow PO 16 1 discard_zeroes_cow",
            "0 2048 snapshot a/b c/d N 1 2 discard_zeroes_cow discard_passdown_origin",
            "0 2048 snapshot-merge disk0 /var/cow P 8",
            "0 8 zero",
            "0 8 error",
        ] {
            assert_eq!(line.parse::<TableLine>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn scenario_7_bad_chunk_sizes_are_refused() {
        for chunk in ["3", "4194304", "-8", "x", "4096k"] {
            let error = format!("0 8 snapshot /o /c P {chunk}").parse::<TableLine>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{chunk}' is not a chunk size")));
        }
        let error = "0 8 snapshot /o /c N 0".parse::<TableLine>().unwrap_err();
        assert!(error.to_string().contains("needs one"), "{error}");
        assert!("0 8 snapshot /o /c P 0".parse::<TableLine>().is_ok());
        assert!("0 8 snapshot /o /c P 2097152".parse::<TableLine>().is_ok());
    }

    #[test]
    fn a_bad_line_is_named() {
        let message = |line: &str| line.parse::<TableLine>().unwrap_err().to_string();
        assert_eq!(message("0 8"), "table line '0 8': a target is missing");
        assert!(message("0 8 linear /x").contains("an offset in sectors is missing"));
        assert!(message("0 8 zero 1").contains("'1' is one parameter too many for zero"));
        assert!(message("0 0 zero").contains("'0' is not a length"));
        assert!(message("0 18446744073709551615 zero").contains("is not a length"));
        assert!(message("0 8 mirror").contains("'mirror' is not a target"));
        assert!(message("0 8 snapshot /o /c P 8 1 discard_passdown_origin").contains("without"));
    }

    #[test]
    fn a_table_has_no_gap_and_no_overlap() {
        assert!(parse_table(["0 8 zero", "8 8 error"]).is_ok());
        assert!(parse_table(["0 8 zero", "9 8 error"]).unwrap_err().to_string().contains("line 2"));
        assert!(parse_table(["0 8 zero", "7 8 error"]).is_err());
        assert!(parse_table(["8 8 zero"]).is_err());
        assert_eq!(parse_table([" "]).unwrap_err(), LineError::Empty);
    }
}
