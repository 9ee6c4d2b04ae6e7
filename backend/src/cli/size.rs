//! Sizes as entered, `4K` or `10GiB`, and as the offline tools print them: `1.5 GiB`.

/// A size in bytes from `512`, `4K`, `10M`, `3G`, `1T` (powers of 1024; `k`, `KiB` and `KB` too).
///
/// # Errors
/// A sentence for the user.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a size: write a number and K, M, G or T"))?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(format!("'{unit}' is no unit of size: use K, M, G or T")),
    };
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("'{text}' is too much: 2^63 bytes are more than any file has"))
}

/// `bytes` for the user: exact if a unit divides it, otherwise with one decimal.
pub fn show(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift == 0 {
            continue;
        }
        if bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
        return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("2kb"), Ok(2048));
        assert_eq!(parse("4K"), Ok(4096));
        assert_eq!(parse("4k"), Ok(4096));
        assert_eq!(parse("10MiB"), Ok(10_485_760));
        assert_eq!(parse("3G"), Ok(3_221_225_472));
        assert_eq!(parse("1T"), Ok(1_099_511_627_776));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "4X",
            "4KK",
            "1.5G",
            "9999999T",
            "18446744073709551616",
            "4 K",
            "0x10",
            "é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_units() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(4096), "4 KiB");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(10 << 30), "10 GiB");
    }
}
