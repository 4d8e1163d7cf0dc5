//! Device state written by real QEMU (the captures beside `vmdesc.rs`), put into real KVM by this machine and captured again.

mod common;

use common::compare::{assert_same_but_time, parse};
use common::moving::Section;
use common::{kvm, skip};
use whimbrel::downcast;
use whimbrel::handlers::Registry;
use whimbrel::machine::{AnnouncedBlock, Machine, MachineError};
use whimbrel_vmm::state::{self, Apic, CpuX86, FwCfg, I8254, I8259, Mc146818Rtc, PitChannel};
use whimbrel_vmm::{CharBackend, MachineOptions, MemoryBackend, Vm, VmConfig};
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

/// The machine that has these sections, with the ROM blocks of a source with ACPI.
fn machine(level: Level, sections: &[Section]) -> (std::sync::Arc<Vm>, Registry) {
    let count = |idstr: &str| sections.iter().filter(|section| section.name.idstr == idstr).count();
    let has = |idstr: &str| count(idstr) > 0;
    let options = MachineOptions {
        acpi: has("acpi-ged"),
        pic: has("i8259"),
        pit: has("i8254"),
        rtc: has("mc146818rtc"),
    };
    let config = VmConfig {
        machine: options,
        cpus: count("cpu") as u32,
        backend: MemoryBackend::Anonymous,
        serial: has("serial").then_some(CharBackend::Null),
        incoming: true,
        level,
        ..VmConfig::default()
    };
    let (vm, registry) = Vm::new(config).unwrap();
    if options.acpi {
        let roms = ["tables", "rsdp"].map(|file| format!("/rom@etc/acpi/{file}"));
        let roms = roms.into_iter().chain(["/rom@etc/table-loader".to_owned()]);
        let roms: Vec<_> = roms.map(|name| AnnouncedBlock { name, len: 0x1000 }).collect();
        vm.blocks_announced(&roms).unwrap();
    }
    (vm, registry)
}

fn apply(vm: &Vm, registry: &Registry, sections: &[Section], level: Level) -> Result<(), MachineError> {
    for Section { name, version, body } in sections {
        let handler = registry
            .devices()
            .iter()
            .find(|handler| handler.idstr == name.idstr && handler.instance_id == name.instance);
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
    the_default_machine_of_qemu_7_2_comes_back_from_kvm: "full-smp2-7.2", Level::V7_2;
    the_default_machine_of_qemu_10_0_comes_back_from_kvm: "full-smp2-10.0", Level::V10_0;
    received_bytes_come_back: "serial-rx-10.0", Level::V10_0;
    received_bytes_whose_time_is_out_come_back: "serial-to-10.0", Level::V10_0;
}

fn comes_back(test: &str, devices: &[u8], level: Level) {
    let sections = capture(devices, level);
    let (vm, registry) = machine(level, &sections);
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
            "mc146818rtc" => assert_same_clock(theirs, ours),
            _ => assert_eq!(theirs.body, ours.body, "{:?}", theirs.name),
        }
    }
}

/// The clock goes on by as much as the host's did, and shows it.
fn assert_same_clock(theirs: &Section, ours: &Section) {
    let [theirs, ours] = [theirs, ours].map(parse::<Mc146818Rtc>);
    let time = |clock: &Mc146818Rtc| i128::from(clock.base_rtc) * 1_000_000_000 + i128::from(clock.offset);
    let passed = |clock: &Mc146818Rtc| time(clock) - i128::from(clock.last_update);
    assert_eq!(passed(&theirs), passed(&ours));
    // Behind the time and register C, which tells of it.
    for range in [10..12, 13..0x32, 0x33..128] {
        assert_eq!(theirs.cmos_data[range.clone()], ours.cmos_data[range]);
    }
    assert_eq!((ours.periodic_timer, ours.period, ours.cmos_index), (-1, 0, theirs.cmos_index));
    assert_eq!(ours.update_timer, ours.last_update as i64 - ours.offset + 1_000_000_000);
}

/// One section with `change` made to it, loaded; then the machine is started and stopped, without vCPUs, and captured.
fn after_a_start<T: VmState + Default>(
    registry: &Registry,
    vm: &Vm,
    section: &mut Section,
    change: impl FnOnce(&mut T),
) -> T {
    let level = Level::V10_0;
    let mut state: T = parse(section);
    change(&mut state);
    let mut out = Output::new();
    save(&section.name, &mut state, level, &mut out).unwrap();
    section.body = out.into_vec();
    apply(vm, registry, std::slice::from_ref(section), level).unwrap();
    for running in [true, false] {
        vm.state_changed(running).unwrap();
    }
    let again = captured_again(registry, level);
    parse(again.iter().find(|other| other.name == section.name).unwrap())
}

#[test]
fn legacy_controllers_and_timer_live_in_kvm() {
    if !kvm("legacy_controllers_and_timer_live_in_kvm") {
        return;
    }
    let mut sections = capture(include_bytes!("fixtures/vmdesc/full-smp2-10.0.bin"), Level::V10_0);
    let (vm, registry) = machine(Level::V10_0, &sections);
    let mut section = |idstr: &str, instance: u32| {
        let at = sections
            .iter()
            .position(|section| section.name.idstr == idstr && section.name.instance == instance);
        sections.remove(at.unwrap())
    };
    for (instance, irq_base, elcr) in [(0, 0x30, 0x20), (1, 0x38, 0x0c)] {
        let set = |pic: &mut I8259| {
            *pic = I8259 {
                irq_base,
                elcr,
                imr: 0xfb,
                last_irr: 1,
                read_reg_select: 1,
                special_mask: 1,
                ..pic.clone()
            };
        };
        let pic = after_a_start(&registry, &vm, &mut section("i8259", instance), set);
        let mut expected = I8259::default();
        set(&mut expected);
        assert_eq!(pic, expected);
    }
    let pit: I8254 = after_a_start(&registry, &vm, &mut section("i8254", 0), |pit: &mut I8254| {
        pit.channels[0] =
            PitChannel { count: 11_932, mode: 2, rw_mode: 3, latched_count: 5, ..pit.channels[0] };
        pit.channels[2] = PitChannel { count: 77, gate: 1, ..pit.channels[2] };
    });
    let channel = pit.channels[0];
    assert_eq!((channel.count, channel.mode, channel.rw_mode, channel.latched_count), (11_932, 2, 3, 5));
    assert_eq!((pit.channels[2].count, pit.channels[2].gate), (77, 1));
    // 11932 ticks are 10 ms; virtual time stands still at 0.
    assert!((9_990_000..=10_010_000).contains(&pit.next_transition_time), "{pit:?}");
}

/// What applying QEMU's sections says with one changed.
fn refused<T: VmState + Default>(change: impl FnOnce(&mut T)) -> Result<(), MachineError> {
    let level = Level::V10_0;
    let mut sections = capture(include_bytes!("fixtures/vmdesc/full-smp2-10.0.bin"), level);
    let name = T::default().vmsd().name;
    let section = sections.iter_mut().find(|section| section.name.idstr == name).unwrap();
    let mut state: T = parse(section);
    change(&mut state);
    let mut out = Output::new();
    save(&section.name, &mut state, level, &mut out).unwrap();
    section.body = out.into_vec();
    let (vm, registry) = machine(level, &sections);
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
    let device = |part: &str, error: Result<(), MachineError>| {
        let text = error.expect_err(part).0;
        assert!(text.contains(part), "{part}: {text}");
    };
    device("single_mode", refused(|pic: &mut I8259| pic.single_mode = 1));
    device("ltim", refused(|pic: &mut I8259| pic.ltim = 1));
    device("channels[2].count", refused(|pit: &mut I8254| pit.channels[2].count = -1));
    device("channels[1].mode", refused(|pit: &mut I8254| pit.channels[1].mode = 8));
    device("irq_coalesced", refused(|clock: &mut Mc146818Rtc| clock.irq_coalesced = 1));
    device("etc/acpi/tables", refused(|files: &mut FwCfg| files.acpi.as_mut().unwrap().table_size = 0x1001));
}

fn check(part: &str, error: Result<(), MachineError>) {
    let text = error.expect_err(part).0;
    assert!(text.starts_with("vCPU 0: ") && text.contains(part), "{part}: {text}");
}

#[test]
fn a_state_of_another_type_is_refused() {
    assert!(downcast::<Apic>(Box::new(CpuX86::default())).unwrap_err().0.contains("'cpu'"));
}
