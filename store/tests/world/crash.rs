//! The end of a world's process, and the required content after a restart.

use super::*;

impl World {
    /// The process is killed, or the power fails; then everything is opened again and must have its
    /// required content.
    pub fn crash(&mut self, power: bool) -> Outcome {
        for store in &self.stores {
            let log = store.log();
            let ended = |index| log.is_done(DataIndex(index));
            if (log.committed().0..log.next().0).any(ended) {
                self.coverage.met(if power {
                    "cut between data and commit"
                } else {
                    "killed owing"
                });
            }
            if store.state() >= StoreState::Invalid {
                self.coverage.met("crash after Invalid");
            }
        }
        let words: Vec<Option<Words>> = if power {
            Vec::new()
        } else {
            self.stores.iter().map(|store| Some(store.log().copy_words())).collect()
        };
        let doubtful = self.doubtful(power);
        let was_invalid: Vec<bool> =
            self.stores.iter().map(|store| store.state() == StoreState::Invalid).collect();
        self.note_merge_cut();
        self.changing = None;
        self.refused_finish = false;
        for host in self.hosts.drain(..) {
            host.engine.killed();
        }
        self.drop_waiting();
        self.sim.clear_faults();
        self.sim.release();
        if power {
            let cuts = self.sim.power_cut();
            self.note_cuts(&cuts);
        } else {
            self.sim.kill();
        }
        self.coverage.met(if power { "power cut" } else { "kill" });
        if self.trace {
            eprintln!("{}: {}", self.now, if power { "power cut" } else { "kill" });
        }
        self.open(words)?;
        for (number, was) in was_invalid.into_iter().enumerate() {
            let transient = self.specs[number].persistence == Persistence::Transient;
            if was && !transient && self.stores[number].state() != StoreState::Invalid {
                return Err(format!("store{number} was Invalid, and is valid again"));
            }
        }
        self.settle(power, &doubtful)?;
        self.start_merge();
        Ok(())
    }

    /// Whether entries are being written that a power cut would tear.
    pub fn writes_entries(&self) -> bool {
        self.stores.iter().any(|store| {
            let geometry = store.geometry();
            let area = geometry.area_chunk(store.entries() / geometry.entries_per_area());
            store.persistence() != Persistence::Transient
                && store.log().is_committing()
                && self.sim.at_risk(store.file()).any(|(offset, len)| {
                    len > 512 && StoreChunk(geometry.chunk.chunk_of(offset).0) == area
                })
        })
    }

    fn note_cuts(&mut self, cuts: &[Cut]) {
        for cut in cuts {
            let torn = cut.kept != 0 && cut.kept != cut.sectors;
            let Some(store) = self.stores.iter().find(|store| store.file() == cut.file) else {
                continue;
            };
            if store.persistence() == Persistence::Transient {
                continue;
            }
            let chunk = store.geometry().chunk.chunk_of(cut.offset).0;
            if store.geometry().is_area(StoreChunk(chunk)) && torn {
                self.coverage.met("torn area");
            }
        }
    }

    /// The devices below which a sync failed that did not before: a flush reported that what was
    /// written since the one before may be lost, whatever a later process reads and flushes. Nobody may
    /// have been told, if the process was killed in that sync: what was owed is not lost then, but what
    /// was written to its place may be.
    fn doubtful(&mut self, power: bool) -> Vec<bool> {
        let files = self.specs.iter().map(|spec| spec.file).chain([self.base]);
        let lost: BTreeMap<FileId, usize> = files.map(|file| (file, self.sim.lost(file))).collect();
        let before = |file: &FileId| self.lost_before.get(file).copied().unwrap_or(0);
        // The store cannot tell what of it an earlier sync made durable.
        let left_out: Vec<FileId> = self
            .stores
            .iter()
            .filter(|store| Log::unsynced_owed(&store.log().copy_words()) > 0)
            .map(|store| store.file())
            .collect();
        let is_new =
            |file: &FileId| !power && (lost[file] > before(file) || left_out.contains(file));
        let any_is_new = lost.keys().any(is_new);
        let of = |(number, device): (usize, &Device)| {
            let mut stores = device.stores.iter().map(|&number| self.specs[number].file);
            // The first device reads what is merged into it from the stores.
            let merges = number == 0 && self.role != change::Role::Serve;
            is_new(&self.base) || stores.any(|file| is_new(&file)) || (merges && any_is_new)
        };
        let doubtful = self.devices.iter().enumerate().map(of).collect();
        self.lost_before = if power { BTreeMap::new() } else { lost };
        doubtful
    }

    fn settle(&mut self, power: bool, doubtful: &[bool]) -> Outcome {
        // Nothing was written since the stores were opened.
        let base = self.base_model();
        for (device, &doubtful) in doubtful.iter().enumerate() {
            if self.devices[device].gone {
                continue;
            }
            let store = self.devices[device].stores.last().map(|&number| &self.stores[number]);
            if store.is_some_and(|store| store.persistence() == Persistence::Transient) {
                // Its content is lost, and it is created again: a snapshot of the present origin.
                let serves = self.role == change::Role::Serve;
                let mut model = if serves { &self.devices[0].model } else { &base }.clone();
                model.truncate(self.devices[device].sectors);
                self.devices[device].model = model;
                continue;
            }
            if store.is_some_and(|store| store.state() >= StoreState::Invalid) {
                if !self.config.failures {
                    return Err(format!("device {device} is Invalid after a crash"));
                }
                self.devices[device].lost = true;
            }
            let failures = std::mem::replace(&mut self.config.failures, true);
            let data = self.read_all(device)?;
            self.config.failures = failures;
            if self.devices[device].lost {
                if data.is_some() {
                    return Err(format!("device {device} is Invalid, and reads"));
                }
                continue;
            }
            let data = data.ok_or_else(|| format!("device {device} cannot be read"))?;
            if doubtful {
                self.coverage.met("opened again after a failed sync");
                self.devices[device].model.doubt_unflushed();
            }
            for (sector, bytes) in data.chunks(SECTOR).enumerate() {
                let model = &mut self.devices[device].model;
                let expected = model.expected(sector as u64);
                if !model.settle(sector as u64, bytes, power, doubtful) {
                    return Err(format!(
                        "after a {} device {device} sector {sector} holds {}, expected one of \
                         {expected}",
                        if power { "power cut" } else { "kill" },
                        describe(bytes),
                    ));
                }
            }
        }
        Ok(())
    }
}
