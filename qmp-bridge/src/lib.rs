//! snapblk's monitor.
