//! What a guest can negotiate with its disk, and the configuration space with the rest (virtio
//! 1.2, 5.2.3 and 5.2.4).
//!
//! Owns feature bits, limits and the layout of `virtio_blk_config`. Never knows how a feature is
//! carried out.

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use snapblk_store::units::SECTOR_SIZE;

use crate::binding::Geometry;

/// Data segments in a request: as many as fit a queue of 128 together with the header and the
/// status.
pub const SEG_MAX: u32 = 126;
/// Bytes in a data segment. Not a limit of the back end; a guest takes 0 for a page.
pub const SIZE_MAX: u32 = 1 << 22;
/// Longest range of a discard or write-zeroes segment, in sectors: 32 MiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 16;
/// Ranges in one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 32;
/// Offset of the `writeback` field, the only one that a driver may write.
pub const WRITEBACK_OFFSET: u32 = 32;
/// Bytes in the identification string.
pub const SERIAL_LEN: usize = 20;

/// vhost-user's own feature bit: protocol features can be negotiated.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

const fn bit(n: u32) -> u64 {
    1 << n
}

/// VIRTIO_BLK_F_FLUSH.
pub const FLUSH: u64 = bit(blk::VIRTIO_BLK_F_FLUSH);
/// VIRTIO_BLK_F_CONFIG_WCE.
pub const CONFIG_WCE: u64 = bit(blk::VIRTIO_BLK_F_CONFIG_WCE);
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = bit(VIRTIO_RING_F_EVENT_IDX);
/// VIRTIO_BLK_F_RO.
pub const READ_ONLY: u64 = bit(blk::VIRTIO_BLK_F_RO);

/// The features that a disk of this geometry offers.
pub fn features(geometry: Geometry) -> u64 {
    let always = bit(blk::VIRTIO_BLK_F_SIZE_MAX)
        | bit(blk::VIRTIO_BLK_F_SEG_MAX)
        | bit(blk::VIRTIO_BLK_F_BLK_SIZE)
        | bit(blk::VIRTIO_BLK_F_TOPOLOGY)
        | bit(blk::VIRTIO_BLK_F_MQ)
        | FLUSH
        | CONFIG_WCE
        | bit(VIRTIO_RING_F_INDIRECT_DESC)
        | EVENT_IDX
        | bit(VIRTIO_F_VERSION_1)
        | PROTOCOL_FEATURES;
    if geometry.read_only {
        always | READ_ONLY
    } else {
        always | bit(blk::VIRTIO_BLK_F_DISCARD) | bit(blk::VIRTIO_BLK_F_WRITE_ZEROES)
    }
}

/// Whether a write ends only when it is durable, given what was negotiated and the `writeback`
/// field (virtio 1.2, 5.2.5.2 and 5.2.6.2): without any way to flush, a guest must never need to.
pub fn is_write_through(features: u64, writeback: bool) -> bool {
    features & FLUSH == 0 || (features & CONFIG_WCE != 0 && !writeback)
}

/// The value of the `writeback` field: off if a driver may read it and has no way to flush (virtio
/// 1.2, 5.2.5.2).
pub fn shown_writeback(features: u64, writeback: bool) -> bool {
    writeback && (features & CONFIG_WCE == 0 || features & FLUSH != 0)
}

/// The logical block of a disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogicalBlock {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl LogicalBlock {
    /// From a size in bytes.
    pub fn from_bytes(bytes: u32) -> Option<LogicalBlock> {
        match bytes {
            512 => Some(LogicalBlock::B512),
            4096 => Some(LogicalBlock::B4096),
            _ => None,
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            LogicalBlock::B512 => 512,
            LogicalBlock::B4096 => 4096,
        }
    }

    /// Whether one begins at `sector`.
    #[inline]
    pub fn begins_at(self, sector: u64) -> bool {
        match self {
            LogicalBlock::B512 => true,
            LogicalBlock::B4096 => sector.is_multiple_of(4096 / SECTOR_SIZE),
        }
    }
}

/// The content of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Size and access.
    pub geometry: Geometry,
    /// Logical block.
    pub block: LogicalBlock,
    /// Queues.
    pub num_queues: u16,
    /// The `writeback` field.
    pub writeback: bool,
}

impl ConfigSpace {
    /// Bytes with a meaning.
    pub const LEN: usize = 60;

    /// The configuration space, little-endian.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        // The physical block is 4 KiB whatever the logical one is.
        let exponent = (4096 / self.block.bytes()).trailing_zeros() as u8;
        put(0, &self.geometry.size.0.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.block.bytes().to_le_bytes());
        put(24, &[exponent, 0]);
        put(26, &(1u16 << exponent).to_le_bytes());
        put(WRITEBACK_OFFSET as usize, &[u8::from(self.writeback)]);
        put(34, &self.num_queues.to_le_bytes());
        if !self.geometry.read_only {
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &(self.block.bytes() / 512).to_le_bytes());
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        out
    }

    /// `size` bytes from `offset` on. Bytes after the fields read as zero: front-ends ask for as
    /// much as *their* structure has.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.bytes();
        (u64::from(offset)..u64::from(offset) + u64::from(size))
            .map(|at| bytes.get(at as usize).copied().unwrap_or(0))
            .collect()
    }
}

/// The identification string of a disk: cut at 20 bytes, padded with zeroes.
pub fn serial(text: &str) -> [u8; SERIAL_LEN] {
    let mut serial = [0; SERIAL_LEN];
    let len = text.len().min(SERIAL_LEN);
    serial[..len].copy_from_slice(&text.as_bytes()[..len]);
    serial
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapblk_store::units::Sector;

    fn space(read_only: bool, block: LogicalBlock) -> ConfigSpace {
        let geometry = Geometry { size: Sector(0x0102_0304), read_only };
        ConfigSpace { geometry, block, num_queues: 4, writeback: true }
    }

    /// Offsets are those of `struct virtio_blk_config` in virtio 1.2, 5.2.4.
    #[test]
    fn fields_lie_where_the_specification_says() {
        let bytes = space(false, LogicalBlock::B512).bytes();
        assert_eq!(bytes[0..8], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(bytes[12..16], [126, 0, 0, 0]);
        assert_eq!(bytes[20..24], [0, 2, 0, 0]);
        assert_eq!(bytes[24..28], [3, 0, 8, 0], "physical block: 8 logical ones");
        assert_eq!(bytes[32], 1);
        assert_eq!(bytes[34..36], [4, 0]);
        assert_eq!(bytes[36..40], [0, 0, 1, 0], "32 MiB of sectors");
        assert_eq!(bytes[56], 1);
        let bytes = space(false, LogicalBlock::B4096).bytes();
        assert_eq!(bytes[20..24], [0, 16, 0, 0]);
        assert_eq!(bytes[24..28], [0, 0, 1, 0]);
        assert_eq!(bytes[44..48], [8, 0, 0, 0]);
    }

    #[test]
    fn a_read_past_the_fields_is_zero() {
        let space = space(true, LogicalBlock::B512);
        assert_eq!(space.read(32, 4), [1, 0, 4, 0]);
        assert_eq!(space.read(u32::MAX, 2), [0, 0]);
        assert_eq!(space.read(0, 256).len(), 256);
        assert_eq!(space.read(36, 24), [0; 24], "a read-only disk discards nothing");
    }

    #[test]
    fn who_cannot_flush_never_needs_to() {
        assert!(is_write_through(0, true));
        assert!(!is_write_through(FLUSH, false));
        assert!(is_write_through(FLUSH | CONFIG_WCE, false));
        assert!(is_write_through(CONFIG_WCE, true), "it has no way to flush");
        assert!(!shown_writeback(CONFIG_WCE, true), "nor does it look as if it had to");
        assert!(shown_writeback(0, true) && shown_writeback(FLUSH | CONFIG_WCE, true));
        assert!(!shown_writeback(FLUSH | CONFIG_WCE, false));
    }

    #[test]
    fn a_read_only_disk_offers_no_writes() {
        let geometry = |read_only| Geometry { size: Sector(8), read_only };
        assert_eq!(features(geometry(true)) & (1 << 13 | 1 << 14), 0);
        assert_ne!(features(geometry(true)) & (1 << 5), 0);
        assert_eq!(features(geometry(false)) & (1 << 5), 0);
        assert_eq!(features(geometry(false)) & (1 << 13 | 1 << 14), 1 << 13 | 1 << 14);
    }
}
