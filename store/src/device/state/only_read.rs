//! The bases that a state knows and whose disks only read them.
//!
//! Owns the answer for who changes files while no server runs. Never changes a state. Keeps: where it
//! cannot be told whether a path of the state is the file that is asked about, it counts as that.

use std::path::Path;

use super::{State, StateError, StateFile};
use crate::io::Identity;
use crate::lines::{TargetSpec, parse_table};

/// Whether the state at `state`, or the one that it names, knows `base` as the base of an overlay that no
/// disk writes: other overlays may need it as it is, as well.
///
/// # Errors
/// The state cannot be read.
pub fn is_only_read(state: &Path, base: &Path) -> Result<bool, StateError> {
    let known = StateFile::new(Some(state.to_owned())).read()?;
    let known = known.map(|known| known.followed(state)).transpose()?.flatten();
    Ok(known.is_some_and(|known| known.only_reads(base)))
}

impl State {
    fn only_reads(&self, base: &Path) -> bool {
        self.bases.iter().any(|known| is_same(&known.path, base)) && !self.writes(base)
    }

    /// Whether a guest's disk was made of `file`, to write it.
    fn writes(&self, file: &Path) -> bool {
        let initial = self.initial.values().map(|initial| (initial.read_only, &initial.table));
        let now = self.devices.values().map(|device| (device.read_only, &device.table));
        let tables = initial.chain(now).filter(|(read_only, _)| !read_only);
        let lines = tables.map(|(_, table)| parse_table(table.iter().map(String::as_str)));
        lines.flat_map(Result::unwrap_or_default).any(|line| match &line.target {
            TargetSpec::Linear { dev: disk, .. } | TargetSpec::Origin { origin: disk } => {
                disk.path().is_some_and(|path| is_same(path, file))
            }
            TargetSpec::Merge(spec) => spec.origin.path().is_some_and(|path| is_same(path, file)),
            TargetSpec::Snapshot(_) | TargetSpec::Zero | TargetSpec::Error => false,
        })
    }
}

/// Whether `known` of a state is `file`. One that is relative is so to the directory of a process that has
/// ended, which nobody knows.
fn is_same(known: &Path, file: &Path) -> bool {
    if known.is_relative() {
        return known.file_name() == file.file_name();
    }
    let of = |path: &Path| Identity::of_path(path).ok();
    known == file || of(known).is_some_and(|known| of(file) == Some(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_that_a_disk_writes_is_not_one_that_is_only_read() {
        let dir = tempfile::tempdir().unwrap();
        let [golden, own, other, state, refers] =
            ["golden", "own", "other", "state", "refers"].map(|name| dir.path().join(name));
        for file in [&golden, &own, &other] {
            std::fs::write(file, [0; 512]).unwrap();
        }
        let text = format!(
            "version = 1\ngeneration = 1\nescaped = true\n\
             [devices.a]\ntable = ['0 8 snapshot {} ./a.cow PO 8']\n\
             [devices.b]\ntable = ['0 8 snapshot b.1 ./b.cow PO 8']\n\
             [devices.'b.1']\ntable = ['0 8 linear {} 0']\n",
            golden.display(),
            own.display()
        );
        let base = |path: &Path| {
            format!(
                "[[bases]]\npath = '{}'\nstore = 's'\nsize = 512\nmodified = 1\n",
                path.display()
            )
        };
        std::fs::write(&state, [text.clone(), base(&golden), base(&own)].concat()).unwrap();
        std::fs::write(&refers, "version = 1\ngeneration = 1\nkept-in = 'state'\n").unwrap();
        for state in [&state, &refers] {
            assert!(is_only_read(state, &golden).unwrap());
            assert!(!is_only_read(state, &own).unwrap() && !is_only_read(state, &other).unwrap());
        }
        assert!(!is_only_read(&dir.path().join("none"), &golden).unwrap());
        std::fs::write(&state, [text, base(Path::new("golden"))].concat()).unwrap();
        assert!(is_only_read(&state, &golden).unwrap(), "wherever it was");
        std::fs::write(&state, "something else").unwrap();
        assert!(is_only_read(&state, &golden).is_err());
    }
}
