//! The names of actions in flight: whose each of them is, and whose metadata it writes.
//!
//! Owns how an [`Owner`] is encoded in a [`Tag`], and whose metadata ([`MetaOf`]) in a slot. Never knows
//! what an owner does when its action ends. Keeps: an owner is decoded as it was encoded, and bit 63 of a
//! tag, which the host's own tags have, is never set.

use super::merge::Step;
use super::room::Destination;
use super::slices::SliceStep;
use crate::io::{Seg, Tag};

/// Whose an action is, and which of the owner's; all but destinations, parts and steps are indices of
/// slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A request's own.
    Request { index: usize, to: Destination },
    /// A read of old bytes.
    OldRead(usize),
    /// A write of claims.
    Run(usize),
    /// A claim's that is moved slice by slice.
    Slice { claim_index: usize, step: SliceStep },
    /// The sync of a part of a barrier that no other waits for.
    Barrier { index: usize, part: usize },
    /// A commit's.
    Round(usize),
    /// The marking of a store as Invalid.
    Invalidation(usize),
    /// The merge's: `index` says which of those of the step.
    Merge { step: Step, index: usize },
    /// The sync of a file, for all who wait for one.
    Sync(usize),
}

impl Owner {
    /// `kind << 48 | detail << 32 | index`.
    #[inline]
    pub(super) fn to_tag(self) -> Tag {
        let (kind, detail, index) = match self {
            Owner::Request { index, to } => (1, to.detail(), index),
            Owner::OldRead(index) => (2, 0, index),
            Owner::Run(index) => (3, 0, index),
            Owner::Slice { claim_index, step } => (4, step as u16, claim_index),
            Owner::Barrier { index, part } => (5, part as u16, index),
            Owner::Round(index) => (6, 0, index),
            Owner::Invalidation(index) => (7, 0, index),
            Owner::Merge { step, index } => (8, step as u16, index),
            Owner::Sync(index) => (9, 0, index),
        };
        Tag(kind << 48 | u64::from(detail) << 32 | index as u64)
    }

    #[inline]
    pub(super) fn of(Tag(bits): Tag) -> Owner {
        let detail = (bits >> 32) as u16;
        let index = bits as u32 as usize;
        match bits >> 48 {
            1 => Owner::Request { index, to: Destination::from_detail(detail) },
            2 => Owner::OldRead(index),
            3 => Owner::Run(index),
            4 => Owner::Slice { claim_index: index, step: SliceStep::ALL[usize::from(detail)] },
            5 => Owner::Barrier { index, part: usize::from(detail) },
            6 => Owner::Round(index),
            7 => Owner::Invalidation(index),
            8 => Owner::Merge { step: Step::ALL[usize::from(detail)], index },
            9 => Owner::Sync(index),
            _ => unreachable!("only the above made tags"),
        }
    }
}

/// Whose metadata a [`Seg::Meta`] is: the two lowest bits of its slot, below the owner's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum MetaOf {
    Round,
    Invalidation,
    Merge,
}

impl MetaOf {
    const BITS: u32 = 2;

    pub(super) fn seg(self, index: usize, len: usize) -> Seg {
        Seg::Meta { slot: (index as u32) << Self::BITS | self as u32, len: len as u32 }
    }

    /// Whose the metadata in `slot` is, and the owner's index.
    pub(super) fn at(slot: u32) -> (MetaOf, usize) {
        let of = match slot & ((1 << Self::BITS) - 1) {
            of if of == MetaOf::Round as u32 => MetaOf::Round,
            of if of == MetaOf::Invalidation as u32 => MetaOf::Invalidation,
            _ => MetaOf::Merge,
        };
        (of, (slot >> Self::BITS) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::TrackSlot;

    #[test]
    fn what_is_encoded_is_decoded() {
        for index in [0, 1, 77, u32::MAX as usize] {
            let tracked = Destination::new(Some(TrackSlot::from_u8(3)), Some(200));
            let mut owners = vec![
                Owner::Request { index, to: tracked },
                Owner::Request { index, to: Destination::new(None, None) },
                Owner::OldRead(index),
                Owner::Run(index),
                Owner::Barrier { index, part: 65535 },
                Owner::Round(index),
                Owner::Invalidation(index),
                Owner::Sync(index),
            ];
            let slices = SliceStep::ALL.map(|step| Owner::Slice { claim_index: index, step });
            owners.extend(slices);
            owners.extend(Step::ALL.map(|step| Owner::Merge { step, index }));
            for owner in owners {
                let Tag(bits) = owner.to_tag();
                assert_eq!(Owner::of(Tag(bits)), owner);
                assert_eq!(bits >> 63, 0, "the host has such tags");
            }
        }
        for of in [MetaOf::Round, MetaOf::Invalidation, MetaOf::Merge] {
            let Seg::Meta { slot, len: 512 } = of.seg(77, 512) else { panic!("it is metadata") };
            assert_eq!(MetaOf::at(slot), (of, 77));
        }
    }
}
