//! The socket that front-ends connect to.
//!
//! Owns it from start to stop, whoever connects or leaves, and its file where it made one. Never
//! knows what is spoken over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Where front-ends connect.
#[derive(Debug)]
pub enum SocketAddress {
    /// A path; the socket is made there and removed at the end.
    Path(PathBuf),
    /// A listening socket that this process was given.
    Fd(OwnedFd),
}

impl SocketAddress {
    /// The socket that this process was given as descriptor `number`. It is duplicated; the
    /// descriptor itself stays open.
    ///
    /// # Errors
    /// There is no such descriptor.
    pub fn inherited(number: RawFd) -> io::Result<SocketAddress> {
        // To own a descriptor that is only known by its number takes `unsafe`; to send it to
        // oneself does not.
        let (here, there) = UnixStream::pair()?;
        here.send_with_fd(&[0u8][..], number)?;
        let (_, file) = there.recv_with_fd(&mut [0u8])?;
        let file = file.ok_or_else(|| io::Error::other("the descriptor did not arrive"))?;
        Ok(SocketAddress::Fd(file.into()))
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves there.
    #[error("{} is served by another process; end that, or name another path", .0.display())]
    InUse(PathBuf),
    /// A socket, and whether anybody serves there cannot be said.
    #[error(
        "cannot tell whether {} is still served: {error}; allow this process to connect to it, remove \
         it if nobody serves there, or name another path",
        .path.display()
    )]
    Unknown {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Something that is not a socket.
    #[error("{} is there and is not a socket; remove it or name another path", .0.display())]
    NotASocket(PathBuf),
    /// What was handed over cannot be listened on.
    #[error("the inherited descriptor is not a listening UNIX socket")]
    NotListening,
    /// The system said no.
    #[error("cannot listen on {}: {error}", .path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    /// Removed with this.
    _file: Option<SocketFile>,
}

/// The file of a socket, known again by device and inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    pub(super) fn open(address: SocketAddress) -> Result<Listener, ListenError> {
        let listener = match address {
            SocketAddress::Path(path) => Listener::bind(path)?,
            SocketAddress::Fd(fd) => {
                let unix = socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
                if !unix || !socket_acceptconn(&fd).unwrap_or(false) {
                    return Err(ListenError::NotListening);
                }
                Listener { socket: fd.into(), _file: None }
            }
        };
        listener.socket.set_nonblocking(true).map_err(|_| ListenError::NotListening)?;
        Ok(listener)
    }

    fn bind(path: PathBuf) -> Result<Listener, ListenError> {
        let system = |error| ListenError::System { path: path.clone(), error };
        let socket = match UnixListener::bind(&path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&path)?;
                UnixListener::bind(&path).map_err(system)?
            }
            bound => bound.map_err(system)?,
        };
        let made = std::fs::symlink_metadata(&path).map_err(system)?;
        let identity = (made.dev(), made.ino());
        Ok(Listener { socket, _file: Some(SocketFile { path, identity }) })
    }

    /// The next connection, if one waits.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.socket.accept() {
                Ok((socket, _)) => return Ok(Some(socket)),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted => {
                        return Ok(None);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(e),
                },
            }
        }
    }
}

/// Whether a socket may be made there, as far as that can be seen without making one.
///
/// # Errors
/// Why not.
pub fn check_socket(path: &Path) -> Result<(), ListenError> {
    let system = |error| ListenError::System { path: path.to_owned(), error };
    SocketAddr::from_pathname(path).map_err(system)?;
    match std::fs::symlink_metadata(path) {
        Ok(_) => check_stale(path),
        Err(_) => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            access(dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| system(error.into()))
        }
    }
}

/// Removes what a process that was killed left behind, and nothing else.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let system = |error| ListenError::System { path: path.to_owned(), error };
    check_stale(path)?;
    std::fs::remove_file(path).map_err(system)
}

/// Refuses what is no socket that a process left behind which was killed.
fn check_stale(path: &Path) -> Result<(), ListenError> {
    let system = |error| ListenError::System { path: path.to_owned(), error };
    let there = std::fs::symlink_metadata(path).map_err(system)?;
    if !there.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) => Err(ListenError::Unknown { path: path.to_owned(), error }),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.identity);
        if ours {
            // Nobody can be told any more, and a stale socket is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::open(SocketAddress::Path(path.clone())).unwrap();
        let second = Listener::open(SocketAddress::Path(path.clone()));
        assert!(matches!(second, Err(ListenError::InUse(_))));
        drop(listener);
        assert!(!path.exists(), "the socket goes with the listener");
        std::fs::write(&path, "precious").unwrap();
        let file = Listener::open(SocketAddress::Path(path.clone()));
        assert!(matches!(file, Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    /// Of another type, which the system says rather than that nobody is there.
    #[test]
    fn a_socket_that_cannot_be_tried_is_not_said_to_be_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let _datagrams = UnixDatagram::bind(&path).unwrap();
        let said = Listener::open(SocketAddress::Path(path.clone())).unwrap_err().to_string();
        assert!(said.contains("os error") && said.contains("name another path"), "{said}");
        assert!(!said.contains("another process"), "{said}");
        assert!(path.exists());
    }

    #[test]
    fn only_the_socket_that_was_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = Listener::open(SocketAddress::Path(path.clone())).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn an_inherited_socket_must_listen() {
        let (connected, _peer) = UnixStream::pair().unwrap();
        let refused = Listener::open(SocketAddress::Fd(connected.into()));
        assert!(matches!(refused, Err(ListenError::NotListening)));
        assert!(SocketAddress::inherited(-1).is_err());
        assert!(SocketAddress::inherited(i32::MAX).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            Listener::open(SocketAddress::Fd(file.into())),
            Err(ListenError::NotListening)
        ));
    }
}
