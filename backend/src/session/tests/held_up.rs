//! Messages of a front-end that holds up its own worker.

use super::*;

/// A worker that cannot come to rest, and does not read its messages until then. The ring of the
/// front-end runs.
fn held_up(server: &Server) -> (FrontEnd, PendingReply<Result<(), WorkerError>>) {
    let front = with_a_write_held(server);
    let suspended = server.binding.workers.lock().unwrap()[0].suspend(false);
    (front, suspended)
}

/// Each of them may come with a descriptor, which is open for as long as nobody takes it.
#[test]
fn changes_of_a_ring_without_end_wait_for_its_worker() {
    const FEW: usize = 16;
    let server = Server::new(1);
    let (mut front, suspended) = held_up(&server);
    for _ in 0..FEW / 4 {
        front.vhost.set_vring_call(0, &front.calls[0]).unwrap();
        front.vhost.set_vring_err(0, &front.calls[0]).unwrap();
        front.vhost.set_vring_kick(0, &front.kicks[0]).unwrap();
        front.vhost.set_vring_enable(0, true).unwrap();
    }
    std::thread::scope(|scope| {
        let (send, done) = channel();
        let front = &mut front;
        let more = scope.spawn(move || {
            front.vhost.set_vring_call(0, &front.calls[0]).unwrap();
            send.send(()).unwrap();
        });
        let early = done.recv_timeout(Duration::from_millis(100));
        server.disk.hold(false);
        assert!(early.is_err(), "followed before there is room for it");
        more.join().unwrap();
    });
    assert_eq!(suspended.wait(PATIENCE), Ok(Ok(())));
    assert_eq!(front.stop(1), [1]);
}

/// The worker adopts the memory later: the front-end, which would try again, may not take it for
/// refused.
#[test]
fn memory_that_is_not_adopted_in_time_ends_the_connection() {
    let server = Server::new(1);
    let (front, _suspended) = held_up(&server);
    let adopted = front.vhost.set_mem_table(&[front.region()]);
    let next = front.vhost.get_features();
    server.disk.hold(false);
    assert!(adopted.is_err() && next.is_err(), "{adopted:?}, {next:?}");
}

/// Nor a ring, which is started later.
#[test]
fn a_ring_that_is_not_started_in_time_ends_the_connection() {
    let server = Server::new(1);
    let mut front = server.connect();
    front.negotiate();
    front.set_memory();
    front.describe(0, 0);
    let starting = server.disk.watching.lock().unwrap();
    let started = front.vhost.set_vring_kick(0, &front.kicks[0]);
    let next = front.vhost.get_features();
    drop(starting);
    assert!(started.is_err() && next.is_err(), "{started:?}, {next:?}");
}
