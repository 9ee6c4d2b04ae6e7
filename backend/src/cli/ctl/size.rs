//! Sizes in tables: a number with `K`, `M`, `G` or `T`, powers of 1024.

/// The letters, each 1024 times the one before it; bytes have none.
const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];

/// Bytes as a short number with a letter: exact if that is short, otherwise with one decimal.
pub fn show(bytes: u64) -> String {
    let unit = (UNITS.len() - 1).min((bytes.max(1).ilog2() / 10) as usize);
    let one = 1u64 << (10 * unit);
    if bytes.is_multiple_of(one) {
        return format!("{}{}", bytes / one, UNITS[unit]);
    }
    format!("{:.1}{}", bytes as f64 / one as f64, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::show;

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (4096, "4K"),
            (4_608, "4.5K"),
            (1 << 30, "1G"),
            ((1 << 30) + 1, "1.0G"),
            (5 << 40, "5T"),
            (u64::MAX, "16777216.0T"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }
}
