use serde_json::{Map, Value, json};
use snapblk_store::control::Event;
use snapblk_store::control::answer::{BlockExportInfo, DeviceInfo};
use snapblk_store::control::job::JobInfo;
use snapblk_store::control::shape::{Described, Member, Shape};

use super::{Commands, served};
use crate::check::check;

/// All values of this shape that differ in their variants, with or without optional members.
fn samples(shape: &Shape, full: bool) -> Vec<Value> {
    match shape {
        Shape::Text => vec![json!("text")],
        Shape::Bool => vec![json!(true)],
        Shape::Null => vec![json!(null)],
        Shape::Integer { min, max } => vec![json!(min), json!(max)],
        Shape::List(element) => vec![json!([]), Value::Array(samples(element, full))],
        Shape::Choice { values, .. } => values.iter().map(|word| json!(word)).collect(),
        Shape::Alternate { of, .. } => of.iter().flat_map(|shape| samples(shape, full)).collect(),
        Shape::Record { members, .. } => records(vec![Map::new()], members, full),
        Shape::Union { base, tag, variants, .. } => variants
            .iter()
            .flat_map(|(case, variant)| {
                let Shape::Record { members, .. } = variant else { panic!("{case} is a record") };
                let all: Vec<Member> = base.iter().chain(members).cloned().collect();
                let mut tagged = records(vec![Map::new()], &all, full);
                tagged.iter_mut().for_each(|value| value[*tag] = json!(case));
                tagged
            })
            .collect(),
    }
}

/// The first record with each value of each member in turn.
fn records(mut begun: Vec<Map<String, Value>>, members: &[Member], full: bool) -> Vec<Value> {
    for member in members.iter().filter(|member| full || !member.optional) {
        let values = samples(&member.shape, full);
        let mut further: Vec<_> = values[1..]
            .iter()
            .map(|value| {
                let mut record = begun[0].clone();
                record.insert(member.name.clone(), value.clone());
                record
            })
            .collect();
        for record in &mut begun {
            record.insert(member.name.clone(), values[0].clone());
        }
        begun.append(&mut further);
    }
    // Members after the varied ones are filled in.
    for record in &mut begun {
        for member in members.iter().filter(|member| full || !member.optional) {
            let value = || samples(&member.shape, full)[0].clone();
            record.entry(member.name.clone()).or_insert_with(value);
        }
    }
    begun.into_iter().map(Value::Object).collect()
}

#[test]
fn whatever_fits_the_shape_can_be_decoded() {
    for command in &served() {
        for arguments in [true, false].iter().flat_map(|full| samples(&command.arguments, *full)) {
            let decoded = command.decode(arguments.clone());
            assert!(decoded.is_ok(), "{} {arguments}: {decoded:?}", command.name);
        }
    }
}

#[test]
fn every_mandatory_argument_is_demanded_and_no_other_taken() {
    for command in &served() {
        for arguments in samples(&command.arguments, false) {
            let arguments = arguments.as_object().unwrap();
            for key in arguments.keys() {
                let mut fewer = arguments.clone();
                fewer.remove(key);
                let error = command.decode(fewer.into()).unwrap_err();
                assert!(error.desc.contains(&format!("'{key}' is missing")), "{error}");
            }
            let mut more = arguments.clone();
            more.insert("surplus".to_owned(), json!(1));
            let error = command.decode(more.into()).unwrap_err();
            assert_eq!(error.desc, "Parameter 'surplus' is unexpected", "{}", command.name);
        }
    }
}

#[test]
fn no_two_commands_share_a_name() {
    assert_eq!(Commands::new(served()).iter().count(), served().len());
}

#[test]
fn events_are_printed_in_their_shape() {
    for (name, shape) in Event::shapes() {
        for data in [true, false].iter().flat_map(|full| samples(&shape, *full)) {
            let value = json!({"event": name, "data": data});
            let event: Event = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(event.name(), name);
            assert_eq!(serde_json::to_value(&event).unwrap(), value);
        }
    }
}

/// A decoded `T` is printed in the shape of `T` again.
fn round_trip<T: Described + serde::Serialize + serde::de::DeserializeOwned>() {
    for value in [true, false].iter().flat_map(|full| samples(&T::shape(), *full)) {
        let decoded: T = serde_json::from_value(value.clone()).unwrap();
        let printed = serde_json::to_value(&decoded).unwrap();
        assert_eq!(printed, value);
        check(&printed, &T::shape()).unwrap();
    }
}

#[test]
fn answers_are_printed_in_their_shape() {
    round_trip::<Vec<DeviceInfo>>();
    round_trip::<Vec<BlockExportInfo>>();
    round_trip::<Vec<JobInfo>>();
}
