//! State files of older versions, converted to the present form.
//!
//! Owns the conversion when they are read. Never knows what lines mean.

use super::State;

impl State {
    /// White space and backslashes of paths have a backslash before them. An earlier version wrote
    /// paths unescaped, and could not read those with white space again.
    pub(super) fn with_escapes(mut self) -> State {
        if !std::mem::replace(&mut self.escaped, true) {
            let devices = self.devices.values_mut();
            let devices = devices.flat_map(|of| [Some(&mut of.table), of.inactive.as_mut()]);
            let tables = self.initial.values_mut().map(|initial| &mut initial.table);
            for line in tables.chain(devices.flatten()).flatten() {
                *line = line.replace('\\', r"\\");
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_version_before_is_what_it_was() {
        let old = r#"
            version = 1
            generation = 3
            [first.disk0]
            table = ['0 8 linear /dev/disk/by-label/My\x20Disk 0']
            [devices.disk0]
            table = ['0 8 linear /dev/disk/by-label/My\x20Disk 0']
            inactive = ['0 8 linear ./a\b 0']
        "#;
        let old: State = toml::from_str(old).unwrap();
        let state = old.with_escapes();
        let line = r"0 8 linear /dev/disk/by-label/My\\x20Disk 0";
        assert_eq!(state.initial["disk0"].table, [line]);
        assert_eq!(state.devices["disk0"].table, [line]);
        assert_eq!(state.devices["disk0"].inactive, Some(vec![r"0 8 linear ./a\\b 0".into()]));
        let parsed: crate::lines::TableLine = line.parse().unwrap();
        let path = parsed.target.params()[0].path().unwrap();
        assert_eq!(path.to_str(), Some(r"/dev/disk/by-label/My\x20Disk"));
        assert_eq!(state.clone().with_escapes(), state, "one of this version is left alone");
    }
}
