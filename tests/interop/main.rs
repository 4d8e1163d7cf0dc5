//! Moves to and from real QEMU, 7.2 and 10.0. One file a subject; each test's name states the promise.

mod harness;
