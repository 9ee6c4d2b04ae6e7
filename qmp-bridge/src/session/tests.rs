//! Expected results are those of the QMP specification, and the replies of qemu-storage-daemon
//! 10.0.2 to the same messages.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use snapblk_store::control::command::{Command, DeviceResume};
use snapblk_store::control::{Answer, CommandError};

use super::{Handler, Monitor, Session};
use crate::commands::Commands;
use crate::events::Events;
use crate::jobs::Jobs;

/// Records the commands that it gets.
#[derive(Default)]
struct Mock {
    asked: Mutex<Vec<Command>>,
}

impl Handler for Mock {
    fn execute(&self, command: Command) -> Result<Answer, CommandError> {
        self.asked.lock().unwrap().push(command.clone());
        match command {
            Command::DeviceMessage(_) => Ok(Answer::Message("42".to_owned())),
            Command::QueryBlockExports => Ok(Answer::Exports(vec![])),
            Command::DeviceResume(DeviceResume { name, .. }) => {
                Err(CommandError::device_not_found(&name))
            }
            Command::TableClear(_) => panic!("a defect"),
            _ => Ok(Answer::DONE),
        }
    }
}

struct Talk {
    mock: Arc<Mock>,
    session: Session,
}

impl Talk {
    fn new() -> Self {
        let mock = Arc::new(Mock::default());
        let jobs = Jobs::new(Events::new());
        let monitor = Monitor::new(Commands::default(), mock.clone(), jobs);
        Talk { mock, session: Session::new(monitor) }
    }

    fn negotiated() -> Self {
        let talk = Talk::new();
        assert_eq!(talk.say(json!({"execute": "qmp_capabilities"})), json!({"return": {}}));
        talk
    }

    fn say(&self, message: Value) -> Value {
        serde_json::to_value(self.session.answer(message)).unwrap()
    }

    /// `message` is refused with this sentence, and the handler was not called.
    fn refused(&self, message: Value, class: &str, desc: &str) {
        let asked = self.mock.asked.lock().unwrap().len();
        let error = json!({"class": class, "desc": desc});
        assert_eq!(self.say(message.clone())["error"], error, "{message}");
        assert_eq!(self.mock.asked.lock().unwrap().len(), asked, "{message} had an effect");
    }
}

#[test]
fn the_greeting_tells_version_and_capabilities() {
    let greeting = serde_json::to_value(Talk::new().session.greeting()).unwrap();
    assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
    let version = &greeting["QMP"]["version"];
    assert!(["major", "minor", "micro"].iter().all(|part| version["qemu"][part].is_u64()));
    assert!(version["package"].is_string());
}

#[test]
fn before_the_negotiation_there_is_only_one_command() {
    let talk = Talk::new();
    talk.refused(
        json!({"execute": "query-version"}),
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    );
    talk.refused(
        json!({"exec-oob": "query-version"}),
        "GenericError",
        "QMP input member 'exec-oob' is unexpected",
    );
    assert!(
        talk.say(json!({"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}))["error"]
            .is_object()
    );
    assert!(!talk.session.is_negotiated());
    let enable = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}});
    assert_eq!(talk.say(enable.clone()), json!({"return": {}}));
    assert!(talk.session.is_out_of_band());
    talk.refused(
        enable,
        "CommandNotFound",
        "Capabilities negotiation is already complete, command ignored",
    );
}

#[test]
fn an_id_of_any_type_comes_back_and_none_where_there_was_none() {
    let talk = Talk::negotiated();
    for id in [json!(1), json!("a"), json!(null), json!([1, {"a": null}]), json!({}), json!(1.5)] {
        let reply = talk.say(json!({"execute": "query-jobs", "id": id}));
        assert_eq!(reply, json!({"return": [], "id": id}));
        let reply = talk.say(json!({"execute": "nope", "id": id}));
        assert_eq!(reply.get("id"), Some(&id));
    }
    assert_eq!(talk.say(json!({"execute": "query-jobs"})), json!({"return": []}));
}

#[test]
fn the_envelope_is_checked_as_qemu_checks_it() {
    let talk = Talk::negotiated();
    for (message, desc) in [
        (json!([1, 2]), "QMP input must be a JSON object"),
        (json!("x"), "QMP input must be a JSON object"),
        (json!({}), "QMP input lacks member 'execute'"),
        (json!({"execute": 3}), "QMP input member 'execute' must be a string"),
        (
            json!({"execute": "query-jobs", "arguments": 3}),
            "QMP input member 'arguments' must be an object",
        ),
        (json!({"execute": "query-jobs", "bar": 2}), "QMP input member 'bar' is unexpected"),
        (json!({"exec-oob": "query-jobs"}), "QMP input member 'exec-oob' is unexpected"),
    ] {
        talk.refused(message, "GenericError", desc);
    }
    talk.refused(
        json!({"execute": "nope"}),
        "CommandNotFound",
        "The command nope has not been found",
    );
}

#[test]
fn out_of_band_is_for_those_who_switched_it_on_and_for_commands_that_never_wait() {
    let talk = Talk::new();
    talk.say(json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}));
    let message = json!({"exec-oob": "query-jobs", "id": 7});
    assert!(talk.session.overtakes(&message));
    assert_eq!(talk.say(message), json!({"return": [], "id": 7}));
    // Those that tell a job's driver wait for what they would overtake.
    for waits in ["quit", "job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize"] {
        let desc = format!("The command {waits} does not support OOB");
        talk.refused(json!({ "exec-oob": waits }), "GenericError", &desc);
    }
    let both = talk.say(json!({"exec-oob": "query-jobs", "execute": "query-jobs"}));
    assert!(both["error"]["desc"].as_str().unwrap().contains("clashes with"));
}

#[test]
fn arguments_are_checked_before_any_effect() {
    let talk = Talk::negotiated();
    let add = |arguments: Value| json!({"execute": "block-export-add", "arguments": arguments});
    let good = json!({"type": "vhost-user-blk", "id": "e", "node-name": "d",
        "addr": {"type": "unix", "path": "/x"}, "num-queues": 1});
    let with = |key: &str, value: Value| {
        let mut arguments = good.clone();
        arguments[key] = value;
        add(arguments)
    };
    for (message, desc) in [
        (json!({"execute": "job-pause"}), "Parameter 'id' is missing"),
        (
            json!({"execute": "job-pause", "arguments": {"id": 1}}),
            "Invalid parameter type for 'id', expected: string",
        ),
        (
            json!({"execute": "job-pause", "arguments": {"id": "x", "zz": 2}}),
            "Parameter 'zz' is unexpected",
        ),
        (json!({"execute": "query-jobs", "arguments": {"x": 1}}), "Parameter 'x' is unexpected"),
        (with("addr", json!({"type": "unix"})), "Parameter 'addr.path' is missing"),
        (
            with("addr", json!({"type": "unix", "path": "/x", "abc": 1})),
            "Parameter 'addr.abc' is unexpected",
        ),
        (with("writable", json!(1)), "Invalid parameter type for 'writable', expected: boolean"),
        (
            with("num-queues", json!(-1)),
            "Parameter 'num-queues' expects an integer from 0 to 65535",
        ),
        (
            with("num-queues", json!(70000)),
            "Parameter 'num-queues' expects an integer from 0 to 65535",
        ),
        (
            with("num-queues", json!(1.0)),
            "Invalid parameter type for 'num-queues', expected: integer",
        ),
        (
            with("num-queues", json!(null)),
            "Invalid parameter type for 'num-queues', expected: integer",
        ),
        (
            with("type", json!("nbd")),
            "Parameter 'type' does not accept value 'nbd' (it takes vhost-user-blk)",
        ),
        (
            json!({"execute": "table-load", "arguments": {"name": "d", "table": ["x", 3]}}),
            "Invalid parameter type for 'table[1]', expected: string",
        ),
    ] {
        talk.refused(message, "GenericError", desc);
    }
    assert_eq!(talk.say(add(good)), json!({"return": {}}));
    assert_eq!(talk.mock.asked.lock().unwrap().len(), 1);
}

#[test]
fn answers_and_errors_of_the_handler_reach_the_client() {
    let talk = Talk::negotiated();
    let message = json!({"execute": "device-message",
        "arguments": {"name": "d", "message": "hello"}});
    assert_eq!(talk.say(message), json!({"return": "42"}));
    assert_eq!(talk.say(json!({"execute": "query-block-exports"})), json!({"return": []}));
    let reply = talk.say(json!({"execute": "device-resume", "arguments": {"name": "d"}}));
    assert_eq!(reply["error"]["class"], "DeviceNotFound");
}

#[test]
fn a_defect_in_a_command_does_not_end_the_conversation() {
    let talk = Talk::negotiated();
    let reply = talk.say(json!({"execute": "table-clear", "arguments": {"name": "d"}, "id": 1}));
    assert_eq!(reply["error"]["class"], "GenericError");
    assert_eq!(reply["id"], 1);
    assert_eq!(talk.say(json!({"execute": "query-jobs"})), json!({"return": []}));
}

#[test]
fn commands_that_nothing_carries_out_do_not_exist() {
    let talk = Talk::negotiated();
    let listed = talk.say(json!({"execute": "query-commands"}));
    let names: Vec<&str> =
        listed["return"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    for name in ["qmp_capabilities", "query-commands", "device-create", "snapshot-merge", "quit"] {
        assert!(names.contains(&name), "{name} is listed");
    }
    for name in ["metadata-snapshot-reserve", "metadata-snapshot-release"] {
        assert!(!names.contains(&name), "{name} is not listed");
        let desc = format!("The command {name} has not been found");
        talk.refused(json!({"execute": name}), "CommandNotFound", &desc);
    }
}

#[test]
fn the_status_tells_of_a_stop() {
    let talk = Talk::negotiated();
    let message = json!({"execute": "query-status"});
    assert_eq!(
        talk.say(message.clone()),
        json!({"return": {"running": true, "status": "running"}})
    );
    talk.session.monitor.announce_stop();
    assert_eq!(talk.say(message), json!({"return": {"running": false, "status": "shutdown"}}));
}
