//! Ends of the process, and starts with the same arguments.

use snapblk_tests::verify::stamp::SECTOR;

use crate::case::Case;

impl Case {
    /// Ends the process in an orderly way.
    pub(crate) fn stop(&mut self) {
        self.qmp = None;
        let server = self.server.take().expect("the process runs");
        let stderr = server.stderr();
        let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
        assert!(status.success(), "SIGTERM ended it with {status}: {stderr}");
    }

    pub(crate) fn end_and_start(&mut self, _: usize) -> bool {
        self.note("SIGTERM, and a start");
        self.fronts.iter_mut().for_each(|front| *front = None);
        self.drop_transient();
        self.stop();
        self.start();
        true
    }

    pub(crate) fn kill_and_start(&mut self, _: usize) -> bool {
        self.drop_transient();
        let mut in_flight = Vec::new();
        for of in 0..self.families.len() {
            if self.rng.chance(50) {
                in_flight.push((of, self.write_and_leave(of)));
            }
        }
        self.kill_alone();
        for (of, (at, bytes)) in in_flight {
            self.was_in_flight(of, at, &bytes);
        }
        true
    }

    /// Sends a write and does not wait for its end.
    fn write_and_leave(&mut self, of: usize) -> (usize, Vec<u8>) {
        let sectors = self.families[of].sectors();
        let len = 1 + self.rng.below(100);
        let first = self.rng.below(sectors - len);
        let bytes = self.stamped(first, len);
        let at = first as usize * SECTOR;
        self.note(&format!("to {}: write {first}+{len}, in flight", self.families[of].name));
        let front = self.fronts[of].as_mut().expect("it is connected");
        front.begin_write(at as u64, &bytes).expect("it is sent");
        (at, bytes)
    }

    /// Each sector of a write that was in flight is old or new, and stays so.
    fn was_in_flight(&mut self, of: usize, at: usize, bytes: &[u8]) {
        let family = &mut self.families[of];
        let front = self.fronts[of].as_mut().expect("it is connected");
        let found = front.read(at as u64, bytes.len());
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", family.name));
        let part = &mut family.top.bytes[at..at + bytes.len()];
        let sectors = part.chunks_mut(SECTOR).zip(bytes.chunks(SECTOR).zip(found.chunks(SECTOR)));
        for (old, (new, found)) in sectors {
            assert!(found == old || found == new, "{}: neither old nor new", family.name);
            old.copy_from_slice(found);
        }
    }

    /// Kills the process and starts another.
    pub(crate) fn kill_alone(&mut self) {
        self.drop_transient();
        self.note("SIGKILL, and a start");
        self.fronts.iter_mut().for_each(|front| *front = None);
        self.qmp = None;
        let server = self.server.take().expect("the process runs");
        server.kill().unwrap_or_else(|error| panic!("{error}"));
        self.start();
    }

    /// Deletes snapshots whose stores are in memory: they end with the process.
    fn drop_transient(&mut self) {
        for of in 0..self.families.len() {
            let snaps = self.families[of].snaps.iter();
            let names: Vec<String> =
                snaps.filter(|(_, snap)| snap.transient).map(|(name, _)| name.clone()).collect();
            for name in names {
                let device = self.families[of].name.clone();
                let arguments = serde_json::json!({"device": device, "snapshot": name});
                self.call("snapshot-delete", arguments);
                self.families[of].snaps.remove(&name);
            }
        }
    }
}
