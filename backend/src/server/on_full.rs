//! What a disk's writes do that find no room, in words: `fail`, or `wait=30s`.
//!
//! Owns the words, which the command line, the configuration file and the monitor share.

use std::str::FromStr;
use std::time::Duration;

/// What happens where there is no room, in a store or below another file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// Writes that need room fail.
    #[default]
    Fail,
    /// They wait that long for some.
    Wait(Duration),
}

impl OnFull {
    /// How long writes wait; for no time at all where they fail.
    pub fn patience(self) -> Duration {
        match self {
            OnFull::Fail => Duration::ZERO,
            OnFull::Wait(patience) => patience,
        }
    }
}

impl FromStr for OnFull {
    type Err = String;

    fn from_str(text: &str) -> Result<OnFull, String> {
        let wrong = || format!("'{text}' is neither 'fail' nor, say, 'wait=30s'");
        if text == "fail" {
            return Ok(OnFull::Fail);
        }
        let patience = text.strip_prefix("wait=").and_then(time).ok_or_else(wrong)?;
        Ok(OnFull::Wait(patience))
    }
}

/// A time in words: a number of `ms`, `s` or `m`, or of seconds.
pub(super) fn time(text: &str) -> Option<Duration> {
    let (number, millis) = [("ms", 1), ("s", 1000), ("m", 60_000), ("", 1000)]
        .into_iter()
        .find_map(|(unit, millis)| Some((text.strip_suffix(unit)?, millis)))?;
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(millis)?))
}
