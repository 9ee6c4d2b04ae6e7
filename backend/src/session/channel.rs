//! The back-end channel, for messages that the front-end did not ask for (vhost-user, "Back-end
//! communication").
//!
//! Owns the channel's socket and its one message, that the configuration space changed. Never
//! waits for the front-end: if a message does not fit behind unread ones, it is not needed,
//! because each of those makes the front-end read the configuration again; a reply is read when it
//! arrives. Never knows what changed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::AT_ONCE;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 0x8;
/// Bytes of a reply: a header and a status.
const ANSWER_LEN: usize = 20;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    answer: [u8; ANSWER_LEN],
    have: usize,
    /// It was logged that the front-end reported a failure: it may do so without end.
    told: bool,
}

/// The channel can no longer be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Closed {
    #[error("the front-end closed the back-end channel")]
    HungUp,
    #[error("the back-end channel failed: {0}")]
    Failed(Errno),
}

impl Channel {
    /// The channel of a front-end that gave `socket`.
    pub(super) fn new(socket: OwnedFd) -> Channel {
        Channel { socket, answer: [0; ANSWER_LEN], have: 0, told: false }
    }

    /// Sends that the configuration space changed; with `acknowledged`, asks for a reply.
    pub(super) fn config_changed(&self, acknowledged: bool) -> Result<(), Closed> {
        let flags = if acknowledged { VERSION | NEED_REPLY } else { VERSION };
        let message = [CONFIG_CHANGE, flags, 0].map(u32::to_ne_bytes);
        loop {
            // A stream socket takes so few bytes completely or not at all.
            return match send(
                &self.socket,
                message.as_flattened(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(_) | Err(Errno::AGAIN) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET) => Err(Closed::HungUp),
                Err(error) => Err(Closed::Failed(error)),
            };
        }
    }

    /// Takes a few of the replies that have come; the rest is there at the next check.
    pub(super) fn take_answers(&mut self) -> Result<(), Closed> {
        for _ in 0..AT_ONCE {
            let into = &mut self.answer[self.have..];
            match recv(&self.socket, into, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Closed::HungUp),
                Ok((_, bytes)) => self.have += bytes,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(Closed::HungUp),
                Err(error) => return Err(Closed::Failed(error)),
            }
            if self.have == ANSWER_LEN {
                self.have = 0;
                if self.answer[12..] != [0; 8] && !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("the front-end could not follow a change of the configuration");
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    #[test]
    fn answers_without_end_are_taken_a_few_at_a_time() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours.try_clone().unwrap().into());
        peer.write_all(&[0; ANSWER_LEN].repeat(AT_ONCE + 1)).unwrap();
        channel.take_answers().unwrap();
        ours.set_nonblocking(true).unwrap();
        let left = recv(&ours, &mut [0; 2 * ANSWER_LEN], RecvFlags::PEEK).unwrap();
        assert_eq!(left.1, ANSWER_LEN, "the last is left for the next look");
        drop(peer);
        assert_eq!(channel.take_answers(), Err(Closed::HungUp), "which finds it, and the end");
    }

    #[test]
    fn who_cannot_follow_is_logged_once() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours.into());
        peer.write_all(&[1; ANSWER_LEN].repeat(AT_ONCE)).unwrap();
        let (said, written) = tempfile::tempfile().map(|file| (file.try_clone(), file)).unwrap();
        let mut said = said.unwrap();
        let logs = tracing_subscriber::fmt().with_writer(Mutex::new(written)).finish();
        tracing::subscriber::with_default(logs, || {
            channel.take_answers().unwrap();
            channel.take_answers().unwrap();
        });
        let mut log = String::new();
        said.seek(SeekFrom::Start(0)).unwrap();
        said.read_to_string(&mut log).unwrap();
        assert_eq!(log.matches("could not follow").count(), 1, "{log}");
    }
}
