//! whimbrel-qmp
