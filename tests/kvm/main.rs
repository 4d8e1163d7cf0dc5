//! Moves between whimbrel processes on this machine's KVM. One file a subject; each test's name states the promise.
