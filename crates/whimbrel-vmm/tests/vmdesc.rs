//! Our saved-state types against the device state of real QEMU: `fixtures/vmdesc/README.md` says how it was captured.

use whimbrel_vmm::state::{self, CpuX86, IsaSerial};
use whimbrel_vmstate::{
    Level, Reason, SectionName, VmState, describe, description, load, load_body, print, save,
};
use whimbrel_wire::element::{Element, SectionHeader, decode_footer};
use whimbrel_wire::{Configuration, Input, Output};

struct Capture {
    name: &'static str,
    level: Level,
    devices: &'static [u8],
    json: &'static str,
}

macro_rules! capture {
    ($name:literal, $level:expr) => {
        Capture {
            name: $name,
            level: $level,
            devices: include_bytes!(concat!("fixtures/vmdesc/", $name, ".bin")),
            json: include_str!(concat!("fixtures/vmdesc/", $name, ".json")),
        }
    };
}

const CAPTURES: [Capture; 13] = [
    capture!("acpi-off-7.2", Level::V7_2),
    capture!("acpi-off-10.0", Level::V10_0),
    capture!("full-smp2-7.2", Level::V7_2),
    capture!("full-smp2-10.0", Level::V10_0),
    capture!("kvm-msrs-7.2", Level::V7_2),
    capture!("kvm-msrs-10.0", Level::V10_0),
    capture!("tcg-7.2", Level::V7_2),
    capture!("tcg-10.0", Level::V10_0),
    capture!("cpu-parts-7.2", Level::V7_2),
    capture!("cpu-parts-10.0", Level::V10_0),
    capture!("serial-rx-10.0", Level::V10_0),
    capture!("serial-to-10.0", Level::V10_0),
    capture!("serial-tx-10.0", Level::V10_0),
];

/// A section of a capture, loaded.
struct Section {
    name: SectionName,
    version: u32,
    body: &'static [u8],
    state: Box<dyn VmState>,
}

/// Loads all sections of a capture through our types.
fn sections(capture: &Capture) -> Vec<Section> {
    let mut input = Input::new(capture.devices);
    let mut sections = Vec::new();
    loop {
        let header = match Element::decode(&mut input).unwrap() {
            Element::SectionFull(header) => header,
            Element::Eof => break,
            other => panic!("{}: {other:?}", capture.name),
        };
        let SectionHeader { section_id, idstr, instance_id, version_id: version } = header;
        let mut state = state::for_section(&idstr).unwrap_or_else(|| panic!("{}: {idstr}", capture.name));
        let name = SectionName::new(idstr, instance_id);
        let start = input.offset() as usize;
        load(&name, &mut *state, version, &mut input, capture.level).unwrap();
        let body = &capture.devices[start..input.offset() as usize];
        decode_footer(&mut input, &name.idstr, section_id).unwrap();
        sections.push(Section { name, version, body, state });
    }
    assert!(input.at_end().unwrap(), "{}: bytes behind the end", capture.name);
    sections
}

fn body_of(section: &mut Section, level: Level) -> Vec<u8> {
    let mut out = Output::new();
    save(&section.name, &mut *section.state, level, &mut out).unwrap();
    out.into_vec()
}

#[test]
fn qemus_device_state_loads_to_the_last_byte_and_saves_to_the_same_bytes() {
    for capture in &CAPTURES {
        let mut sections = sections(capture);
        assert!(sections.len() >= 8, "{}", capture.name);
        for section in &mut sections {
            let saved = body_of(section, capture.level);
            assert_eq!(saved, section.body, "{} {:?}", capture.name, section.name);
            assert_eq!(section.state.vmsd().version, section.version);
        }
    }
}

#[test]
fn the_description_we_write_is_qemus_byte_for_byte() {
    let machine = Configuration { machine: "microvm".into(), ..Configuration::default() };
    for capture in &CAPTURES {
        let devices = sections(capture)
            .iter_mut()
            .map(|section| describe(&section.name, &mut *section.state, capture.level).unwrap())
            .collect();
        let ours = description(capture.level, &machine, devices);
        if ours != capture.json {
            let pretty = |text: &str| {
                serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(text).unwrap())
                    .unwrap()
            };
            assert_eq!(pretty(&ours), pretty(capture.json), "{}", capture.name);
            panic!("{}: same JSON, other bytes", capture.name);
        }
    }
}

#[test]
fn the_captures_hold_the_optional_parts_they_are_for() {
    let cpu = |name: &str| {
        let capture = CAPTURES.iter().find(|capture| capture.name == name).unwrap();
        let section = sections(capture).into_iter().find(|section| section.name.idstr == "cpu").unwrap();
        *(section.state as Box<dyn std::any::Any>).downcast::<CpuX86>().unwrap()
    };
    let kvm = cpu("kvm-msrs-10.0").msrs;
    assert_eq!(kvm.async_pf_int, 0xf3);
    assert!(kvm.pv_eoi_en & 1 == 1 && kvm.steal_time & 1 == 1 && kvm.tsc_adjust != 0 && kvm.tsc_khz != 0);
    assert_eq!((kvm.poll_control, kvm.hwcr), (0, 0x0100_0000));
    assert_eq!(cpu("kvm-msrs-7.2").msrs.hwcr, 0);
    for name in ["cpu-parts-7.2", "cpu-parts-10.0"] {
        let parts = cpu(name).msrs;
        assert_eq!(parts.avx512.hi16_zmm[15], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((parts.avx512.zmm_hi256[3], parts.avx512.opmask[7]), ([17, 18, 19, 20], 16));
        assert_eq!((parts.pmu.gp_counters[17], parts.pmu.fixed_counters[2]), (12, 13));
        assert_eq!((parts.pdptrs, parts.pkru, parts.triple_fault), (Some([1, 2, 3, 4]), 24, 1));
    }
    assert_ne!(cpu("tcg-7.2").msrs.fpu_last_op.instruction, 0);

    let serial = |name: &str| {
        let capture = CAPTURES.iter().find(|capture| capture.name == name).unwrap();
        let section = sections(capture).into_iter().find(|section| section.name.idstr == "serial").unwrap();
        (section.state as Box<dyn std::any::Any>).downcast::<IsaSerial>().unwrap().state
    };
    let received = serial("serial-rx-10.0").recv_fifo.unwrap();
    assert_eq!((received.data[0], received.head, received.num), (b'h', 0, 1));
    assert_eq!(serial("serial-to-10.0").timeout_ipending, Some(1));
    assert!(serial("serial-tx-10.0").tsr.is_some() && serial("serial-tx-10.0").xmit_fifo.is_some());
}

#[test]
fn every_section_cut_short_is_refused_and_named() {
    for capture in &CAPTURES {
        for section in sections(capture) {
            for length in 0..section.body.len() {
                let mut blank = state::for_section(&section.name.idstr).unwrap();
                let cut = &section.body[..length];
                let result = load_body(&section.name, &mut *blank, section.version, cut, 0, capture.level);
                // A cut just before a subsection leaves a whole state, one inside its name bytes that are none.
                if let Err(error) = result {
                    assert!(matches!(error.reason, Reason::Wire(_) | Reason::Unconsumed(_)), "{error}");
                    assert_eq!(error.place.section, section.name.idstr);
                } else {
                    assert_eq!(section.body[length], 0x05, "{} {:?} {length}", capture.name, section.name);
                }
            }
        }
    }
}

#[test]
fn flipped_bytes_are_loaded_or_refused_but_never_panic_and_never_read_past_the_body() {
    let capture = CAPTURES.iter().find(|capture| capture.name == "serial-to-10.0").unwrap();
    for section in sections(capture) {
        for at in 0..section.body.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut body = section.body.to_vec();
                body[at] ^= flip;
                let mut blank = state::for_section(&section.name.idstr).unwrap();
                if load_body(&section.name, &mut *blank, section.version, &body, 7, capture.level).is_ok() {
                    let mut out = Output::new();
                    save(&section.name, &mut *blank, capture.level, &mut out).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_newer_version_is_refused_in_qemus_words_and_an_older_one_too() {
    let name = SectionName::new("i8259", 0);
    let mut state = state::for_section("i8259").unwrap();
    let error = load_body(&name, &mut *state, 2, &[0; 16], 0, Level::V7_2).unwrap_err();
    assert_eq!(error.reason.to_string(), "savevm: unsupported version 2 for 'i8259' v1");
    let error = load_body(&name, &mut *state, 0, &[0; 16], 0, Level::V7_2).unwrap_err();
    assert!(matches!(error.reason, Reason::TooOld { received: 0, minimum: 1, .. }));
}

#[test]
fn a_register_can_be_read_from_the_printed_state() {
    let cpu = sections(&CAPTURES[0]).into_iter().find(|section| section.name.idstr == "cpu");
    let mut cpu = cpu.unwrap();
    let values = print(&cpu.name, &mut *cpu.state, Level::V7_2).unwrap();
    assert_eq!(values["env.eip"], 0xfff0);
    assert_eq!(values["env.segs"][1]["selector"], 0xf000);
    assert!(whimbrel_vmstate::to_lines(&values).contains("env.segs[1].base = 0xffff0000\n"));
}
