//! A state made of one value and a list of fields, and what the tests do with it.

use std::fmt::Debug;

use serde_json::Value;
use whimbrel_vmstate::{
    Error, Level, Result, SectionName, Visitor, VmState, Vmsd, describe, load_body, save,
};
use whimbrel_wire::Output;

pub(crate) type FieldsOf<T> = fn(&mut T, &mut dyn Visitor) -> Result<()>;

/// Section `test`, version 3, from 1 on.
#[derive(Clone)]
pub(crate) struct State<T> {
    pub(crate) value: T,
    fields: FieldsOf<T>,
}

pub(crate) fn state<T>(value: T, fields: FieldsOf<T>) -> State<T> {
    State { value, fields }
}

pub(crate) fn section() -> SectionName {
    SectionName::new("test", 2)
}

impl<T: Send + 'static> VmState for State<T> {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("test", 3).since(1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        (self.fields)(&mut self.value, v)
    }
}

pub(crate) fn saved(state: &mut dyn VmState) -> Vec<u8> {
    let mut out = Output::new();
    save(&section(), state, Level::V10_0, &mut out).unwrap();
    out.into_vec()
}

/// Loads `body`, which begins at offset 0x1000 of the stream.
pub(crate) fn loaded<T: Send + 'static>(
    blank: T,
    fields: FieldsOf<T>,
    body: &[u8],
) -> std::result::Result<T, Error> {
    let mut state = state(blank, fields);
    load_body(&section(), &mut state, 3, body, 0x1000, Level::V10_0).map(|()| state.value)
}

pub(crate) fn described(state: &mut dyn VmState, level: Level) -> Value {
    describe(&section(), state, level).unwrap()
}

/// The value is saved as these bytes, loads from them, and is described by these fields.
pub(crate) fn assert_wire<T>(value: T, blank: T, fields: FieldsOf<T>, bytes: &[u8], description: Value)
where
    T: Clone + Debug + PartialEq + Send + 'static,
{
    let mut ours = state(value.clone(), fields);
    assert_eq!(saved(&mut ours), bytes);
    assert_eq!(ours.value, value, "saving changed the state");
    assert_eq!(described(&mut ours, Level::V10_0)["fields"], description);
    assert_eq!(ours.value, value, "describing changed the state");
    assert_eq!(loaded(blank, fields, bytes).unwrap(), value);
}
