//! The shape of data: the members of a record, their types, and which of them are optional.
//!
//! Owns [`Shape`] and the macros that define a type, its wire names and its shape in one place:
//! [`record!`](crate::record), [`choice!`](crate::choice), [`union!`](crate::union). Input checks
//! and the description of the interface read shapes, so that neither is written twice. Never knows
//! what a type means.

/// The possible values of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// True or false.
    Bool,
    /// Only null.
    Null,
    /// A whole number within the bounds (both inclusive).
    Integer {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: u64,
    },
    /// Any number of values of one shape, in order.
    List(Box<Shape>),
    /// An enumeration.
    Choice {
        /// The type's name.
        name: &'static str,
        /// The values.
        values: &'static [&'static str],
    },
    /// One of several shapes, distinguished by their JSON types.
    Alternate {
        /// The type's name.
        name: &'static str,
        /// The shapes.
        of: Vec<Shape>,
    },
    /// Named members.
    Record {
        /// The type's name.
        name: &'static str,
        /// The members.
        members: Vec<Member>,
    },
    /// Named members, some of which depend on the value of one of them.
    Union {
        /// The type's name.
        name: &'static str,
        /// Members of all variants; the tag is one of them.
        base: Vec<Member>,
        /// The name of the tag.
        tag: &'static str,
        /// A record of the further members for each value of the tag.
        variants: Vec<(&'static str, Shape)>,
    },
}

/// A member of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name on the wire.
    pub name: String,
    /// The shape of its values.
    pub shape: Shape,
    /// Whether it is optional.
    pub optional: bool,
}

impl Member {
    /// A member called `name` of type `T`.
    pub fn of<T: Described>(name: String) -> Self {
        Member { name, shape: T::shape(), optional: T::OPTIONAL }
    }
}

impl Shape {
    /// The record `members` with the members of `rest`, which is a record or a union.
    pub fn extended(name: &'static str, mut members: Vec<Member>, rest: Shape) -> Shape {
        match rest {
            Shape::Record { members: more, .. } => {
                members.extend(more);
                Shape::Record { name, members }
            }
            Shape::Union { base, tag, variants, .. } => {
                members.extend(base);
                Shape::Union { name, base: members, tag, variants }
            }
            _ => Shape::Record { name, members },
        }
    }

    /// A union distinguished only by `tag`; with `content`, each variant's members are in a member
    /// of that name instead of beside the tag.
    pub fn union(
        name: &'static str,
        tag: &'static str,
        values: &'static [&'static str],
        content: Option<&'static str>,
        variants: Vec<Shape>,
    ) -> Shape {
        let tag_shape = Shape::Choice { name, values };
        let wrap = |shape| match content {
            None => shape,
            Some(content) => Shape::Record {
                name: "Wrapper",
                members: vec![Member { name: content.to_owned(), shape, optional: false }],
            },
        };
        Shape::Union {
            name,
            base: vec![Member { name: tag.to_owned(), shape: tag_shape, optional: false }],
            tag,
            variants: values.iter().copied().zip(variants.into_iter().map(wrap)).collect(),
        }
    }
}

/// A type with a shape.
pub trait Described {
    /// Whether a member of this type is optional.
    const OPTIONAL: bool = false;

    /// The shape of its values.
    fn shape() -> Shape;

    /// Whether this value is omitted as a member.
    fn is_absent(&self) -> bool {
        false
    }
}

impl<T: Described> Described for Option<T> {
    const OPTIONAL: bool = true;

    fn shape() -> Shape {
        T::shape()
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Described> Described for Vec<T> {
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }
}

impl Described for String {
    fn shape() -> Shape {
        Shape::Text
    }
}

impl Described for () {
    fn shape() -> Shape {
        Shape::Null
    }
}

impl Described for bool {
    fn shape() -> Shape {
        Shape::Bool
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Described for $ty {
            fn shape() -> Shape {
                Shape::Integer { min: <$ty>::MIN as i64, max: <$ty>::MAX as u64 }
            }
        }
    )*};
}
integers!(u16, u32, u64, i64);

/// Defines a struct that is a record on the wire: members in kebab-case, or with a name given by
/// `as "name"`; `Option` members are optional; the members of a last `..member: Type` are included
/// directly.
#[macro_export]
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$doc:meta])* $field:ident $(as $wire:literal)? : $ty:ty, )*
            $( .. $(#[$rest_doc:meta])* $rest:ident : $rest_ty:ty, )?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name {
            $(
                $(#[$doc])*
                #[serde(
                    skip_serializing_if = "::snapblk_store::control::shape::Described::is_absent"
                    $(, rename = $wire)?
                )]
                pub $field: $ty,
            )*
            $( $(#[$rest_doc])* #[serde(flatten)] pub $rest: $rest_ty, )?
        }

        impl $crate::control::shape::Described for $name {
            fn shape() -> $crate::control::shape::Shape {
                let members = vec![
                    $( $crate::control::shape::Member::of::<$ty>(
                        $crate::wire_name!($field $(, $wire)?),
                    ), )*
                ];
                $crate::record_shape!($name, members $(, $rest_ty)?)
            }
        }
    };
}

/// A member's name on the wire.
#[doc(hidden)]
#[macro_export]
macro_rules! wire_name {
    ($field:ident) => {
        stringify!($field).replace('_', "-")
    };
    ($field:ident, $wire:literal) => {
        ::std::borrow::ToOwned::to_owned($wire)
    };
}

/// The shape of a record, including a flattened rest.
#[doc(hidden)]
#[macro_export]
macro_rules! record_shape {
    ($name:ident, $members:expr) => {
        $crate::control::shape::Shape::Record { name: stringify!($name), members: $members }
    };
    ($name:ident, $members:expr, $rest:ty) => {
        $crate::control::shape::Shape::extended(
            stringify!($name),
            $members,
            <$rest as $crate::control::shape::Described>::shape(),
        )
    };
}

/// Defines an enum that is an enumeration on the wire.
#[macro_export]
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$doc:meta])* $variant:ident = $wire:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, ::serde::Serialize, ::serde::Deserialize,
        )]
        pub enum $name { $( $(#[$doc])* #[serde(rename = $wire)] $variant, )+ }

        impl $name {
            /// All values, in the order of their definition.
            pub const ALL: &'static [$name] = &[$( $name::$variant ),+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $wire, )+ }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::control::shape::Described for $name {
            fn shape() -> $crate::control::shape::Shape {
                $crate::control::shape::Shape::Choice {
                    name: stringify!($name),
                    values: &[$( $wire ),+],
                }
            }
        }
    };
}

/// Defines an enum whose variants are records distinguished by a tag beside their members, or, with
/// `in "content"`, beside a member that contains them.
#[macro_export]
macro_rules! union {
    (
        $(#[$meta:meta])*
        pub enum $name:ident by $tag:literal $(in $content:literal)? {
            $( $(#[$doc:meta])* $variant:ident($ty:ty) = $wire:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(tag = $tag $(, content = $content)?)]
        pub enum $name { $( $(#[$doc])* #[serde(rename = $wire)] $variant($ty), )+ }

        impl $crate::control::shape::Described for $name {
            fn shape() -> $crate::control::shape::Shape {
                let content: &[&'static str] = &[$( $content )?];
                $crate::control::shape::Shape::union(
                    stringify!($name),
                    $tag,
                    &[$( $wire ),+],
                    content.first().copied(),
                    vec![$( <$ty as $crate::control::shape::Described>::shape() ),+],
                )
            }
        }
    };
}

#[cfg(test)]
mod tests;
