//! Whether arguments have the shape that a command requires.
//!
//! Owns the sentences for what is missing, unexpected or of the wrong type; they name the
//! member by its path from the arguments (`addr.path`, `actions[0].type`), as QEMU's do. Never
//! knows a command: a value that passes can be decoded into the type that the shape describes.

use serde_json::{Map, Value};
use snapblk_store::control::CommandError;
use snapblk_store::control::shape::{Member, Shape};

/// Checks that `value`, the arguments of a command, has the shape `shape`.
pub fn check(value: &Value, shape: &Shape) -> Result<(), CommandError> {
    check_at("", value, shape)
}

fn check_at(path: &str, value: &Value, shape: &Shape) -> Result<(), CommandError> {
    match shape {
        Shape::Text => value.is_string().then_some(()).ok_or_else(|| wrong(path, "string")),
        Shape::Bool => value.is_boolean().then_some(()).ok_or_else(|| wrong(path, "boolean")),
        Shape::Null => value.is_null().then_some(()).ok_or_else(|| wrong(path, "null")),
        Shape::Integer { min, max } => check_integer(path, value, *min, *max),
        Shape::List(element) => {
            let list = value.as_array().ok_or_else(|| wrong(path, "array"))?;
            list.iter()
                .enumerate()
                .try_for_each(|(i, value)| check_at(&format!("{path}[{i}]"), value, element))
        }
        Shape::Choice { values, .. } => {
            let word = value.as_str().ok_or_else(|| wrong(path, "string"))?;
            if values.contains(&word) {
                return Ok(());
            }
            Err(CommandError::generic(format!(
                "Parameter '{path}' does not accept value '{word}' (it takes {})",
                values.join(", ")
            )))
        }
        Shape::Alternate { of, .. } => check_alternate(path, value, of),
        Shape::Record { members, .. } => {
            let map = value.as_object().ok_or_else(|| wrong(path, "object"))?;
            check_members(path, map, members)?;
            refuse_others(path, map, &[members])
        }
        Shape::Union { base, tag, variants, .. } => {
            let map = value.as_object().ok_or_else(|| wrong(path, "object"))?;
            check_members(path, map, base)?;
            // The tag is a member of `base` and its values are those of the variants: both were
            // checked.
            let chosen = map.get(*tag).and_then(Value::as_str);
            let members = match variants.iter().find(|(case, _)| Some(*case) == chosen) {
                Some((_, Shape::Record { members, .. })) => members.as_slice(),
                _ => &[],
            };
            check_members(path, map, members)?;
            refuse_others(path, map, &[base, members])
        }
    }
}

/// As one of the shapes; on failure, the sentence for the shape whose type it has, or for the
/// first.
fn check_alternate(path: &str, value: &Value, of: &[Shape]) -> Result<(), CommandError> {
    let is_word = |shape: &&Shape| matches!(shape, Shape::Text | Shape::Choice { .. });
    let bool_or_other = |shape: &&Shape| matches!(shape, Shape::Bool) == value.is_boolean();
    let shape = match value {
        Value::String(_) => of.iter().find(is_word),
        _ => of.iter().find(bool_or_other),
    };
    shape.or(of.first()).map_or(Ok(()), |shape| check_at(path, value, shape))
}

fn check_integer(path: &str, value: &Value, min: i64, max: u64) -> Result<(), CommandError> {
    let fits = match (value.as_u64(), value.as_i64()) {
        (Some(n), _) => n <= max,
        (None, Some(n)) => n >= min,
        (None, None) => return Err(wrong(path, "integer")),
    };
    fits.then_some(()).ok_or_else(|| {
        CommandError::generic(format!("Parameter '{path}' expects an integer from {min} to {max}"))
    })
}

fn check_members(
    path: &str,
    map: &Map<String, Value>,
    members: &[Member],
) -> Result<(), CommandError> {
    for member in members {
        let path = inside(path, &member.name);
        match map.get(&member.name) {
            Some(value) => check_at(&path, value, &member.shape)?,
            None if member.optional => {}
            None => {
                return Err(CommandError::generic(format!("Parameter '{path}' is missing")));
            }
        }
    }
    Ok(())
}

fn refuse_others(
    path: &str,
    map: &Map<String, Value>,
    known: &[&[Member]],
) -> Result<(), CommandError> {
    let is_known =
        |key: &str| known.iter().any(|members| members.iter().any(|member| member.name == key));
    match map.keys().find(|key| !is_known(key)) {
        None => Ok(()),
        Some(key) => {
            Err(CommandError::generic(format!("Parameter '{}' is unexpected", inside(path, key))))
        }
    }
}

fn inside(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn wrong(path: &str, expected: &str) -> CommandError {
    CommandError::generic(format!("Invalid parameter type for '{path}', expected: {expected}"))
}
