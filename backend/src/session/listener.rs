//! The socket that front-ends connect to.
//!
//! Owns it from start to stop, across all connections, and its file if it made one; an inherited
//! connection takes its place, once. Never knows the protocol spoken over it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The most bytes of a socket's path; the kernel has room for one more, the terminator.
const LONGEST: usize = 107;

/// The address that front-ends connect to.
#[derive(Debug)]
pub enum SocketAddress {
    /// A path; the socket is made there and removed at the end.
    Path(PathBuf),
    /// A socket that this process inherited: it listens, or is a front-end's connection.
    Fd(OwnedFd),
}

impl SocketAddress {
    /// The socket that this process inherited as descriptor `number`. It is duplicated; the
    /// descriptor itself stays open.
    ///
    /// # Errors
    /// There is no such descriptor, or it is one that this process has opened itself.
    pub fn inherited(number: RawFd) -> Result<SocketAddress, ListenError> {
        let duplicate = || {
            // To own a descriptor known only by its number needs `unsafe`; to send it to oneself
            // does not.
            let (here, there) = UnixStream::pair()?;
            here.send_with_fd(&[0u8][..], number)?;
            let (_, file) = there.recv_with_fd(&mut [0u8])?;
            file.ok_or_else(|| io::Error::other("the descriptor did not arrive"))
        };
        if is_own(number) {
            let error = io::Error::other("it has opened that itself");
            return Err(ListenError::NoDescriptor { number, error });
        }
        let file = duplicate().map_err(|error| ListenError::NoDescriptor { number, error })?;
        Ok(SocketAddress::Fd(file.into()))
    }
}

/// Whether a descriptor would be closed by exec, as this process's own are, and none that it
/// inherited. Where /proc is missing nothing is known of it.
fn is_own(number: RawFd) -> bool {
    let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else {
        return false;
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves there.
    #[error("{} is served by another process; end that, or name another path", .0.display())]
    InUse(PathBuf),
    /// A socket of which it is unknown whether another process serves it.
    #[error(
        "cannot tell whether {} is still served: {error}; allow this process to connect to it, remove \
         it if nobody serves there, or name another path",
        .path.display()
    )]
    Unknown {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The path is not that of a socket.
    #[error("{} is there and is not a socket; remove it or name another path", .0.display())]
    NotASocket(PathBuf),
    /// The path is too long for a socket.
    #[error("{} is too long for the path of a socket, which has {LONGEST} bytes at most", .0.display())]
    TooLong(PathBuf),
    /// There is no inherited descriptor.
    #[error("descriptor {number} is not one that this process was started with: {error}")]
    NoDescriptor {
        /// Its number.
        number: RawFd,
        /// The system's error.
        error: io::Error,
    },
    /// The inherited descriptor cannot be used.
    #[error(
        "the inherited descriptor is neither a listening UNIX socket nor the connection of a \
         front-end; hand over one of these"
    )]
    NotListening,
    /// A system call failed.
    #[error("cannot listen on {}: {error}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

/// The source of connections. Front-ends that connect wait until they are accepted.
#[derive(Debug)]
pub struct Listener {
    source: Source,
    /// Removed when this is dropped.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Source {
    /// A listening socket.
    Listens(UnixListener),
    /// The only connection, until it is taken.
    Connected {
        connection: Mutex<Option<UnixStream>>,
        /// Readable until then.
        waits: OwnedFd,
    },
}

impl Source {
    fn given(fd: OwnedFd) -> Result<Source, ListenError> {
        if listens(&fd)? {
            return Source::listening(fd.into());
        }
        let connection = UnixStream::from(fd);
        let waits = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let waits = waits.map_err(|_| ListenError::NotListening)?;
        Ok(Source::Connected { connection: Mutex::new(Some(connection)), waits })
    }

    fn listening(socket: UnixListener) -> Result<Source, ListenError> {
        socket.set_nonblocking(true).map_err(|_| ListenError::NotListening)?;
        Ok(Source::Listens(socket))
    }
}

/// Whether a socket listens, or is connected.
fn listens(fd: &OwnedFd) -> Result<bool, ListenError> {
    let unix = socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
    let stream = socket_type(fd).is_ok_and(|kind| kind == SocketType::STREAM);
    let listens = socket_acceptconn(fd).unwrap_or(false);
    match unix && stream && (listens || getpeername(fd).is_ok()) {
        true => Ok(listens),
        false => Err(ListenError::NotListening),
    }
}

/// A connection that was never taken is closed for the peer.
impl Drop for Source {
    fn drop(&mut self) {
        if let Source::Connected { connection, .. } = self
            && let Some(connection) =
                connection.get_mut().unwrap_or_else(PoisonError::into_inner).take()
        {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The file of a socket, identified by device and inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Makes the socket, or takes the inherited one.
    ///
    /// # Errors
    /// The reason why there is none.
    pub fn open(address: SocketAddress) -> Result<Listener, ListenError> {
        match address {
            SocketAddress::Path(path) => Listener::bind(path),
            SocketAddress::Fd(fd) => Ok(Listener { source: Source::given(fd)?, _file: None }),
        }
    }

    fn bind(path: PathBuf) -> Result<Listener, ListenError> {
        check_length(&path)?;
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
        let source = Source::listening(socket)?;
        Ok(Listener { source, _file: Some(SocketFile { path, identity }) })
    }

    /// The next connection, if one is waiting.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        let socket = match &self.source {
            Source::Listens(socket) => socket,
            Source::Connected { connection, waits } => {
                // Then nothing can be read, and the session is not woken for it again.
                let _ = rustix::io::read(waits, &mut [0; 8]);
                return Ok(connection.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
        };
        loop {
            match socket.accept() {
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

/// Whether a socket can be made there, as far as can be checked without making one.
///
/// # Errors
/// The reason why not.
pub fn check_socket(path: &Path) -> Result<(), ListenError> {
    let system = |error| ListenError::System { path: path.to_owned(), error };
    check_length(path)?;
    match std::fs::symlink_metadata(path) {
        Ok(_) => check_stale(path),
        Err(_) => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            let asked = Access::WRITE_OK | Access::EXEC_OK;
            accessat(CWD, dir, asked, AtFlags::EACCESS).map_err(|error| system(error.into()))
        }
    }
}

/// Whether the descriptor `number` can be used as an inherited socket.
///
/// # Errors
/// The reason why not.
pub fn check_inherited(number: RawFd) -> Result<(), ListenError> {
    match SocketAddress::inherited(number)? {
        SocketAddress::Fd(fd) => listens(&fd).map(drop),
        SocketAddress::Path(_) => Ok(()),
    }
}

fn check_length(path: &Path) -> Result<(), ListenError> {
    match path.as_os_str().len() {
        ..=LONGEST => Ok(()),
        _ => Err(ListenError::TooLong(path.to_owned())),
    }
}

/// Removes the socket of a killed process, and nothing else.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let system = |error| ListenError::System { path: path.to_owned(), error };
    check_stale(path)?;
    std::fs::remove_file(path).map_err(system)
}

/// Refuses everything but the socket of a killed process.
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
        match &self.source {
            Source::Listens(socket) => socket.as_fd(),
            Source::Connected { waits, .. } => waits.as_fd(),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.identity);
        if ours {
            // The error cannot be reported any more; the next start replaces a stale socket.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let rest = LONGEST - dir.path().as_os_str().len() - 1;
        let path = |name: usize| SocketAddress::Path(dir.path().join("x".repeat(name)));
        Listener::open(path(rest)).unwrap();
        let said = Listener::open(path(rest + 1)).unwrap_err().to_string();
        assert!(said.contains("107 bytes at most"), "{said}");
    }

    /// A socket of another type: the system reports that instead of a refused connection.
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

    /// The `--fd` of QEMU's conventions for back-end programs.
    #[test]
    fn an_inherited_connection_is_the_only_one() {
        let readable = |listener: &Listener| {
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        let (connected, peer) = UnixStream::pair().unwrap();
        let listener = Listener::open(SocketAddress::Fd(connected.into())).unwrap();
        assert!(readable(&listener));
        let connection = listener.accept().unwrap().unwrap();
        assert!(!readable(&listener) && listener.accept().unwrap().is_none());
        drop(peer);
        assert!(!readable(&listener), "that it hangs up is the connection's affair");
        drop(connection);
    }

    #[test]
    fn an_inherited_socket_must_listen_or_be_connected() {
        let lonely = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let refused = Listener::open(SocketAddress::Fd(lonely));
        assert!(matches!(refused, Err(ListenError::NotListening)));
        let (datagrams, _peer) = UnixDatagram::pair().unwrap();
        let refused = Listener::open(SocketAddress::Fd(datagrams.into()));
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
