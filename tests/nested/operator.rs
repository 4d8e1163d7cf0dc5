//! `whimbrel migrate` with an ITS: nobody has asked for it, and tables that did not arrive are caught all the same.

use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::operator::whimbrel;
use whimbrel_e2e::wait_for;

use crate::its::machine::{LIMIT, Launch, Machine};

fn migrate(source: &Machine, destination: &Machine) -> (i32, String) {
    let (from, to) = (source.endpoint(), destination.endpoint());
    whimbrel(&["migrate", &from, "tcp:127.0.0.1:0", "--destination", &to, "--downtime-limit", "5000"])
}

#[test]
fn tables_that_did_not_arrive_fail_the_command_and_the_next_one_moves_the_guest() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let launch = Launch { digest: false, ..Launch::default() };
            let mut source = launch.boot();
            let (code, said) = migrate(&source, &launch.faults(&["tables-zeroed"]).await_guest());
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("its tables in guest RAM are not what the source saved"), "{said}");
            wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
            let mut destination = launch.await_guest();
            let (code, said) = migrate(&source, &destination);
            assert!(code == 0 && said.contains("tables in guest RAM are compared"), "{code}: {said}");
            destination.cont();
            let churns = destination.control().churns;
            destination.wait_control("remapping to go on", |control| control.churns > churns + 50);
        },
    );
}
