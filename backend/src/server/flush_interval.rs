//! When first writes to stores are committed that nobody flushes, in words: `30s`, or `never`.
//!
//! Owns the words, which the command line and the configuration file share.

use std::str::FromStr;
use std::time::Duration;

use super::on_full::time;

/// When first writes to stores are made durable that nobody flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushInterval {
    /// That begins so long after they were acknowledged, if it did not before.
    After(Duration),
    /// When so many are owed that there has to be room for more.
    Never,
}

impl Default for FlushInterval {
    /// As long as Linux leaves what is written in its page cache (`vm.dirty_expire_centisecs`).
    fn default() -> Self {
        FlushInterval::After(Duration::from_secs(30))
    }
}

impl FromStr for FlushInterval {
    type Err = String;

    fn from_str(text: &str) -> Result<FlushInterval, String> {
        if text == "never" {
            return Ok(FlushInterval::Never);
        }
        match time(text) {
            Some(after) if !after.is_zero() => Ok(FlushInterval::After(after)),
            _ => Err(format!("'{text}' is neither a time, as '30s' is, nor 'never'")),
        }
    }
}
