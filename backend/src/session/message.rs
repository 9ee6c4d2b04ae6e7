//! Messages of the vhost-user protocol, decoded and checked.
//!
//! Owns the layout of headers and payloads (vhost-user, "Message Specification") and which message
//! needs which protocol feature. Never knows what a message does. An accepted message is of a
//! negotiated kind, has the payload and the descriptors of its kind, and is not a reply; its
//! values may still be nonsense.

use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq;

use crate::memory::Region;

/// Bytes of a header: request, flags, size of the payload.
pub(super) const HEADER_LEN: usize = 12;
/// The longest payload that is read.
pub(super) const MAX_PAYLOAD: usize = 4096;
/// Descriptors that can come with a message.
pub(super) const MAX_FDS: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// Set in the payload of a kick, call or error descriptor if there is none.
const NO_FD: u64 = 0x100;

/// A header that was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The number of the request; it may be unknown.
    pub code: u32,
    /// Whether the front-end waits for a reply.
    pub need_reply: bool,
    /// Bytes of payload.
    pub size: usize,
}

/// The stream cannot be parsed any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadStream {
    #[error("a message of version {0}, this is version 1")]
    Version(u32),
    #[error("a reply where a request was expected")]
    Reply,
    #[error("a payload of {0} bytes, at most {MAX_PAYLOAD} are taken")]
    TooLong(usize),
    #[error("{0} descriptors with one message, at most {MAX_FDS} are taken")]
    Descriptors(usize),
}

/// The message is refused; the next one may be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("request {0} is not known")]
    Unknown(u32),
    #[error("{0:?} was not negotiated")]
    NotNegotiated(FrontendReq),
    #[error("{0:?} is not supported")]
    NotSupported(FrontendReq),
    #[error("the payload of {0:?} is not what it should be")]
    Payload(FrontendReq),
    #[error("{0:?} came with {1} descriptors")]
    Descriptors(FrontendReq, usize),
    #[error("{0}")]
    Nonsense(String),
    /// There is no reply, and no correct one will follow: the connection ends.
    #[error("requests in flight do not end: {0}")]
    Hangs(String),
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, BadStream> {
        let [code, flags, size] = words(bytes);
        if flags & VERSION_MASK != VERSION {
            return Err(BadStream::Version(flags & VERSION_MASK));
        }
        if flags & REPLY != 0 {
            return Err(BadStream::Reply);
        }
        let size = size as usize;
        if size > MAX_PAYLOAD {
            return Err(BadStream::TooLong(size));
        }
        Ok(Header { code, need_reply: flags & NEED_REPLY != 0, size })
    }

    /// The header of the reply to this, with `size` bytes of payload.
    pub(super) fn reply(&self, size: usize) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (at, word) in [self.code, VERSION | REPLY, size as u32].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

fn words<const N: usize, const M: usize>(bytes: &[u8; N]) -> [u32; M] {
    std::array::from_fn(|n| {
        let at = n * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}

/// The state of one ring, as some messages carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VringState {
    pub index: u32,
    pub value: u32,
}

/// A descriptor for one ring; none if the front-end says that there is none.
#[derive(Debug)]
pub(super) struct VringFd {
    pub index: u32,
    pub fd: Option<OwnedFd>,
}

/// The place and capacity of the memory in which rings record chains in flight (vhost-user,
/// "Inflight description").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InflightLayout {
    /// Bytes.
    pub size: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// The number of rings.
    pub queues: u16,
    /// Descriptors of each ring.
    pub descriptors: u16,
}

impl InflightLayout {
    /// The length of its fields.
    const LEN: usize = 20;
    /// Its length as some front-ends send it: their compilers pad it.
    const PADDED_LEN: usize = 24;

    /// The payload of the reply, as long as that of the request.
    pub(super) fn encode(&self, len: usize) -> Vec<u8> {
        let longs = [self.size, self.offset].map(u64::to_ne_bytes);
        let shorts = [self.queues, self.descriptors].map(u16::to_ne_bytes);
        let mut bytes = [longs.as_flattened(), shorts.as_flattened()].concat();
        bytes.resize(len.clamp(Self::LEN, Self::PADDED_LEN), 0);
        bytes
    }
}

/// The requests of a front-end.
#[derive(Debug)]
pub(super) enum Message {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    SetOwner,
    ResetOwner,
    ResetDevice,
    GetStatus,
    SetStatus(u64),
    GetQueueNum,
    GetMaxMemSlots,
    SetMemTable(Vec<(Region, OwnedFd)>),
    AddMemReg(Region, OwnedFd),
    RemMemReg(Region),
    SetVringNum(VringState),
    SetVringAddr { index: u32, descriptor: u64, used: u64, available: u64 },
    SetVringBase(VringState),
    GetVringBase(u32),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    SetVringEnable(VringState),
    SetBackendReqFd(OwnedFd),
    GetInflightFd(InflightLayout),
    SetInflightFd(InflightLayout, OwnedFd),
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, data: Vec<u8> },
}

/// The protocol feature that a request needs.
fn needs(request: FrontendReq) -> Option<Protocol> {
    use FrontendReq as R;
    Some(match request {
        R::GET_QUEUE_NUM => Protocol::MQ,
        R::GET_CONFIG | R::SET_CONFIG => Protocol::CONFIG,
        R::GET_MAX_MEM_SLOTS | R::ADD_MEM_REG | R::REM_MEM_REG => Protocol::CONFIGURE_MEM_SLOTS,
        R::GET_STATUS | R::SET_STATUS => Protocol::STATUS,
        R::RESET_DEVICE => Protocol::RESET_DEVICE,
        R::SET_BACKEND_REQ_FD => Protocol::BACKEND_REQ,
        R::GET_INFLIGHT_FD | R::SET_INFLIGHT_FD => Protocol::INFLIGHT_SHMFD,
        _ => return None,
    })
}

/// The reply to a refused request whose sender waits for a reply without asking for one: as long as
/// the proper reply, and empty or saying that it failed.
pub(super) fn refused_reply(header: &Header) -> Option<Vec<u8>> {
    use FrontendReq as R;
    let value = |value: u64| Some(value.to_ne_bytes().to_vec());
    match R::try_from(header.code).ok()? {
        R::GET_FEATURES
        | R::GET_PROTOCOL_FEATURES
        | R::GET_QUEUE_NUM
        | R::GET_VRING_BASE
        | R::GET_MAX_MEM_SLOTS
        | R::GET_STATUS => value(0),
        R::GET_CONFIG => Some(vec![0; 12]),
        R::GET_INFLIGHT_FD => Some(InflightLayout::default().encode(header.size)),
        R::CHECK_DEVICE_STATE => value(1),
        // Failed, and without a descriptor.
        R::SET_DEVICE_STATE_FD => value(0x101),
        R::GET_SHARED_OBJECT | R::GET_SHMEM_CONFIG => Some(Vec::new()),
        _ => None,
    }
}

/// Decodes a message; `negotiated` are the protocol features.
pub(super) fn decode(
    header: Header,
    payload: &[u8],
    mut fds: Vec<OwnedFd>,
    negotiated: u64,
) -> Result<Message, Refusal> {
    use FrontendReq as R;
    let request = R::try_from(header.code).map_err(|_| Refusal::Unknown(header.code))?;
    if needs(request).is_some_and(|feature| negotiated & feature.bits() == 0) {
        return Err(Refusal::NotNegotiated(request));
    }
    let p = Payload { request, bytes: payload };
    let message = match request {
        R::GET_FEATURES => p.empty(Message::GetFeatures)?,
        R::GET_PROTOCOL_FEATURES => p.empty(Message::GetProtocolFeatures)?,
        R::SET_OWNER => p.empty(Message::SetOwner)?,
        R::RESET_OWNER => p.empty(Message::ResetOwner)?,
        R::RESET_DEVICE => p.empty(Message::ResetDevice)?,
        R::GET_QUEUE_NUM => p.empty(Message::GetQueueNum)?,
        R::GET_MAX_MEM_SLOTS => p.empty(Message::GetMaxMemSlots)?,
        R::GET_STATUS => p.empty(Message::GetStatus)?,
        R::SET_FEATURES => Message::SetFeatures(p.u64()?),
        R::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(p.u64()?),
        R::SET_STATUS => Message::SetStatus(p.u64()?),
        R::SET_MEM_TABLE => return p.mem_table(fds).map(Message::SetMemTable),
        R::ADD_MEM_REG => {
            let region = p.single_region()?;
            let fd = take_one(request, &mut fds)?;
            Message::AddMemReg(region, fd)
        }
        R::REM_MEM_REG => {
            let region = p.single_region()?;
            // Some front-ends repeat the descriptor; it is closed unused.
            fds.truncate(0);
            Message::RemMemReg(region)
        }
        R::SET_VRING_NUM => Message::SetVringNum(p.state()?),
        R::SET_VRING_BASE => Message::SetVringBase(p.state()?),
        R::SET_VRING_ENABLE => Message::SetVringEnable(p.state()?),
        R::GET_VRING_BASE => Message::GetVringBase(p.state()?.index),
        R::SET_VRING_ADDR => p.vring_addr()?,
        R::SET_VRING_KICK => return p.vring_fd(fds).map(Message::SetVringKick),
        R::SET_VRING_CALL => return p.vring_fd(fds).map(Message::SetVringCall),
        R::SET_VRING_ERR => return p.vring_fd(fds).map(Message::SetVringErr),
        R::SET_BACKEND_REQ_FD => {
            p.exact::<0>()?;
            return take_one(request, &mut fds).map(Message::SetBackendReqFd);
        }
        R::GET_INFLIGHT_FD => Message::GetInflightFd(p.inflight()?),
        R::SET_INFLIGHT_FD => {
            let layout = p.inflight()?;
            let fd = take_one(request, &mut fds)?;
            Message::SetInflightFd(layout, fd)
        }
        R::GET_CONFIG => p.get_config()?,
        R::SET_CONFIG => p.set_config()?,
        _ => return Err(Refusal::NotSupported(request)),
    };
    if fds.is_empty() { Ok(message) } else { Err(Refusal::Descriptors(request, fds.len())) }
}

fn take_one(request: FrontendReq, fds: &mut Vec<OwnedFd>) -> Result<OwnedFd, Refusal> {
    match (fds.pop(), fds.len()) {
        (Some(fd), 0) => Ok(fd),
        (fd, rest) => Err(Refusal::Descriptors(request, rest + usize::from(fd.is_some()))),
    }
}

/// The payload of a request.
struct Payload<'a> {
    request: FrontendReq,
    bytes: &'a [u8],
}

impl Payload<'_> {
    fn wrong(&self) -> Refusal {
        Refusal::Payload(self.request)
    }

    fn exact<const N: usize>(&self) -> Result<&[u8; N], Refusal> {
        self.bytes.try_into().map_err(|_| self.wrong())
    }

    fn empty(&self, message: Message) -> Result<Message, Refusal> {
        self.exact::<0>().map(|_| message)
    }

    fn u64(&self) -> Result<u64, Refusal> {
        self.exact().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    fn state(&self) -> Result<VringState, Refusal> {
        let [index, value] = words(self.exact::<8>()?);
        Ok(VringState { index, value })
    }

    fn vring_addr(&self) -> Result<Message, Refusal> {
        let bytes = self.exact::<40>()?;
        let [index, _flags] = words(bytes);
        let [_, descriptor, used, available, _log] = longs(bytes);
        Ok(Message::SetVringAddr { index, descriptor, used, available })
    }

    fn vring_fd(&self, mut fds: Vec<OwnedFd>) -> Result<VringFd, Refusal> {
        let value = self.u64()?;
        let index = (value & 0xff) as u32;
        let fd = if value & NO_FD == 0 {
            let fd = take_one(self.request, &mut fds)?;
            check_eventfd(&fd)?;
            Some(fd)
        } else if fds.is_empty() {
            None
        } else {
            return Err(Refusal::Descriptors(self.request, fds.len()));
        };
        Ok(VringFd { index, fd })
    }

    fn single_region(&self) -> Result<Region, Refusal> {
        let [_padding, guest, size, user, file_offset] = longs(self.exact::<40>()?);
        Ok(Region { guest, size, user, file_offset })
    }

    fn mem_table(&self, fds: Vec<OwnedFd>) -> Result<Vec<(Region, OwnedFd)>, Refusal> {
        let (head, regions) = self.bytes.split_first_chunk::<8>().ok_or_else(|| self.wrong())?;
        let [count, _padding] = words(head);
        let (regions, rest) = regions.as_chunks::<32>();
        if !rest.is_empty() || regions.len() != count as usize {
            return Err(self.wrong());
        }
        if fds.len() != regions.len() {
            return Err(Refusal::Descriptors(self.request, fds.len()));
        }
        let region = |bytes: &[u8; 32]| {
            let [guest, size, user, file_offset] = longs(bytes);
            Region { guest, size, user, file_offset }
        };
        Ok(regions.iter().map(region).zip(fds).collect())
    }

    fn inflight(&self) -> Result<InflightLayout, Refusal> {
        let (longs_of, rest) = self.bytes.split_first_chunk::<16>().ok_or_else(|| self.wrong())?;
        let &[q0, q1, d0, d1, ref padding @ ..] = rest else { return Err(self.wrong()) };
        if !matches!(padding.len(), 0 | 4) {
            return Err(self.wrong());
        }
        let [size, offset] = longs(longs_of);
        let (queues, descriptors) = (u16::from_ne_bytes([q0, q1]), u16::from_ne_bytes([d0, d1]));
        Ok(InflightLayout { size, offset, queues, descriptors })
    }

    fn get_config(&self) -> Result<Message, Refusal> {
        let (offset, size, flags, _) = self.config()?;
        Ok(Message::GetConfig { offset, size, flags })
    }

    fn set_config(&self) -> Result<Message, Refusal> {
        let (offset, _, _, data) = self.config()?;
        Ok(Message::SetConfig { offset, data: data.to_vec() })
    }

    fn config(&self) -> Result<(u32, u32, u32, &[u8]), Refusal> {
        let (head, data) = self.bytes.split_first_chunk::<12>().ok_or_else(|| self.wrong())?;
        let [offset, size, flags] = words(head);
        if data.len() != size as usize || size == 0 {
            return Err(self.wrong());
        }
        Ok((offset, size, flags, data))
    }
}

fn longs<const N: usize, const M: usize>(bytes: &[u8; N]) -> [u64; M] {
    let (longs, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|n| u64::from_ne_bytes(longs[n]))
}

/// Requires an eventfd. The reader of a pipe or a socket can fill it at any time, and a write that
/// waits for room there cannot be ended; and before Linux 6.4 no read of a pipe can be kept from
/// waiting. A file is always ready.
fn check_eventfd(fd: &OwnedFd) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Refusal::Nonsense(e.to_string()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        // Eventfds have no type. Nor have some other descriptors, but none of them makes a write wait.
        FileType::Unknown => Ok(()),
        other => Err(Refusal::Nonsense(format!(
            "a vring is kicked, and its driver called and told of errors, by an eventfd, and not by a \
             {other:?}; pass an eventfd"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&size.to_ne_bytes());
        bytes
    }

    fn refusal(code: u32, payload: &[u8], negotiated: u64) -> Refusal {
        let header = Header { code, need_reply: false, size: payload.len() };
        decode(header, payload, Vec::new(), negotiated).unwrap_err()
    }

    #[test]
    fn a_stream_that_makes_no_sense_is_told_from_a_request_that_does_not() {
        assert_eq!(Header::decode(&header(1, 2, 0)), Err(BadStream::Version(2)));
        assert_eq!(Header::decode(&header(1, 5, 0)), Err(BadStream::Reply));
        assert_eq!(Header::decode(&header(1, 1, 4097)), Err(BadStream::TooLong(4097)));
        let unknown = Header::decode(&header(4711, 9, 16)).unwrap();
        assert_eq!(unknown, Header { code: 4711, need_reply: true, size: 16 });
        assert_eq!(refusal(4711, &[0; 16], u64::MAX), Refusal::Unknown(4711));
    }

    /// Known bug 20.
    #[test]
    fn what_was_not_negotiated_is_refused() {
        let cases = [(17, 0), (24, 16), (36, 0), (37, 40), (38, 40), (39, 8), (40, 0), (34, 0)];
        let cases = cases.into_iter().chain([(31, 20), (32, 24)]);
        for (code, size) in cases {
            let refused = refusal(code, &vec![0; size], 0);
            assert!(matches!(refused, Refusal::NotNegotiated(_)), "request {code}: {refused}");
        }
        // SET_LOG_BASE, IOTLB_MSG, POSTCOPY_ADVISE, GET_SHMEM_CONFIG
        for code in [6, 22, 28, 44] {
            assert!(matches!(refusal(code, &[0; 16], u64::MAX), Refusal::NotSupported(_)));
        }
    }

    #[test]
    fn a_payload_of_the_wrong_size_is_refused() {
        for code in (1..=44).filter(|code| *code != 19) {
            let refused = refusal(code, &[0; 3], u64::MAX);
            assert!(
                matches!(refused, Refusal::Payload(_) | Refusal::NotSupported(_)),
                "request {code}: {refused}"
            );
        }
        // A table of two regions that holds one.
        let mut table = vec![0; 40];
        table[0] = 2;
        assert!(matches!(refusal(5, &table, 0), Refusal::Payload(_)));
    }

    #[test]
    fn an_inflight_description_is_of_either_length() {
        let layout = InflightLayout { size: 0x1122, offset: 0x3000, queues: 4, descriptors: 128 };
        for len in [20, 24] {
            let payload = layout.encode(len);
            assert_eq!(payload.len(), len);
            assert_eq!((&payload[8..10], &payload[16..20]), (&[0, 0x30][..], &[4, 0, 128, 0][..]));
            let header = Header { code: 31, need_reply: false, size: len };
            let decoded = decode(header, &payload, vec![], u64::MAX).unwrap();
            assert!(matches!(decoded, Message::GetInflightFd(same) if same == layout));
            let header = Header { code: 32, ..header };
            let refused = decode(header, &payload, vec![], u64::MAX).unwrap_err();
            assert!(matches!(refused, Refusal::Descriptors(_, 0)));
        }
        for len in [19, 21, 23, 25] {
            assert!(matches!(refusal(31, &vec![1; len], u64::MAX), Refusal::Payload(_)));
        }
    }

    /// Its sender reads as much as it sent.
    #[test]
    fn a_refused_inflight_description_is_answered_by_one_as_long() {
        for size in [20, 24] {
            let header = Header { code: 31, need_reply: false, size };
            assert_eq!(refused_reply(&header), Some(vec![0; size]));
        }
    }

    #[test]
    fn descriptors_are_counted() {
        assert!(matches!(refusal(12, &0u64.to_ne_bytes(), 0), Refusal::Descriptors(_, 0)));
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let header = |code| Header { code, need_reply: false, size: 8 };
        let kick = decode(header(12), &(3u64 | 0x100).to_ne_bytes(), vec![], 0).unwrap();
        assert!(matches!(kick, Message::SetVringKick(VringFd { index: 3, fd: None })));
        let both = decode(header(12), &0x100u64.to_ne_bytes(), vec![null()], 0);
        assert!(matches!(both, Err(Refusal::Descriptors(_, 1))));
        let file = decode(header(12), &[0; 8], vec![null()], 0);
        assert!(matches!(file, Err(Refusal::Nonsense(_))), "nobody kicks by it");
        let extra = decode(header(2), &[0; 8], vec![null()], 0);
        assert!(matches!(extra, Err(Refusal::Descriptors(_, 1))));
    }

    /// A write to anything else may wait for ever for its reader, and so may a read, on old kernels.
    #[test]
    fn a_ring_is_kicked_and_its_driver_called_by_an_eventfd_alone() {
        let eventfd = crate::worker::new_eventfd().unwrap();
        let (_reads, pipe) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        // SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR
        for (fd, taken) in [(eventfd, true), (pipe, false), (socket, false)] {
            let takes = |code| {
                let header = Header { code, need_reply: false, size: 8 };
                decode(header, &[0; 8], vec![fd.try_clone().unwrap()], 0).is_ok()
            };
            assert_eq!([12, 13, 14].map(takes), [taken; 3]);
        }
    }
}
