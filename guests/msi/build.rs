//! Compiles the guest in `guest/`.

use freestanding::{Architecture, Guest};

fn main() {
    freestanding::build(&[Guest {
        name: "IMAGE",
        what: "The guest, an arm64 Linux `Image`",
        architecture: Architecture::Aarch64,
        folders: &["."],
        flags: &["-Wl,--no-warn-rwx-segments"],
    }]);
}
