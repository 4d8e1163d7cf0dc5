//! XBZRLE: a page as its difference to the one the receiver has.
//!
//! ```text
//! { zrun  nzrun  nzrun bytes }      zrun: bytes that stay as they are; nzrun: bytes replaced by those that follow
//! ```
//!
//! Both counts are ULEB128 of at most two bytes (up to `0x3fff`). Only the first `zrun` may be 0, no `nzrun` may. The
//! encoding ends after an `nzrun`: what is left of the page stays as it is.

/// Bytes that replace a part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where in the page.
    pub start: usize,
    /// The new bytes; `start` and their number stay within the page.
    pub bytes: &'a [u8],
}

/// The runs of an encoded page of `page_size` bytes, in ascending order. The first fault, as a reason, ends them.
pub fn runs(encoded: &[u8], page_size: usize) -> Runs<'_> {
    Runs { rest: encoded, position: 0, page_size, first: true }
}

/// See [`runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    rest: &'a [u8],
    position: usize,
    page_size: usize,
    first: bool,
}

/// Applies an encoding to the page that the receiver has.
///
/// # Errors
/// The reason why the encoding is malformed. Runs before the fault have been applied.
pub fn apply(encoded: &[u8], page: &mut [u8]) -> Result<(), &'static str> {
    for run in runs(encoded, page.len()) {
        let Run { start, bytes } = run?;
        let end = start.saturating_add(bytes.len());
        page.get_mut(start..end).ok_or(BEYOND_PAGE)?.copy_from_slice(bytes);
    }
    Ok(())
}

const BEYOND_PAGE: &str = "a run reaches beyond the page";

impl<'a> Iterator for Runs<'a> {
    type Item = Result<Run<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let run = self.run();
        if run.is_err() {
            self.rest = &[];
        }
        Some(run)
    }
}

impl<'a> Runs<'a> {
    fn run(&mut self) -> Result<Run<'a>, &'static str> {
        let unchanged = self.count()?;
        if unchanged == 0 && !self.first {
            return Err("a run of no unchanged bytes");
        }
        self.first = false;
        let start = self.position.saturating_add(unchanged);
        let changed = self.count()?;
        if changed == 0 {
            return Err("a run of no changed bytes");
        }
        self.position = start.saturating_add(changed);
        if self.position > self.page_size {
            return Err(BEYOND_PAGE);
        }
        let (bytes, rest) = self.rest.split_at_checked(changed).ok_or("it ends inside the bytes of a run")?;
        self.rest = rest;
        Ok(Run { start, bytes })
    }

    fn count(&mut self) -> Result<usize, &'static str> {
        const MORE: u8 = 0x80;
        match *self.rest {
            [] => Err("it ends where a count is expected"),
            [low, ref rest @ ..] if low & MORE == 0 => {
                self.rest = rest;
                Ok(usize::from(low))
            }
            [low, high, ref rest @ ..] if high & MORE == 0 => {
                self.rest = rest;
                Ok(usize::from(low & !MORE) | usize::from(high) << 7)
            }
            [_, _, ..] => Err("a count of more than two bytes"),
            [_] => Err("it ends inside a count"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_replace_bytes_and_the_rest_stays() {
        let mut page = [0xaa; 16];
        apply(&[0x00, 0x02, 0x13, 0x02], &mut page).unwrap();
        assert_eq!(page[..4], [0x13, 0x02, 0xaa, 0xaa]);
        apply(&[0x01, 0x01, 0x77, 0x0d, 0x01, 0x78], &mut page).unwrap();
        assert_eq!((page[1], page[2], page[15]), (0x77, 0xaa, 0x78));
    }

    #[test]
    fn counts_have_one_byte_or_two() {
        let mut page = [0; 4096];
        let mut encoded = vec![0xff, 0x1e, 0x80, 0x01];
        encoded.extend([9; 128]);
        apply(&encoded, &mut page).unwrap();
        assert_eq!(page.iter().position(|byte| *byte == 9), Some(0xf7f));
        assert_eq!(page.iter().filter(|byte| **byte == 9).count(), 128);
    }

    #[test]
    fn malformed_encodings_are_refused_with_the_reason() {
        for (encoded, why) in [
            (&[0x00][..], "it ends where a count is expected"),
            (&[0x80], "it ends inside a count"),
            (&[0x80, 0x80], "a count of more than two bytes"),
            (&[0x00, 0x00], "a run of no changed bytes"),
            (&[0x00, 0x01, 0xaa, 0x00, 0x01, 0xbb], "a run of no unchanged bytes"),
            (&[0x00, 0x03, 0xaa, 0xbb], "it ends inside the bytes of a run"),
            (&[0x0f, 0x02, 0xaa, 0xbb], "a run reaches beyond the page"),
            (&[0xff, 0x7f, 0xff, 0x7f], "a run reaches beyond the page"),
        ] {
            assert_eq!(apply(encoded, &mut [0; 16]), Err(why), "{encoded:02x?}");
            assert_eq!(runs(encoded, 16).last(), Some(Err(why)), "{encoded:02x?}");
        }
    }
}
