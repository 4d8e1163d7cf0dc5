//! whimbrel-wire
