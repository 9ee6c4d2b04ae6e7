use super::*;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// A wake without a cause, while a table is being swapped, does not keep its worker awake.
#[test]
fn a_worker_without_a_table_can_sleep_after_a_wake() {
    let workers = Arc::new(Workers::with_capacity(1));
    let config = EngineConfig { scratch: 8192, requests: 1, claims: 1 };
    let mut engine = Engine::new(&workers, Box::new(Nobody), config).unwrap();
    workers.wake(crate::wake::WakeSet::ALL);
    assert!(!engine.may_sleep());
    engine.step();
    assert!(engine.may_sleep());
}
