//! Opens a world's stores, makes its tables and starts its workers.

use super::*;

impl World {
    /// Opens all stores, builds the tables and starts the workers.
    pub(super) fn open(&mut self, mut words: Vec<Option<Words>>) -> Outcome {
        words.resize_with(self.specs.len(), || None);
        self.stores.clear();
        self.medium = Arc::new(Medium::new(self.base));
        let base = self.sim.storage(self.base);
        snapblk_store::io::Storage::sync(&base).expect("a simulated disk can be synced");
        self.workers = Arc::new(Workers::with_capacity(64));
        let mut loads = Vec::new();
        for (number, words) in words.iter().enumerate() {
            let (store, opened) = self.open_store(number, words.as_ref())?;
            self.stores.push(store);
            loads.push(opened);
        }
        for device in &mut self.devices {
            let Some(&top) = device.stores.last() else { continue };
            let chunk = self.stores[top].geometry().chunk;
            let table = ExceptionTable::new(chunk.count_for(device.sectors * 512));
            for (layer, &number) in device.stores.iter().enumerate() {
                for &Entry { old, new } in &loads[number].entries {
                    table.load(old, Place { layer: Layer(layer as u16 + 1), chunk: new });
                }
            }
            device.exceptions = Some(Arc::new(table));
        }
        self.build_tables();
        self.start_hosts();
        Ok(())
    }

    pub(super) fn open_store(
        &mut self,
        number: usize,
        words: Option<&Words>,
    ) -> Result<(Arc<Store>, OpenStore), String> {
        let spec = &self.specs[number];
        let chunk = ChunkSize::from_sectors(spec.chunk).unwrap();
        let storage = self.sim.storage(spec.file);
        let transient = spec.persistence == Persistence::Transient;
        let geometry = Geometry::of_len(chunk, snapblk_store::io::Storage::len(&storage).unwrap());
        let origin_len = Some(self.config.sectors * 512);
        let mut opened = if transient {
            OpenStore::empty(geometry)
        } else {
            // Both give the same result here: all entries are among the newest.
            let keep = [Keep::All, Keep::Newest][number % 2];
            let (chunk, owed, invalid) = (Some(chunk), LOG_WORDS, spec.recorded_invalid);
            let read_only = false;
            let options =
                OpenOptions { chunk, create: true, origin_len, keep, owed, invalid, read_only };
            open::open(&storage, &options).map_err(|error| error.to_string())?
        };
        if opened.garbage {
            self.coverage.met("garbage behind the end");
        }
        if opened.entries.len() as u64 >= geometry.entries_per_area() {
            self.coverage.met("area boundary");
        }
        let log = if transient {
            Log::transient(geometry.device_chunks)
        } else {
            if let Some(words) = words
                && opened.valid
                && adopt(&storage, &mut opened, words, (origin_len, Gaps::Close))
                    .map_err(|error| error.to_string())?
            {
                self.coverage.met("adopted what was owed");
            }
            if opened.garbage {
                open::zero_garbage(&storage, &mut opened).map_err(|error| error.to_string())?;
            }
            Log::new(Words::private(LOG_WORDS), opened.next, opened.geometry.capacity())
        };
        let store = Store::new(StoreParts {
            name: format!("store{number}"),
            file: spec.file,
            geometry,
            persistence: spec.persistence,
            guest_disk: spec.guest_disk,
            valid: opened.valid,
            log,
            tail: tail_of(&opened),
            observer: Box::new(self.events.clone()),
        });
        Ok((Arc::new(store), opened))
    }

    fn base_backing(&self) -> Backing {
        let good = self.config.bad_base_from.unwrap_or(self.config.sectors);
        let mut backing = Backing::file(self.medium.clone(), 0, good * 512);
        backing.push((self.config.sectors - good) * 512, snapblk_store::target::Content::Error);
        backing
    }

    pub(super) fn exceptions(&self, device: usize) -> Exceptions {
        let device = &self.devices[device];
        Exceptions {
            table: device.exceptions.clone().expect("a snapshot"),
            layers: device.stores.iter().map(|&number| self.stores[number].clone()).collect(),
            origin: self.base_backing(),
            len: device.sectors * 512,
        }
    }

    pub(super) fn build_tables(&mut self) {
        for number in 0..self.devices.len() {
            if self.devices[number].gone {
                self.devices[number].table = None;
                continue;
            }
            let (target, exceptions) = self.target_of(number);
            let len = self.devices[number].sectors * 512;
            let table = Table::new(vec![Line { start: 0, len, target }], exceptions);
            if let Some(old) = &self.devices[number].table {
                table.flush_set().take_over(old.flush_set());
            }
            self.devices[number].table = Some(Arc::new(table));
        }
    }

    fn target_of(&self, number: usize) -> (Target, Vec<Exceptions>) {
        let tracked = matches!(self.config.shape, Shape::Origin(_)).then_some(ORIGIN);
        let snapshot = |of: usize| {
            let features = Features { discard_zeroes_cow: number % 2 == 1, ..Features::default() };
            let snapshot = Snapshot { exceptions: ExceptionsId(0), tracked, features };
            (Target::Snapshot(snapshot), vec![self.exceptions(of)])
        };
        match (number, self.role) {
            (0, change::Role::Merge(of)) => {
                let mut all = vec![self.exceptions(of)];
                let origin = self.origin_over(&mut all);
                (
                    Target::Merge(Merge {
                        exceptions: ExceptionsId(0),
                        origin,
                        writes: MERGED,
                        in_use: Default::default(),
                    }),
                    all,
                )
            }
            (0, change::Role::Snapshot(of)) => snapshot(of),
            (0, change::Role::Serve) if self.devices[0].stores.is_empty() && tracked.is_some() => {
                let mut all = Vec::new();
                (Target::Origin(self.origin_over(&mut all)), all)
            }
            _ if self.devices[number].stores.is_empty() => {
                (Target::Plain(self.base_backing()), vec![])
            }
            _ => snapshot(number),
        }
    }

    /// The origin with those snapshots that still exist; their exceptions are added to `all`.
    fn origin_over(&self, all: &mut Vec<Exceptions>) -> Origin {
        let first = all.len();
        let live = |device: &usize| !self.devices[*device].gone;
        let mut others: Vec<Exceptions> =
            (1..self.devices.len()).filter(live).map(|device| self.exceptions(device)).collect();
        others.sort_by_key(|ex| std::cmp::Reverse(ex.chunk().bytes()));
        all.extend(others);
        let snapshots = (first..all.len()).map(|index| ExceptionsId(index as u32)).collect();
        Origin { backing: self.base_backing(), start: 0, tracked: ORIGIN, snapshots }
    }

    fn start_hosts(&mut self) {
        for device in 0..self.devices.len() {
            if !self.devices[device].gone {
                self.start_hosts_of(device);
            }
        }
        self.start_host(0, true);
    }

    pub(super) fn start_hosts_of(&mut self, device: usize) {
        for _ in 0..self.config.queues {
            self.start_host(device, false);
        }
    }

    fn start_host(&mut self, device: usize, merges: bool) {
        let woken = Arc::new(AtomicBool::new(false));
        let config = EngineConfig {
            scratch: self.config.scratch,
            requests: self.config.depth,
            claims: self.config.claims,
        };
        let wake = Box::new(Flag(woken.clone()));
        let mut engine = Engine::new(&self.workers, wake, config).unwrap();
        engine.bind(self.devices[device].table.clone());
        self.sim.add_host(self.config.scratch as usize);
        self.hosts.push(Host {
            engine,
            device,
            woken,
            asleep: false,
            touched: true,
            requests: BTreeMap::new(),
            next_token: 0,
            merges,
        });
    }
}
