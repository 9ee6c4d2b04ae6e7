//! Runs the program as a user would.
#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder that is removed afterwards, and the program run in it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn sparse(&self, name: &str, len: u64) -> PathBuf {
        std::fs::File::create(self.path(name)).unwrap().set_len(len).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `snapblk` with the words of `line`.
    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_words(&line.split_whitespace().map(OsStr::new).collect::<Vec<_>>())
    }

    /// Runs `snapblk` with these words.
    pub(crate) fn run_words(&self, words: &[&OsStr]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_snapblk"))
            .args(words)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        Ran { line: words.join(OsStr::new(" ")).to_string_lossy().into_owned(), output }
    }

    pub(crate) fn ok(&self, line: &str) -> String {
        self.run(line).expect(0).0
    }

    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    /// Runs it, expects this exit status, and returns the sentence on standard error.
    pub(crate) fn fails(&self, status: i32, line: &str) -> String {
        let (_, err) = self.run(line).expect(status);
        assert!(!err.is_empty());
        err
    }

    /// Unpacks a store that a real kernel wrote, as `origin` and `cow`; returns its description.
    pub(crate) fn golden(&self, name: &str) -> serde_json::Value {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden").join(name);
        for file in ["origin", "cow"] {
            let packed = std::fs::File::open(folder.join(format!("{file}.raw.xz"))).unwrap();
            let mut bytes = Vec::new();
            lzma_rs::xz_decompress(&mut std::io::BufReader::new(packed), &mut bytes).unwrap();
            self.file(file, &bytes);
        }
        serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap()
    }
}

pub(crate) struct Ran {
    line: String,
    output: Output,
}

impl Ran {
    /// Its standard output and standard error.
    pub(crate) fn expect(self, status: i32) -> (String, String) {
        let out = String::from_utf8(self.output.stdout).unwrap();
        let err = String::from_utf8(self.output.stderr).unwrap();
        assert_eq!(self.output.status.code(), Some(status), "{}: {out}{err}", self.line);
        (out, err)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
