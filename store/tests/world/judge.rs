//! Compares ended requests with the model, and checks that nothing is left behind.

use snapblk_store::exception::ChunkState;
use snapblk_store::request::{Op, Status, Token};
use snapblk_store::units::Chunk;
use snapblk_store::wake::WorkerBit;

use super::model::{SECTOR, describe};
use super::{Live, ORIGIN, Outcome, Req, Shape, World};

impl World {
    /// The most barriers that an engine has.
    pub fn most_barriers(&self) -> usize {
        self.hosts.iter().map(|host| host.engine.barriers()).max().unwrap_or(0)
    }

    pub(super) fn finish(&mut self, number: usize, token: Token, status: Status) -> Outcome {
        let Some(live) = self.hosts[number].requests.remove(&token.0) else {
            return Err(format!("host {number} ended {token:?}, which is not in flight"));
        };
        let data = self.sim.host(number).guest.remove(&token).expect("a request's bytes");
        let Live { req, stamp, keep } = live;
        if self.trace {
            eprintln!("{}: host {number} ends {token:?} {req:?}: {status:?}", self.now);
        }
        self.ended.push((req, status));
        let ok = status == Status::Ok;
        if !ok && !self.may_fail(req.device) {
            return Err(format!("{req:?} failed: {}", self.stuck()));
        }
        if keep {
            self.kept = ok.then(|| data.clone());
        }
        if keep && req.op != Op::Flush {
            return Ok(());
        }
        if self.changes_nothing(&req) {
            return Ok(());
        }
        match req.op {
            Op::Read if ok && !self.devices[req.device].lost => self.judge(&req, &data),
            Op::Read => Ok(()),
            Op::Flush => {
                // A flush is stamped when it is submitted.
                self.devices[req.device].model.flush_ends(stamp, ok);
                Ok(())
            }
            _ => {
                let (sector, count) = (req.sector, req.count);
                let model = &mut self.devices[req.device].model;
                model.write_ends(sector, count, stamp, self.now, ok, req.durable);
                Ok(())
            }
        }
    }

    fn may_fail(&self, device: usize) -> bool {
        let is_origin = device == 0 && !matches!(self.config.shape, Shape::Overlay { .. });
        if is_origin { self.config.origin_failures } else { self.config.failures }
    }

    fn judge(&self, req: &Req, data: &[u8]) -> Outcome {
        let model = &self.devices[req.device].model;
        for (n, bytes) in data.chunks(SECTOR).enumerate() {
            let sector = req.sector + n as u64;
            if !model.allows(sector, bytes) {
                return Err(format!(
                    "device {} sector {sector}: read {}, expected one of {}",
                    req.device,
                    describe(bytes),
                    model.expected(sector)
                ));
            }
        }
        Ok(())
    }

    /// Reads all of a device without judging; none if that fails.
    pub fn read_all(&mut self, device: usize) -> Result<Option<Vec<u8>>, String> {
        let mut all = Vec::new();
        let sectors = self.devices[device].sectors;
        let mut sector = 0;
        while sector < sectors {
            let count = (1 + self.rng.below(64)).min(sectors - sector);
            self.kept = None;
            self.submit(Req { device, op: Op::Read, sector, count, durable: false }, true);
            self.run()?;
            let Some(bytes) = self.kept.take() else { return Ok(None) };
            all.extend(bytes);
            sector += count;
        }
        Ok(Some(all))
    }

    /// Reads every device and judges it.
    pub fn judge_all(&mut self) -> Outcome {
        for device in 0..self.devices.len() {
            if self.devices[device].gone {
                continue;
            }
            let Some(data) = self.read_all(device)? else {
                if self.may_fail(device) {
                    continue;
                }
                return Err(format!("device {device} cannot be read"));
            };
            if !self.devices[device].lost {
                let sectors = self.devices[device].sectors;
                let req = Req { device, op: Op::Read, sector: 0, count: sectors, durable: false };
                self.judge(&req, &data)?;
            }
        }
        Ok(())
    }

    /// Nothing is in flight: all resources must be free.
    pub fn check_quiet(&mut self) -> Outcome {
        for (number, host) in self.hosts.iter_mut().enumerate() {
            if !host.engine.is_quiet() || host.engine.requests() != 0 {
                return Err(format!("host {number} is not quiet: {:?}", host.engine));
            }
            // Dividing the scratch arena again asserts that all of it is free.
            let table = host.engine.table().cloned();
            host.engine.bind(table);
            host.touched = true;
        }
        self.start_merge();
        if self.workers.overlaps(ORIGIN, 0, 1 << 43, WorkerBit::of(0)) {
            return Err("a range is still tracked".into());
        }
        for (number, device) in self.devices.iter().enumerate() {
            let Some(table) = &device.exceptions else { continue };
            for chunk in (0..table.chunks()).map(Chunk) {
                if !matches!(table.get(chunk), ChunkState::Unmapped | ChunkState::Mapped(_)) {
                    return Err(format!("device {number} {chunk:?}: {:?}", table.get(chunk)));
                }
            }
        }
        Ok(())
    }
}
