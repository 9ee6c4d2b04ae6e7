//! Table lines as people write them, parsed and printed.
//!
//! Owns the syntax (`dmsetup`'s) and the checks that need no open file. Has no behaviour. Keeps: a
//! printed line is parsed as the same line again, whatever its paths contain. So words follow the
//! kernel's rules (`dm_split_args`): white space ends a word, and a backslash quotes the next
//! character. Source: the kernel's device-mapper manuals (`Documentation/admin-guide/device-mapper`).

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use crate::cow::Persistence;
use crate::target::Features;
use crate::units::{ChunkSize, MOST_SECTORS, SECTOR_SHIFT, Sector};

/// What a parameter of a line refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Param {
    /// A file or block device: anything with a `/`.
    Path(PathBuf),
    /// A device of this process.
    Device(String),
}

impl Param {
    /// The device, if it refers to one.
    pub fn device(&self) -> Option<&str> {
        match self {
            Param::Device(name) => Some(name),
            Param::Path(_) => None,
        }
    }

    /// The path, if it refers to one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Param::Path(path) => Some(path),
            Param::Device(_) => None,
        }
    }

    /// The parameter for `path`: with a `/`, so that it parses as a path again.
    pub fn from_path(path: &std::path::Path) -> Param {
        let text = path.to_string_lossy();
        Param::Path(if text.contains('/') { path.into() } else { format!("./{text}").into() })
    }
}

/// For messages; in a line it is printed as a [`Word`].
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
    /// The origin.
    pub origin: Param,
    /// Its store.
    pub cow: Param,
    /// The store's kind of persistence.
    pub persistence: Persistence,
    /// The requested chunk size; none means the store's, or the default.
    pub chunk: Option<ChunkSize>,
    /// Feature words.
    pub features: Features,
}

/// A line's target with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// `linear <dev> <offset>`.
    Linear {
        /// The file or device below.
        dev: Param,
        /// The first sector of it.
        offset: Sector,
    },
    /// `zero`.
    Zero,
    /// `error`.
    Error,
    /// `snapshot-origin <origin>`.
    Origin {
        /// The file or device below.
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
    /// The target of its range.
    pub target: TargetSpec,
}

/// Sectors that a file can have: its length in bytes is a signed number.
const LONGEST_FILE: u64 = i64::MAX as u64 >> SECTOR_SHIFT;

/// The most characters shown of a line or of one of its words.
pub const MOST_SHOWN: usize = 60;
/// The most characters shown of a parser's message about a file, which may name the keys that it knows.
pub const MOST_SAID: usize = 500;

/// `text` as shown in a message: its first characters, at most `most`, with escapes for those that a
/// terminal would not print. The text may be a whole file of any kind.
pub fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    let mut left = most;
    for c in text.chars() {
        // Characters that lines contain, and that messages put around them.
        let is_plain = matches!(c, '\\' | '\'' | '"');
        let len = if is_plain { 1 } else { c.escape_debug().len() };
        let Some(rest) = left.checked_sub(len) else {
            shown.push('…');
            break;
        };
        left = rest;
        if is_plain { shown.push(c) } else { shown.extend(c.escape_debug()) }
    }
    shown
}

/// What is wrong with a line or a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A word is missing.
    #[error("table line '{}': {what} is missing", shown(line, MOST_SHOWN))]
    Missing {
        /// The line.
        line: String,
        /// The missing word.
        what: &'static str,
    },
    /// A word is not what it should be.
    #[error(
        "table line '{}': '{}' is not {what}",
        shown(line, MOST_SHOWN),
        shown(word, MOST_SHOWN)
    )]
    Bad {
        /// The line.
        line: String,
        /// The word.
        word: String,
        /// What is expected instead.
        what: &'static str,
    },
    /// There are more words than the target takes.
    #[error(
        "table line '{}': '{}' is one parameter too many for {target}",
        shown(line, MOST_SHOWN),
        shown(word, MOST_SHOWN)
    )]
    TooMany {
        /// The line.
        line: String,
        /// The first excess word.
        word: String,
        /// The target.
        target: String,
    },
    /// Lines are not adjacent.
    #[error("table: line {number} starts at sector {start}, but the one before ends at {end}")]
    Gap {
        /// The number of the second, from 1.
        number: usize,
        /// Its start.
        start: Sector,
        /// The end of the line before it, where it should start.
        end: Sector,
    },
    /// The table has no line.
    #[error("table: it is empty; give at least one line")]
    Empty,
}

/// A parameter as a word of a line.
struct Word<'a>(&'a Param);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if c == '\\' || is_space(c) {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

/// The characters that end a word: ASCII white space, as for the kernel, except the byte 0xa0,
/// which the kernel treats as white space and which is a part of letters in UTF-8.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// The words of a line, each without its backslashes. A backslash at the end is itself.
#[derive(Clone)]
struct Split<'a>(&'a str);

impl<'a> Iterator for Split<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Cow<'a, str>> {
        let text = self.0.trim_start_matches(is_space);
        let len = unescaped(text, is_space).unwrap_or(text.len());
        let (word, rest) = text.split_at(len);
        self.0 = rest;
        if !word.contains('\\') {
            return (len > 0).then_some(Cow::Borrowed(word));
        }
        let mut plain = String::with_capacity(len);
        let mut left = word.chars();
        while let Some(c) = left.next() {
            let escapes = if c == '\\' { left.next() } else { None };
            plain.push(escapes.unwrap_or(c));
        }
        Some(Cow::Owned(plain))
    }
}

/// The position of the first character in `text` for which `is` is true and which no backslash
/// quotes.
fn unescaped(text: &str, is: impl Fn(char) -> bool) -> Option<usize> {
    let mut left = text.char_indices();
    while let Some((at, c)) = left.next() {
        if is(c) {
            return Some(at);
        }
        if c == '\\' {
            left.next();
        }
    }
    None
}

/// The lines of a file with tables, without surrounding white space: a newline after a backslash
/// does not end a line; it is a character of a path.
pub fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut left = Some(text);
    std::iter::from_fn(move || {
        let text = left.take()?;
        let end = unescaped(text, |c| c == '\n');
        left = end.map(|end| &text[end + 1..]);
        let line = text[..end.unwrap_or(text.len())].trim_start_matches(is_space);
        let len = line.trim_end_matches(is_space).len();
        // The rest may end in a backslash that quotes the white space after it.
        let more = usize::from(len < line.len() && is_escaped(line, len));
        Some(&line[..len + more])
    })
}

/// Whether a backslash quotes the character at `at` of `line`.
fn is_escaped(line: &str, at: usize) -> bool {
    line[..at].bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

struct Words<'a> {
    line: &'a str,
    words: Split<'a>,
}

impl<'a> Words<'a> {
    fn next(&mut self, what: &'static str) -> Result<Cow<'a, str>, LineError> {
        self.words.next().ok_or(LineError::Missing { line: self.line.into(), what })
    }

    fn bad(&self, word: &str, what: &'static str) -> LineError {
        LineError::Bad { line: self.line.into(), word: word.into(), what }
    }

    fn number(&mut self, what: &'static str) -> Result<u64, LineError> {
        let word = self.next(what)?;
        word.parse().map_err(|_| self.bad(&word, what))
    }

    /// Where `len` sectors of a file or a device begin.
    fn offset(&mut self, len: Sector) -> Result<Sector, LineError> {
        let offset = self.number("an offset in sectors")?;
        if offset.checked_add(len.0).is_none_or(|end| end > LONGEST_FILE) {
            const OFFSET: &str = "an offset in sectors: no file has as many";
            return Err(self.bad(&offset.to_string(), OFFSET));
        }
        Ok(Sector(offset))
    }

    fn param(&mut self, what: &'static str) -> Result<Param, LineError> {
        let word = self.next(what)?;
        let word = word.into_owned();
        Ok(if word.contains('/') { Param::Path(word.into()) } else { Param::Device(word) })
    }

    fn snapshot(&mut self) -> Result<SnapshotSpec, LineError> {
        let origin = self.param("an origin")?;
        let cow = self.param("a store")?;
        let letters = self.next("P, PO or N")?;
        let persistence = match &*letters.to_ascii_uppercase() {
            "P" => Persistence::Persistent,
            "PO" => Persistence::PersistentOverflow,
            "N" => Persistence::Transient,
            _ => return Err(self.bad(&letters, "P, PO or N")),
        };
        let word = self.next("a chunk size")?;
        const SIZE: &str = "a chunk size: a power of two of sectors, at most 2097152, or 0";
        let chunk = match word.parse::<u32>().map_err(|_| self.bad(&word, SIZE))? {
            0 if persistence == Persistence::Transient => {
                return Err(self.bad(&word, "a chunk size for a transient store, which needs one"));
            }
            0 => None,
            sectors => Some(ChunkSize::from_sectors(sectors).ok_or_else(|| self.bad(&word, SIZE))?),
        };
        let mut features = Features::default();
        if let Some(word) = self.words.next() {
            let count = word.parse::<u8>().ok().filter(|count| *count <= 2);
            let bad = || self.bad(&word, "the number of feature words: at most 2");
            for _ in 0..count.ok_or_else(bad)? {
                match &*self.next("a feature word")?.to_ascii_lowercase() {
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
        let mut words = Words { line, words: Split(line) };
        let start = Sector(words.number("a start sector")?);
        let len = Sector(words.number("a length in sectors")?);
        const LENGTH: &str = "a length: at least one sector, and a device has at most 8 PiB";
        if len.0 == 0 || start.0.checked_add(len.0).is_none_or(|end| end > MOST_SECTORS) {
            return Err(words.bad(&len.to_string(), LENGTH));
        }
        let name = words.next("a target")?;
        let target = match &*name {
            "linear" => {
                TargetSpec::Linear { dev: words.param("a device")?, offset: words.offset(len)? }
            }
            "zero" => TargetSpec::Zero,
            "error" => TargetSpec::Error,
            "snapshot-origin" => TargetSpec::Origin { origin: words.param("an origin")? },
            "snapshot" => TargetSpec::Snapshot(words.snapshot()?),
            "snapshot-merge" => TargetSpec::Merge(words.snapshot()?),
            _ => {
                const KNOWN: &str = "a target: linear, snapshot-origin, snapshot, snapshot-merge, \
                                     zero or error";
                return Err(words.bad(&name, KNOWN));
            }
        };
        if let Some(word) = words.words.next() {
            let (line, word) = (line.to_owned(), word.into_owned());
            return Err(LineError::TooMany { line, word, target: name.into_owned() });
        }
        Ok(TableLine { start, len, target })
    }
}

impl TargetSpec {
    /// The target's name in a line.
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

    /// The files and devices that it refers to.
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
        let (origin, cow) = (Word(&self.origin), Word(&self.cow));
        write!(f, " {origin} {cow} {} {chunk}", self.persistence.letters())?;
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
            TargetSpec::Linear { dev, offset } => write!(f, " {} {offset}", Word(dev)),
            TargetSpec::Zero | TargetSpec::Error => Ok(()),
            TargetSpec::Origin { origin } => write!(f, " {}", Word(origin)),
            TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => spec.fmt(f),
        }
    }
}

/// The lines of a table, without empty ones; they must be adjacent from sector 0.
///
/// # Errors
/// The first error.
pub fn parse_table<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<TableLine>, LineError> {
    let mut table = Vec::new();
    let mut end = Sector(0);
    for line in lines.into_iter().filter(|line| Split(line).next().is_some()) {
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
    use proptest::prelude::*;

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
        // In bytes, 2^55 sectors wrap to none.
        for offset in ["18014398509481983", "36028797018963968", "18446744073709551615"] {
            let line = format!("0 8 linear /x {offset}");
            assert!(message(&line).contains(&format!("'{offset}' is not an offset")), "{line}");
        }
        assert!("0 8 linear /x 18014398509481975".parse::<TableLine>().is_ok());
        assert!("8 17592186044408 zero".parse::<TableLine>().is_ok());
        assert!(message("8 17592186044409 zero").contains("at most 8 PiB"));
        assert!(message("0 8 snapshot /o /c P 8 1 discard_passdown_origin").contains("without"));
    }

    /// A user may name any file.
    #[test]
    fn of_what_is_no_line_little_is_shown() {
        let long = format!("GIF89a\0\u{1b}[2J{}", "\u{7}x".repeat(100_000));
        for text in [long.clone(), format!("0 8 {long}"), format!("0 8 zero {long}")] {
            let said = text.parse::<TableLine>().unwrap_err().to_string();
            assert!(said.len() < 350 && !said.contains(char::is_control), "{said}");
            assert!(said.contains("GIF89a\\0\\u{1b}[2J\\u{7}x"), "{said}");
        }
        let plain = r"0 8 linear /it\ is\\'so'";
        assert_eq!(shown(plain, MOST_SHOWN), plain);
        assert_eq!((&*shown("abcd", 4), &*shown("abcde", 4)), ("abcd", "abcd…"));
    }

    /// Whatever paths hold, and however lines are printed and stored.
    fn any_line() -> impl Strategy<Value = TableLine> {
        let text = || "[ \t\n\u{b}\r\\\\@\u{a0}\u{2003}àa./]{0,8}";
        let path = || text().prop_map(|text| Param::from_path(text.as_ref()));
        let device = "[a-z-]{1,4}".prop_map(Param::Device);
        let param = || prop_oneof![path(), device.clone()].boxed();
        let snapshot = || {
            (param(), path()).prop_map(|(origin, cow)| SnapshotSpec {
                origin,
                cow,
                persistence: Persistence::PersistentOverflow,
                chunk: Some(ChunkSize::TOOLS),
                features: Features { discard_zeroes_cow: true, ..Features::default() },
            })
        };
        let target = prop_oneof![
            (param(), 0..9u64).prop_map(|(dev, at)| TargetSpec::Linear { dev, offset: Sector(at) }),
            param().prop_map(|origin| TargetSpec::Origin { origin }),
            snapshot().prop_map(TargetSpec::Snapshot),
            snapshot().prop_map(TargetSpec::Merge),
        ];
        target.prop_map(|target| TableLine { start: Sector(0), len: Sector(8), target })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]
        #[test]
        fn what_a_line_prints_is_that_line(line in any_line()) {
            let text = line.to_string();
            prop_assert_eq!(text.parse::<TableLine>(), Ok(line.clone()));
            let file = format!("{text}\r\n\n{text}\n");
            let table: Vec<_> = split_lines(&file).map(str::parse::<TableLine>).collect();
            prop_assert_eq!(table.len(), 4);
            prop_assert_eq!((&table[0], &table[2]), (&Ok(line.clone()), &Ok(line.clone())));
            prop_assert_eq!(parse_table([text.as_str()]), Ok(vec![line]));
        }
    }

    #[test]
    fn words_are_the_kernels() {
        let words = |line| Split(line).map(Cow::into_owned).collect::<Vec<_>>();
        assert_eq!(words(" a\t\u{b} b\\ c \\d\\\\ "), ["a", "b c", "d\\"]);
        assert_eq!(words("a\u{a0}b à\\"), ["a\u{a0}b", "à\\"]);
        assert_eq!(words(" "), [""; 0]);
        let lines: Vec<_> = split_lines(" a \r\nb\\ \t\nc\\\nd\\\\ \n").collect();
        assert_eq!(lines, ["a", "b\\ ", "c\\\nd\\\\", ""]);
        let line = "0 8 linear ./a\\ b.raw 0";
        let parsed: TableLine = line.parse().unwrap();
        assert_eq!(parsed.target.params()[0].path(), Some("./a b.raw".as_ref()));
        assert_eq!(parsed.to_string(), line);
    }

    #[test]
    fn letters_and_feature_words_are_read_in_either_case_and_are_no_more_than_there_are() {
        let spec = |rest: &str| format!("0 8 snapshot ./o ./c {rest}").parse::<TableLine>();
        assert_eq!(spec("po 8 1 Discard_Zeroes_COW"), spec("PO 8 1 discard_zeroes_cow"));
        let thrice = spec(&format!("P 8 3{}", " discard_zeroes_cow".repeat(3)));
        assert!(thrice.unwrap_err().to_string().contains("at most 2"));
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
