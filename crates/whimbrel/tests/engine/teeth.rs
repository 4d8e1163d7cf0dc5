//! The check itself: what is left out on purpose must be found. Were these tests to fail, no other here would count.

use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Guest, Runners, TCP};

/// Moves a guest whose source has a fault; the destination.
fn moved_with(fault: &str, build: impl Fn(Build) -> Build) -> Guest {
    let runners = Runners::default();
    let source = build(Build::new(&runners)).fault(fault).source();
    let (destination, address) = build(Build::new(&runners)).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination
}

#[test]
fn one_dirty_page_that_is_not_sent_is_found() {
    let destination = moved_with("dirty-page", Build::busy_to_the_end);
    assert_eq!(destination.mismatches_on_arrival(), 1);
}

#[test]
fn a_last_sync_that_is_left_out_is_found() {
    let destination = moved_with("last-sync", Build::busy_to_the_end);
    assert!(destination.mismatches_on_arrival() > 0);
}

#[test]
fn swapped_ram_blocks_are_found() {
    let destination = moved_with("swap-blocks", |build| build);
    assert!(destination.mismatches_on_arrival() > 0);
}
