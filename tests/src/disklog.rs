//! Disks that record every write and every flush, in one order.
//!
//! Owns an NBD server on a UNIX socket, with an export per disk, and the log of their requests.
//! QEMU's own `blklogwrites` keeps one log per disk; but what a store may contain before its origin
//! does depends on the order *between* two disks, so this is one log for all. Never knows what the
//! bytes mean.
//!
//! Invariants: a record is in the log before its request is answered; on one disk, requests are
//! carried out one after the other, so a flush covers exactly the records of its disk before it. A
//! disk does not lose any writes itself: which unflushed writes a power cut keeps is decided when
//! the log is replayed.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A request to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// These bytes at this offset.
    Write {
        /// The disk, as an index into the list given to [`serve`].
        disk: usize,
        /// First byte.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Everything written to the disk before this is durable.
    Flush {
        /// The disk.
        disk: usize,
    },
}

#[derive(Debug)]
struct Disks {
    content: Vec<Vec<u8>>,
    log: Vec<Record>,
}

/// The disks of a running server.
#[derive(Clone, Debug)]
pub struct Logged(Arc<Mutex<Disks>>);

impl Logged {
    fn lock(&self) -> MutexGuard<'_, Disks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log so far; it continues empty.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.lock().log)
    }
}

/// The export name of the disk `number`.
pub fn export_name(number: usize) -> String {
    format!("disk{number}")
}

/// Serves `disks` on a new socket at `path`, for as long as this process lives.
///
/// # Errors
/// The socket cannot be created.
pub fn serve(path: &Path, disks: Vec<Vec<u8>>) -> io::Result<Logged> {
    let listener = UnixListener::bind(path)?;
    let logged = Logged(Arc::new(Mutex::new(Disks { content: disks, log: Vec::new() })));
    let served = logged.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let served = served.clone();
            // It ends when the client disconnects; its error has no other receiver.
            std::thread::spawn(move || Connection { stream, served }.run());
        }
    });
    Ok(logged)
}

/// The numbers of the NBD protocol (its specification is proto.md of the NBD project).
mod nbd {
    pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
    pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
    pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// Fixed newstyle; no zeroes after the old kind of reply.
    pub(super) const FLAGS: u16 = 0b11;
    pub(super) const OPT_ABORT: u32 = 2;
    pub(super) const OPT_INFO: u32 = 6;
    pub(super) const OPT_GO: u32 = 7;
    pub(super) const REP_ACK: u32 = 1;
    pub(super) const REP_INFO: u32 = 3;
    pub(super) const REP_UNSUPPORTED: u32 = (1 << 31) | 1;
    pub(super) const REP_UNKNOWN: u32 = (1 << 31) | 6;
    /// The flags are valid, and flush is supported.
    pub(super) const EXPORT_FLAGS: u16 = 0b101;
    pub(super) const REQUEST: u32 = 0x2560_9513;
    pub(super) const REPLY: u32 = 0x6744_6698;
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const DISCONNECT: u16 = 2;
    pub(super) const FLUSH: u16 = 3;
    pub(super) const EINVAL: u32 = 22;
}

struct Connection {
    stream: UnixStream,
    served: Logged,
}

impl Connection {
    fn run(mut self) -> io::Result<()> {
        match self.negotiate()? {
            Some(disk) => self.transmit(disk),
            None => Ok(()),
        }
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Answers options until the client has chosen a disk, or disconnects.
    fn negotiate(&mut self) -> io::Result<Option<usize>> {
        let greeting = [nbd::MAGIC.to_be_bytes(), nbd::OPTION.to_be_bytes()].concat();
        self.stream.write_all(&greeting)?;
        self.stream.write_all(&nbd::FLAGS.to_be_bytes())?;
        self.number::<4>()?;
        loop {
            self.number::<8>()?;
            let option = u32::from_be_bytes(self.number()?);
            let mut data = vec![0; u32::from_be_bytes(self.number()?) as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                nbd::OPT_INFO | nbd::OPT_GO => {
                    let Some((disk, len)) = self.find(&data) else {
                        self.answer_option(option, nbd::REP_UNKNOWN, &[])?;
                        continue;
                    };
                    let flags = nbd::EXPORT_FLAGS.to_be_bytes();
                    let info = [&[0, 0][..], &len.to_be_bytes(), &flags].concat();
                    self.answer_option(option, nbd::REP_INFO, &info)?;
                    self.answer_option(option, nbd::REP_ACK, &[])?;
                    if option == nbd::OPT_GO {
                        return Ok(Some(disk));
                    }
                }
                nbd::OPT_ABORT => {
                    self.answer_option(option, nbd::REP_ACK, &[])?;
                    return Ok(None);
                }
                _ => self.answer_option(option, nbd::REP_UNSUPPORTED, &[])?,
            }
        }
    }

    /// The disk that an option's data names, and its length.
    fn find(&self, data: &[u8]) -> Option<(usize, u64)> {
        let len = u32::from_be_bytes(data.get(..4)?.try_into().ok()?) as usize;
        let name = data.get(4..)?.get(..len)?;
        let disks = self.served.lock();
        let mut all = disks.content.iter().enumerate();
        let found = all.find(|(number, _)| export_name(*number).as_bytes() == name);
        found.map(|(number, content)| (number, content.len() as u64))
    }

    fn answer_option(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut answer = nbd::OPTION_REPLY.to_be_bytes().to_vec();
        for word in [option, kind, data.len() as u32] {
            answer.extend(word.to_be_bytes());
        }
        answer.extend(data);
        self.stream.write_all(&answer)
    }

    fn transmit(&mut self, disk: usize) -> io::Result<()> {
        loop {
            if u32::from_be_bytes(self.number()?) != nbd::REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.number::<2>()?;
            let kind = u16::from_be_bytes(self.number()?);
            let cookie: [u8; 8] = self.number()?;
            let offset = u64::from_be_bytes(self.number()?);
            let len = u32::from_be_bytes(self.number()?) as usize;
            let mut bytes = vec![0; if kind == nbd::WRITE { len } else { 0 }];
            self.stream.read_exact(&mut bytes)?;
            let (error, data) = match kind {
                nbd::DISCONNECT => return Ok(()),
                _ => match self.carry_out(disk, kind, offset, len, bytes) {
                    Some(data) => (0, data),
                    None => (nbd::EINVAL, Vec::new()),
                },
            };
            let mut reply = nbd::REPLY.to_be_bytes().to_vec();
            reply.extend(u32::to_be_bytes(error));
            reply.extend(cookie);
            reply.extend(data);
            self.stream.write_all(&reply)?;
        }
    }

    /// The bytes of a read; none if the request cannot be carried out.
    fn carry_out(
        &self,
        disk: usize,
        kind: u16,
        offset: u64,
        len: usize,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let Disks { content, log } = &mut *self.served.lock();
        let range = offset as usize..(offset as usize).checked_add(len)?;
        let place = content[disk].get_mut(range)?;
        match kind {
            nbd::READ => return Some(place.to_vec()),
            nbd::WRITE => {
                place.copy_from_slice(&bytes);
                log.push(Record::Write { disk, offset, bytes });
            }
            nbd::FLUSH => log.push(Record::Flush { disk }),
            _ => return None,
        }
        Some(Vec::new())
    }
}
