//! Opening a world's stores, making its tables and starting its workers.

use super::*;

impl World {
    /// Opens all stores, builds the tables and starts the workers.
    pub(super) fn open(&mut self, mut words: Vec<Option<Words>>) -> Outcome {
        words.resize_with(self.specs.len(), || None);
        self.stores.clear();
        self.medium = Arc::new(Medium::new(self.base));
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
                for &(old, new) in &loads[number].entries {
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
        let mut opened = if transient {
            let (entries, next) = (Vec::new(), DataIndex(0));
            OpenStore { geometry, valid: true, entries, next, garbage: false }
        } else {
            let origin_len = Some(self.config.sectors * 512);
            let options = OpenOptions { chunk: Some(chunk), create: true, origin_len };
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
                && adopt(&storage, &mut opened, words).map_err(|error| error.to_string())?
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
            valid: opened.valid && !spec.recorded_invalid,
            log,
            tail: tail_of(&opened),
            observer: Box::new(self.events.clone()),
        });
        Ok((Arc::new(store), opened))
    }

    fn base_backing(&self) -> Backing {
        let good = self.config.bad_base_from.unwrap_or(self.config.sectors);
        let mut backing = Backing::file(self.medium.clone(), 0, good * 512);
        backing.push((self.config.sectors - good) * 512, snapblk_store::target::ExtentPlace::Error);
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
            let tracked = matches!(self.config.shape, Shape::Origin(_)).then_some(ORIGIN);
            let (target, exceptions) = if !self.devices[number].stores.is_empty() {
                let features =
                    Features { discard_zeroes_cow: number % 2 == 1, ..Features::default() };
                let snapshot = Snapshot { exceptions: 0, tracked, features };
                (Target::Snapshot(snapshot), vec![self.exceptions(number)])
            } else if tracked.is_some() {
                let mut all: Vec<Exceptions> =
                    (1..self.devices.len()).map(|device| self.exceptions(device)).collect();
                all.sort_by_key(|ex| std::cmp::Reverse(ex.chunk().bytes()));
                let snapshots = (0..all.len()).collect();
                let origin =
                    Origin { backing: self.base_backing(), start: 0, tracked: ORIGIN, snapshots };
                (Target::Origin(origin), all)
            } else {
                (Target::Plain(self.base_backing()), vec![])
            };
            let len = self.devices[number].sectors * 512;
            let table = Table::new(vec![Line { start: 0, len, target }], exceptions);
            self.devices[number].table = Some(Arc::new(table));
        }
    }

    fn start_hosts(&mut self) {
        for (number, device) in self.devices.iter().enumerate() {
            for _ in 0..self.config.queues {
                let woken = Arc::new(AtomicBool::new(false));
                let config = EngineConfig {
                    scratch: self.config.scratch,
                    requests: self.config.depth,
                    claims: self.config.claims,
                };
                let wake = Box::new(Flag(woken.clone()));
                let mut engine = Engine::new(self.workers.clone(), wake, config);
                engine.bind(device.table.clone());
                self.sim.add_host(self.config.scratch as usize);
                self.hosts.push(Host {
                    engine,
                    device: number,
                    woken,
                    asleep: false,
                    touched: true,
                    requests: BTreeMap::new(),
                    next_token: 0,
                });
            }
        }
    }
}
