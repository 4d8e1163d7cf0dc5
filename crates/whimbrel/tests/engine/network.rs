//! Moves over sockets that need more than a number: names, ranges of ports, vsock.

use std::io::Write;
use std::net::TcpListener;

use whimbrel::channel::Address;
use whimbrel::engine::MigrationInfo;

use crate::guest::{Build, Guest, Runners, wait_until};

/// A machine that awaits a guest at a name, and where it listens once the name is known.
fn destination_at(runners: &Runners, uri: &str) -> (Guest, Address) {
    let guest = Build::new(runners).deferred();
    let address = Address::parse(uri).unwrap();
    guest.command(|engine| engine.migrate_incoming(address, true)).unwrap();
    let bound = || match guest.engine.migration_info() {
        MigrationInfo::Incoming(info) => info.socket_address,
        _ => None,
    };
    wait_until("it listens", || bound().is_some());
    let bound = bound().unwrap();
    (guest, bound)
}

#[test]
fn a_guest_moves_to_a_host_by_its_name() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let (destination, address) = destination_at(&runners, "tcp:localhost:0,ipv4");
    assert!(address.to_string().starts_with("tcp:localhost:"), "{address}");
    assert_ne!(address.to_string(), "tcp:localhost:0");
    source.migrate(&address);
    source.moved_to(&destination);
}

#[test]
fn a_name_that_nobody_has_fails_the_move_and_says_so() {
    let runners = Runners::default();
    let source = Build::new(&runners).ram(1, 16).source();
    let text = |text: &str| format!("address resolution failed for {text}");
    // Longer than any name may be: no name server is asked.
    let long = "x".repeat(300);
    source.migrate(&Address::parse(&format!("tcp:{long}:1")).unwrap());
    assert!(source.failed().starts_with(&text(&format!("{long}:1: "))));
    source.migrate(&Address::parse("tcp:localhost:1,numeric").unwrap());
    assert_eq!(source.failed(), text("localhost:1: Name or service not known"));
    source.migrate(&Address::parse("tcp:localhost:1,ipv4=off,ipv6=off").unwrap());
    assert_eq!(source.failed(), "Cannot disable IPv4 and IPv6 at same time");
    source.migrate(&Address::parse("tcp:127.0.0.1:1,to=2").unwrap());
    assert_eq!(source.failed(), "'to' is an option for listening only");
    source.moves_next_time(Build::new(&runners).ram(1, 16));
}

#[test]
fn a_taken_port_is_passed_over_where_a_range_is_given() {
    let runners = Runners::default();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let alone = Build::new(&runners).deferred();
    let uri = format!("tcp:127.0.0.1:{port}");
    let address = Address::parse(&uri).unwrap();
    let refused = alone.command(|engine| engine.migrate_incoming(address, true)).unwrap_err();
    assert_eq!(refused, format!("cannot listen on '{uri}': Address already in use"));
    let last = port.saturating_add(50);
    let (destination, address) = Build::new(&runners).destination(&format!("{uri},to={last}"));
    let Address::Tcp { port: bound, .. } = &address else { panic!("{address}") };
    assert!((port + 1..=last).contains(&bound.parse().unwrap()), "{bound} of {port} to {last}");
    let source = Build::new(&runners).source();
    source.migrate(&address);
    source.moved_to(&destination);
}

/// 1 is this host itself, by the loopback transport. No fresh machine must have it: a skip is announced and fails nothing.
#[test]
fn a_guest_moves_fenced_over_vsock() {
    let runners = Runners::default();
    let destination = Build::new(&runners).deferred();
    // No other test is over vsock, so the port is free.
    let address = Address::parse("vsock:1:49152").unwrap();
    let listening = address.clone();
    if let Err(refused) = destination.command(|engine| engine.migrate_incoming(listening, true)) {
        let text = format!("no vsock loopback ({refused}); get it: modprobe vsock_loopback");
        let line = format!("\nSKIPPED-OPTIONAL network::a_guest_moves_fenced_over_vsock: {text}\n");
        // Past the test runner's capture.
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        return;
    }
    let source = Build::new(&runners).source();
    source.migrate(&address);
    source.moved_to(&destination);
    assert!(source.info().fenced);
}
