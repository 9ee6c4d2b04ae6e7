//! `query-qmp-schema`: the interface described as QEMU describes its own (qapi/introspect.json).
//!
//! Owns the translation of shapes into that description. All of it is derived from the command
//! table and the list of events. Type names are numbers without meaning, as in QEMU.

use snapblk_store::control::Event;
use snapblk_store::control::shape::{Member, Shape};
use snapblk_store::{choice, record, union};

use crate::commands::Commands;

record! {
    /// One element of the description: a command, an event, or a type that they need.
    pub struct SchemaInfo {
        /// Its name, unique.
        name: String,
        ..
        /// Its kind and content.
        entity: SchemaEntity,
    }
}

union! {
    /// The kinds of elements.
    pub enum SchemaEntity by "meta-type" {
        /// A JSON type.
        Builtin(SchemaBuiltin) = "builtin",
        /// An enumeration.
        Enum(SchemaEnum) = "enum",
        /// One of several types.
        Alternate(SchemaAlternate) = "alternate",
        /// A list.
        Array(SchemaArray) = "array",
        /// Named members.
        Object(SchemaObject) = "object",
        /// A command.
        Command(SchemaCommand) = "command",
        /// An event.
        Event(SchemaEvent) = "event",
    }
}

choice! {
    /// The JSON types; integers are separate from other numbers.
    pub enum JsonType {
        /// A string.
        String = "string",
        /// An integer.
        Int = "int",
        /// True or false.
        Boolean = "boolean",
        /// Null.
        Null = "null",
    }
}

record! {
    /// A JSON type.
    pub struct SchemaBuiltin {
        /// The type.
        json_type: JsonType,
    }
}

record! {
    /// An enumeration.
    pub struct SchemaEnum {
        /// Its values.
        members: Vec<SchemaEnumMember>,
        /// The values again, as older clients expect them.
        values: Vec<String>,
    }
}

record! {
    /// A value of an enumeration.
    pub struct SchemaEnumMember {
        /// The value.
        name: String,
    }
}

record! {
    /// One of several types.
    pub struct SchemaAlternate {
        /// The types.
        members: Vec<SchemaAlternateMember>,
    }
}

record! {
    /// One of them.
    pub struct SchemaAlternateMember {
        /// The type.
        kind as "type": String,
    }
}

record! {
    /// A list.
    pub struct SchemaArray {
        /// Type of its elements.
        element_type: String,
    }
}

record! {
    /// Named members.
    pub struct SchemaObject {
        /// The members.
        members: Vec<SchemaObjectMember>,
        /// The member that selects a variant.
        tag: Option<String>,
        /// The variants.
        variants: Option<Vec<SchemaObjectVariant>>,
    }
}

record! {
    /// A member.
    pub struct SchemaObjectMember {
        /// Its name.
        name: String,
        /// Its type.
        kind as "type": String,
        /// Present (as null) if the member is optional.
        default: Option<()>,
    }
}

record! {
    /// Members for one value of the tag.
    pub struct SchemaObjectVariant {
        /// The value.
        case: String,
        /// The type that has the members.
        kind as "type": String,
    }
}

record! {
    /// A command.
    pub struct SchemaCommand {
        /// Type of its arguments.
        arg_type: String,
        /// The type of its result.
        ret_type: String,
        /// Present if the command may be executed out of band.
        allow_oob: Option<bool>,
    }
}

record! {
    /// An event.
    pub struct SchemaEvent {
        /// Type of its data.
        arg_type: String,
    }
}

/// The description of these commands, and of all events.
pub fn schema(commands: &Commands) -> Vec<SchemaInfo> {
    let mut types = Types::default();
    let mut entities = Vec::new();
    for command in commands.iter() {
        entities.push(SchemaInfo {
            name: command.name.to_owned(),
            entity: SchemaEntity::Command(SchemaCommand {
                arg_type: types.name_of(&command.arguments),
                ret_type: types.name_of(&command.returns),
                allow_oob: command.out_of_band.then_some(true),
            }),
        });
    }
    for (name, shape) in Event::shapes() {
        entities.push(SchemaInfo {
            name: name.to_owned(),
            entity: SchemaEntity::Event(SchemaEvent { arg_type: types.name_of(&shape) }),
        });
    }
    entities.extend(types.described);
    entities
}

/// The types found so far.
#[derive(Default)]
struct Types {
    /// Records, unions and choices; their numbers are their positions.
    numbered: Vec<Shape>,
    described: Vec<SchemaInfo>,
}

impl Types {
    /// The name of the type with the shape `shape`, which is described when it is first used.
    fn name_of(&mut self, shape: &Shape) -> String {
        match shape {
            Shape::Text => self.builtin("str", JsonType::String),
            Shape::Bool => self.builtin("bool", JsonType::Boolean),
            Shape::Null => self.builtin("null", JsonType::Null),
            Shape::Integer { .. } => self.builtin("int", JsonType::Int),
            Shape::List(element) => {
                let element_type = self.name_of(element);
                let name = format!("[{element_type}]");
                self.describe(&name, || SchemaEntity::Array(SchemaArray { element_type }));
                name
            }
            Shape::Choice { .. }
            | Shape::Alternate { .. }
            | Shape::Record { .. }
            | Shape::Union { .. } => {
                if let Some(number) = self.numbered.iter().position(|known| known == shape) {
                    return number.to_string();
                }
                // Numbered before its members, so that they get other numbers.
                let name = self.numbered.len().to_string();
                self.numbered.push(shape.clone());
                let entity = self.entity(shape);
                self.describe(&name, || entity);
                name
            }
        }
    }

    fn entity(&mut self, shape: &Shape) -> SchemaEntity {
        match shape {
            Shape::Choice { values, .. } => {
                let values: Vec<String> = values.iter().map(|word| (*word).to_owned()).collect();
                let members =
                    values.iter().map(|name| SchemaEnumMember { name: name.clone() }).collect();
                SchemaEntity::Enum(SchemaEnum { members, values })
            }
            Shape::Alternate { of, .. } => {
                let members =
                    of.iter().map(|shape| SchemaAlternateMember { kind: self.name_of(shape) });
                SchemaEntity::Alternate(SchemaAlternate { members: members.collect() })
            }
            Shape::Union { base, tag, variants, .. } => {
                let variants = variants
                    .iter()
                    .map(|(case, shape)| SchemaObjectVariant {
                        case: (*case).to_owned(),
                        kind: self.name_of(shape),
                    })
                    .collect();
                SchemaEntity::Object(SchemaObject {
                    members: self.members(base),
                    tag: Some((*tag).to_owned()),
                    variants: Some(variants),
                })
            }
            Shape::Record { members, .. } => SchemaEntity::Object(SchemaObject {
                members: self.members(members),
                tag: None,
                variants: None,
            }),
            // Types without own members are described elsewhere.
            _ => SchemaEntity::Object(SchemaObject { members: vec![], tag: None, variants: None }),
        }
    }

    fn members(&mut self, members: &[Member]) -> Vec<SchemaObjectMember> {
        members
            .iter()
            .map(|member| SchemaObjectMember {
                name: member.name.clone(),
                kind: self.name_of(&member.shape),
                default: member.optional.then_some(()),
            })
            .collect()
    }

    fn builtin(&mut self, name: &str, json_type: JsonType) -> String {
        self.describe(name, || SchemaEntity::Builtin(SchemaBuiltin { json_type }));
        name.to_owned()
    }

    fn describe(&mut self, name: &str, entity: impl FnOnce() -> SchemaEntity) {
        if !self.described.iter().any(|known| known.name == name) {
            self.described.push(SchemaInfo { name: name.to_owned(), entity: entity() });
        }
    }
}

#[cfg(test)]
mod tests;
