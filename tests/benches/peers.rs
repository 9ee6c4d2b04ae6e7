//! The benchmark: the same jobs for several servers, side by side.
fn main() {}
