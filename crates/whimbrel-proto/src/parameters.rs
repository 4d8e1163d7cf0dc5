//! Capabilities and parameters: QEMU's names, defaults and types. Checks of ranges and conflicts are in
//! `parameters/check` functions beside them.
