//! A vhost-user-blk front end for tests: what a virtual machine's disk driver would do.
//!
//! Owns the connection and its shared memory, and hands out the queues, each of which may go to a
//! thread of its own. Never knows which server it talks to, nor what the disk should hold.
//!
//! It stands on the `virtio-driver` crate directly. That crate's transport trait names a private
//! type (`Iova`), so nobody else can *implement* a transport; to *use* its vhost-user transport
//! nothing private has to be named. `blkio`, which wraps the same code, would hide what tests want
//! to see and do: the device's configuration, ring-full, several segments a request, when a
//! notification is sent.
//!
//! What it cannot see: the driver presets the status byte to success, so a server that completes a
//! request without writing a status passes here. Tests of the server's own virtqueue code look at
//! that.

mod memory;
mod queue;

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

pub use memory::{BUFFER_ALIGNMENT, Buffer, Pool};
pub use queue::{Completion, Queue, RequestError, SubmitError};

/// The connection, kept by every queue: it owns the memory that the rings lie in.
type SharedTransport = Arc<Box<VirtioBlkTransport>>;

/// How a queue waits for completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeping until the server calls.
    #[default]
    Sleep,
    /// Looking at the ring without end; the server is told not to call.
    Poll,
}

/// Whom to connect to, and with what.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The server's socket.
    pub socket: PathBuf,
    /// How many queues to set up.
    pub queues: usize,
    /// Descriptors in each; a power of two. A request takes two and one for each segment.
    pub queue_size: u16,
    /// Bytes of shared memory for buffers.
    pub pool: usize,
    /// How queues wait.
    pub waiting: Waiting,
    /// How long the server may take to answer.
    pub timeout: Duration,
}

impl Connect {
    /// One queue of 256 descriptors, 32 MiB of buffers, sleeping waits, ten seconds.
    pub fn to(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            queues: 1,
            queue_size: 256,
            pool: 32 << 20,
            waiting: Waiting::Sleep,
            timeout: Duration::from_secs(10),
        }
    }

    /// The same with `queues` queues.
    pub fn queues(mut self, queues: usize) -> Self {
        self.queues = queues;
        self
    }

    /// The same with `bytes` of buffers.
    pub fn pool(mut self, bytes: usize) -> Self {
        self.pool = bytes;
        self
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A step failed.
    #[error("cannot {step} at {socket}: {source}", socket = .socket.display())]
    Step {
        /// What was being done.
        step: &'static str,
        /// With whom.
        socket: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The server did not answer.
    #[error("the server at {socket} did not answer within {timeout:?}", socket = .socket.display())]
    Timeout {
        /// Who.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
}

/// What a device says of itself, as far as a load must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes on the disk.
    pub capacity: u64,
    /// Bytes in a logical block: offsets and lengths are multiples of it.
    pub block_size: u32,
    /// Most segments in a request.
    pub max_segments: u32,
    /// Queues that the device has.
    pub queues: u16,
    /// Most bytes in a discard; 0 where discard is not offered.
    pub max_discard: u64,
    /// Most bytes in a write of zeroes; 0 where that is not offered.
    pub max_write_zeroes: u64,
    /// Whether flush is offered.
    pub flush: bool,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl DeviceInfo {
    fn new(features: u64, config: &VirtioBlkConfig) -> Self {
        let features = VirtioBlkFeatureFlags::from_bits_truncate(features);
        let bytes = |flag, sectors| {
            if features.contains(flag) { u64::from(u32::from(sectors)) * 512 } else { 0 }
        };
        let has = |flag| features.contains(flag);
        Self {
            capacity: u64::from(config.capacity) * 512,
            block_size: if has(VirtioBlkFeatureFlags::BLK_SIZE) {
                u32::from(config.blk_size)
            } else {
                512
            },
            max_segments: if has(VirtioBlkFeatureFlags::SEG_MAX) {
                u32::from(config.seg_max).max(1)
            } else {
                1
            },
            queues: if has(VirtioBlkFeatureFlags::MQ) { u16::from(config.num_queues) } else { 1 },
            max_discard: bytes(VirtioBlkFeatureFlags::DISCARD, config.max_discard_sectors),
            max_write_zeroes: bytes(
                VirtioBlkFeatureFlags::WRITE_ZEROES,
                config.max_write_zeroes_sectors,
            ),
            flush: has(VirtioBlkFeatureFlags::FLUSH),
            read_only: has(VirtioBlkFeatureFlags::RO),
        }
    }
}

/// A connected front end.
pub struct Client {
    info: DeviceInfo,
    queues: Vec<Queue>,
    pool: Pool,
}

impl Client {
    /// Connects, negotiates, shares memory, and starts the queues.
    pub fn connect(connect: &Connect) -> Result<Self, ConnectError> {
        // The session before this one may have ended a moment ago, for this process.
        crate::server::settle();
        // The transport's calls wait for the server without end, so they are made in a thread of
        // their own: a server that hangs costs that thread and not the test run.
        let (sender, receiver) = mpsc::channel();
        let theirs = connect.clone();
        std::thread::spawn(move || sender.send(Self::connect_blocking(&theirs)));
        receiver.recv_timeout(connect.timeout).unwrap_or_else(|_| {
            Err(ConnectError::Timeout { socket: connect.socket.clone(), timeout: connect.timeout })
        })
    }

    fn connect_blocking(connect: &Connect) -> Result<Self, ConnectError> {
        let failed = |step| {
            let socket = connect.socket.clone();
            move |source| ConnectError::Step { step, socket, source }
        };
        let socket = connect.socket.to_str().ok_or(io::ErrorKind::InvalidFilename.into());
        let features = wanted_features();
        let transport = VhostUser::new(socket.map_err(failed("use the path"))?, features)
            .map_err(failed("open a vhost-user session"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let config = transport.get_config().map_err(failed("read the configuration space"))?;
        let info = DeviceInfo::new(transport.get_features(), &config);

        let pool = Pool::new(connect.pool).map_err(failed("make shared memory for the session"))?;
        transport
            .map_mem_region(pool.address(), pool.len(), pool.memfd().as_raw_fd(), 0)
            .map_err(failed("share memory"))?;
        let rings =
            VirtioBlkQueue::setup_queues(transport.as_mut(), connect.queues, connect.queue_size)
                .map_err(failed("set up the queues"))?;
        let transport: SharedTransport = Arc::new(transport);
        let queues = rings
            .into_iter()
            .enumerate()
            .map(|(index, ring)| {
                let transport = Arc::clone(&transport);
                Queue::new(ring, index, connect.queue_size, connect.waiting, transport)
            })
            .collect();
        Ok(Self { info, queues, pool })
    }

    /// What the device said of itself when the session began.
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    /// The queues, in their order, and the memory for their buffers. The session lasts as long as
    /// one of the queues.
    pub fn into_parts(self) -> (Vec<Queue>, Pool) {
        (self.queues, self.pool)
    }
}

/// All that the driver can use, the packed ring aside: not every server offers it rightly.
fn wanted_features() -> u64 {
    let device = VirtioBlkFeatureFlags::SIZE_MAX
        | VirtioBlkFeatureFlags::SEG_MAX
        | VirtioBlkFeatureFlags::RO
        | VirtioBlkFeatureFlags::BLK_SIZE
        | VirtioBlkFeatureFlags::FLUSH
        | VirtioBlkFeatureFlags::TOPOLOGY
        | VirtioBlkFeatureFlags::MQ
        | VirtioBlkFeatureFlags::DISCARD
        | VirtioBlkFeatureFlags::WRITE_ZEROES
        | VirtioBlkFeatureFlags::CONFIG_WCE;
    let ring = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    device.bits() | ring.bits()
}
