//! Merging: not yet.
use super::core::Core;
use crate::table::Table;
/// x
#[derive(Clone, Copy, Debug)]
pub struct MergeProgress;
/// x
#[derive(Clone, Copy, Debug)]
pub enum MergeState {}
pub(super) struct MergeJob;
impl MergeJob {
    pub(super) fn is_quiet(&self) -> bool {
        true
    }
    pub(super) fn progress(&self) -> MergeProgress {
        MergeProgress
    }
}
impl Core {
    pub(super) fn step_merge(&mut self, _t: &Table) {}
    pub(super) fn merge_io_done(&mut self, _t: &Table, _i: usize, _ok: bool) {}
    pub(super) fn merge_protected(&mut self, _ok: bool) {}
}
