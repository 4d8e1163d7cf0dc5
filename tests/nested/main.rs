//! Tests in L1: a Linux with a KVM of its own, in software emulation (`whimbrel_e2e::l1`). Each of them boots an L1 and runs itself
//! there.

mod arm;
mod beacon;
mod counter;
mod guest;
mod inspect;
mod its;
mod linux;
mod operator;
mod sight;
mod soak;
mod x86;
