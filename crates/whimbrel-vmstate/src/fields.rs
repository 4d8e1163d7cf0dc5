//! What a description calls: one method a field kind, written over the primitives of [`Visitor`].

use std::slice::from_mut;

use crate::visitor::{Cell, Chain, Form, Intent, Present, Visitor, VmState, Vmsd};
use crate::{Error, Reason, Result};

macro_rules! scalars {
    ($($name:ident: $type:ty;)*) => {$(
        #[doc = concat!("One ", stringify!($type), ".")]
        pub fn $name(&mut self, name: &str, value: &mut $type) -> Result<()> {
            self.cells(name, <$type as Cell>::TYPE, Form::One, <$type as Cell>::cells(from_mut(value)))
        }
    )*};
}

impl dyn Visitor + '_ {
    scalars! {
        bool: bool; u8: u8; u16: u16; u32: u32; u64: u64; i8: i8; i16: i16; i32: i32; i64: i64;
    }

    /// A timer's expiry in ns of its clock; −1: not armed.
    pub fn timer(&mut self, name: &str, expiry: &mut i64) -> Result<()> {
        self.cells(name, "timer", Form::One, i64::cells(from_mut(expiry)))
    }

    /// A double, as its bits: high word, then low word.
    pub fn cpu_double(&mut self, name: &str, bits: &mut u64) -> Result<()> {
        self.cells(name, "CPU_Double_U", Form::One, u64::cells(from_mut(bits)))
    }

    /// A u32 that must be ours.
    pub fn u32_equal(&mut self, name: &str, own: u32) -> Result<()> {
        let mut received = own;
        self.cells(name, "uint32 equal", Form::One, u32::cells(from_mut(&mut received)))?;
        self.must_equal(name, received.into(), own.into())
    }

    /// An i32 that must be ours.
    pub fn i32_equal(&mut self, name: &str, own: i32) -> Result<()> {
        let mut received = own;
        self.cells(name, "int32 equal", Form::One, i32::cells(from_mut(&mut received)))?;
        self.must_equal(name, u64::from(received.cast_unsigned()), u64::from(own.cast_unsigned()))
    }

    /// An i32 that must be at most `maximum`, and not negative.
    pub fn i32_at_most(&mut self, name: &str, value: &mut i32, maximum: i32) -> Result<()> {
        let mut received = *value;
        self.cells(name, "int32 le", Form::One, i32::cells(from_mut(&mut received)))?;
        if !(0..=maximum).contains(&received) {
            let received = u64::from(received.cast_unsigned());
            let maximum = u64::from(maximum.cast_unsigned());
            return Err(self.error(name, Reason::AboveMaximum { received, maximum }));
        }
        *value = received;
        Ok(())
    }

    /// Raw bytes of a fixed number.
    pub fn buffer(&mut self, name: &str, bytes: &mut [u8]) -> Result<()> {
        self.cells(name, "buffer", Form::Whole, u8::cells(bytes))
    }

    /// Raw bytes, `length` of them by an earlier field, at most `maximum`.
    pub fn buffer_sized(
        &mut self,
        name: &str,
        bytes: &mut Vec<u8>,
        length: usize,
        maximum: usize,
    ) -> Result<()> {
        self.sized(name, bytes, length, maximum)?;
        self.buffer(name, bytes)
    }

    /// Values shown as one field with a type of their own: `pci config`, `pci irq state`, `fd`'s dummy byte.
    pub fn typed<T: Cell>(&mut self, name: &str, ty: &'static str, values: &mut [T]) -> Result<()> {
        self.cells(name, ty, Form::Whole, T::cells(values))
    }

    /// A bitmap in 64-bit words, ceil(bits / 64) of them.
    pub fn bitmap(&mut self, name: &str, words: &mut [u64]) -> Result<()> {
        self.cells(name, "bitmap", Form::Whole, u64::cells(words))
    }

    /// An array of a fixed number of values.
    pub fn array<T: Cell>(&mut self, name: &str, values: &mut [T]) -> Result<()> {
        self.cells(name, T::TYPE, Form::Array, T::cells(values))
    }

    /// An array whose number of values is an earlier field, at most `maximum`.
    pub fn varray<T: Cell>(
        &mut self,
        name: &str,
        values: &mut Vec<T>,
        count: usize,
        maximum: usize,
    ) -> Result<()> {
        self.sized(name, values, count, maximum)?;
        self.array(name, values)
    }

    /// Another state as a struct.
    pub fn nested(&mut self, name: &str, state: &mut dyn VmState) -> Result<()> {
        self.structure(name, state.vmsd(), &mut |v| state.fields(v))
    }

    /// An array of structs of a fixed number.
    pub fn structs<T>(
        &mut self,
        name: &str,
        vmsd: Vmsd,
        elements: &mut [T],
        mut fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        let count = elements.len();
        self.structures(name, vmsd, count, &mut |i, v| match elements.get_mut(i) {
            Some(element) => fields(element, v),
            None => Err(v.error(name, Reason::TooMany { count: i, maximum: count })),
        })
    }

    /// An array of structs whose number is an earlier field, at most `maximum`.
    pub fn varray_structs<T: Default + Clone>(
        &mut self,
        name: &str,
        vmsd: Vmsd,
        elements: &mut Vec<T>,
        count: usize,
        maximum: usize,
        fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        self.sized(name, elements, count, maximum)?;
        self.structs(name, vmsd, elements, fields)
    }

    /// An array of pointers to structs; which are there must be the same on both sides.
    pub fn pointer_array<T>(
        &mut self,
        name: &str,
        vmsd: Vmsd,
        elements: &mut [Option<T>],
        mut fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        let present: Vec<bool> = elements.iter().map(Option::is_some).collect();
        self.pointers(name, vmsd, &present, &mut |i, v| match elements.get_mut(i) {
            Some(Some(element)) => fields(element, v),
            _ => Err(v.error(name, Reason::Description("a missing element was visited"))),
        })
    }

    /// A list of structs, at most `maximum` when loaded.
    pub fn list<T: Default>(
        &mut self,
        name: &str,
        kind: Chain,
        vmsd: Vmsd,
        elements: &mut Vec<T>,
        maximum: usize,
        mut fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        // A loader may visit a description again for its subsections: only a pass that reads elements replaces the old ones.
        let loading = self.intent() == Intent::Load;
        self.chain(name, kind, vmsd, elements.len(), &mut |i, v| {
            if loading {
                if i >= maximum {
                    return Err(v.error(name, Reason::TooMany { count: i.saturating_add(1), maximum }));
                }
                elements.truncate(i);
                elements.push(T::default());
            }
            match elements.get_mut(i) {
                Some(element) => fields(element, v),
                None => Err(v.error(name, Reason::Description("an element beyond the list was visited"))),
            }
        })
        .map(|count| elements.truncate(count))
    }

    /// A tree with 64-bit keys, at most `maximum` nodes when loaded.
    pub fn tree<T: Default>(
        &mut self,
        name: &str,
        vmsd: Vmsd,
        nodes: &mut Vec<(u64, T)>,
        maximum: usize,
        mut fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        self.list(name, Chain::Gtree, vmsd, nodes, maximum, |(key, value), v| {
            v.u64("key", key)?;
            fields(value, v)
        })
    }

    /// A subsection of one value, needed when it differs from `default`: what the receiver's state begins with.
    pub fn optional<T: Cell + PartialEq>(
        &mut self,
        vmsd: Vmsd,
        name: &str,
        value: &mut T,
        default: T,
    ) -> Result<Present> {
        let needed = *value != default;
        self.subsection(vmsd, needed, &mut |v| v.cells(name, T::TYPE, Form::One, T::cells(from_mut(value))))
    }

    /// A subsection that is there when `value` is, and makes it `Some` when loaded.
    pub fn option<T: Default>(
        &mut self,
        vmsd: Vmsd,
        value: &mut Option<T>,
        mut fields: impl FnMut(&mut T, &mut dyn Visitor) -> Result<()>,
    ) -> Result<()> {
        let needed = value.is_some();
        let mut inner = value.take().unwrap_or_default();
        let present = self.subsection(vmsd, needed, &mut |v| fields(&mut inner, v));
        let keep = match self.intent() {
            Intent::Load => matches!(present, Ok(Present::Yes)),
            Intent::Save | Intent::Shape => needed,
        };
        *value = keep.then_some(inner);
        present.map(drop)
    }

    /// An error at `field`, here.
    pub fn error(&self, field: &str, reason: Reason) -> Error {
        Error { place: Box::new(self.place(Some(field))), reason }
    }

    /// Refuses the value of `field` in the device's own words.
    pub fn refuse(&self, field: &str, why: impl Into<String>) -> Error {
        self.error(field, Reason::Refused(why.into()))
    }

    fn must_equal(&self, name: &str, received: u64, own: u64) -> Result<()> {
        if received == own { Ok(()) } else { Err(self.error(name, Reason::NotEqual { received, own })) }
    }

    /// Makes a container of `count` elements before it is loaded; checks that it has them otherwise.
    fn sized<T: Default + Clone>(
        &mut self,
        name: &str,
        values: &mut Vec<T>,
        count: usize,
        maximum: usize,
    ) -> Result<()> {
        let intent = self.intent();
        if intent != Intent::Shape && count > maximum {
            return Err(self.error(name, Reason::TooMany { count, maximum }));
        }
        if intent == Intent::Load {
            values.resize(count, T::default());
        } else if intent == Intent::Save && values.len() != count {
            return Err(
                self.error(name, Reason::Description("the container's length differs from its count"))
            );
        }
        Ok(())
    }
}
