//! Where a load takes its bytes from: the wire's reader, whatever it reads.

use std::io::Read;

use whimbrel_wire::{Input, WireError, subsection};

/// A stream being read forward, with the look ahead that subsections need. [`Input`] is one; nobody else need be.
pub trait Source {
    /// Absolute offset of the next byte.
    fn offset(&self) -> u64;

    /// Takes exactly `into.len()` bytes.
    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), WireError>;

    /// The name of the subsection record of `parent` that is next, if one is; takes nothing.
    fn peek_subsection(&mut self, parent: &str) -> Result<Option<String>, WireError>;
}

impl<R: Read> Source for Input<R> {
    fn offset(&self) -> u64 {
        Input::offset(self)
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), WireError> {
        Input::read_exact(self, into)
    }

    fn peek_subsection(&mut self, parent: &str) -> Result<Option<String>, WireError> {
        Ok(subsection::peek(self, parent)?.map(str::to_owned))
    }
}
