//! The expected devices and their content.
//!
//! Owns the byte arrays, and what each device should be. Never talks to the program.

use std::collections::BTreeMap;

use snapblk_tests::verify::stamp::{Found, SECTOR};

/// The expected content of a device.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    /// Each sector may be that of one of these as well: layers that a commit was copied into and
    /// that did not take its place.
    pub(crate) or: Vec<Vec<u8>>,
}

impl Image {
    pub(crate) fn of(bytes: Vec<u8>) -> Image {
        Image { bytes, or: Vec::new() }
    }

    /// It may have been overwritten with parts of `other`.
    pub(crate) fn may_be(&mut self, other: &Image) {
        for bytes in std::iter::once(&other.bytes).chain(&other.or) {
            if *bytes != self.bytes && !self.or.contains(bytes) {
                self.or.push(bytes.clone());
            }
        }
    }

    /// The first sector that differs, in words.
    pub(crate) fn differs(&self, found: &[u8]) -> Option<String> {
        if found.len() != self.bytes.len() {
            return Some(format!("has {} bytes, not {}", found.len(), self.bytes.len()));
        }
        if found == self.bytes {
            return None;
        }
        let sector = |bytes: &[u8], at: usize| bytes[at * SECTOR..(at + 1) * SECTOR].to_vec();
        let is_wrong = |at: &usize| {
            let all = std::iter::once(&self.bytes).chain(&self.or);
            !all.into_iter()
                .any(|one| one[at * SECTOR..][..SECTOR] == found[at * SECTOR..][..SECTOR])
        };
        let mut wrong = (0..found.len() / SECTOR).filter(is_wrong);
        let at = wrong.next()?;
        let (now, wanted) = (sector(found, at), sector(&self.bytes, at));
        let more = wrong.count();
        Some(format!(
            "sector {at} holds {}, not {}; {more} more sectors differ",
            Found::new(&now),
            Found::new(&wanted)
        ))
    }
}

/// A snapshot of an origin.
#[derive(Clone)]
pub(crate) struct Snap {
    pub(crate) image: Image,
    /// Whether its store is in memory.
    pub(crate) transient: bool,
}

/// A job, as the commands left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A rollback to this snapshot, which runs or was cancelled.
    Merge { snapshot: String, runs: bool },
    /// A commit of the layers above `base` up to and with `top`, or with the active layer.
    Commit { top: Option<usize>, base: usize, ready: bool },
}

/// A disk, with its snapshots or its layers.
#[derive(Clone)]
pub(crate) struct Family {
    pub(crate) name: String,
    /// The golden image below its first overlay, which no command writes.
    pub(crate) golden: Option<Vec<u8>>,
    /// What its guest reads.
    pub(crate) top: Image,
    /// Linear devices below the disk or the lowest layer, the upper ones first.
    pub(crate) under: Vec<String>,
    /// Whether its table is `snapshot-origin`.
    pub(crate) origin: bool,
    pub(crate) snaps: BTreeMap<String, Snap>,
    /// The layers below the active one, the lowest first.
    pub(crate) chain: Vec<(String, Image)>,
    /// A linear device on top of the disk.
    pub(crate) over: Option<String>,
    pub(crate) job: Option<Job>,
}

/// What a device should be.
pub(crate) struct Wanted<'a> {
    pub(crate) kind: &'static str,
    /// None if it may not be read, or if its content is not determined.
    pub(crate) image: Option<&'a Image>,
}

impl Family {
    /// Whether its table is linear, so that it can become anything.
    pub(crate) fn is_flat(&self) -> bool {
        !self.is_overlay() && !self.origin && self.job.is_none()
    }

    pub(crate) fn is_overlay(&self) -> bool {
        self.golden.is_some() || !self.chain.is_empty()
    }

    /// Whether it is an origin on which no rollback was begun.
    pub(crate) fn is_quiet_origin(&self) -> bool {
        self.origin && self.job.is_none()
    }

    pub(crate) fn sectors(&self) -> u64 {
        (self.top.bytes.len() / SECTOR) as u64
    }

    /// The content of the file below it; none if it is not determined.
    pub(crate) fn file(&self) -> Option<Image> {
        match &self.golden {
            Some(golden) => Some(Image::of(golden.clone())),
            None if self.job.is_some() => None,
            None => Some(self.chain.first().map_or(&self.top, |(_, image)| image).clone()),
        }
    }

    /// The devices and what they should be.
    pub(crate) fn devices(&self) -> BTreeMap<&str, Wanted<'_>> {
        let kind = match &self.job {
            Some(Job::Merge { .. }) => "snapshot-merge",
            _ if self.is_overlay() => "snapshot",
            _ if self.origin => "snapshot-origin",
            _ => "linear",
        };
        let mut all = BTreeMap::new();
        all.insert(self.name.as_str(), Wanted { kind, image: Some(&self.top) });
        let base = self.chain.first().map_or(&self.top, |(_, image)| image);
        for name in &self.under {
            let image = if self.job.is_none() { Some(base) } else { None };
            all.insert(name, Wanted { kind: "linear", image });
        }
        if let Some(name) = &self.over {
            all.insert(name, Wanted { kind: "linear", image: Some(&self.top) });
        }
        for (name, snap) in &self.snaps {
            all.insert(name, Wanted { kind: "snapshot", image: Some(&snap.image) });
        }
        for (at, (name, image)) in self.chain.iter().enumerate() {
            let kind = if at == 0 && self.golden.is_none() { "linear" } else { "snapshot" };
            // Layers above it have no table of their own after a restart, and get none meanwhile.
            let held = matches!(self.job, Some(Job::Commit { base, .. }) if at >= base);
            all.insert(name, Wanted { kind, image: if held { None } else { Some(image) } });
        }
        all
    }

    /// The layers above `base` up to and with `top` have left the chain.
    pub(crate) fn leave(&mut self, top: usize, base: usize) {
        self.chain[base].1 = self.chain[top].1.clone();
        self.chain.drain(base + 1..=top);
    }

    /// The job is ready: only the active layer is left of what is committed.
    pub(crate) fn is_ready(&mut self) {
        let above = self.chain.len() - 1;
        if let Some(Job::Commit { top: None, base, ready }) = &mut self.job {
            *ready = true;
            let base = *base;
            self.leave(above, base);
        }
    }

    /// The job has ended by itself.
    pub(crate) fn has_ended(&mut self) {
        match self.job.take() {
            Some(Job::Merge { .. }) => self.origin = !self.snaps.is_empty(),
            Some(Job::Commit { top: Some(top), base, .. }) => self.leave(top, base),
            Some(Job::Commit { top: None, base, .. }) => self.chain.truncate(base),
            None => {}
        }
    }

    /// The job was cancelled.
    pub(crate) fn was_cancelled(&mut self) {
        match &mut self.job {
            Some(Job::Merge { runs, .. }) => *runs = false,
            Some(Job::Commit { ready: true, .. }) => self.job = None,
            &mut Some(Job::Commit { top, base, ready: false }) => {
                let top = top.unwrap_or(self.chain.len() - 1);
                let copied = self.chain[top].1.clone();
                for (_, image) in &mut self.chain[base..top] {
                    image.may_be(&copied);
                }
                self.job = None;
            }
            None => {}
        }
    }

    /// Whether a job of its runs.
    pub(crate) fn job_runs(&self) -> bool {
        matches!(self.job, Some(Job::Merge { runs: true, .. } | Job::Commit { .. }))
    }
}
