//! The boundaries of a stream are found wherever its chunks end, before a byte behind them may pass; and whatever comes
//! instead of a stream, nothing panics.

mod stream;

use stream::Stream;
use whimbrel_relay::scan::{Answers, Edge, Kind, Mark, Scanner};

/// All boundaries, the stream given in pieces of `step` bytes.
fn boundaries(bytes: &[u8], step: usize) -> (Vec<Mark>, Scanner) {
    let (mut scanner, mut marks) = (Scanner::default(), Vec::new());
    let mut received = 0;
    for chunk in bytes.chunks(step) {
        let settled = scanner.settled().min(received);
        received += chunk.len() as u64;
        scanner.push(chunk, &mut |mark| {
            assert!(mark.at >= settled, "{mark:?}: {settled} bytes might have passed");
            marks.push(mark);
        });
    }
    (marks, scanner)
}

#[test]
fn every_boundary_is_found_however_the_stream_is_cut() {
    let stream = Stream::whole();
    for step in [1, 2, 3, 5, 7, 64, 1000, 4096, 5000, stream.bytes.len()] {
        let (marks, scanner) = boundaries(&stream.bytes, step);
        assert_eq!(marks, stream.marks(), "in steps of {step}");
        assert_eq!(scanner.lost(), None);
    }
}

#[test]
fn bytes_that_look_like_a_footer_end_no_section_unless_something_valid_follows() {
    let mut stream = Stream::header();
    let footer = [0x7e, 0, 0, 0, 9];
    // A footer and: an unknown element, a part of a section that never began, a section without a name, EOF and no vmdesc, a
    // command that there is not; and half of another footer.
    let decoys: [&[u8]; 6] = [
        &[0x55],
        &[2, 0, 0, 0, 3],
        &[4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0, 6, 0, 0, 0, 9, b'x'],
        &[8, 0, 77, 0, 0],
        &[0x7e, 0, 0, 0],
    ];
    let body: Vec<u8> = decoys.iter().flat_map(|decoy| [&footer, *decoy].concat()).collect();
    stream.full(9, "decoy", 0, &body);
    stream.full(10, "timer", 0, &[1, 2, 3]);
    stream.eof();
    stream.vmdesc(b"{}");
    for step in [1, 4, 6, 1000] {
        assert_eq!(boundaries(&stream.bytes, step).0, stream.marks(), "in steps of {step}");
    }
}

#[test]
fn an_eof_byte_without_a_vmdesc_is_believed_after_a_silence() {
    let mut stream = Stream::header();
    stream.full(1, "timer", 0, &[1; 24]);
    let device = stream.bytes.len() as u64;
    stream.eof();
    let (mut marks, mut scanner) = boundaries(&stream.bytes, 1000);
    assert_eq!(marks.last().map(|mark| mark.edge), Some(Edge::Begin), "the section's end is not certain");
    assert_eq!(scanner.settled(), device);
    scanner.idle(&mut |mark| marks.push(mark));
    assert_eq!(marks, stream.marks());
}

#[test]
fn a_device_that_is_half_there_may_pass_all_but_what_is_behind_a_footer() {
    let mut stream = Stream::header();
    stream.full(1, "timer", 0, &[1; 24]);
    let end = stream.bytes.len();
    stream.full(2, "cpu", 0, &[2; 30]);
    let mut scanner = Scanner::default();
    scanner.push(&stream.bytes[..end - 7], &mut |_| ());
    assert_eq!(scanner.settled(), end as u64 - 7);
    scanner.push(&stream.bytes[end - 7..end + 6], &mut |_| ());
    assert_eq!(scanner.settled(), end as u64, "a header that is not whole is kept back");
    scanner.push(&stream.bytes[end + 6..end + 30], &mut |_| ());
    assert_eq!(scanner.settled(), end as u64 + 30);
}

#[test]
fn what_is_no_stream_is_let_through_unread() {
    for bytes in
        [&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1][..], &[0x16, 3, 1, 2, 0, 1, 0, 1], &[8, 0, 10, 0, 4, 3, b'r']]
    {
        let (marks, scanner) = boundaries(bytes, 3);
        assert_eq!(marks, []);
        assert!(scanner.lost().is_some_and(|why| why.contains("Not a migration stream")));
        assert_eq!(scanner.settled(), u64::MAX);
    }
}

#[test]
fn no_damaged_stream_panics_or_has_boundaries_that_go_back() {
    let mut random = stream::Random(0x5345_4354);
    let whole = Stream::whole().bytes;
    let (mut followed, mut lost) = (0, 0);
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes.truncate(at.max(1)),
                _ => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        let (marks, scanner) = boundaries(&bytes, 1 + random.below(5000));
        assert!(marks.iter().all(|mark| mark.at <= bytes.len() as u64));
        assert!(marks.is_sorted_by_key(|mark| mark.at));
        match scanner.lost() {
            Some(_) => lost += 1,
            None => followed += 1,
        }
        let mut answers = Answers::default();
        answers.push(&bytes, &mut |_| ());
    }
    assert!(followed > 400 && lost > 400, "{followed} followed, {lost} lost");
}

#[test]
fn a_long_vmdesc_and_ram_are_stepped_over_and_not_kept() {
    let mut stream = Stream::header();
    stream.eof();
    let text = [b"{".as_slice(), &[b' '; 3 << 20]].concat();
    stream.vmdesc(&text);
    let (marks, _) = boundaries(&stream.bytes, 1 << 18);
    assert_eq!(
        marks.last(),
        Some(&Mark {
            edge: Edge::End,
            piece: whimbrel_relay::scan::Piece::only(Kind::Vmdesc),
            at: stream.bytes.len() as u64
        })
    );
}
