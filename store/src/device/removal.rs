//! Removing devices: device-mapper's verb remove.
//!
//! Owns the checks before a device is removed, and what happens to the chunks that it owes. Never
//! takes a device from its users: a refused removal has no effect.

use super::build::{Plan, lines_name};
use super::commit::by_job;
use super::core::{Device, Devices, Inner};
use super::error::DeviceError;

impl Devices {
    /// Removes an unused device. With `force`, also if its owed chunks cannot be made durable: as
    /// after a kill, they are committed when their stores are opened again, and data in the
    /// system's caches may be lost.
    ///
    /// # Errors
    /// It is used, or its disk does not answer, with `force` too; or its owed chunks cannot be made
    /// durable.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), DeviceError> {
        self.remove_from(&mut self.lock(), name, force)
    }

    /// The job that a removal of the device has to stop first: one that merges because a user loaded
    /// such a table, which is nobody's but the device's.
    ///
    /// # Errors
    /// Something else uses the device.
    pub fn job_of_removed(&self, name: &str) -> Result<Option<String>, DeviceError> {
        let inner = self.lock_unsettled();
        let job = inner.device(name)?.jobs().find(|id| !inner.state.has_job(id)).map(str::to_owned);
        refuse_used_but(&inner, name, job.as_deref())?;
        Ok(job)
    }

    /// The same, in the middle of another verb.
    pub(super) fn remove_from(
        &self,
        inner: &mut Inner,
        name: &str,
        force: bool,
    ) -> Result<(), DeviceError> {
        refuse_used(inner, name)?;
        match self.flush_device(inner, name) {
            // It is still at work on its files.
            Err(late @ DeviceError::FlushLate { .. }) => return Err(late),
            Err(error) if force => tracing::warn!("'{name}' is removed all the same: {error}"),
            flushed => flushed?,
        }
        let hands_over = inner.device(name)?.suspended && inner.destination_of(name).is_some();
        if hands_over {
            self.remove_source(inner, name)?;
        } else {
            self.drop_device(inner, name)?;
        }
        self.forget_removed(inner);
        Ok(())
    }

    /// Makes an unused device's data durable, and removes it.
    pub(super) fn let_go(&self, inner: &mut Inner, name: &str) -> Result<(), DeviceError> {
        self.flush_device(inner, name)?;
        self.drop_device(inner, name)
    }

    fn drop_device(&self, inner: &mut Inner, name: &str) -> Result<(), DeviceError> {
        let mut plan = Plan::new(self, inner);
        plan.next.insert(name.into(), None);
        plan.follow()?;
        self.apply(plan, |inner| {
            inner.devices.remove(name);
        })
    }

    fn flush_device(&self, inner: &Inner, name: &str) -> Result<(), DeviceError> {
        let active = inner.devices.get(name).and_then(|device| device.active.as_ref());
        active.map_or(Ok(()), |active| self.flush(name, active))
    }
}

/// Refuses to remove a device that exports, jobs or other tables use, and says what to do first.
pub(super) fn refuse_used(inner: &Inner, name: &str) -> Result<(), DeviceError> {
    refuse_used_but(inner, name, None)
}

/// The same, where the job `but` does not count.
fn refuse_used_but(inner: &Inner, name: &str, but: Option<&str>) -> Result<(), DeviceError> {
    let device = inner.device(name)?;
    let jobs = device.jobs().filter(|id| Some(*id) != but);
    let exports = device.exports();
    let names = |(_, other): &(&String, &Device)| {
        other.active.as_ref().is_some_and(|active| active.names(name))
            || other.inactive.as_ref().is_some_and(|table| lines_name(&table.lines, name))
    };
    let kinds: [(Vec<String>, &str); 3] = [
        (exports.map(|id| format!("the export '{id}'")).collect(), "delete what exports it"),
        (jobs.map(by_job).collect(), "wait for its job, or cancel that"),
        (
            inner
                .devices
                .iter()
                .filter(names)
                .map(|(on, _)| format!("the device '{on}'"))
                .collect(),
            "remove what has it in a table, or load that another table",
        ),
    ];
    let used = || kinds.iter().filter(|(by, _)| !by.is_empty());
    let by: Vec<&str> = used().flat_map(|(by, _)| by).map(String::as_str).collect();
    if by.is_empty() {
        return Ok(());
    }
    let first: Vec<&str> = used().map(|(_, first)| *first).collect();
    Err(DeviceError::refused(format!(
        "the device '{name}' is in use by {}; {} first",
        by.join(" and "),
        first.join(", and ")
    )))
}
