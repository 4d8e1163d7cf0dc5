//! whimbrel-vmstate
