//! Chains of overlays: their devices, and which part of a chain a commit removes.
//!
//! Owns the walk down a chain, the names in it, and which stores are at rest as layers. Changes no
//! table by itself. After a restart the layers below the top are at rest: they owe nothing, and the
//! top's exception table covers all of them, so that neither flushes nor memory grow with the
//! depth.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::build::Active;
use super::core::{Devices, Inner};
use super::error::DeviceError;
use super::guards::devices_of;
use super::live::Live;
use super::origins::no_layer;
use super::state::CommitJob;
use crate::exception::Layer;
use crate::io::Identity;
use crate::lines::{Param, TableLine, TargetSpec};

/// The most layers that a message names.
const MOST_NAMED: usize = 8;

/// The base below the lowest store of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bottom {
    File(Param),
    Device(String),
}

/// A chain, from the served device down.
#[derive(Clone, Debug)]
struct Chain {
    /// The devices that have a store, the highest first.
    overlays: Vec<String>,
    bottom: Bottom,
}

/// The target of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommitBase {
    /// The file below all stores.
    File(Param),
    /// The device below all stores.
    Device(String),
    /// The store of a layer.
    Layer(String),
}

impl CommitBase {
    /// Its parameter in a table line.
    pub(super) fn param(&self) -> Param {
        match self {
            CommitBase::File(param) => param.clone(),
            CommitBase::Device(name) | CommitBase::Layer(name) => Param::Device(name.clone()),
        }
    }

    /// The device that it is.
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            CommitBase::File(_) => None,
            CommitBase::Device(name) | CommitBase::Layer(name) => Some(name),
        }
    }
}

/// The part of a chain that a commit removes.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// Devices that stay above it, the highest first.
    pub(super) stay: Vec<String>,
    /// Layers that are removed, the highest first; none of them is the served device.
    pub(super) go: Vec<String>,
    /// The target of their content.
    pub(super) base: CommitBase,
    /// The served device's own store is committed, too, at the end.
    pub(super) activates: bool,
    /// The highest layer that stays below, and the highest that is removed.
    pub(super) layers: (Layer, Layer),
}

impl Cut {
    /// All devices of the chain from the served one to the base.
    pub(super) fn chain(&self) -> Vec<String> {
        let all = self.stay.iter().chain(&self.go).map(String::as_str);
        all.chain(self.base.device()).map(str::to_owned).collect()
    }

    /// The lowest layer above the base.
    pub(super) fn lowest(&self) -> &str {
        self.go.last().or(self.stay.last()).map_or("", String::as_str)
    }

    /// Those below the remaining ones: no other table may use them.
    pub(super) fn held(&self) -> Vec<String> {
        let all = self.go.iter().map(String::as_str);
        all.chain(self.base.device()).map(str::to_owned).collect()
    }
}

impl Inner {
    /// Whether `layer` is a layer below the device of `job`.
    pub(super) fn is_below(&self, job: &CommitJob, layer: &str) -> bool {
        let chain = self.chain(&job.device);
        chain.is_ok_and(|chain| chain.overlays[1..].iter().any(|overlay| overlay == layer))
    }

    /// The devices that `device` lies on, directly or through others.
    pub(super) fn under(&self, device: Option<&str>) -> Vec<String> {
        let lines = |name: &str| self.active(name).map_or(&[][..], |active| &active.lines);
        let mut all: Vec<String> =
            device.map(|device| devices_of(lines(device))).unwrap_or_default();
        let mut known = 0;
        while let Some(name) = all.get(known) {
            let mut below = devices_of(lines(name));
            below.retain(|name| !all.contains(name));
            all.extend(below);
            known += 1;
        }
        all
    }

    fn chain(&self, device: &str) -> Result<Chain, DeviceError> {
        let mut overlays = Vec::new();
        let mut at = device.to_owned();
        loop {
            let active = self.active(&at)?;
            let Some(snap) = active.whole_snapshot() else { break };
            if !snap.live.store.is_guest_disk() {
                if !snap.is_overflowing() && !self.is_served_origin(&snap.key) {
                    return Err(no_layer(&at, snap, false));
                }
                return Err(DeviceError::refused(format!(
                    "'{at}' is a snapshot of a live origin; 'snapshot-merge' takes the origin back \
                     to it"
                )));
            }
            overlays.push(at);
            match &active.lines[0].target {
                TargetSpec::Snapshot(spec) => match &spec.origin {
                    Param::Device(below) => at = below.clone(),
                    file => return Ok(Chain { overlays, bottom: Bottom::File(file.clone()) }),
                },
                _ => unreachable!("a whole snapshot is a snapshot"),
            }
        }
        if overlays.is_empty() {
            return Err(DeviceError::refused(format!(
                "'{device}' is not an overlay, so there is nothing to commit"
            )));
        }
        Ok(Chain { overlays, bottom: Bottom::Device(at) })
    }

    /// `name` is no layer: which ones there are, or which one it is the file of.
    fn no_layer(&self, name: &str, overlays: &[String], bottom: &Bottom) -> DeviceError {
        let file = Param::from_path(Path::new(name));
        let device = &overlays[0];
        if *bottom == Bottom::File(file.clone()) {
            return DeviceError::refused(format!(
                "'{name}' is the file below all layers of '{device}', and no layer; a commit without \
                 a base goes into it"
            ));
        }
        let keeps = |layer: &&String| {
            let line = self.active(layer).ok().and_then(|active| active.lines.first());
            let target = line.map(|line| &line.target);
            matches!(target, Some(TargetSpec::Snapshot(spec)) if spec.cow == file)
        };
        let hint = match overlays.iter().find(keeps) {
            Some(layer) => format!("; '{name}' is the store of '{layer}': give that name"),
            None => String::new(),
        };
        DeviceError::refused(format!(
            "'{name}' is not a layer of the chain of '{device}': {}{hint}",
            listed(overlays, bottom)
        ))
    }

    /// The part that `job` removes from the present chain.
    pub(super) fn cut(&self, job: &CommitJob) -> Result<Cut, DeviceError> {
        let device = &job.device;
        let Chain { overlays, bottom } = self.chain(device)?;
        let position = |name: &str| overlays.iter().position(|overlay| overlay == name);
        let not_there = |name: &str| self.no_layer(name, &overlays, &bottom);
        let top = match &job.top {
            Some(name) => position(name).ok_or_else(|| not_there(name))?,
            None => 0,
        };
        let (end, base) = match (&job.base, &bottom) {
            (None, Bottom::File(file)) => (overlays.len(), CommitBase::File(file.clone())),
            (None, Bottom::Device(name)) => (overlays.len(), CommitBase::Device(name.clone())),
            (Some(name), Bottom::Device(bottom)) if name == bottom => {
                (overlays.len(), CommitBase::Device(name.clone()))
            }
            (Some(name), _) => {
                let at = position(name).ok_or_else(|| not_there(name))?;
                (at, CommitBase::Layer(name.clone()))
            }
        };
        if end <= top {
            return Err(DeviceError::refused(format!(
                "'{}' is not below '{}', so there is nothing to commit into it",
                overlays[end], overlays[top]
            )));
        }
        let activates = top == 0;
        let first = top.max(1);
        let layer = |at: usize| Layer((overlays.len() - at) as u16);
        Ok(Cut {
            stay: overlays[..first].to_vec(),
            go: overlays[first..end].to_vec(),
            base,
            activates,
            layers: (layer(end), layer(first)),
        })
    }
}

/// A chain for a message, from the top down; of a long one the two ends.
fn listed(overlays: &[String], bottom: &Bottom) -> String {
    let mut names: Vec<String> = overlays.iter().map(|name| format!("'{name}'")).collect();
    if names.len() > MOST_NAMED {
        let more = names.len() - MOST_NAMED;
        let end = MOST_NAMED / 2 + more;
        names.splice(MOST_NAMED / 2..end, [format!("({more} more)")]);
    }
    let below = match bottom {
        Bottom::File(file) => format!("the file {file}"),
        Bottom::Device(name) => format!("the device '{name}'"),
    };
    format!("from the top down, it has {} on {below}", names.join(", "))
}

impl Devices {
    /// The layers below the tops of all chains owe nothing any more: they are at rest, and flushes
    /// skip them. If this cannot be ensured, flushes continue to cover them.
    pub(super) fn seal_layers(&self) {
        let inner = &*self.lock();
        for (name, device) in &inner.devices {
            let Some(active) = &device.active else { continue };
            let Some(snap) = active.whole_snapshot().filter(|snap| snap.layers.len() > 1) else {
                continue;
            };
            let below = &snap.layers[..snap.layers.len() - 1];
            let rests = below.iter().all(|live| live.store.is_sealed());
            if !snap.shared && !rests && self.flush_valid(name, active).is_ok() {
                below.iter().for_each(|live| live.store.set_sealed());
            }
        }
    }
}

/// A store that is no longer a layer may be written again, by a guest or for an origin, and then
/// flushes cover it again: the tops of the devices `names`, and the stores below the tables `old`.
/// Nothing is in flight.
pub(super) fn unseal_tops(inner: &Inner, names: &[String], old: &[Option<Active>]) {
    let active = |name: &String| inner.devices.get(name)?.active.as_ref();
    let tops = names.iter().filter_map(active).flat_map(|active| active.snaps.values());
    let left = old.iter().flatten().flat_map(|active| active.snaps.values());
    let live = tops.map(|snap| &snap.live).chain(left.flat_map(|snap| &snap.layers));
    let sealed: Vec<&Arc<Live>> = live.filter(|live| live.store.is_sealed()).collect();
    if sealed.is_empty() {
        return;
    }
    let below = all_below(inner);
    for live in sealed {
        if !below.contains(&live.disk.info.identity) {
            live.store.unseal();
        }
    }
}

/// The stores that others are stacked on.
fn all_below(inner: &Inner) -> HashSet<Identity> {
    let actives = inner.devices.values().filter_map(|device| device.active.as_ref());
    let mut chains: Vec<&[Arc<Live>]> =
        actives.flat_map(|active| active.snaps.values()).map(|snap| &snap.layers[..]).collect();
    // The longest first: a device above a layer is above all layers below it, too.
    chains.sort_unstable_by_key(|layers| std::cmp::Reverse(layers.len()));
    let mut below = HashSet::new();
    for layers in chains {
        let Some((top, rest)) = layers.split_last() else { continue };
        if !below.contains(&top.disk.info.identity) {
            below.extend(rest.iter().map(|live| live.disk.info.identity));
        }
    }
    below
}

/// The devices of `tables` that are layers of a chain below another of them.
pub(super) fn lower_layers(tables: &BTreeMap<String, Vec<TableLine>>) -> BTreeSet<String> {
    let snapshot = |line: &TableLine| match &line.target {
        TargetSpec::Snapshot(spec) => Some(spec.origin.clone()),
        _ => None,
    };
    let below = tables.values().flatten().filter_map(snapshot);
    let below = below.filter_map(|origin| origin.device().map(str::to_owned));
    let is_layer = |name: &String| match tables.get(name).map(Vec::as_slice) {
        Some([only]) => snapshot(only).is_some(),
        _ => false,
    };
    below.filter(is_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::{Bottom, MOST_NAMED, listed};
    use crate::lines::Param;

    #[test]
    fn a_message_names_the_ends_of_a_long_chain() {
        let names = |count: usize| (0..count).map(|at| format!("l{at}")).collect::<Vec<_>>();
        let base = Bottom::File(Param::from_path("base.raw".as_ref()));
        assert_eq!(
            listed(&names(2), &base),
            "from the top down, it has 'l0', 'l1' on the file ./base.raw"
        );
        assert_eq!(
            listed(&names(60), &Bottom::Device("golden".into())),
            "from the top down, it has 'l0', 'l1', 'l2', 'l3', (52 more), 'l56', 'l57', 'l58', \
             'l59' on the device 'golden'"
        );
        assert!(!listed(&names(MOST_NAMED), &base).contains("more"));
    }
}
