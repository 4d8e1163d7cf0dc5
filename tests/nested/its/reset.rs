//! What operators and guests do between moves: resets, and moves of a guest that stands.

use serde_json::json;
use whimbrel_e2e::l1::{Arch, inside};

use super::machine::{Launch, Machine, Sent};
use super::{assert_all_arrive, hold_and_send, send_remapped, send_steady};
use msi::{RESET_EVENT, STEADY_DEVICE};

#[test]
fn reset_machines_are_as_new_and_those_that_stand_move_on_with_what_is_pending() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let launch = Launch { ring: true, ..Launch::default() };
            let mut machine = launch.boot();
            machine.qmp.ok("system_reset", json!({}));
            works_as_new(&mut machine);
            machine.send(STEADY_DEVICE, RESET_EVENT);
            let sent = works_as_new(&mut machine);
            assert_eq!(machine.greetings(), 3, "one at the start, and one after each reset");
            let mut machine = moved_twice_at_a_stand(&launch, machine, sent);
            machine.send(STEADY_DEVICE, RESET_EVENT);
            let sent = works_as_new(&mut machine);
            reset_at_a_stand_and_moved(&launch, machine, sent);
        },
    );
}

/// After a reset: nothing is counted or pending of what was sent before, and what is sent arrives.
#[track_caller]
fn works_as_new(machine: &mut Machine) -> Sent {
    machine.wait_booted_again();
    let mut sent = Sent::default();
    send_steady(machine, &mut sent);
    assert_all_arrive(machine, &sent);
    sent
}

/// Two moves, between which the guest does not run: what was pending when it stopped, and what was sent to it where it stood,
/// arrives when it runs again. KVM clears pending tables as it takes what stands in them, so that the second move needs them
/// written again.
fn moved_twice_at_a_stand(launch: &Launch, mut source: Machine, mut sent: Sent) -> Machine {
    hold_and_send(&mut source, launch.cpus, &mut sent);
    let mut second = launch.await_guest();
    source.begin_move(&mut second);
    source.finish_move(&mut second);
    assert_eq!(send_remapped(&mut second, &mut sent), Vec::<String>::new());
    let mut third = launch.await_guest();
    second.begin_move(&mut third);
    second.finish_move(&mut third);
    third.cont();
    assert_all_arrive(&mut third, &sent);
    third
}

/// A stop, a reset, a move: what the guest comes up in is the machine as new, with nothing pending of what was.
fn reset_at_a_stand_and_moved(launch: &Launch, mut source: Machine, mut sent: Sent) {
    hold_and_send(&mut source, launch.cpus, &mut sent);
    source.qmp.ok("stop", json!({}));
    source.qmp.ok("system_reset", json!({}));
    let mut destination = launch.await_guest();
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    assert_eq!(destination.run_state(), "prelaunch");
    destination.cont();
    works_as_new(&mut destination);
}
