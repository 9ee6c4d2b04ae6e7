//! Sizes as people write them: a number with `K`, `M`, `G` or `T`, powers of 1024.

/// The letters, each 1024 times the one before it; bytes have none.
const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];

/// Bytes, from a number with or without a letter.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: write bytes, or a number with K, M, G or T");
    let upper = text.to_ascii_uppercase();
    let digits = upper.trim_end_matches(['K', 'M', 'G', 'T']);
    let unit = UNITS.iter().position(|unit| *unit == &upper[digits.len()..]).ok_or_else(wrong)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << (10 * unit)).ok_or_else(|| format!("'{text}' is larger than 2^64"))
}

/// Bytes as a short number with a letter: exact where that is short, else with one decimal.
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
    use super::{parse, show};

    #[test]
    fn sizes_take_a_letter() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("4K"), Ok(4096));
        assert_eq!(parse("4k"), Ok(4096));
        assert_eq!(parse("3M"), Ok(3_145_728));
        assert_eq!(parse("2G"), Ok(2_147_483_648));
        assert_eq!(parse("1T"), Ok(1_099_511_627_776));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["", "K", "4KB", "4KK", "-1", "+1", "1.5G", "4 K", "0x10", "é", "16777216T"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

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
