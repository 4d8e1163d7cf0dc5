//! What a loader accepts and refuses: versions, conditions, subsections, bounds.

#[allow(dead_code, reason = "shared by several test programs")]
mod common;

use common::{FieldsOf, loaded, saved, section, state};
use whimbrel_vmstate::{Chain, Level, OpaqueState, Present, Reason, Vmsd, load_body, save};
use whimbrel_wire::Output;

const ITEM: Vmsd = Vmsd::new("item", 1);

/// A record of a subsection.
fn record(name: &str, version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![5, name.len() as u8];
    bytes.extend(name.bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// One field, two subsections, the second with one of its own.
const TREE: FieldsOf<[u8; 4]> = |[x, a, b, c], v| {
    v.u8("x", x)?;
    v.optional(Vmsd::new("test/a", 1), "a", a, 0)?;
    let needed = *b != 0 || *c != 0;
    v.subsection(Vmsd::new("test/b", 2).since(1), needed, &mut |v| {
        v.u8("b", b)?;
        v.optional(Vmsd::new("test/b/c", 1), "c", c, 0).map(drop)
    })?;
    Ok(())
};

#[test]
fn subsections_are_saved_in_declared_order_and_only_if_needed() {
    let [a, c] = [record("test/a", 1, &[2]), record("test/b/c", 1, &[4])];
    let b = record("test/b", 2, &[3]);
    assert_eq!(saved(&mut state([1, 2, 3, 4], TREE)), [vec![1], a.clone(), b.clone(), c].concat());
    assert_eq!(saved(&mut state([1, 0, 3, 0], TREE)), [vec![1], b].concat());
    assert_eq!(saved(&mut state([1, 2, 0, 0], TREE)), [vec![1], a].concat());
    assert_eq!(saved(&mut state([1, 0, 0, 0], TREE)), [1]);
}

#[test]
fn subsections_load_in_any_order_and_absent_ones_leave_the_reset_value() {
    let [a, b, c] = [record("test/a", 1, &[2]), record("test/b", 2, &[3]), record("test/b/c", 1, &[4])];
    for (parts, expected) in [
        (vec![&a, &b, &c], [1, 2, 3, 4]),
        (vec![&b, &c, &a], [1, 2, 3, 4]),
        (vec![&b, &a], [1, 2, 3, 9]),
        (vec![&a], [1, 2, 9, 9]),
        (vec![], [1, 9, 9, 9]),
    ] {
        let body = [vec![1], parts.into_iter().flatten().copied().collect()].concat();
        assert_eq!(loaded([9; 4], TREE, &body).unwrap(), expected);
    }
}

#[test]
fn a_subsection_that_begins_with_our_name_but_is_unknown_is_refused_by_name() {
    let body = [vec![1], record("test/zzz", 1, &[2])].concat();
    let error = loaded([9; 4], TREE, &body).unwrap_err();
    assert!(matches!(&error.reason, Reason::UnknownSubsection(name) if name == "test/zzz"));
    assert_eq!(error.to_string(), "section 'test' instance 2, offset 0x1001: unknown subsection 'test/zzz'");

    let body = [vec![1], record("test/b", 1, &[3]), record("test/b/d", 1, &[0])].concat();
    let error = loaded([9; 4], TREE, &body).unwrap_err();
    assert!(matches!(&error.reason, Reason::UnknownSubsection(name) if name == "test/b/d"));
    assert_eq!(error.place.path, "test/b");
}

#[test]
fn a_record_that_nobody_takes_is_refused() {
    let body = [vec![1], record("other/a", 1, &[2])].concat();
    let error = loaded([9; 4], TREE, &body).unwrap_err();
    assert!(matches!(&error.reason, Reason::UnknownSubsection(name) if name == "other/a"));
}

#[test]
fn a_repeated_subsection_is_refused() {
    let a = record("test/a", 1, &[2]);
    for body in [
        [vec![1], a.clone(), a.clone()].concat(),
        [vec![1], a.clone(), record("test/b", 1, &[3]), a].concat(),
    ] {
        let error = loaded([9; 4], TREE, &body).unwrap_err();
        assert!(matches!(&error.reason, Reason::RepeatedSubsection(name) if name == "test/a"));
    }
}

#[test]
fn a_subsection_of_a_version_outside_its_range_is_refused() {
    let error = loaded([9; 4], TREE, &[vec![1], record("test/b", 3, &[3])].concat()).unwrap_err();
    assert!(matches!(error.reason, Reason::TooNew { received: 3, own: 2, .. }));
    let error = loaded([9; 4], TREE, &[vec![1], record("test/b", 0, &[3])].concat()).unwrap_err();
    assert!(matches!(error.reason, Reason::TooOld { received: 0, minimum: 1, .. }));
}

#[test]
fn the_innermost_description_takes_a_record_and_leaves_others_to_the_outer_one() {
    // A struct of the section's own name, as a UART on ISA has.
    let fields: FieldsOf<[u8; 3]> = |[x, inner, outer], v| {
        v.structure("state", Vmsd::new("test", 1), &mut |v| {
            v.u8("x", x)?;
            v.optional(Vmsd::new("test/inner", 1), "inner", inner, 0).map(drop)
        })?;
        v.optional(Vmsd::new("testouter", 1), "outer", outer, 0).map(drop)
    };
    assert_eq!(
        loaded([0; 3], fields, &[vec![1], record("test/inner", 1, &[2])].concat()).unwrap(),
        [1, 2, 0]
    );

    let fields: FieldsOf<[u8; 3]> = |[x, inner, outer], v| {
        v.structure("item", ITEM, &mut |v| {
            v.u8("x", x)?;
            v.optional(Vmsd::new("item/inner", 1), "inner", inner, 0).map(drop)
        })?;
        v.optional(Vmsd::new("test/outer", 1), "outer", outer, 0).map(drop)
    };
    let [inner, outer] = [record("item/inner", 1, &[2]), record("test/outer", 1, &[3])];
    assert_eq!(loaded([0; 3], fields, &[vec![1], inner, outer.clone()].concat()).unwrap(), [1, 2, 3]);
    assert_eq!(loaded([0; 3], fields, &[vec![1], outer].concat()).unwrap(), [1, 0, 3]);
}

#[test]
fn data_that_looks_like_a_subsection_is_data() {
    // A byte 5 behind a struct, then what would be a length and a name.
    let fields: FieldsOf<(u8, [u8; 8])> = |(x, rest), v| {
        v.structure("item", ITEM, &mut |v| v.u8("x", x))?;
        v.buffer("rest", rest)
    };
    for rest in [*b"\x05\x00aaaaaa", *b"\x05\xffaaaaaa", *b"\x05\x06item\xff\xff", *b"\x05\x04itemaa"] {
        let body = [&[1], &rest[..]].concat();
        assert_eq!(loaded((0, [0; 8]), fields, &body).unwrap(), (1, rest));
    }
}

#[test]
fn a_subsection_tells_whether_it_was_there_even_out_of_order() {
    let fields: FieldsOf<[bool; 2]> = |[a, b], v| {
        *a = v.subsection(Vmsd::new("test/a", 1), *a, &mut |_| Ok(()))? == Present::Yes;
        *b = v.subsection(Vmsd::new("test/b", 1), *b, &mut |_| Ok(()))? == Present::Yes;
        Ok(())
    };
    let [a, b] = [record("test/a", 1, &[]), record("test/b", 1, &[])];
    assert_eq!(loaded([false, true], fields, &a).unwrap(), [true, false]);
    assert_eq!(loaded([true, false], fields, &b).unwrap(), [false, true]);
    assert_eq!(loaded([false, false], fields, &[b, a].concat()).unwrap(), [true, true]);
}

#[test]
fn options_follow_the_presence_of_their_subsection() {
    let fields: FieldsOf<[Option<u8>; 2]> = |[a, b], v| {
        v.option(Vmsd::new("test/a", 1), a, |a, v| v.u8("a", a))?;
        v.option(Vmsd::new("test/b", 1), b, |b, v| v.u8("b", b))
    };
    let [a, b] = [record("test/a", 1, &[7]), record("test/b", 1, &[8])];
    assert_eq!(loaded([None, Some(1)], fields, &a).unwrap(), [Some(7), None]);
    assert_eq!(
        loaded([Some(1), None], fields, &[b.clone(), a.clone()].concat()).unwrap(),
        [Some(7), Some(8)]
    );
    let mut whole = state([Some(7), None], fields);
    assert_eq!(saved(&mut whole), a);
    assert_eq!(whole.value, [Some(7), None], "saving changes nothing");
}

#[test]
fn a_section_of_a_version_outside_its_range_is_refused() {
    let mut state = state([0; 4], TREE);
    let error = load_body(&section(), &mut state, 4, &[1], 0, Level::V7_2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "section 'test' instance 2, offset 0x0: savevm: unsupported version 4 for 'test' v3"
    );
    let error = load_body(&section(), &mut state, 0, &[1], 0, Level::V7_2).unwrap_err();
    assert!(matches!(error.reason, Reason::TooOld { received: 0, minimum: 1, .. }));
}

#[test]
fn fields_since_a_version_are_there_from_that_version_on() {
    let fields: FieldsOf<[u8; 3]> = |[a, b, c], v| {
        v.u8("a", a)?;
        v.since(2, &mut |v| v.u8("b", b))?;
        v.since(4, &mut |v| v.u8("c", c))
    };
    assert_eq!(saved(&mut state([1, 2, 3], fields)), [1, 2]);
    for (version, body, expected) in
        [(1, &[7][..], [7, 0, 0]), (2, &[7, 8], [7, 8, 0]), (3, &[7, 8], [7, 8, 0])]
    {
        let mut state = state([0; 3], fields);
        load_body(&section(), &mut state, version, body, 0, Level::V7_2).unwrap();
        assert_eq!(state.value, expected);
    }
}

#[test]
fn fields_with_a_condition_are_there_when_it_holds() {
    let fields: FieldsOf<[u8; 2]> = |[a, b], v| {
        v.u8("a", a)?;
        v.when(*a == 1, &mut |v| v.u8("b", b))
    };
    assert_eq!(saved(&mut state([1, 2], fields)), [1, 2]);
    assert_eq!(saved(&mut state([0, 2], fields)), [0]);
    assert_eq!(loaded([9, 9], fields, &[1, 2]).unwrap(), [1, 2]);
    assert_eq!(loaded([9, 9], fields, &[0]).unwrap(), [0, 9]);
}

#[test]
fn an_error_names_section_instance_field_and_offset() {
    let fields: FieldsOf<[u32; 2]> = |a, v| v.structs("regs", ITEM, a, |x, v| v.u32("low", x));
    let error = loaded([0; 2], fields, &[0, 0, 0, 1, 0]).unwrap_err();
    assert_eq!((error.place.section.as_str(), error.place.instance), ("test", 2));
    assert_eq!((error.place.path.as_str(), error.place.offset), ("regs[1].low", 0x1004));
    assert!(matches!(error.reason, Reason::Wire(_)));
}

#[test]
fn bytes_left_over_are_refused() {
    let error = loaded(0, |a, v| v.u8("a", a), &[1, 2, 3]).unwrap_err();
    assert!(matches!(error.reason, Reason::Unconsumed(2)));
    assert_eq!(error.place.offset, 0x1001);
}

#[test]
fn a_bool_is_0_or_1() {
    let error = loaded(false, |a, v| v.bool("a", a), &[2]).unwrap_err();
    assert!(matches!(error.reason, Reason::BadMarker { received: 2, .. }));
}

#[test]
fn a_count_beyond_its_maximum_is_refused_before_memory_is_taken() {
    let error = loaded(
        (0_u32, vec![]),
        |(n, a): &mut (u32, Vec<u64>), v| {
            v.u32("n", n)?;
            v.varray("a", a, *n as usize, 16)
        },
        &[0xff; 64],
    );
    assert!(matches!(error.unwrap_err().reason, Reason::TooMany { count: 0xffff_ffff, maximum: 16 }));
}

#[test]
fn a_list_without_an_end_is_refused_at_its_maximum() {
    let body = [1, 7].repeat(1000);
    let error = loaded(
        vec![],
        |a: &mut Vec<u8>, v| v.list("a", Chain::Qtailq, ITEM, a, 16, |x, v| v.u8("x", x)),
        &body,
    );
    let error = error.unwrap_err();
    assert!(matches!(error.reason, Reason::TooMany { count: 17, maximum: 16 }));
    assert_eq!(error.place.path, "a[16].a");
}

#[test]
fn a_list_before_a_subsection_out_of_order_is_read_once() {
    let fields: FieldsOf<(Vec<u8>, u8, u8)> = |(list, a, b), v| {
        v.list("list", Chain::Qlist, ITEM, list, 4, |x, v| v.u8("x", x))?;
        v.optional(Vmsd::new("test/a", 1), "a", a, 0)?;
        v.optional(Vmsd::new("test/b", 1), "b", b, 0).map(drop)
    };
    let body = [vec![1, 5, 1, 6, 0], record("test/b", 1, &[3]), record("test/a", 1, &[2])].concat();
    assert_eq!(loaded((vec![], 0, 0), fields, &body).unwrap(), (vec![5, 6], 2, 3));
}

#[test]
fn a_field_after_a_subsection_is_a_fault_of_the_description() {
    let mut wrong = state([0; 2], |[a, b], v| {
        v.optional(Vmsd::new("test/a", 1), "a", a, 0)?;
        v.u8("b", b)
    });
    let error = save(&section(), &mut wrong, Level::V7_2, &mut Output::new()).unwrap_err();
    assert!(matches!(error.reason, Reason::Description(_)));
    assert_eq!(error.place.path, "b");
}

#[test]
fn an_opaque_state_loads_what_it_saved_and_bounds_its_length() {
    let mut ours = OpaqueState { version: 1, data: b"snapshot".to_vec() };
    let body = saved(&mut ours);
    assert_eq!(body, b"\0\0\0\x08snapshot");
    let mut theirs = OpaqueState { version: 1, data: Vec::new() };
    load_body(&section(), &mut theirs, 1, &body, 0, Level::V10_0).unwrap();
    assert_eq!(theirs, ours);
    let error = load_body(&section(), &mut theirs, 1, &[0xff; 4], 0, Level::V10_0).unwrap_err();
    assert!(matches!(error.reason, Reason::TooMany { .. }));
    let error = load_body(&section(), &mut theirs, 2, &body, 0, Level::V10_0).unwrap_err();
    assert!(error.to_string().contains("for 'test' v1"));
}
