//! Every field kind of the protocol: its bytes, both ways, and how a description shows it.

#[allow(dead_code, reason = "shared by several test programs")]
mod common;

use common::{assert_wire, loaded, saved, state};
use serde_json::json;
use whimbrel_vmstate::{Chain, Reason, Vmsd};

const ITEM: Vmsd = Vmsd::new("item", 1);

#[test]
fn uint8_int8_and_bool_are_one_byte() {
    assert_wire(
        (0xfe_u8, -2_i8, true, false),
        (0, 0, false, true),
        |(a, b, c, d), v| {
            v.u8("a", a)?;
            v.i8("b", b)?;
            v.bool("c", c)?;
            v.bool("d", d)
        },
        &[0xfe, 0xfe, 1, 0],
        json!([
            {"name": "a", "type": "uint8", "size": 1}, {"name": "b", "type": "int8", "size": 1},
            {"name": "c", "type": "bool", "size": 1}, {"name": "d", "type": "bool", "size": 1},
        ]),
    );
}

#[test]
fn uint16_and_int16_are_two_bytes_big_endian() {
    assert_wire(
        (0x1234_u16, -2_i16),
        (0, 0),
        |(a, b), v| {
            v.u16("a", a)?;
            v.i16("b", b)
        },
        &[0x12, 0x34, 0xff, 0xfe],
        json!([{"name": "a", "type": "uint16", "size": 2}, {"name": "b", "type": "int16", "size": 2}]),
    );
}

#[test]
fn uint32_and_int32_are_four_bytes_big_endian() {
    assert_wire(
        (0x1234_5678_u32, -2_i32),
        (0, 0),
        |(a, b), v| {
            v.u32("a", a)?;
            v.i32("b", b)
        },
        &[0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0xfe],
        json!([{"name": "a", "type": "uint32", "size": 4}, {"name": "b", "type": "int32", "size": 4}]),
    );
}

#[test]
fn uint64_and_int64_are_eight_bytes_big_endian() {
    assert_wire(
        (0x0102_0304_0506_0708_u64, -2_i64),
        (0, 0),
        |(a, b), v| {
            v.u64("a", a)?;
            v.i64("b", b)
        },
        &[1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe],
        json!([{"name": "a", "type": "uint64", "size": 8}, {"name": "b", "type": "int64", "size": 8}]),
    );
}

#[test]
fn an_equal_field_is_four_bytes_and_refuses_another_value() {
    assert_wire(
        (),
        (),
        |(), v| {
            v.u32_equal("a", 7)?;
            v.i32_equal("b", -1)
        },
        &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff],
        json!([{"name": "a", "type": "uint32 equal", "size": 4}, {"name": "b", "type": "int32 equal", "size": 4}]),
    );
    let error = loaded((), |(), v| v.u32_equal("a", 7), &[0, 0, 0, 8]).unwrap_err();
    assert!(matches!(error.reason, Reason::NotEqual { received: 8, own: 7 }));
}

#[test]
fn a_less_or_equal_field_is_four_bytes_and_refuses_a_greater_value() {
    assert_wire(
        4,
        0,
        |n, v| v.i32_at_most("n", n, 5),
        &[0, 0, 0, 4],
        json!([{"name": "n", "type": "int32 le", "size": 4}]),
    );
    let error = loaded(0, |n, v| v.i32_at_most("n", n, 5), &[0, 0, 0, 6]).unwrap_err();
    assert!(matches!(error.reason, Reason::AboveMaximum { received: 6, maximum: 5 }));
    let error = loaded(0, |n, v| v.i32_at_most("n", n, 5), &[0xff; 4]).unwrap_err();
    assert!(matches!(error.reason, Reason::AboveMaximum { received: 0xffff_ffff, maximum: 5 }));
}

#[test]
fn a_timer_is_its_expiry_and_all_ones_when_not_armed() {
    assert_wire(
        [1_000_000_000, -1],
        [0, 0],
        |[a, b], v| {
            v.timer("a", a)?;
            v.timer("b", b)
        },
        &[0, 0, 0, 0, 0x3b, 0x9a, 0xca, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        json!([{"name": "a", "type": "timer", "size": 8}, {"name": "b", "type": "timer", "size": 8}]),
    );
}

#[test]
fn a_buffer_is_raw_bytes_of_a_fixed_number() {
    assert_wire(
        *b"abc",
        [0; 3],
        |b, v| v.buffer("b", b),
        b"abc",
        json!([{"name": "b", "type": "buffer", "size": 3}]),
    );
}

#[test]
fn a_buffer_can_take_its_size_from_an_earlier_field() {
    assert_wire(
        (3_u32, b"abc".to_vec()),
        (0, Vec::new()),
        |(n, b), v| {
            v.u32("n", n)?;
            v.buffer_sized("b", b, *n as usize, 8)
        },
        b"\0\0\0\x03abc",
        json!([{"name": "n", "type": "uint32", "size": 4}, {"name": "b", "type": "buffer", "size": 3}]),
    );
}

#[test]
fn unused_bytes_are_zeros_and_skipped_whatever_they_are() {
    assert_wire(
        9,
        0,
        |a, v| {
            v.unused(3)?;
            v.u8("a", a)
        },
        &[0, 0, 0, 9],
        json!([{"name": "unused", "type": "unused_buffer", "size": 3}, {"name": "a", "type": "uint8", "size": 1}]),
    );
    assert_eq!(loaded((), |(), v| v.unused(3), &[1, 2, 3]).unwrap(), ());
}

#[test]
fn a_struct_is_its_fields_without_a_header_and_has_its_own_version() {
    assert_wire(
        (1_u8, 2_u8),
        (0, 0),
        |(a, b), v| {
            v.structure("s", ITEM, &mut |v| {
                assert_eq!(v.version(), 1);
                v.u8("a", a)
            })?;
            assert_eq!(v.version(), 3);
            v.u8("b", b)
        },
        &[1, 2],
        json!([
            {"name": "s", "type": "struct",
             "struct": {"vmsd_name": "item", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}]},
             "size": 1},
            {"name": "b", "type": "uint8", "size": 1},
        ]),
    );
}

#[test]
fn an_array_is_its_elements_back_to_back() {
    assert_wire(
        [1_u16, 2, 3],
        [0; 3],
        |a, v| v.array("a", a),
        &[0, 1, 0, 2, 0, 3],
        json!([{"name": "a", "array_len": 3, "type": "uint16", "size": 2}]),
    );
    assert_wire(
        [1_u8, 2],
        [0; 2],
        |a, v| v.structs("a", ITEM, a, |x, v| v.u8("x", x)),
        &[1, 2],
        json!([{"name": "a", "array_len": 2, "type": "struct",
                "struct": {"vmsd_name": "item", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]},
                "size": 1}]),
    );
}

#[test]
fn an_array_can_take_its_count_from_an_earlier_field() {
    assert_wire(
        (2_u8, vec![1_u32, 2]),
        (0, vec![9; 4]),
        |(n, a), v| {
            v.u8("n", n)?;
            v.varray("a", a, usize::from(*n), 4)
        },
        &[2, 0, 0, 0, 1, 0, 0, 0, 2],
        json!([{"name": "n", "type": "uint8", "size": 1}, {"name": "a", "array_len": 2, "type": "uint32", "size": 4}]),
    );
}

#[test]
fn a_null_among_pointers_is_the_byte_0x30() {
    assert_wire(
        [Some(7_u16), None, Some(8)],
        [Some(0), None, Some(0)],
        |a, v| v.pointer_array("a", ITEM, a, |x, v| v.u16("x", x)),
        &[0, 7, 0x30, 0, 8],
        json!([{"name": "a", "array_len": 3, "type": "struct",
                "struct": {"vmsd_name": "item", "version": 1, "fields": [{"name": "x", "type": "uint16", "size": 2}]},
                "size": 2}]),
    );
    let error = loaded([None::<u16>], |a, v| v.pointer_array("a", ITEM, a, |x, v| v.u16("x", x)), &[0x31]);
    assert!(matches!(error.unwrap_err().reason, Reason::BadMarker { received: 0x31, .. }));
}

#[test]
fn a_tmp_is_inlined_in_the_stream_and_in_the_description() {
    assert_wire(
        5_u16,
        0,
        |a, v| v.tmp("tmp", Vmsd::new("helper", 0), &mut |v| v.u16("a", a)),
        &[0, 5],
        json!([{"name": "tmp", "type": "tmp", "vmsd_name": "helper", "version": 0,
                "fields": [{"name": "a", "type": "uint16", "size": 2}], "size": 2}]),
    );
}

#[test]
fn a_bitmap_is_64_bit_words() {
    assert_wire(
        [1_u64, 1 << 63],
        [0; 2],
        |a, v| v.bitmap("a", a),
        &[0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0],
        json!([{"name": "a", "type": "bitmap", "size": 16}]),
    );
}

#[test]
fn a_list_has_a_1_before_each_element_and_a_0_at_its_end() {
    for (kind, ty) in [(Chain::Qtailq, "qtailq"), (Chain::Qlist, "qlist")] {
        assert_eq!(kind.ty(), ty);
    }
    assert_wire(
        vec![7_u8, 8],
        vec![1],
        |a, v| v.list("a", Chain::Qtailq, ITEM, a, 4, |x, v| v.u8("x", x)),
        &[1, 7, 1, 8, 0],
        json!([{"name": "a", "type": "qtailq", "size": 5}]),
    );
    assert_wire(
        vec![],
        vec![1_u8, 2],
        |a, v| v.list("a", Chain::Qlist, ITEM, a, 4, |x, v| v.u8("x", x)),
        &[0],
        json!([{"name": "a", "type": "qlist", "size": 1}]),
    );
}

#[test]
fn a_tree_is_a_count_then_keys_with_values_then_a_0() {
    assert_wire(
        vec![(5_u64, 7_u8)],
        vec![],
        |a, v| v.tree("a", ITEM, a, 4, |x, v| v.u8("x", x)),
        &[0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 5, 7, 0],
        json!([{"name": "a", "type": "gtree", "size": 15}]),
    );
    let error =
        loaded(vec![], |a, v| v.tree("a", ITEM, a, 4, |x: &mut u8, v| v.u8("x", x)), &[0, 0, 0, 2, 0]);
    assert!(matches!(error.unwrap_err().reason, Reason::TreeCount { announced: 2, found: 0 }));
}

#[test]
fn a_double_is_its_high_word_then_its_low_word() {
    assert_wire(
        1.5_f64.to_bits(),
        0,
        |a, v| v.cpu_double("a", a),
        &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0],
        json!([{"name": "a", "type": "CPU_Double_U", "size": 8}]),
    );
}

#[test]
fn a_passed_descriptor_is_one_dummy_byte() {
    assert_wire(
        [b'x'],
        [0],
        |a, v| v.typed("fd", "fd", a),
        b"x",
        json!([{"name": "fd", "type": "fd", "size": 1}]),
    );
}

#[test]
fn an_opaque_part_is_described_by_its_type_and_size_alone() {
    assert_wire(
        (1_u32, 2_u8),
        (0, 0),
        |(a, b), v| {
            v.opaque("virtio", "virtio", &mut |v| {
                v.u32("a", a)?;
                v.structure("s", ITEM, &mut |v| v.u8("b", b))
            })
        },
        &[0, 0, 0, 1, 2],
        json!([{"name": "virtio", "type": "virtio", "size": 5}]),
    );
}

#[test]
fn pci_config_is_raw_and_pci_interrupt_levels_are_four_words() {
    assert_wire(
        ([0x86_u8, 0x80], [0_u32, 1, 0, 0]),
        ([0; 2], [0; 4]),
        |(config, levels), v| {
            v.typed("config", "pci config", config)?;
            v.typed("irq_state", "pci irq state", levels)
        },
        &[0x86, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        json!([{"name": "config", "type": "pci config", "size": 2},
               {"name": "irq_state", "type": "pci irq state", "size": 16}]),
    );
}

#[test]
fn a_container_that_differs_from_its_count_is_not_saved() {
    let mut wrong = state((3_u8, vec![0_u8; 2]), |(n, a), v| {
        v.u8("n", n)?;
        v.varray("a", a, usize::from(*n), 4)
    });
    let mut out = whimbrel_wire::Output::new();
    out.u8(1);
    let error =
        whimbrel_vmstate::save(&common::section(), &mut wrong, Default::default(), &mut out).unwrap_err();
    assert!(matches!(error.reason, Reason::Description(_)));
    assert_eq!(out.as_slice(), [1], "what was there before stays");
    wrong.value.0 = 2;
    assert_eq!(saved(&mut wrong), [2, 0, 0]);
}
