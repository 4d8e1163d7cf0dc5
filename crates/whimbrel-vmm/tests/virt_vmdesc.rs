//! `virt`'s saved-state types against the device state of real QEMU: `fixtures/vmdesc/README.md` says how it was captured.

use std::any::Any;

use whimbrel_vmm::state::{self, CpuArm, GicV3, GicV3Its, Pl011, SRE_ALL};
use whimbrel_vmstate::{Level, SectionName, VmState, describe, description, load, load_body, print, save};
use whimbrel_wire::element::{Element, decode_footer};
use whimbrel_wire::{Configuration, Input, Output};

const DEVICES: &[u8] = include_bytes!("fixtures/vmdesc/virt-10.0.bin");
const JSON: &str = include_str!("fixtures/vmdesc/virt-10.0.json");
const CPUS: usize = 2;

struct Section {
    name: SectionName,
    version: u32,
    body: &'static [u8],
    state: Box<dyn VmState>,
}

fn sections() -> Vec<Section> {
    let mut input = Input::new(DEVICES);
    let mut sections = Vec::new();
    loop {
        let header = match Element::decode(&mut input).unwrap() {
            Element::SectionFull(header) => header,
            Element::Eof => break,
            other => panic!("{other:?}"),
        };
        let mut state = blank(&header.idstr);
        let name = SectionName::new(header.idstr, header.instance_id);
        let start = input.offset() as usize;
        load(&name, &mut *state, header.version_id, &mut input, Level::V10_0).unwrap();
        let body = &DEVICES[start..input.offset() as usize];
        decode_footer(&mut input, &name.idstr, header.section_id).unwrap();
        sections.push(Section { name, version: header.version_id, body, state });
    }
    assert!(input.at_end().unwrap());
    sections
}

fn blank(idstr: &str) -> Box<dyn VmState> {
    state::for_virt_section(idstr, CPUS).unwrap_or_else(|| panic!("{idstr}"))
}

fn state_of<T: VmState>(idstr: &str) -> T {
    let section = sections().into_iter().find(|section| section.name.idstr == idstr).unwrap();
    *(section.state as Box<dyn Any>).downcast::<T>().unwrap()
}

#[test]
fn qemus_sections_come_in_our_order_and_save_to_the_same_bytes() {
    let mut names = Vec::new();
    for mut section in sections() {
        let mut out = Output::new();
        save(&section.name, &mut *section.state, Level::V10_0, &mut out).unwrap();
        assert_eq!(out.into_vec(), section.body, "{:?}", section.name);
        assert_eq!(section.state.vmsd().version, section.version);
        names.push(section.name.idstr);
    }
    let expected = "arm_gicv3 arm_gicv3_its timer cpu_common cpu cpu_common cpu pl011 globalstate";
    assert_eq!(names.join(" "), expected);
}

#[test]
fn the_description_we_write_is_qemus_byte_for_byte() {
    let machine =
        Configuration { machine: "virt-10.0".into(), target_page_bits: Some(12), ..Configuration::default() };
    let devices =
        sections().iter_mut().map(|s| describe(&s.name, &mut *s.state, Level::V10_0).unwrap()).collect();
    let ours = description(Level::V10_0, &machine, devices);
    let pretty = |text: &str| {
        serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(text).unwrap()).unwrap()
    };
    if ours != JSON {
        assert_eq!(pretty(&ours), pretty(JSON));
        panic!("same JSON, other bytes");
    }
}

#[test]
fn what_qemu_had_at_reset_stands_in_the_fields_of_that_name() {
    let gic: GicV3 = state_of("arm_gicv3");
    assert!(gic.no_migration_shift_bug);
    assert_eq!(gic.cpus.len(), CPUS);
    // An emulated CPU interface of two security states; QEMU's reset has no SRE bits set.
    assert_ne!(gic.cpus[1].icc_sre_el1, SRE_ALL);
    let its: GicV3Its = state_of("arm_gicv3_its");
    // Table types in GITS_BASER0 and 1: devices and collections; 8-byte entries.
    assert_eq!(its.baser.map(|baser| baser >> 56 & 7), [1, 4, 0, 0, 0, 0, 0, 0]);
    let cpu: CpuArm = state_of("cpu");
    assert_eq!(cpu.registers.len(), 274);
    assert!(cpu.registers.is_sorted_by_key(|(number, _)| *number));
    assert_eq!((cpu.power_state, cpu.vfp.is_some(), cpu.irq_line_state), (0, true, Some(0)));
    let uart: Pl011 = state_of("pl011");
    assert_eq!((uart.flags, uart.cr, uart.ifl), (0x90, 0x300, 0x12));
}

#[test]
fn cut_and_flipped_sections_never_panic() {
    for section in sections() {
        // The long ones are mostly arrays of one kind: every byte of the first and the last part.
        let long = section.body.len();
        for at in (0..long).filter(|at| *at < 600 || long - *at < 1200) {
            let cut = load_body(
                &section.name,
                &mut *blank(&section.name.idstr),
                section.version,
                &section.body[..at],
                0,
                Level::V10_0,
            );
            assert!(cut.is_err() || section.body[at] == 0x05, "{:?} cut at {at}", section.name);
            let mut body = section.body.to_vec();
            body[at] ^= 0x81;
            let mut state = blank(&section.name.idstr);
            if load_body(&section.name, &mut *state, section.version, &body, 0, Level::V10_0).is_ok() {
                let mut out = Output::new();
                save(&section.name, &mut *state, Level::V10_0, &mut out).unwrap();
            }
        }
    }
}

#[test]
fn a_register_list_longer_than_any_cpus_is_refused_before_it_is_read() {
    let section = sections().into_iter().find(|section| section.name.idstr == "cpu").unwrap();
    let count = section.body.windows(4).position(|word| word == 274u32.to_be_bytes()).unwrap();
    let mut body = section.body.to_vec();
    body[count..count + 4].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
    let error = load_body(&section.name, &mut CpuArm::default(), section.version, &body, 0, Level::V10_0)
        .unwrap_err();
    assert_eq!(error.place.path, "cpreg_vmstate_array_len");
}

#[test]
fn a_register_can_be_read_from_the_printed_state() {
    let mut section = sections().into_iter().find(|section| section.name.idstr == "arm_gicv3_its").unwrap();
    let values = print(&section.name, &mut *section.state, Level::V10_0).unwrap();
    assert_eq!(values["baser"].as_array().unwrap().len(), 8);
}
