//! Ends of the process, and starts with the same arguments.

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
        self.kill_alone();
        true
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
