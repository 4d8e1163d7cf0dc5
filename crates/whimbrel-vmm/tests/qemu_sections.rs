//! Device state written by real QEMU (the captures beside `vmdesc.rs`), put into real KVM by this machine and captured again.

#![cfg(target_arch = "x86_64")]

mod common;

use common::compare::{assert_same_but_time, parse};
use common::moving::Section;
use common::{kvm, skip};
use whimbrel::downcast;
use whimbrel::handlers::Registry;
use whimbrel::machine::{Machine, MachineError};
use whimbrel_vmm::state::{self, Apic, CpuX86};
use whimbrel_vmm::{CharBackend, MemoryBackend, Vm, VmConfig};
use whimbrel_vmstate::{Level, SectionName, VmState, load, load_body, save};
use whimbrel_wire::element::{Element, decode_footer};
use whimbrel_wire::{Input, Output};

fn capture(devices: &[u8], level: Level) -> Vec<Section> {
    let mut input = Input::new(devices);
    let mut sections = Vec::new();
    loop {
        let header = match Element::decode(&mut input).unwrap() {
            Element::SectionFull(header) => header,
            Element::Eof => return sections,
            other => panic!("{other:?}"),
        };
        let name = SectionName::new(header.idstr, header.instance_id);
        let mut state = state::for_section(&name.idstr).unwrap();
        let start = input.offset() as usize;
        load(&name, &mut *state, header.version_id, &mut input, level).unwrap();
        let body = devices[start..input.offset() as usize].to_vec();
        decode_footer(&mut input, &name.idstr, header.section_id).unwrap();
        if name.idstr != "globalstate" {
            sections.push(Section { name, version: header.version_id, body });
        }
    }
}

fn machine(level: Level, serial: bool) -> (std::sync::Arc<Vm>, Registry) {
    let config = VmConfig {
        backend: MemoryBackend::Anonymous,
        serial: serial.then_some(CharBackend::Null),
        incoming: true,
        level,
        ..VmConfig::default()
    };
    Vm::new(config).unwrap()
}

fn apply(vm: &Vm, registry: &Registry, sections: &[Section], level: Level) -> Result<(), MachineError> {
    for Section { name, version, body } in sections {
        let handler = registry.devices().iter().find(|handler| handler.idstr == name.idstr);
        let handler = handler.unwrap_or_else(|| panic!("no device for {name:?}"));
        let mut state = handler.device.blank();
        load_body(name, &mut *state, *version, body, 0, level).unwrap();
        handler.device.load(state)?;
    }
    vm.apply()
}

fn captured_again(registry: &Registry, level: Level) -> Vec<Section> {
    let save = |handler: &whimbrel::handlers::DeviceHandler| {
        let mut state = handler.device.save().unwrap();
        let name = SectionName::new(&handler.idstr, handler.instance_id);
        let mut out = Output::new();
        save(&name, &mut *state, level, &mut out).unwrap();
        Section { name, version: state.vmsd().version, body: out.into_vec() }
    };
    registry.devices().iter().map(save).collect()
}

macro_rules! captures {
    ($($test:ident: $file:literal, $level:expr;)*) => {$(
        #[test]
        fn $test() {
            if kvm(stringify!($test)) {
                comes_back(stringify!($test), include_bytes!(concat!("fixtures/vmdesc/", $file, ".bin")), $level);
            }
        }
    )*};
}

captures! {
    the_state_of_qemu_7_2_comes_back_from_kvm: "acpi-off-7.2", Level::V7_2;
    the_state_of_qemu_10_0_comes_back_from_kvm: "acpi-off-10.0", Level::V10_0;
    every_msr_that_qemu_10_0_carries_comes_back_from_kvm: "kvm-msrs-10.0", Level::V10_0;
    received_bytes_come_back: "serial-rx-10.0", Level::V10_0;
    received_bytes_whose_time_is_out_come_back: "serial-to-10.0", Level::V10_0;
}

fn comes_back(test: &str, devices: &[u8], level: Level) {
    let sections = capture(devices, level);
    let serial = sections.iter().any(|section| section.name.idstr == "serial");
    let (vm, registry) = machine(level, serial);
    match apply(&vm, &registry, &sections, level) {
        // The captures are of an AMD CPU on a kernel that lets HWCR.TscFreqSel be set.
        Err(error) if error.0.contains("MSR 0xc0010015") => {
            skip(test, &error.0);
            return;
        }
        applied => applied.unwrap(),
    }
    let again = captured_again(&registry, level);
    let names =
        |sections: &[Section]| sections.iter().map(|section| section.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&sections), names(&again), "the order of sections is QEMU's");
    for (theirs, ours) in sections.iter().zip(&again) {
        match theirs.name.idstr.as_str() {
            "cpu" | "apic" | "kvmclock" | "timer" => assert_same_but_time(theirs, ours),
            // How an expiry is told differs; what the guest can read does not.
            "serial" => assert_eq!(theirs.body[..11], ours.body[..11]),
            _ => assert_eq!(theirs.body, ours.body, "{:?}", theirs.name),
        }
    }
}

/// What applying QEMU's sections says with one changed.
fn refused<T: VmState + Default>(change: impl FnOnce(&mut T)) -> Result<(), MachineError> {
    let level = Level::V10_0;
    let mut sections = capture(include_bytes!("fixtures/vmdesc/acpi-off-10.0.bin"), level);
    let name = T::default().vmsd().name;
    let section = sections.iter_mut().find(|section| section.name.idstr == name).unwrap();
    let mut state: T = parse(section);
    change(&mut state);
    let mut out = Output::new();
    save(&section.name, &mut state, level, &mut out).unwrap();
    section.body = out.into_vec();
    let (vm, registry) = machine(level, true);
    apply(&vm, &registry, &sections, level)
}

#[test]
fn a_state_this_host_cannot_hold_is_refused_by_name() {
    if !kvm("a_state_this_host_cannot_hold_is_refused_by_name") {
        return;
    }
    let cpu = |part: &str, change: fn(&mut CpuX86)| check(part, refused(change));
    cpu("SREGS", |cpu| cpu.cr4 = 1 << 40);
    cpu("XCRS", |cpu| cpu.xcr0 = 1 << 40 | 1);
    cpu("XSAVE component 40", |cpu| cpu.xstate_bv = 1 << 40);
    cpu("MSR 0x2ff", |cpu| cpu.mtrr_deftype = 0xff);
    cpu("MSR 0xe1", |cpu| cpu.msrs.umwait = 4);
    cpu("tsc_khz", |cpu| cpu.msrs.tsc_khz = 1_000_000);
    cpu("exception 300", |cpu| cpu.events.exception_nr = 300);
    cpu("mcg_cap", |cpu| cpu.mcg_cap = 0xff);
    cpu("MP_STATE", |cpu| cpu.mp_state = 99);
    cpu("DEBUGREGS", |cpu| cpu.dr[7] = 1 << 40);
    check("SREGS", refused(|apic: &mut Apic| apic.apicbase = 0xfee0_0400));
}

fn check(part: &str, error: Result<(), MachineError>) {
    let text = error.expect_err(part).0;
    assert!(text.starts_with("vCPU 0: ") && text.contains(part), "{part}: {text}");
}

#[test]
fn a_state_of_another_type_is_refused() {
    assert!(downcast::<Apic>(Box::new(CpuX86::default())).unwrap_err().0.contains("'cpu'"));
}
