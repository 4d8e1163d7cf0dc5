//! A state in a format of its own, for a VMM that has snapshots already.

use crate::{Result, Visitor, VmState, Vmsd};

/// The greatest state accepted.
const MAX: usize = 64 << 20;

/// One opaque run of bytes, shown in the description as a field `data` of type `buffer`. On the wire: be32 length, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpaqueState {
    /// Section version, the only one accepted.
    pub version: u32,
    /// The state, at most 64 MiB.
    pub data: Vec<u8>,
}

impl VmState for OpaqueState {
    fn vmsd(&self) -> Vmsd {
        Vmsd::undescribed(self.version)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let data = &mut self.data;
        v.opaque("data", "buffer", &mut |v| {
            let mut length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            v.u32("length", &mut length)?;
            v.buffer_sized("bytes", data, usize::try_from(length).unwrap_or(usize::MAX), MAX)
        })
    }
}
