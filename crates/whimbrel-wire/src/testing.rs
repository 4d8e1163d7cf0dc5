//! Helpers of the unit tests: bytes from hexadecimal text, and inputs over them.

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Bytes from hexadecimal digits and spaces; text in single quotes stands for itself.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<u32> =
            part.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap()).collect();
        assert!(digits.len().is_multiple_of(2), "odd number of digits in {part:?}");
        bytes.extend(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8));
    }
    bytes
}

/// An input over a slice.
pub(crate) fn input(bytes: &[u8]) -> Input<&[u8]> {
    Input::with_capacity(bytes, 0)
}

/// What `encode` writes.
pub(crate) fn encoded(encode: impl FnOnce(&mut Output) -> Result<(), WireError>) -> Vec<u8> {
    let mut out = Output::new();
    encode(&mut out).unwrap();
    out.into_vec()
}

/// The error of `encode`, which must have written nothing.
pub(crate) fn refused(encode: impl FnOnce(&mut Output) -> Result<(), WireError>) -> WireError {
    let mut out = Output::new();
    let error = encode(&mut out).unwrap_err();
    assert!(out.is_empty(), "a refused value left bytes behind");
    error
}
