//! Expected results are those of the QMP specification, and the replies of qemu-storage-daemon
//! 10.0.2 to the same bytes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{MAX_MESSAGE, MAX_NESTING, Parser, line};

fn parse(bytes: &[u8]) -> Vec<Result<Value, String>> {
    let mut found = Vec::new();
    Parser::default().feed(bytes, |value| found.push(value.map_err(|error| error.to_string())));
    found
}

#[test]
fn values_need_no_separator() {
    assert_eq!(
        parse(br#"{"a":1}{"b":[2]} [3]"x"  {}"#),
        [json!({"a": 1}), json!({"b": [2]}), json!([3]), json!("x"), json!({})].map(Ok)
    );
}

#[test]
fn a_value_may_come_byte_by_byte_with_any_white_space() {
    let text = b"\r\n\t { \"execute\" :\n\"query-\\u006aobs\" , \"id\":\t-1.5e3 }\n";
    let mut parser = Parser::default();
    let mut found = Vec::new();
    for byte in text {
        parser.feed(&[*byte], |value| found.push(value));
    }
    assert_eq!(found, [Ok(json!({"execute": "query-jobs", "id": -1500.0}))]);
}

#[test]
fn brackets_and_quotes_in_strings_do_not_count() {
    assert_eq!(parse(br#"{"a":"}]\"{["}"#), [Ok(json!({"a": "}]\"{["}))]);
}

/// QEMU's parser accepts strings in single quotes, and many examples use them.
#[test]
fn strings_may_stand_in_single_quotes() {
    assert_eq!(parse(b"{'execute': 'quit'}"), [Ok(json!({"execute": "quit"}))]);
    assert_eq!(
        parse(br#"{'a"': ['\\', 'it\'s', "it's", "\'", '\"', '\n', '']}"#),
        [Ok(json!({"a\"": ["\\", "it's", "it's", "'", "\"", "\n", ""]}))]
    );
}

#[test]
fn a_key_that_comes_twice_is_an_error() {
    let duplicate = || Err("JSON parse error, duplicate key".to_owned());
    assert_eq!(parse(br#"{"execute": "quit", "execute": "query-jobs"}"#), [duplicate()]);
    assert_eq!(parse(br#"{"id": [{"a": 1, "a": null}]}"#), [duplicate()]);
    assert_eq!(parse(br#"{"a": {"a": 1}, "b": {"a": 1}}"#).len(), 1);
    assert!(parse(br#"{"a": {"a": 1}, "b": {"a": 1}}"#)[0].is_ok());
}

#[test]
fn the_specification_s_parsing_error() {
    assert_eq!(parse(br#"{ "execute": }"#), [Err("JSON parse error, expecting value".to_owned())]);
}

#[test]
fn reading_goes_on_behind_an_error() {
    for bad in [
        &br#"{"a" 1}"#[..],
        b"{\"a\": x }",
        b"}",
        b"nul ",
        b"\x01",
        b"\xff",
        b"{\"half\": [\xff",
        b"{\"half\": \"te\x01",
        b"{\"half\": [1, \x1b",
        b"{\"a\": 'single\n",
        b"GET / HTTP/1.1\n",
    ] {
        let mut bytes = bad.to_vec();
        bytes.extend_from_slice(br#"{"execute":"quit"}"#);
        let found = parse(&bytes);
        let shown = String::from_utf8_lossy(bad);
        assert!(found[0].is_err(), "{shown:?} is an error");
        assert_eq!(found.last(), Some(&Ok(json!({"execute": "quit"}))), "behind {shown:?}");
    }
}

#[test]
fn a_control_character_ends_whatever_was_wrong() {
    let found = parse(b"@ junk, \x01\"x\"");
    assert!(found[0].is_err());
    assert_eq!(found.last(), Some(&Ok(json!("x"))));
    let found = parse(b"@ junk \xff\"x\"");
    assert_eq!(found.last(), Some(&Ok(json!("x"))));
}

#[test]
fn one_stray_byte_is_one_error() {
    assert_eq!(parse(b"\xff{}").len(), 2);
    assert_eq!(parse(b"\x01").len(), 1);
}

#[test]
fn a_message_is_bounded_in_length() {
    let mut parser = Parser::default();
    let mut found = Vec::new();
    parser.feed(b"{\"a\": \"", |value| found.push(value));
    let more = vec![b'x'; 1 << 20];
    for _ in 0..8 {
        parser.feed(&more, |value| found.push(value));
    }
    assert_eq!(found.len(), 1);
    assert!(found[0].as_ref().is_err_and(|error| error.to_string().contains("4194304 bytes")));
    assert!(parser.message.capacity() <= 2 * MAX_MESSAGE);
    parser.feed(b"\n{}", |value| found.push(value));
    assert_eq!(found[1], Ok(json!({})));
}

#[test]
fn a_message_is_bounded_in_depth() {
    let deep = |levels: i32| {
        let mut text = "[".repeat(levels as usize);
        text.push_str(&"]".repeat(levels as usize));
        text
    };
    assert_eq!(parse(deep(MAX_NESTING).as_bytes()).len(), 1);
    assert!(parse(deep(MAX_NESTING).as_bytes())[0].is_ok());
    assert!(parse(deep(MAX_NESTING + 1).as_bytes())[0].is_err());
    let found = parse(&[b'['; 100_000]);
    assert!(found.iter().all(Result::is_err));
}

#[test]
fn a_line_is_ascii_spaced_as_qemu_spaces_it_and_ends_with_crlf() {
    assert_eq!(
        line(&json!({"return": {"a": [1, 2]}, "id": "é😀\u{7f}\""})).unwrap(),
        "{\"id\": \"\\u00E9\\uD83D\\uDE00\\u007F\\\"\", \"return\": {\"a\": [1, 2]}}\r\n"
    );
    assert_eq!(line(&json!({"return": {}})).unwrap(), "{\"return\": {}}\r\n");
}

/// Bytes that probably matter to the parser.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop::sample::select(&b"{}[]:,\"\\ \n-0e.tfn'\x01\xff"[..]),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..200)
}

proptest! {
    #[test]
    fn it_does_not_matter_how_the_bytes_are_cut(bytes in noise(), cut in 0usize..200) {
        let cut = cut.min(bytes.len());
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            parser.feed(part, |value| found.push(value.map_err(|error| error.to_string())));
        }
        prop_assert_eq!(found, parse(&bytes));
    }

    #[test]
    fn a_line_break_a_control_character_and_all_is_well(mut bytes in noise()) {
        bytes.extend_from_slice(b"\n\x01{\"execute\": \"quit\"}");
        prop_assert_eq!(parse(&bytes).pop(), Some(Ok(json!({"execute": "quit"}))));
    }

    #[test]
    fn what_is_printed_is_read_back(text in any::<String>(), number in any::<i64>()) {
        let value = json!({"text": text, "list": [number, null]});
        prop_assert_eq!(parse(line(&value).unwrap().as_bytes()), [Ok(value)]);
    }
}
