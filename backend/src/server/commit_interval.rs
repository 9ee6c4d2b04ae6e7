//! When what nobody flushes is committed, in words: `30s`, or `never`.
//!
//! Owns the words, which the command line and the configuration file share.

use std::str::FromStr;
use std::time::Duration;

use super::on_full::time;

/// When writes that nobody flushes are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitInterval {
    /// So long after they were acknowledged, at the latest.
    After(Duration),
    /// When so many are owed that there has to be room for more.
    Never,
}

impl Default for CommitInterval {
    /// As long as Linux leaves what is written in its page cache (`vm.dirty_expire_centisecs`).
    fn default() -> Self {
        CommitInterval::After(Duration::from_secs(30))
    }
}

impl FromStr for CommitInterval {
    type Err = String;

    fn from_str(text: &str) -> Result<CommitInterval, String> {
        if text == "never" {
            return Ok(CommitInterval::Never);
        }
        match time(text) {
            Some(after) if !after.is_zero() => Ok(CommitInterval::After(after)),
            _ => Err(format!("'{text}' is neither a time, as '30s' is, nor 'never'")),
        }
    }
}
