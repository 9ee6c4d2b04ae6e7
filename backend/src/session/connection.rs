//! One front-end's connection: bytes and descriptors in, whole messages out.
//!
//! Owns the socket, the part of a message that has arrived so far, and the count of refused
//! messages. Never blocks on a read, and on a write only for as long as the front-end may take to
//! read a reply. Never knows a message beyond its header.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::{BadStream, HEADER_LEN, Header, MAX_FDS, MAX_PAYLOAD};

/// How long a front-end may leave a reply unread.
const REPLY_LIMIT: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the front-end hung up")]
    HungUp,
    #[error("the front-end sent what is not vhost-user: {0}")]
    BadStream(#[from] BadStream),
    #[error("the front-end does not read its replies")]
    NotReading,
    #[error("requests in flight did not end in time")]
    Hangs,
    #[error("the connection failed: {0}")]
    Failed(#[from] io::Error),
}

/// A message that was not parsed yet.
#[derive(Debug)]
pub(super) struct Envelope {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// A connection to a front-end.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    buffer: Box<[u8; HEADER_LEN + MAX_PAYLOAD]>,
    have: usize,
    fds: Vec<OwnedFd>,
    /// Messages that were refused.
    pub(super) refused: u64,
}

impl Connection {
    pub(super) fn new(socket: UnixStream) -> io::Result<Connection> {
        socket.set_nonblocking(true)?;
        Ok(Connection {
            socket,
            buffer: Box::new([0; HEADER_LEN + MAX_PAYLOAD]),
            have: 0,
            fds: Vec::new(),
            refused: 0,
        })
    }

    /// Reads what has arrived; a message if that completed one.
    pub(super) fn receive(&mut self) -> Result<Option<Envelope>, Ended> {
        loop {
            let header = self.header()?;
            let whole = HEADER_LEN + header.map_or(0, |header| header.size);
            if let Some(header) = header
                && self.have == whole
            {
                self.have = 0;
                return Ok(Some(Envelope {
                    header,
                    payload: self.buffer[HEADER_LEN..whole].to_vec(),
                    fds: std::mem::take(&mut self.fds),
                }));
            }
            // Never past the end of a message: the descriptors of the next would be lost in it.
            match self.read_up_to(whole)? {
                0 => return Ok(None),
                n => self.have += n,
            }
        }
    }

    fn header(&self) -> Result<Option<Header>, BadStream> {
        match self.buffer.first_chunk::<HEADER_LEN>() {
            Some(bytes) if self.have >= HEADER_LEN => Header::decode(bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads towards `whole` bytes; 0 if nothing is there yet.
    fn read_up_to(&mut self, whole: usize) -> Result<usize, Ended> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut self.buffer[self.have..whole])];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let bytes = loop {
            match recvmsg(&self.socket, &mut into, &mut control, flags) {
                Ok(received) => break received.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(Ended::HungUp),
                Err(e) => return Err(Ended::Failed(e.into())),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // Each part of a message may bring as many as a whole one.
        if self.fds.len() > MAX_FDS {
            return Err(BadStream::Descriptors(self.fds.len()).into());
        }
        if bytes == 0 { Err(Ended::HungUp) } else { Ok(bytes) }
    }

    /// Sends a reply.
    pub(super) fn reply(&self, header: &Header, payload: &[u8]) -> Result<(), Ended> {
        self.reply_with(header, payload, None)
    }

    /// Sends a reply, with a descriptor if there is one.
    pub(super) fn reply_with(
        &self,
        header: &Header,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Ended> {
        let mut message = header.reply(payload.len()).to_vec();
        message.extend_from_slice(payload);
        let mut rest = &message[..];
        // It goes with the first bytes, once.
        let mut fds = fd.as_slice();
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    fds = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_until_writable()?,
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(Ended::HungUp),
                Err(e) => return Err(Ended::Failed(e.into())),
            }
        }
        Ok(())
    }

    fn wait_until_writable(&self) -> Result<(), Ended> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        let limit = Timespec { tv_sec: REPLY_LIMIT.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => Err(Ended::NotReading),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(Ended::Failed(e.into())),
        }
    }

    /// Whether the front-end is gone, even if messages of it are still unread.
    pub(super) fn has_hung_up(&self) -> bool {
        has_hung_up(&self.socket)
    }
}

/// Whether the peer of `socket` is gone.
pub(super) fn has_hung_up(socket: &impl AsFd) -> bool {
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
        && fds[0].revents().intersects(gone)
}

/// The peer sees it even if this process has another descriptor of the socket: one that was
/// inherited stays open.
impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    fn pair() -> (UnixStream, Connection) {
        let (peer, ours) = UnixStream::pair().unwrap();
        (peer, Connection::new(ours).unwrap())
    }

    fn message(code: u32, payload: &[u8]) -> Vec<u8> {
        let words = [code, 1, payload.len() as u32];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_message_may_arrive_byte_by_byte() {
        let (mut peer, mut connection) = pair();
        let bytes = message(2, &[7; 8]);
        for byte in &bytes[..bytes.len() - 1] {
            peer.write_all(&[*byte]).unwrap();
            assert!(connection.receive().unwrap().is_none());
        }
        peer.write_all(&bytes[bytes.len() - 1..]).unwrap();
        let envelope = connection.receive().unwrap().unwrap();
        assert_eq!((envelope.header.code, &envelope.payload[..]), (2, &[7; 8][..]));
    }

    #[test]
    fn a_message_in_parts_brings_no_more_descriptors_than_a_whole_one() {
        let (peer, mut connection) = pair();
        let some = [peer.as_raw_fd(); MAX_FDS - 1];
        let bytes = message(5, &[]);
        for (byte, fds) in bytes.chunks(1).zip([&some[..], &some[..1], &some[..0]]) {
            peer.send_with_fds(&[byte], fds).unwrap();
            assert!(connection.receive().unwrap().is_none());
        }
        peer.send_with_fds(&[&bytes[3..4]], &some[..1]).unwrap();
        let ended = connection.receive();
        assert!(matches!(ended, Err(Ended::BadStream(BadStream::Descriptors(33)))), "{ended:?}");
    }

    #[test]
    fn messages_that_arrive_together_are_told_apart() {
        let (mut peer, mut connection) = pair();
        peer.write_all(&[message(2, &[1; 8]), message(3, &[])].concat()).unwrap();
        assert_eq!(connection.receive().unwrap().unwrap().header.code, 2);
        assert_eq!(connection.receive().unwrap().unwrap().header.code, 3);
        assert!(connection.receive().unwrap().is_none());
    }

    #[test]
    fn a_hang_up_shows_although_messages_are_unread() {
        let (mut peer, mut connection) = pair();
        assert!(!connection.has_hung_up());
        peer.write_all(&message(3, &[])).unwrap();
        drop(peer);
        assert!(connection.has_hung_up());
        assert!(connection.receive().unwrap().is_some());
        assert!(matches!(connection.receive(), Err(Ended::HungUp)));
    }

    #[test]
    fn a_reply_has_the_requests_code_and_the_reply_flag() {
        let (mut peer, connection) = pair();
        let header = Header { code: 1, need_reply: false, size: 0 };
        connection.reply(&header, &[9; 8]).unwrap();
        let mut bytes = [0; 20];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..4], 1u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 5u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 8u32.to_ne_bytes());
        assert_eq!(bytes[12..], [9; 8]);
    }
}
