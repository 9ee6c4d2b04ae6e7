//! Stores that are full, and a base without room, while what needs some waits: whoever looks after
//! them.

use super::*;
use std::time::Duration;

impl World {
    /// What finds a store full waits, until [`World::grow`] or [`World::give_up`]; what finds no room
    /// in the base, until [`World::base_has_room`] or [`World::give_base_up`].
    pub fn be_patient(&mut self) {
        let patience = Duration::from_secs(30);
        self.stores.iter().for_each(|store| store.set_patience(patience));
        self.medium.set_patience(patience);
    }

    /// Whether a store is full, or the base, and waited for.
    pub fn is_waiting_for_room(&self) -> bool {
        self.stores.iter().any(|store| store.state() == StoreState::Full) || self.medium.is_full()
    }

    /// What waits for room in the base goes on.
    pub fn base_has_room(&mut self) {
        self.workers.wake(self.medium.go_on());
    }

    /// The time is over, of the base.
    pub fn give_base_up(&mut self) {
        self.workers.wake(self.medium.give_up());
    }

    /// Extends the store by `sectors`; requests that wait for room continue.
    pub fn grow(&mut self, store: usize, sectors: u64) {
        let file = self.specs[store].file;
        let bytes = self.sim.disk(file).len() + sectors * SECTOR as u64;
        self.sim.grow_disk(file, bytes);
        let store = &self.stores[store];
        store.grow(Geometry::of_len(store.chunk(), bytes).device_chunks);
        if store.log().has_room() {
            self.workers.wake(store.go_on());
        }
    }

    /// The time limit has passed.
    pub fn give_up(&mut self, store: usize) {
        self.workers.wake(self.stores[store].give_up());
    }

    /// Suspends every device, which waits only for actions in flight, and gives it its table again.
    pub fn swap_tables(&mut self) -> Outcome {
        self.hosts.iter_mut().for_each(|host| host.engine.set_stopping(true));
        self.run()?;
        for host in &mut self.hosts {
            if !host.engine.is_quiet() {
                return Err(format!("{:?} does not come to rest", host.engine));
            }
            let table = host.engine.table().cloned();
            host.engine.bind(table);
            host.engine.set_stopping(false);
            host.touched = true;
        }
        Ok(())
    }

    /// A front end disconnects: its requests that wait for room fail, and no others.
    pub fn fail_held(&mut self) {
        for host in &mut self.hosts {
            host.engine.fail_held_for_room();
            host.touched = true;
        }
    }
}
