//! The rules by which a description names, groups and orders fields.

#[allow(dead_code, reason = "shared by several test programs")]
mod common;

use common::{FieldsOf, described, section, state};
use serde_json::{Value, json};
use whimbrel_vmstate::{Level, OpaqueState, Vmsd, description, print, to_lines};
use whimbrel_wire::Configuration;

const ITEM: Vmsd = Vmsd::new("item", 1);

fn names(description: &Value) -> Vec<&str> {
    description["fields"].as_array().unwrap().iter().map(|field| field["name"].as_str().unwrap()).collect()
}

#[test]
fn a_name_that_comes_again_is_numbered_counting_branches_not_taken() {
    let fields: FieldsOf<[u8; 2]> = |[a, b], v| {
        v.when(false, &mut |v| v.u8("offset", a))?;
        v.u8("offset", b)?;
        v.unused(1)?;
        v.unused(2)?;
        v.since(9, &mut |v| v.u8("single", a))
    };
    assert_eq!(
        names(&described(&mut state([0; 2], fields), Level::V7_2)),
        ["offset[1]", "unused[0]", "unused[1]"]
    );
}

#[test]
fn an_array_with_subsections_below_it_is_indexed_and_the_last_index_is_missing_from_10_0_on() {
    let fields: FieldsOf<[u8; 3]> =
        |a, v| v.structs("cpu", ITEM, a, |x, v| v.optional(Vmsd::new("item/x", 1), "x", x, 0).map(drop));
    let indices = |level, value: [u8; 3]| {
        let description = described(&mut state(value, fields), level);
        let fields = description["fields"].as_array().unwrap().clone();
        fields.iter().map(|field| (field.get("index").cloned(), field["size"].clone())).collect::<Vec<_>>()
    };
    let [empty, full] = [json!(0), json!(1 + 1 + 6 + 4 + 1)];
    let at = |i: u8| Some(json!(i));
    assert_eq!(
        indices(Level::V7_2, [0, 1, 0]),
        [(at(0), empty.clone()), (at(1), full.clone()), (at(2), empty.clone())]
    );
    assert_eq!(indices(Level::V9_0, [0, 1, 0]), indices(Level::V7_2, [0, 1, 0]));
    assert_eq!(indices(Level::V10_0, [0, 1, 0]), [(at(0), empty.clone()), (at(1), full), (None, empty)]);
}

#[test]
fn a_predicate_makes_an_array_indexed_taken_or_not_and_a_version_does_not() {
    let below: FieldsOf<([u8; 2], u8)> = |(a, b), v| {
        v.structs("a", ITEM, a, |x, v| {
            v.u8("x", x)?;
            v.when(false, &mut |v| v.u8("b", b))
        })
    };
    let itself: FieldsOf<([u8; 2], u8)> = |(a, _), v| v.when(true, &mut |v| v.array("a", a));
    let version: FieldsOf<([u8; 2], u8)> = |(a, _), v| v.since(2, &mut |v| v.array("a", a));
    for (fields, indexed) in [(below, true), (itself, true), (version, false)] {
        let description = described(&mut state(([0; 2], 0), fields), Level::V7_2);
        let shown = description["fields"].as_array().unwrap();
        assert_eq!(shown.len(), if indexed { 2 } else { 1 });
        assert_eq!(shown[0].get("index").is_some(), indexed);
        assert_eq!(shown[0].get("array_len").is_some(), !indexed);
    }
}

#[test]
fn an_array_of_one_looks_like_a_value_and_one_of_none_is_not_shown() {
    let fields: FieldsOf<[Vec<u8>; 2]> = |[a, b], v| {
        let (m, n) = (a.len(), b.len());
        v.varray("a", a, m, 9)?;
        v.varray("b", b, n, 9)
    };
    let description = described(&mut state([vec![1], vec![]], fields), Level::V10_0);
    assert_eq!(description["fields"], json!([{"name": "a", "type": "uint8", "size": 1}]));
}

#[test]
fn keys_come_in_qemus_order_and_subsections_only_where_one_is_sent() {
    let fields: FieldsOf<[u8; 3]> = |[a, b, c], v| {
        v.structs("s", ITEM, std::slice::from_mut(a), |x, v| v.u8("x", x))?;
        v.array("t", std::slice::from_mut(b))?;
        v.optional(Vmsd::new("test/c", 4), "c", c, 0).map(drop)
    };
    let common = concat!(
        r#"{"name":"test","instance_id":2,"vmsd_name":"test","version":3,"fields":["#,
        r#"{"name":"s","type":"struct","struct":{"vmsd_name":"item","version":1,"fields":"#,
        r#"[{"name":"x","type":"uint8","size":1}]},"size":1},{"name":"t","type":"uint8","size":1}]"#,
    );
    assert_eq!(described(&mut state([0; 3], fields), Level::V7_2).to_string(), format!("{common}}}"));
    let subsection = concat!(
        r#","subsections":[{"vmsd_name":"test/c","version":4,"#,
        r#""fields":[{"name":"c","type":"uint8","size":1}]}]}"#,
    );
    assert_eq!(
        described(&mut state([0, 0, 1], fields), Level::V7_2).to_string(),
        format!("{common}{subsection}")
    );
}

#[test]
fn shapes_of_branches_not_taken_are_seen_even_where_their_values_make_no_sense() {
    let fields: FieldsOf<(u32, Vec<u8>)> = |(n, data), v| {
        v.when(false, &mut |v| v.buffer_sized("data", data, *n as usize, 16))?;
        v.u32("data", n)
    };
    assert_eq!(names(&described(&mut state((1000, vec![]), fields), Level::V7_2)), ["data[1]"]);
}

#[test]
fn a_state_without_a_description_is_one_buffer() {
    let mut opaque = OpaqueState { version: 4, data: vec![0; 127] };
    assert_eq!(
        described(&mut opaque, Level::V7_2).to_string(),
        r#"{"name":"test","instance_id":2,"size":131,"fields":[{"name":"data","size":131,"type":"buffer"}]}"#
    );
}

#[test]
fn the_document_has_qemus_separators_and_the_configuration_from_10_0_on() {
    let plain = Configuration { machine: "microvm".into(), ..Configuration::default() };
    assert_eq!(
        description(Level::V7_2, &plain, vec![json!({"a": 1}), json!({})]),
        r#"{"page_size": 4096, "devices": [{"a": 1}, {}]}"#
    );
    let full = Configuration {
        capabilities: vec!["x-ignore-shared".into()],
        uuid: Some([7; 16]),
        target_page_bits: Some(12),
        ..plain
    };
    // The capabilities and the uuid as QEMU 10.0.2 on x86 writes them, the page bits as it does on Arm.
    assert_eq!(
        description(Level::V10_0, &full, vec![]),
        concat!(
            r#"{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": "#,
            r#"[{"name": "len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 7}], "#,
            r#""subsections": [{"vmsd_name": "configuration/target-page-bits", "version": 1, "fields": "#,
            r#"[{"name": "target_page_bits", "type": "uint32", "size": 4}]}, "#,
            r#"{"vmsd_name": "configuration/capabilities", "version": 1, "fields": "#,
            r#"[{"name": "caps_count", "type": "uint32", "size": 4}, "#,
            r#"{"name": "capabilities", "type": "capability", "size": 16}]}, "#,
            r#"{"vmsd_name": "configuration/uuid", "version": 1, "fields": "#,
            r#"[{"name": "uuid.data", "array_len": 16, "type": "uint8", "size": 1}]}]}, "#,
            r#""page_size": 4096, "devices": []}"#,
        )
    );
}

#[test]
fn printing_shows_what_was_sent_by_name() {
    type Values = (u32, [u8; 2], [u16; 2], bool, u8);
    let fields: FieldsOf<Values> = |(a, b, c, d, e), v| {
        v.u32("a", a)?;
        v.buffer("b", b)?;
        v.structs("c", ITEM, c, |x, v| v.u16("x", x))?;
        v.bool("d", d)?;
        v.when(false, &mut |v| v.u8("gone", e))?;
        v.optional(Vmsd::new("test/e", 1), "e", e, 0).map(drop)
    };
    let mut state = state((0xff, [0xab, 0xcd], [1, 2], true, 5), fields);
    let values = print(&section(), &mut state, Level::V10_0).unwrap();
    assert_eq!(values.to_string(), r#"{"a":255,"b":"abcd","c":[{"x":1},{"x":2}],"d":true,"test/e":{"e":5}}"#);
    assert_eq!(
        to_lines(&values),
        "a = 0xff\nb = abcd\nc[0].x = 0x1\nc[1].x = 0x2\nd = true\ntest/e.e = 0x5\n"
    );
}
