//! A second parser of the store's format, independent of the engine: the content for the kernel.

use std::collections::{BTreeMap, BTreeSet};

use snapblk_tests::verify::stamp::SECTOR;

/// `SnAp`, little-endian.
const MAGIC: u32 = 0x7041_6e53;
/// Bytes of an entry.
const ENTRY: usize = 16;

/// The content of `origin` with `store` over it; only `origin` if the store has no header.
pub(crate) fn compose(origin: &[u8], store: &[u8], sectors: usize) -> Result<Vec<u8>, String> {
    let mut all = origin.to_vec();
    let chunk = sectors * SECTOR;
    for (old, new) in entries(store, sectors)? {
        let (to, from) = (old as usize * chunk, new as usize * chunk);
        let place = all.get_mut(to..to + chunk);
        let place = place.ok_or_else(|| format!("chunk {old} is behind the origin's end"))?;
        place.copy_from_slice(&store[from..from + chunk]);
    }
    Ok(all)
}

fn entries(store: &[u8], sectors: usize) -> Result<BTreeMap<u64, u64>, String> {
    let word = |n: usize| u32::from_le_bytes(store[4 * n..][..4].try_into().expect("four bytes"));
    match (word(0), word(1), word(2), word(3) as usize) {
        (0, ..) => return Ok(BTreeMap::new()),
        (MAGIC, 1, 1, has) if has == sectors => {}
        header => return Err(format!("a header {header:x?}")),
    }
    let chunk = sectors * SECTOR;
    let (per_area, chunks) = (chunk / ENTRY, (store.len() / chunk) as u64);
    let (mut all, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for area in 0.. {
        let at = (1 + area * (per_area + 1)) * chunk;
        let Some(bytes) = store.get(at..at + chunk) else { return Err("areas without end".into()) };
        for entry in bytes.chunks_exact(ENTRY) {
            let half =
                |n: usize| u64::from_le_bytes(entry[8 * n..][..8].try_into().expect("eight"));
            let (old, new) = (half(0), half(1));
            if new == 0 {
                return Ok(all);
            }
            let is_area = new % (per_area as u64 + 1) == 1;
            if new < 2 || new >= chunks || is_area || !taken.insert(new) {
                return Err(format!("area {area}: chunk {old} at {new}, which cannot be"));
            }
            if all.insert(old, new).is_some() {
                return Err(format!("area {area}: chunk {old} twice"));
            }
        }
    }
    unreachable!("areas end with the store")
}
