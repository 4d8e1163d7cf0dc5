//! whimbrel-vmm
