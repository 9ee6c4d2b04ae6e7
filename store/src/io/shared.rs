//! placeholder
use crate::sync::atomic::AtomicU64;
/// x
#[derive(Debug)]
pub struct SharedWords(Box<[AtomicU64]>);
impl std::ops::Deref for SharedWords {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}
