//! The state of devices, as plain data and in the format of `dmsetup`.

use super::build::Active;
use super::core::Devices;
use super::error::DeviceError;
use super::verbs::TableKind;
use crate::cow::StoreState;
use crate::cow::store::MergeMark;
use crate::lines::{TableLine, TargetSpec};

/// One line of a table, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// The line.
    pub line: TableLine,
    /// The parameters as `dmsetup table` prints them, after the target's name.
    pub params: String,
    /// The status as `dmsetup status` prints it, after the target's name.
    pub status: String,
    /// For `snapshot` and `snapshot-merge`: sectors allocated, in total, and for metadata.
    pub usage: Option<(u64, u64, u64)>,
    /// For `snapshot` and `snapshot-merge`: the state of its store.
    pub state: Option<StoreState>,
    /// For `snapshot-merge`: an error stopped it.
    pub merge_failed: bool,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its UUID, if it has one.
    pub uuid: Option<String>,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Bytes.
    pub size: u64,
    /// Whether its table refuses writes.
    pub read_only: bool,
    /// Whether a table was loaded into the inactive slot.
    pub has_inactive_table: bool,
    /// The number of exports, jobs and live tables that use it.
    pub open_count: u64,
    /// Its lines.
    pub targets: Vec<TargetStatus>,
}

impl Devices {
    /// Requires that the device `name` has a table.
    ///
    /// # Errors
    /// There is no such device, or it has none.
    pub fn require_table(&self, name: &str) -> Result<(), DeviceError> {
        self.lock_unsettled().active(name).map(|_| ())
    }

    /// Refuses a device that a job removes or writes: it is served only after that.
    ///
    /// # Errors
    /// Which job.
    pub fn require_unheld(&self, name: &str) -> Result<(), DeviceError> {
        self.lock_unsettled().refuse_held(name)
    }

    /// The device `name`, or all devices, in the order of their names.
    ///
    /// # Errors
    /// There is no such device.
    pub fn query(
        &self,
        name: Option<&str>,
        kind: TableKind,
    ) -> Result<Vec<DeviceStatus>, DeviceError> {
        let inner = self.lock_unsettled();
        if let Some(name) = name {
            inner.device(name)?;
        }
        let known = inner.devices.iter().filter(|(_, device)| !device.removed);
        let wanted = known.filter(|(known, _)| name.is_none_or(|n| n == *known));
        let status = wanted.map(|(name, device)| {
            let uppers = inner
                .devices
                .values()
                .filter(|other| other.active.as_ref().is_some_and(|active| active.names(name)));
            let targets = match (kind, &device.active, &device.inactive) {
                (TableKind::Active, Some(active), _) => live_targets(active),
                (TableKind::Inactive, _, Some(loaded)) => {
                    loaded.lines.iter().map(idle_target).collect()
                }
                _ => Vec::new(),
            };
            DeviceStatus {
                name: name.clone(),
                uuid: device.uuid.clone(),
                suspended: device.suspended,
                size: device.active.as_ref().map_or(0, |active| active.table.size().bytes()),
                read_only: device.active.as_ref().is_some_and(|active| active.read_only),
                has_inactive_table: device.inactive.is_some(),
                open_count: device.users.len() as u64 + uppers.count() as u64,
                targets,
            }
        });
        Ok(status.collect())
    }
}

fn params_of(line: &TableLine) -> String {
    let text = line.to_string();
    text.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()
}

fn idle_target(line: &TableLine) -> TargetStatus {
    let (params, status) = (params_of(line), String::new());
    TargetStatus {
        line: line.clone(),
        params,
        status,
        usage: None,
        state: None,
        merge_failed: false,
    }
}

fn live_targets(active: &Active) -> Vec<TargetStatus> {
    let target = |(number, line): (usize, &TableLine)| {
        let mut target = idle_target(line);
        if let Some(snap) = active.snaps.get(&number) {
            // A chunk size of 0 in the line means the store's.
            let mut shown = line.clone();
            let chunk = Some(snap.live.store.geometry().chunk);
            match &mut shown.target {
                TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => spec.chunk = chunk,
                _ => {}
            }
            target.params = params_of(&shown);
            target.line = shown;
            let usage = snap.live.store.usage();
            target.state = Some(snap.live.store.state());
            target.usage = Some((usage.allocated, usage.total, usage.metadata));
            let failed = snap.live.store.merge_mark() >= MergeMark::Failed;
            target.merge_failed = failed;
            target.status = match snap.live.store.state() {
                StoreState::Invalid | StoreState::Invalidating | StoreState::Unmarked => {
                    "Invalid".into()
                }
                _ if failed => "Merge failed".into(),
                // After a failed commit, too, reads serve and writes fail until it is opened again.
                StoreState::Overflow | StoreState::CommitFailed => "Overflow".into(),
                StoreState::Valid | StoreState::Full => {
                    format!("{}/{} {}", usage.allocated, usage.total, usage.metadata)
                }
            };
        }
        if active.lost.contains_key(&number) {
            target.state = Some(StoreState::Invalid);
            target.status = "Invalid".into();
        }
        target
    };
    active.lines.iter().enumerate().map(target).collect()
}
