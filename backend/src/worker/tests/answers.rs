//! The number of written bytes that a driver is told.

use super::*;

#[test]
fn no_more_is_said_to_be_written_than_was() {
    let mut bench = Bench::new(true);
    bench.start();
    let len = |bench: &mut Bench, kind, data: &[u8]| {
        bench.driver.ask(0, kind, 0, data);
        bench.driver.kick();
        (bench.driver.await_used().1, bench.driver.status(0))
    };
    assert_eq!(len(&mut bench, 0, &[9; 512]), (513, 0));
    assert_eq!(len(&mut bench, 8, &[9; 20]), (21, 0));
    assert_eq!(len(&mut bench, 8, &[9; 64]), (20, 0), "the rest stays as it was");
    assert_eq!(bench.driver.data(0, 64)[20..], [9; 44]);
    assert_eq!(len(&mut bench, 0, &[9; 500]), (0, 1), "no whole sector");
    bench.disk.fails.store(true, Ordering::SeqCst);
    assert_eq!(len(&mut bench, 0, &[9; 512]), (0, 1));
    assert_eq!(len(&mut bench, 1, &[9; 512]), (1, 1), "the status");
}
