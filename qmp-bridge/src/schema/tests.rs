//! Expected results are QEMU's qapi/introspect.json, and what qemu-storage-daemon 10.0.2 reports
//! for the commands that it shares.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::schema;
use crate::commands::Commands;

/// The description of all commands, by name.
fn described() -> HashMap<String, Value> {
    let mut list = serde_json::to_value(schema(&Commands::default())).unwrap();
    list.as_array_mut()
        .unwrap()
        .drain(..)
        .map(|info| (info["name"].as_str().unwrap().to_owned(), info))
        .collect()
}

#[test]
fn every_name_is_unique_and_every_type_that_is_used_is_described() {
    let list = serde_json::to_value(schema(&Commands::default())).unwrap();
    let list = list.as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|info| info["name"].as_str().unwrap()).collect();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
    for info in list {
        let mut used: Vec<&Value> =
            ["arg-type", "ret-type", "element-type"].iter().map(|key| &info[key]).collect();
        for part in ["members", "variants"] {
            used.extend(info[part].as_array().into_iter().flatten().map(|m| &m["type"]));
        }
        for name in used.iter().filter_map(|name| name.as_str()) {
            assert!(names.contains(&name), "{name}, which {info} uses, is described");
        }
    }
}

#[test]
fn a_job_command_is_described_as_qemu_describes_it() {
    let all = described();
    let pause = &all["job-pause"];
    assert_eq!(pause["meta-type"], "command");
    assert!(pause.get("allow-oob").is_none());
    let arguments = &all[pause["arg-type"].as_str().unwrap()];
    assert_eq!(
        *arguments,
        json!({"name": arguments["name"], "meta-type": "object",
            "members": [{"name": "id", "type": "str"}]})
    );
    let nothing = &all[pause["ret-type"].as_str().unwrap()];
    assert_eq!(nothing["members"], json!([]));
    assert_eq!(all["str"], json!({"name": "str", "meta-type": "builtin", "json-type": "string"}));
}

#[test]
fn optional_members_have_a_null_default_and_enums_their_words() {
    let all = described();
    let del = &all[all["block-export-del"]["arg-type"].as_str().unwrap()];
    let mode = &del["members"][1];
    assert_eq!(mode["name"], "mode");
    assert!(mode.as_object().unwrap().get("default").is_some_and(Value::is_null));
    let words = &all[mode["type"].as_str().unwrap()];
    assert_eq!(words["meta-type"], "enum");
    assert_eq!(words["values"], json!(["safe", "hard"]));
    assert_eq!(words["members"], json!([{"name": "safe"}, {"name": "hard"}]));
}

#[test]
fn a_union_has_a_tag_and_variants() {
    let all = described();
    let add = &all[all["block-export-add"]["arg-type"].as_str().unwrap()];
    assert_eq!(add["tag"], "type");
    assert_eq!(add["variants"][0]["case"], "vhost-user-blk");
    let options = &all[add["variants"][0]["type"].as_str().unwrap()];
    assert_eq!(options["members"][0]["name"], "addr");
}

#[test]
fn lists_events_and_out_of_band_are_described() {
    let all = described();
    let list = all["query-jobs"]["ret-type"].as_str().unwrap();
    assert_eq!(all[list]["meta-type"], "array");
    assert_eq!(format!("[{}]", all[list]["element-type"].as_str().unwrap()), list);
    let change = &all["JOB_STATUS_CHANGE"];
    assert_eq!(change["meta-type"], "event");
    let data = &all[change["arg-type"].as_str().unwrap()];
    assert_eq!(data["members"][0], json!({"name": "id", "type": "str"}));
    assert_eq!(all["job-dismiss"]["allow-oob"], true);
    assert!(all["quit"].get("allow-oob").is_none());
}

/// The arguments of QEMU's own commands, as QEMU describes them; some optional ones may be missing
/// here.
#[test]
fn the_arguments_of_qemu_s_commands_are_qemu_s() {
    let served = Commands::default();
    let command = |name: &str| served.get(name).unwrap();
    let names = |name: &str| -> Vec<(String, bool)> {
        let shape = &command(name).arguments;
        let snapblk_store::control::shape::Shape::Record { members, .. } = shape else {
            panic!("{name} takes a record")
        };
        members.iter().map(|member| (member.name.clone(), member.optional)).collect()
    };
    let expected = |list: &[(&str, bool)]| -> Vec<(String, bool)> {
        list.iter().map(|(name, optional)| ((*name).to_owned(), *optional)).collect()
    };
    assert_eq!(
        names("block_resize"),
        expected(&[("device", true), ("node-name", true), ("size", false)])
    );
    assert_eq!(
        names("block-set-write-threshold"),
        expected(&[("node-name", false), ("write-threshold", false)])
    );
    assert_eq!(names("block-job-set-speed"), expected(&[("device", false), ("speed", false)]));
    assert_eq!(
        names("block-commit"),
        expected(&[
            ("job-id", true),
            ("device", false),
            ("base-node", true),
            ("top-node", true),
            ("speed", true),
            ("on-error", true),
            ("auto-finalize", true),
            ("auto-dismiss", true),
        ])
    );
}
