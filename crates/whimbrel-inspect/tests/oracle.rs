//! Two readers of the same bytes that share no code and no knowledge: this walker, which knows only the description, and the
//! saved-state types of whimbrel-vmm, which know only their fields. Names and values must be the same.

mod streams;

use serde_json::Value;
use streams::virt::Virt;
use streams::{CAPTURES, Capture, VIRT};
use whimbrel_inspect::report::{Body, Part};
use whimbrel_inspect::{Report, inspect, json};
use whimbrel_vmm::state;
use whimbrel_vmstate::{Level, SectionName, load_body, print};

/// The values of one section, by our types.
fn by_our_types(capture: &Capture, idstr: &str, instance: u32, version: u32, body: &[u8]) -> Value {
    let level = if capture.name.ends_with("-7.2") { Level::V7_2 } else { Level::V10_0 };
    let name = SectionName::new(idstr.to_owned(), instance);
    let state = match capture.name {
        "virt-10.0" => state::for_virt_section(idstr, 2),
        _ => state::for_section(idstr),
    };
    let mut state = state.unwrap_or_else(|| panic!("{}: {idstr}", capture.name));
    load_body(&name, &mut *state, version, body, 0, level).unwrap();
    print(&name, &mut *state, level).unwrap()
}

/// Values by name in order. A number that tells equal names apart is left away: the description counts fields that are not
/// there too. An array of one element is described like a single value.
fn plain(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            // A byte whose type says that it is a truth value, `powered_off`.
            let value = |key: &str, value: &Value| match value {
                Value::String(byte) if key == "power_state" => (byte != "00").to_string(),
                value => plain(value),
            };
            let name = |key: &str| key.split('[').next().unwrap_or_default().to_owned();
            let members = members.iter().map(|(key, it)| format!("{}: {}\n", name(key), value(key, it)));
            format!("{{\n{}}}", members.collect::<String>())
        }
        Value::Array(elements) if elements.len() == 1 => plain(&elements[0]),
        Value::Array(elements) => format!("[{}]", elements.iter().map(plain).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// How many sections were compared, and both readings of those that differ.
fn compare(capture: &Capture, stream: &[u8], report: &Report) -> (usize, Vec<[String; 2]>) {
    let (mut compared, mut differing) = (0, Vec::new());
    for (entry, section) in report.sections().filter(|(_, section)| section.part == Part::Full) {
        let Body::Fields(fields) = &section.body else { panic!("{}: not described", section.idstr) };
        let header = 14 + section.idstr.len();
        let body = &stream[entry.offset as usize + header..(entry.offset + entry.size) as usize - 5];
        let ours = by_our_types(capture, &section.idstr, section.instance, section.version, body);
        let both =
            [json::fields(fields), ours].map(|values| format!("{} {}", section.name(), plain(&values)));
        compared += 1;
        if both[0] != both[1] {
            differing.push(both);
        }
    }
    (compared, differing)
}

#[test]
fn fields_by_the_description_are_those_of_our_own_types() {
    for capture in &CAPTURES {
        let stream = streams::stream(capture, &[]);
        let report = inspect(&stream[..], 0, &mut ());
        assert!(report.is_clean(), "{}: {:?}", capture.name, report.faults().collect::<Vec<_>>());
        assert_eq!(report.end, stream.len() as u64);
        let (compared, differing) = compare(capture, &stream, &report);
        for [by_description, by_types] in differing {
            assert_eq!(by_description, by_types, "{}", capture.name);
        }
        assert!(compared >= 8, "{}: {compared}", capture.name);
    }
}

#[test]
fn fields_of_virt_are_those_of_our_own_types() {
    let stream = Virt::new(false).stream();
    let report = inspect(&stream[..], 0, &mut ());
    assert!(report.is_clean(), "{:?}", report.faults().collect::<Vec<_>>());
    let (compared, differing) = compare(&VIRT, &stream, &report);
    for [by_description, by_types] in differing {
        assert_eq!(by_description, by_types);
    }
    assert_eq!(compared, 9);
}

#[test]
fn a_changed_value_is_seen_by_both_and_a_changed_name_by_one() {
    let capture = &CAPTURES[0];
    let timer = |report: &Report| {
        let (entry, section) = report.sections().find(|(_, section)| section.idstr == "timer").unwrap();
        let Body::Fields(fields) = &section.body else { panic!() };
        (entry.offset as usize, json::fields(fields)["cpu_ticks_offset"].clone())
    };
    let mut stream = streams::stream(capture, &[]);
    let (offset, before) = timer(&inspect(&stream[..], 0, &mut ()));
    stream[offset + 14 + "timer".len() + 7] ^= 1;
    let report = inspect(&stream[..], 0, &mut ());
    assert_ne!(timer(&report).1, before);
    assert!(compare(capture, &stream, &report).1.is_empty());

    let renamed = capture.description.replace("cpu_ticks_offset", "cpu_ticks_offsex");
    let renamed = Capture { description: renamed.leak(), ..CAPTURES[0] };
    let stream = streams::stream(&renamed, &[]);
    let (_, differing) = compare(&renamed, &stream, &inspect(&stream[..], 0, &mut ()));
    assert!(matches!(&differing[..], [[by_description, _]] if by_description.starts_with("timer")));
}
