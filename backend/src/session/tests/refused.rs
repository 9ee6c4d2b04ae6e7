//! Messages that are refused without end.

use std::sync::Mutex;

use super::*;
use crate::session::connection::Connection;
use crate::session::setup::Setup;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_first_few_are_logged_and_all_are_answered() {
    const MESSAGES: usize = 100;
    let disk = nothing();
    let mut setup = Setup::<TestTable>::new(disk, Vec::new(), Box::new(|| {}));
    let (peer, ours) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours).unwrap();
    let mut raw = Raw(peer);
    let log = Log::default();
    let written = log.clone();
    let logs = tracing_subscriber::fmt().with_writer(move || written.clone()).finish();
    tracing::subscriber::with_default(logs, || {
        for _ in 0..MESSAGES {
            // GET_VRING_BASE of a ring that does not exist.
            raw.send(11, 0, &77u64.to_ne_bytes());
            let envelope = connection.receive().unwrap().unwrap();
            follow(&mut connection, &mut setup, envelope).unwrap();
            assert_eq!(raw.reply().0, 11);
        }
    });
    let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(said.matches("was refused: ").count(), 8, "{said}");
    assert_eq!(said.matches("not logged").count(), 1, "{said}");
}
