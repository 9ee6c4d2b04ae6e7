//! A vhost-user-blk front end for tests: the part of a virtual machine's disk driver.
//!
//! Owns the connection and its shared memory, and hands out the queues, each of which may be used
//! by its own thread. Never knows which server it is connected to, nor the expected content of the
//! disk.
//!
//! It uses the `virtio-driver` crate directly. That crate's transport trait names a private type
//! (`Iova`), so other crates cannot *implement* a transport; to *use* its vhost-user transport,
//! nothing private has to be named. `blkio`, which wraps the same code, would hide what tests need:
//! the device's configuration, a full ring, several segments per request, and the time of
//! notifications.
//!
//! Its limitation: the driver presets the status byte to success, so a server that completes a
//! request without writing a status passes here. Tests of the server's own virtqueue code check
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

/// The connection, shared by all queues: it owns the memory of the rings.
type SharedTransport = Arc<Box<VirtioBlkTransport>>;

/// How a queue waits for completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeping until the server interrupts.
    #[default]
    Sleep,
    /// Polling the ring without end; the server is told not to interrupt.
    Poll,
}

/// The parameters of a connection.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The server's socket.
    pub socket: PathBuf,
    /// The number of queues.
    pub queues: usize,
    /// Descriptors of each; a power of two. A request takes two and one per segment.
    pub queue_size: u16,
    /// Bytes of shared memory for buffers.
    pub pool: usize,
    /// How queues wait.
    pub waiting: Waiting,
    /// How long the server may take to reply.
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
    /// A step of the setup failed.
    #[error("cannot {step} at {socket}: {source}", socket = .socket.display())]
    Step {
        /// The step.
        step: &'static str,
        /// The server's socket.
        socket: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The server did not reply.
    #[error("the server at {socket} did not answer within {timeout:?}", socket = .socket.display())]
    Timeout {
        /// Its socket.
        socket: PathBuf,
        /// The time limit.
        timeout: Duration,
    },
}

/// The properties of a device that a load needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The size of the disk in bytes.
    pub capacity: u64,
    /// The size of a logical block in bytes: offsets and lengths are multiples of it.
    pub block_size: u32,
    /// The most segments in a request.
    pub max_segments: u32,
    /// Queues of the device.
    pub queues: u16,
    /// The most bytes in a discard; 0 if discard is not offered.
    pub max_discard: u64,
    /// The most bytes in a write of zeroes; 0 if that is not offered.
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
        // This process may have closed the session before this one only a moment ago.
        crate::server::settle();
        // The transport's calls wait for the server without limit, so they are made in a separate
        // thread: a server that hangs costs that thread and not the test run.
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

    /// The device's properties at the beginning of the session.
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    /// The queues, in order, and the memory for their buffers. The session lasts as long as one of
    /// the queues.
    pub fn into_parts(self) -> (Vec<Queue>, Pool) {
        (self.queues, self.pool)
    }
}

/// All features that the driver can use except the packed ring, which not every server implements
/// correctly.
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
