//! The seam: a state lists its fields once, and a visitor does something with each.
//!
//! [`Visitor`] holds the few primitives a visitor implements; what descriptions call (`v.u32("eip", …)`, `v.array(…)`) are the inherent
//! methods of `dyn Visitor` in [`fields`](crate::fields), written once over these primitives.

use std::any::Any;

use crate::{Level, Place, Result};

/// A device's saved state: plain data that lists its fields.
///
/// It is a frozen contract with the peer, never the type a running device works on; converting to and from that is the device's
/// business, before a save and after a load. `dyn VmState` can be downcast: `(state as Box<dyn Any>).downcast::<T>()`.
pub trait VmState: Any + Send {
    /// Name and versions of the description.
    fn vmsd(&self) -> Vmsd;

    /// Hands every field to `v`, in stream order, then every subsection.
    ///
    /// Must be the same sequence of calls every time: conditions are told to the visitor ([`when`](Visitor::when),
    /// [`since`](Visitor::since), `needed`), never written as a Rust `if`. A loader may call this more than once.
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()>;
}

/// Name and versions of a description: a section's, a struct's or a subsection's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmsd {
    /// Name: `cpu`, `fw_cfg/dma`.
    pub name: &'static str,
    /// Version written, and the newest accepted.
    pub version: u32,
    /// The oldest version accepted.
    pub minimum: u32,
}

impl Vmsd {
    /// A description of which only one version is accepted.
    pub const fn new(name: &'static str, version: u32) -> Self {
        Vmsd { name, version, minimum: version }
    }

    /// Accepts versions down to `minimum` too.
    pub const fn since(self, minimum: u32) -> Self {
        Vmsd { minimum, ..self }
    }

    /// A section without a description: the vmdesc shows it as one field `data`. See [`OpaqueState`](crate::OpaqueState).
    pub const fn undescribed(version: u32) -> Self {
        Vmsd::new("", version)
    }

    /// Whether this is a description at all; see [`undescribed`](Self::undescribed).
    pub const fn is_described(&self) -> bool {
        !self.name.is_empty()
    }
}

/// Whether a subsection was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// Not saved, or not in the stream (so far).
    No,
    /// Saved or loaded.
    Yes,
}

/// A list of fields, as a closure.
pub type Fields<'a> = &'a mut dyn FnMut(&mut dyn Visitor) -> Result<()>;
/// The fields of element `i`, as a closure.
pub type ElementFields<'a> = &'a mut dyn FnMut(usize, &mut dyn Visitor) -> Result<()>;

/// What a save, a load, a description or a print does with each field.
///
/// A description calls the inherent methods of `dyn Visitor`; these primitives are for those who write visitors.
pub trait Visitor {
    /// The peer's compatibility level.
    fn level(&self) -> Level;

    /// Version of the section, struct or subsection being visited: when loading a section or subsection, the one received.
    fn version(&self) -> u32;

    /// Where the visitor stands, inside `field` if one is named.
    fn place(&self, field: Option<&str>) -> Place;

    /// What is being done with the values.
    fn intent(&self) -> Intent;

    /// Fixed-width values: one, an array, or a run shown as one field.
    fn cells(&mut self, name: &str, ty: &'static str, form: Form, cells: Cells<'_>) -> Result<()>;

    /// `length` bytes with no meaning: zeros when saved, skipped when loaded.
    fn unused(&mut self, length: usize) -> Result<()>;

    /// Fields present from `version` of the enclosing description on.
    fn since(&mut self, version: u32, f: Fields<'_>) -> Result<()>;

    /// Fields with an existence predicate. Nothing on the wire marks absence: `condition` must come out the same on both sides.
    fn when(&mut self, condition: bool, f: Fields<'_>) -> Result<()>;

    /// A struct: its fields, then its subsections, no header.
    fn structure(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()>;

    /// An array of structs, back to back.
    fn structures(&mut self, name: &str, vmsd: Vmsd, count: usize, f: ElementFields<'_>) -> Result<()>;

    /// An array of pointers to structs: a NULL element is the byte 0x30. Which are NULL is not carried: both sides must know.
    fn pointers(&mut self, name: &str, vmsd: Vmsd, present: &[bool], f: ElementFields<'_>) -> Result<()>;

    /// A chain of structs, each behind a byte 1, ended by a byte 0. Returns the number of elements; `f` may be asked for elements
    /// beyond `count` when loading, and must bound them.
    fn chain(
        &mut self,
        name: &str,
        chain: Chain,
        vmsd: Vmsd,
        count: usize,
        f: ElementFields<'_>,
    ) -> Result<usize>;

    /// Fields of a helper struct, inlined.
    fn tmp(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()>;

    /// Fields the description shows as one of type `ty`.
    fn opaque(&mut self, name: &str, ty: &'static str, f: Fields<'_>) -> Result<()>;

    /// An optional part with its own name and version, after all fields. `needed` decides when saving; the stream when loading.
    fn subsection(&mut self, vmsd: Vmsd, needed: bool, f: Fields<'_>) -> Result<Present>;
}

/// What a visitor does with the values it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Writes or shows them.
    Save,
    /// Replaces them by those of the stream.
    Load,
    /// Looks only at the fields' shape, in a branch not taken: the values mean nothing.
    Shape,
}

/// How cells make up a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value.
    One,
    /// An array: the description gives the size of one element and the number.
    Array,
    /// A run shown as one field of the total size: a buffer, a bitmap.
    Whole,
}

/// A chain's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// A doubly-linked list.
    Qtailq,
    /// A singly-linked list.
    Qlist,
    /// A balanced tree: a be32 count before it.
    Gtree,
}

impl Chain {
    /// The field type in the description.
    pub const fn ty(self) -> &'static str {
        match self {
            Chain::Qtailq => "qtailq",
            Chain::Qlist => "qlist",
            Chain::Gtree => "gtree",
        }
    }
}

/// Values of one fixed width, where they live in the state.
#[derive(Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "a variant is its element type")]
pub enum Cells<'a> {
    Bool(&'a mut [bool]),
    U8(&'a mut [u8]),
    U16(&'a mut [u16]),
    U32(&'a mut [u32]),
    U64(&'a mut [u64]),
    I8(&'a mut [i8]),
    I16(&'a mut [i16]),
    I32(&'a mut [i32]),
    I64(&'a mut [i64]),
}

impl Cells<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Cells::Bool(c) => c.len(),
            Cells::U8(c) => c.len(),
            Cells::U16(c) => c.len(),
            Cells::U32(c) => c.len(),
            Cells::U64(c) => c.len(),
            Cells::I8(c) => c.len(),
            Cells::I16(c) => c.len(),
            Cells::I32(c) => c.len(),
            Cells::I64(c) => c.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one value on the wire.
    pub fn width(&self) -> usize {
        match self {
            Cells::Bool(_) | Cells::U8(_) | Cells::I8(_) => 1,
            Cells::U16(_) | Cells::I16(_) => 2,
            Cells::U32(_) | Cells::I32(_) => 4,
            Cells::U64(_) | Cells::I64(_) => 8,
        }
    }
}

/// A type that can stand in [`Cells`].
pub trait Cell: Copy + Default + 'static {
    /// The field type in the description.
    const TYPE: &'static str;
    /// Wraps a run of values.
    fn cells(values: &mut [Self]) -> Cells<'_>;
}

macro_rules! cell {
    ($($type:ty, $variant:ident, $name:literal;)*) => {$(
        impl Cell for $type {
            const TYPE: &'static str = $name;
            fn cells(values: &mut [Self]) -> Cells<'_> {
                Cells::$variant(values)
            }
        }
    )*};
}

cell! {
    bool, Bool, "bool";
    u8, U8, "uint8";
    u16, U16, "uint16";
    u32, U32, "uint32";
    u64, U64, "uint64";
    i8, I8, "int8";
    i16, I16, "int16";
    i32, I32, "int32";
    i64, I64, "int64";
}
