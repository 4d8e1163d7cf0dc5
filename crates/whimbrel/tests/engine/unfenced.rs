//! A source that asks for no confirmation before it gives the guest away, as QEMU's: it resumes its guest unless it hears SHUT 0.
//! So the guest starts here when the source has that, and not before.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::engine::Exit;
use whimbrel::proto::run_state::RunState;
use whimbrel::wire::return_path::SHUT_OK;
use whimbrel::wire::{Command, Configuration, Element, Input, Output, ReturnPathMessage, header};

use crate::guest::{Guest, Scratch, wait_until};
use crate::hostile::{recorded, small};
use crate::peer::bytes_of;

/// The recorded stream, with a return path.
fn stream() -> Vec<u8> {
    let mut input = Input::new(recorded());
    header::decode(&mut input).unwrap();
    Configuration::decode(&mut input).unwrap();
    let (begin, rest) = recorded().split_at(input.offset() as usize);
    let mut open = Output::new();
    Element::Command(Command::OpenReturnPath).encode(&mut open).unwrap();
    [begin, open.as_slice(), rest].concat()
}

/// A destination, and the connection of a source to it.
fn awaited() -> (Scratch, Guest, UnixStream) {
    let scratch = Scratch::new();
    let (destination, address) = small().destination(&scratch.unix());
    let Address::Unix(path) = address else { unreachable!() };
    let source = UnixStream::connect(path).unwrap();
    (scratch, destination, source)
}

#[test]
fn the_guest_starts_when_the_source_has_heard_shut() {
    let (_scratch, destination, mut source) = awaited();
    source.write_all(&stream()).unwrap();
    let mut shut = bytes_of(&ReturnPathMessage::Shut(SHUT_OK));
    let expected = shut.clone();
    // What is not read yet is not heard: it is there for the taking, and nobody runs.
    source.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    wait_until("the destination's word", || {
        rustix::io::ioctl_fionread(&source).is_ok_and(|bytes| bytes >= 8)
    });
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((destination.engine.run_state(), destination.runners.now()), (RunState::Inmigrate, 0));
    source.read_exact(&mut shut).unwrap();
    assert_eq!(shut, expected);
    wait_until("the guest", || destination.engine.run_state() == RunState::Running);
    assert_eq!(destination.mismatches(), 0);
}

#[test]
fn a_source_that_leaves_without_having_heard_it_keeps_its_guest() {
    let whole = stream();
    // Behind EOF; inside the vmdesc; behind it; and with SHUT unread.
    let eof = whole.len() - vmdesc();
    for (end, unread) in [(eof, false), (eof + 3, false), (whole.len(), false), (whole.len(), true)] {
        let (_scratch, destination, mut source) = awaited();
        source.write_all(&whole[..end]).unwrap();
        if unread {
            wait_until("SHUT", || rustix::io::ioctl_fionread(&source).is_ok_and(|bytes| bytes >= 8));
        }
        drop(source);
        wait_until("the end", || destination.has_ended());
        assert_eq!(destination.runners.now(), 0, "cut at {end}");
        match destination.exit() {
            Exit::IncomingFailed(why) => {
                assert!(why.contains("could hear") || why.contains("VM description"), "cut at {end}: {why}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes behind the EOF byte.
fn vmdesc() -> usize {
    let stream = recorded();
    stream.len() - 1 - crate::hostile::eof()
}
