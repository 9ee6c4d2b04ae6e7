//! The state that a front-end has set up (features, memory, rings), and how each message changes
//! it.
//!
//! Owns the state of one connection and the meaning of every message. Never touches a socket or a
//! ring: workers get messages, and reply before the session replies to the front-end. Whatever a
//! front-end sends, the worst result is that the message is refused.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use snapblk_store::units::Sector;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::channel::{Channel, Closed};
use super::inflight::{Areas, Inflight};
use super::message::{InflightLayout, Message, Refusal, VringFd, VringState};
use super::{Disk, REFUSE_EVERY};
use crate::binding::Geometry;
use crate::config::{self, ConfigSpace};
use crate::memory::{GuestMemory, MAX_REGIONS, MemoryError};
use crate::vring::{MAX_QUEUE_SIZE, VringSetup};
use crate::worker::{Kick, PendingReply, RingStart, WorkerError, WorkerHandle};

/// The protocol features of this back end.
pub(super) const PROTOCOL_FEATURES: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::STATUS)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::INFLIGHT_SHMFD);

/// VIRTIO's DEVICE_NEEDS_RESET.
const NEEDS_RESET: u64 = 64;

/// How long a worker may take to answer: a ring to stop, a cache to be flushed, and anything else
/// may have to wait for those.
const DRAIN_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 6 } else { 60 });

/// Changes of a running ring that its worker may still have before it. A front-end can send them
/// without end, some of them with a descriptor, while it holds its worker up.
const UNTAKEN: usize = 16;

/// The reply to a message that was carried out.
#[derive(Debug)]
pub(super) enum Answer {
    /// Only that it was carried out.
    Done,
    U64(u64),
    Vring(VringState),
    Config {
        offset: u32,
        flags: u32,
        data: Vec<u8>,
    },
    Inflight(InflightLayout, OwnedFd),
}

/// The place of a ring in the front-end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    descriptor: u64,
    available: u64,
    used: u64,
}

/// One ring as it was described so far.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    kick: Option<Kick>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    enabled: bool,
    /// Its worker has it.
    running: bool,
    /// Changes that its worker was told of.
    told: VecDeque<PendingReply<()>>,
}

/// The state of a connection.
pub(super) struct Setup<T> {
    disk: Arc<Disk>,
    workers: Vec<WorkerHandle<T>>,
    features: u64,
    protocol: u64,
    status: u64,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    /// The memory in which rings record chains in flight.
    inflight: Option<Inflight>,
    /// The files for it, which outlive the connection.
    pub(super) areas: Areas,
    channel: Option<Channel>,
    /// The size that the front-end saw, or was told to look at, last.
    seen: Option<Sector>,
    /// The function called repeatedly while waiting for a worker.
    meanwhile: Box<dyn Fn()>,
}

fn nonsense(what: impl ToString) -> Refusal {
    Refusal::Nonsense(what.to_string())
}

impl<T> Setup<T> {
    pub(super) fn new(
        disk: Arc<Disk>,
        workers: Vec<WorkerHandle<T>>,
        meanwhile: Box<dyn Fn()>,
    ) -> Self {
        let vrings = workers.iter().map(|_| Vring::default()).collect();
        Setup {
            disk,
            workers,
            features: 0,
            protocol: 0,
            status: 0,
            memory: Arc::default(),
            vrings,
            inflight: None,
            areas: Areas::default(),
            channel: None,
            seen: None,
            meanwhile,
        }
    }

    /// Waits for a worker, for as long as its requests in flight may take to end.
    fn wait<R>(&self, reply: &PendingReply<R>) -> Result<R, WorkerError> {
        let begin = Instant::now();
        loop {
            match reply.wait(REFUSE_EVERY) {
                Err(WorkerError::TimedOut) if begin.elapsed() < DRAIN_LIMIT => (self.meanwhile)(),
                answer => return answer,
            }
        }
    }

    /// The protocol features that were negotiated.
    pub(super) fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Whether the front-end may ask for an acknowledgement.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & Protocol::REPLY_ACK.bits() != 0
    }

    /// Carries out a message.
    pub(super) fn follow(&mut self, message: Message) -> Result<Answer, Refusal> {
        match message {
            Message::GetFeatures => return Ok(Answer::U64(self.offered())),
            Message::GetProtocolFeatures => return Ok(Answer::U64(PROTOCOL_FEATURES.bits())),
            Message::GetQueueNum => return Ok(Answer::U64(self.vrings.len() as u64)),
            Message::GetMaxMemSlots => return Ok(Answer::U64(MAX_REGIONS as u64)),
            Message::GetStatus => return Ok(Answer::U64(self.status())),
            Message::GetVringBase(index) => return self.stop_ring(index).map(Answer::Vring),
            Message::GetConfig { offset, size, flags } => {
                let space = self.config_space();
                self.seen = Some(space.geometry.size);
                let data = space.read(offset, size);
                return Ok(Answer::Config { offset, flags, data });
            }
            Message::GetInflightFd(asked) => {
                let queues = self.vrings.len() as u16;
                let (layout, file) = self.areas.give(asked, queues).map_err(nonsense)?;
                return Ok(Answer::Inflight(layout, file));
            }
            // Nothing to own, and the protocol has a back-end ignore the second.
            Message::SetOwner | Message::ResetOwner => {}
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::SetProtocolFeatures(features) => {
                let unknown = features & !PROTOCOL_FEATURES.bits();
                if unknown != 0 {
                    return Err(nonsense(format!(
                        "protocol features {unknown:#x} were not offered"
                    )));
                }
                self.protocol = features;
            }
            Message::SetConfig { offset, data } => self.set_config(offset, &data)?,
            Message::ResetDevice => {
                self.reset()?;
                self.forget_rings();
            }
            // QEMU sends it whenever rings stop, and may start them again where they were.
            Message::SetStatus(0) => self.reset()?,
            Message::SetStatus(status) => self.status = status & !NEEDS_RESET,
            Message::SetMemTable(table) => self.set_memory(GuestMemory::from_table(table))?,
            Message::AddMemReg(region, fd) => {
                self.set_memory(self.memory.with_region(region, fd))?;
            }
            Message::RemMemReg(region) => self.set_memory(self.memory.without_region(region))?,
            Message::SetVringNum(state) => self.set_size(state)?,
            Message::SetVringBase(state) => self.set_base(state)?,
            Message::SetVringAddr { index, descriptor, used, available } => {
                self.set_addresses(index, Addresses { descriptor, available, used })?;
            }
            Message::SetVringKick(kick) => self.set_kick(kick)?,
            Message::SetVringCall(call) => self.set_call(call)?,
            Message::SetVringErr(err) => self.set_err(err)?,
            Message::SetVringEnable(state) => self.set_enabled(state)?,
            Message::SetInflightFd(layout, file) => self.set_inflight(layout, file)?,
            Message::SetBackendReqFd(socket) => {
                self.channel = Some(Channel::new(socket));
                self.tell_size();
            }
        }
        Ok(Answer::Done)
    }

    /// The status field: what the front-end set, and whether its guest broke a ring.
    fn status(&self) -> u64 {
        let mut rings = self.vrings.iter().zip(&self.workers);
        let is_broken = rings.any(|(vring, worker)| vring.running && worker.is_broken());
        self.status | if is_broken { NEEDS_RESET } else { 0 }
    }

    /// The back-end channel, if there is one.
    pub(super) fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    /// Reads replies from the back-end channel.
    pub(super) fn take_answers(&mut self) {
        let taken = self.channel.as_mut().map_or(Ok(()), Channel::take_answers);
        self.note_channel(taken);
    }

    /// Tells the front-end to read the configuration again, if the disk has another size than it
    /// saw.
    pub(super) fn tell_size(&mut self) {
        let size = self.disk.geometry().size;
        // A front-end that continues with rings of an earlier connection read it there, whatever
        // it was then.
        let may_differ = match self.seen {
            Some(seen) => seen != size,
            None => self.vrings.iter().any(|vring| vring.running),
        };
        // Who cannot read it is not told that it changed.
        let reads = self.protocol & Protocol::CONFIG.bits() != 0;
        let tells = may_differ && reads;
        let Some(channel) = self.channel.as_ref().filter(|_| tells) else { return };
        let told = channel.config_changed(self.acknowledges());
        self.seen = Some(size);
        self.note_channel(told);
    }

    fn note_channel(&mut self, outcome: Result<(), Closed>) {
        if let Err(why) = outcome {
            tracing::debug!("{why}");
            self.channel = None;
        }
    }

    /// Begins to stop all rings: requests in flight end, owed chunks are made durable.
    pub(super) fn tear_down(&mut self) -> Vec<PendingReply<Option<u16>>> {
        // New front-ends are served when that is over. And it may hold the connection open.
        self.meanwhile = Box::new(|| {});
        let running = self.vrings.iter_mut().zip(&self.workers).filter(|(vring, _)| vring.running);
        let replies = running
            .map(|(vring, worker)| {
                vring.running = false;
                vring.kick = None;
                worker.stop_ring()
            })
            .collect();
        for worker in &self.workers {
            // Nothing waits for it: it is carried out when the ring has stopped.
            drop(worker.set_memory(Arc::default()));
        }
        replies
    }

    fn offered(&self) -> u64 {
        config::features(self.disk.geometry())
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            geometry: self.disk.geometry(),
            block: self.disk.block,
            num_queues: self.vrings.len() as u16,
            writeback: config::shown_writeback(self.features, self.is_writeback()),
        }
    }

    fn is_writeback(&self) -> bool {
        self.disk.writeback.load(Ordering::Relaxed)
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        // A front-end that reconnects sends the features of the disk as it was when its guest
        // booted. Requests that no longer fit are refused one by one.
        let geometry = self.disk.geometry();
        let either = [false, true].map(|read_only| Geometry { read_only, ..geometry });
        let unknown = features & !either.map(config::features).iter().fold(0, |all, it| all | it);
        if unknown != 0 {
            return Err(nonsense(format!("features {unknown:#x} were not offered")));
        }
        self.features = features;
        Ok(())
    }

    /// Only the `writeback` field may be written. When it is turned off, earlier writes are
    /// durable before this reply, and every later write before its own completion.
    fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        let (config::WRITEBACK_OFFSET, &[value]) = (offset, data) else {
            return Err(nonsense(format!(
                "{} bytes of the configuration at {offset} cannot be written",
                data.len()
            )));
        };
        // A front-end may send a guest's setting before it sends the negotiated features.
        if self.features != 0 && self.features & config::CONFIG_WCE == 0 {
            return Err(nonsense("a guest that did not negotiate that cannot set the write cache"));
        }
        let writeback = value != 0;
        let write_through = config::is_write_through(self.features, writeback);
        let running = self.vrings.iter().zip(&self.workers).filter(|(vring, _)| vring.running);
        let replies: Vec<_> =
            running.map(|(_, worker)| worker.set_write_through(write_through)).collect();
        for reply in replies {
            // A worker that is late takes the setting all the same: that cannot be refused any more.
            let hangs = |e| Refusal::Hangs(format!("the write cache is not set: {e}"));
            self.wait(&reply).map_err(hangs)?.map_err(nonsense)?;
        }
        if self.disk.writeback.swap(writeback, Ordering::Relaxed) != writeback {
            (self.disk.keep_writeback)(writeback);
        }
        Ok(())
    }

    /// The write cache keeps its setting. Front-ends reset a device whenever its rings stop, and
    /// do not repeat the guest's setting; they can read it.
    fn reset(&mut self) -> Result<(), Refusal> {
        for index in 0..self.vrings.len() {
            self.stop_ring(index as u32)?;
            self.vrings[index].enabled = false;
        }
        self.status = 0;
        Ok(())
    }

    /// The driver sets its rings up again, maybe elsewhere, and requests that a stopped ring left
    /// for the next start are no longer wanted. (A ring that only stops keeps its place, as with
    /// other back-ends: a front-end may kick it again.)
    fn forget_rings(&mut self) {
        for vring in &mut self.vrings {
            (vring.addresses, vring.base) = (None, 0);
        }
        let Some(inflight) = &self.inflight else { return };
        for index in 0..self.vrings.len() {
            if let Ok(region) = inflight.region(index as u32) {
                region.forget();
            }
        }
    }

    /// All workers switch to a new memory before the reply to the front-end: a request may use it
    /// as soon as the guest knows of it.
    fn set_memory(&mut self, memory: Result<GuestMemory, MemoryError>) -> Result<(), Refusal> {
        self.memory = Arc::new(memory.map_err(nonsense)?);
        let replies: Vec<_> =
            self.workers.iter().map(|worker| worker.set_memory(self.memory.clone())).collect();
        // A worker that is late adopts it all the same: that cannot be refused any more.
        let hangs = |e| Refusal::Hangs(format!("a worker does not adopt its memory: {e}"));
        replies.iter().try_for_each(|reply| self.wait(reply).map_err(hangs))
    }

    /// Rings find it when they are started.
    fn set_inflight(&mut self, layout: InflightLayout, file: OwnedFd) -> Result<(), Refusal> {
        if let Some(index) = self.vrings.iter().position(|vring| vring.running) {
            return Err(nonsense(format!("vring {index} is running")));
        }
        let queues = self.vrings.len() as u16;
        let shared = file.try_clone().map_err(nonsense)?;
        self.inflight = Some(Inflight::map(layout, file, queues).map_err(nonsense)?);
        self.areas.came_back(&shared);
        Ok(())
    }

    fn vring(&mut self, index: u32) -> Result<(&mut Vring, &WorkerHandle<T>), Refusal> {
        let at = index as usize;
        match (self.vrings.get_mut(at), self.workers.get(at)) {
            (Some(vring), Some(worker)) => Ok((vring, worker)),
            _ => Err(nonsense(format!("there is no vring {index}"))),
        }
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, Refusal> {
        let (vring, _) = self.vring(index)?;
        if vring.running {
            return Err(nonsense(format!("vring {index} is running")));
        }
        Ok(vring)
    }

    fn set_size(&mut self, VringState { index, value }: VringState) -> Result<(), Refusal> {
        let size = u16::try_from(value)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE)
            .ok_or_else(|| {
                nonsense(format!(
                    "a queue of {value} descriptors is not a power of two up to {MAX_QUEUE_SIZE}"
                ))
            })?;
        self.stopped_vring(index)?.size = size;
        Ok(())
    }

    fn set_base(&mut self, VringState { index, value }: VringState) -> Result<(), Refusal> {
        let base = u16::try_from(value)
            .map_err(|_| nonsense(format!("{value} is no position in a split ring")))?;
        self.stopped_vring(index)?.base = base;
        Ok(())
    }

    fn set_addresses(&mut self, index: u32, addresses: Addresses) -> Result<(), Refusal> {
        let (vring, _) = self.vring(index)?;
        // A front-end repeats them to request logging of the ring.
        if vring.running && vring.addresses != Some(addresses) {
            return Err(nonsense(format!("vring {index} is running")));
        }
        vring.addresses = Some(addresses);
        self.start_if_ready(index)
    }

    fn set_kick(&mut self, VringFd { index, fd }: VringFd) -> Result<(), Refusal> {
        let (vring, worker) = self.vring(index)?;
        let kick = fd.map_or(Kick::Poll, Kick::Event);
        if vring.running {
            vring.told.push_back(worker.set_kick(kick.share()));
        }
        vring.kick = Some(kick);
        self.await_taken(index)?;
        self.start_if_ready(index)
    }

    fn set_call(&mut self, VringFd { index, fd }: VringFd) -> Result<(), Refusal> {
        let (vring, worker) = self.vring(index)?;
        if vring.running {
            vring.told.push_back(worker.set_call(share(&fd)?));
        }
        vring.call = fd;
        self.await_taken(index)
    }

    fn set_err(&mut self, VringFd { index, fd }: VringFd) -> Result<(), Refusal> {
        let (vring, worker) = self.vring(index)?;
        if vring.running {
            vring.told.push_back(worker.set_err(share(&fd)?));
        }
        vring.err = fd;
        self.await_taken(index)
    }

    fn set_enabled(&mut self, VringState { index, value }: VringState) -> Result<(), Refusal> {
        if self.features & config::PROTOCOL_FEATURES == 0 {
            return Err(nonsense("rings are enabled by messages only with protocol features"));
        }
        let enabled = match value {
            0 => false,
            1 => true,
            _ => {
                return Err(nonsense(format!(
                    "a ring is enabled by 1 or disabled by 0, not {value}"
                )));
            }
        };
        let (vring, worker) = self.vring(index)?;
        vring.enabled = enabled;
        if vring.running {
            vring.told.push_back(worker.enable(enabled));
        }
        self.await_taken(index)
    }

    /// Waits until a ring's worker has few changes before it, and not until it has none: while it
    /// quiesces, which may last, it takes none, and a guest may move its interrupts.
    fn await_taken(&mut self, index: u32) -> Result<(), Refusal> {
        loop {
            let told = &mut self.vring(index)?.0.told;
            told.retain(|reply| reply.wait(Duration::ZERO) == Err(WorkerError::TimedOut));
            if told.len() <= UNTAKEN {
                return Ok(());
            }
            let Some(first) = told.pop_front() else { return Ok(()) };
            self.wait(&first).map_err(|e| Refusal::Hangs(format!("vring {index}: {e}")))?;
        }
    }

    /// A ring runs once it was kicked for the first time, or could have been. Its worker checks it
    /// at once, so that an earlier kick is not missed.
    fn start_if_ready(&mut self, index: u32) -> Result<(), Refusal> {
        let protocol_features = self.features & config::PROTOCOL_FEATURES != 0;
        let event_idx = self.features & config::EVENT_IDX != 0;
        let write_through = config::is_write_through(self.features, self.is_writeback());
        let region = self.inflight.as_ref().map(|it| it.region(index)).transpose();
        let (vring, worker) = self.vring(index)?;
        let (false, Some(at), Some(kick)) = (vring.running, vring.addresses, &vring.kick) else {
            return Ok(());
        };
        let start = RingStart {
            setup: VringSetup {
                size: vring.size,
                descriptor: at.descriptor,
                available: at.available,
                used: at.used,
                base: vring.base,
                event_idx,
            },
            inflight: region.map_err(nonsense)?,
            kick: kick.share(),
            call: share(&vring.call)?,
            err: share(&vring.err)?,
            enabled: vring.enabled || !protocol_features,
            write_through,
        };
        vring.running = true;
        let reply = worker.start_ring(start);
        // If the worker is late, it starts the ring all the same: that cannot be refused any more.
        let hangs = |e| Refusal::Hangs(format!("vring {index}: {e}"));
        let started = self.wait(&reply).map_err(hangs)?;
        if let Err(e) = started {
            self.vring(index)?.0.running = false;
            return Err(nonsense(format!("vring {index} cannot be started: {e}")));
        }
        if self.seen.is_none() && self.channel.is_some() {
            self.tell_size();
        }
        Ok(())
    }

    /// Stops a ring; returns the position at which its next start continues.
    fn stop_ring(&mut self, index: u32) -> Result<VringState, Refusal> {
        let (vring, worker) = self.vring(index)?;
        let mut stopped = None;
        if vring.running {
            let reply = worker.stop_ring();
            // The position is not known before the ring has stopped, and must not be invented.
            let base = self.wait(&reply);
            stopped = base.map_err(|e| Refusal::Hangs(format!("vring {index}: {e}")))?;
        }
        let (vring, _) = self.vring(index)?;
        vring.running = false;
        vring.base = stopped.unwrap_or(vring.base);
        vring.kick = None;
        Ok(VringState { index, value: vring.base.into() })
    }
}

fn share(fd: &Option<OwnedFd>) -> Result<Option<OwnedFd>, Refusal> {
    fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(nonsense)
}
