//! The snapblk program.
fn main() {}
