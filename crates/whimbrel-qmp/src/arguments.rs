//! Typed reading of a command's arguments, in the order and with the texts of QEMU's own reader.
//!
//! A struct lists its members once, by [`arguments!`](crate::arguments::arguments); nested structs, lists and enumerations
//! read through [`FromValue`]. Members are read in the order they are listed; the first that is missing or of a wrong type is
//! what the client hears of, and only if all are right, one that doesn't belong there.

use serde_json::{Map, Value};
use whimbrel::error::CommandError;
use whimbrel::wire::qemu_texts;

/// The members of an object that is being read.
pub(crate) struct Arguments {
    members: Map<String, Value>,
    path: String,
}

impl Arguments {
    /// The `arguments` of a command.
    pub(crate) fn new(members: Map<String, Value>) -> Self {
        Self { members, path: String::new() }
    }

    /// A nested object.
    pub(crate) fn nested(value: Value, path: &str) -> Result<Self, CommandError> {
        match value {
            Value::Object(members) => Ok(Self { members, path: format!("{path}.") }),
            _ => Err(wrong_type(path, "object")),
        }
    }

    /// Reads a member; absent, it is what its type makes of that.
    pub(crate) fn take<T: FromValue>(&mut self, name: &str) -> Result<T, CommandError> {
        let path = format!("{}{name}", self.path);
        match self.members.shift_remove(name) {
            Some(value) => T::from_value(value, &path),
            None => T::absent(&path),
        }
    }

    /// Refuses what was not read.
    pub(crate) fn finish(self) -> Result<(), CommandError> {
        match self.members.keys().next() {
            Some(name) => {
                Err(CommandError::generic(qemu_texts::parameter_unexpected(&format!("{}{name}", self.path))))
            }
            None => Ok(()),
        }
    }
}

/// A struct read from an object.
pub(crate) trait FromArguments: Sized {
    /// Reads its members; whoever calls it finishes.
    fn read(arguments: &mut Arguments) -> Result<Self, CommandError>;

    /// Reads an object that holds nothing else.
    fn read_all(mut arguments: Arguments) -> Result<Self, CommandError> {
        let read = Self::read(&mut arguments)?;
        arguments.finish()?;
        Ok(read)
    }
}

/// A type of a member.
pub(crate) trait FromValue: Sized {
    /// Reads a value; `path` is how errors name it (`capabilities[0].state`).
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError>;

    /// What an absent member is.
    fn absent(path: &str) -> Result<Self, CommandError> {
        Err(CommandError::generic(qemu_texts::parameter_missing(path)))
    }
}

/// Declares a struct of arguments: `arguments! { struct Stop { force: Option<bool> = "force" } }`.
macro_rules! arguments {
    ($($(#[$outer:meta])* struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty = $text:literal),* $(,)? })*) => {
        $(
            $(#[$outer])*
            #[derive(Debug)]
            pub(crate) struct $name { $($(#[$doc])* pub(crate) $field: $type,)* }

            impl $crate::arguments::FromArguments for $name {
                fn read(
                    _arguments: &mut $crate::arguments::Arguments,
                ) -> Result<Self, whimbrel::error::CommandError> {
                    Ok(Self { $($field: _arguments.take($text)?,)* })
                }
            }

            impl $crate::arguments::FromValue for $name {
                fn from_value(value: serde_json::Value, path: &str) -> Result<Self, whimbrel::error::CommandError> {
                    use $crate::arguments::{Arguments, FromArguments};
                    Self::read_all(Arguments::nested(value, path)?)
                }
            }
        )*
    };
}
pub(crate) use arguments;

arguments! {
    /// Nothing.
    struct NoArguments {}
}

pub(crate) fn wrong_type(path: &str, expected: &str) -> CommandError {
    CommandError::generic(qemu_texts::parameter_json_type(path, expected))
}

/// Reads one name of an enumeration. QEMU names only the member here, not the way to it, and a list's element not at all.
pub(crate) fn enumeration<T>(
    value: Value,
    path: &str,
    from_name: impl FnOnce(&str) -> Option<T>,
) -> Result<T, CommandError> {
    let name = String::from_value(value, path)?;
    from_name(&name).ok_or_else(|| CommandError::generic(qemu_texts::parameter_value(member(path), &name)))
}

/// The last step of a path.
fn member(path: &str) -> &str {
    if path.ends_with(']') { "null" } else { path.rsplit('.').next().unwrap_or(path) }
}

/// A number of a narrower type; here, too, QEMU names only the member.
fn narrow<T: TryFrom<u64>>(value: Value, path: &str, kind: &str) -> Result<T, CommandError> {
    let number = u64::from_value(value, path)?;
    T::try_from(number).map_err(|_| CommandError::generic(qemu_texts::parameter_type(member(path), kind)))
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        T::from_value(value, path).map(Some)
    }

    fn absent(_path: &str) -> Result<Self, CommandError> {
        Ok(None)
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        let Value::Array(items) = value else { return Err(wrong_type(path, "array")) };
        let item = |(index, item)| T::from_value(item, &format!("{path}[{index}]"));
        items.into_iter().enumerate().map(item).collect()
    }
}

impl FromValue for String {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(wrong_type(path, "string")),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        value.as_bool().ok_or_else(|| wrong_type(path, "boolean"))
    }
}

impl FromValue for u64 {
    /// A negative number is taken modulo 2^64, as QEMU takes it: `max-bandwidth` of -1 is its largest.
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        let number = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        number.ok_or_else(|| CommandError::generic(qemu_texts::parameter_type(path, "uint64")))
    }
}

impl FromValue for i64 {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        value.as_i64().ok_or_else(|| wrong_type(path, "integer"))
    }
}

impl FromValue for u32 {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        narrow(value, path, "uint32_t")
    }
}

impl FromValue for u16 {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        narrow(value, path, "uint16_t")
    }
}

impl FromValue for u8 {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        narrow(value, path, "uint8_t")
    }
}

/// A string, or null for the empty one.
pub(crate) struct StrOrNull(pub(crate) String);

impl FromValue for StrOrNull {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        match value {
            Value::String(text) => Ok(Self(text)),
            Value::Null => Ok(Self(String::new())),
            _ => Err(wrong_type(path, "StrOrNull")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    arguments! {
        struct Outer {
            text: String = "text",
            number: Option<u8> = "number",
            list: Option<Vec<Inner>> = "list",
            wide: Option<u64> = "wide",
            name: Option<StrOrNull> = "name",
        }
        struct Inner {
            on: bool = "on",
        }
    }

    impl std::fmt::Debug for StrOrNull {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    fn read(value: Value) -> Result<Outer, String> {
        let Value::Object(members) = value else { panic!("an object") };
        Outer::read_all(Arguments::new(members)).map_err(|error| error.desc)
    }

    #[test]
    fn what_is_right_is_read() {
        let outer =
            read(json!({"list": [{"on": true}, {"on": false}], "text": "x", "wide": -1, "name": null}))
                .unwrap();
        assert_eq!((outer.text.as_str(), outer.number, outer.wide), ("x", None, Some(u64::MAX)));
        let list: Vec<_> = outer.list.unwrap().iter().map(|inner| inner.on).collect();
        assert_eq!(list, [true, false]);
        assert_eq!(outer.name.unwrap().0, "");
    }

    #[test]
    fn what_is_wrong_gets_qemus_text_and_the_first_in_order_is_told() {
        for (value, text) in [
            (json!({}), "Parameter 'text' is missing"),
            (json!({"bogus": 1}), "Parameter 'text' is missing"),
            (json!({"text": 5, "number": "x"}), "Invalid parameter type for 'text', expected: string"),
            (json!({"text": "x", "bogus": 1}), "Parameter 'bogus' is unexpected"),
            (json!({"text": "x", "number": "x"}), "Parameter 'number' expects uint64"),
            (json!({"text": "x", "number": 1.0}), "Parameter 'number' expects uint64"),
            (json!({"text": "x", "number": null}), "Parameter 'number' expects uint64"),
            (json!({"text": "x", "number": 256}), "Parameter 'number' expects uint8_t"),
            (json!({"text": "x", "number": -1}), "Parameter 'number' expects uint8_t"),
            (json!({"text": "x", "list": 5}), "Invalid parameter type for 'list', expected: array"),
            (json!({"text": "x", "list": [5]}), "Invalid parameter type for 'list[0]', expected: object"),
            (json!({"text": "x", "list": [{}]}), "Parameter 'list[0].on' is missing"),
            (
                json!({"text": "x", "list": [{"on": 1}]}),
                "Invalid parameter type for 'list[0].on', expected: boolean",
            ),
            (json!({"text": "x", "list": [{"on": true, "z": 1}]}), "Parameter 'list[0].z' is unexpected"),
            (json!({"text": "x", "name": 5}), "Invalid parameter type for 'name', expected: StrOrNull"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err(), text, "{value}");
        }
    }

    #[test]
    fn an_enumeration_is_named_by_its_member_alone() {
        let none = |_: &str| None::<()>;
        for (path, member) in [("state", "state"), ("a[0].b.state", "state"), ("enable[0]", "null")] {
            let error = enumeration("x".into(), path, none).unwrap_err();
            assert_eq!(error.desc, format!("Parameter '{member}' does not accept value 'x'"));
        }
    }
}
