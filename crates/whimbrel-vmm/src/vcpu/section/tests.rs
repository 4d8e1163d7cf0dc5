//! What goes into the section, what comes back, and what is refused; without KVM.

use kvm_bindings::{CpuId, kvm_debugregs, kvm_mp_state, kvm_regs, kvm_xcrs};

use super::super::kvm_state::XSAVE_SIZE;
use super::*;

/// A vCPU with these MSRs; the rest is zero.
fn vcpu(msrs: &[(u32, u64)]) -> KvmState {
    KvmState {
        regs: kvm_regs::default(),
        sregs: kvm_sregs2::default(),
        xsave: XsaveArea(Box::new([0; XSAVE_SIZE])),
        xcrs: kvm_xcrs::default(),
        debug: kvm_debugregs::default(),
        msrs: msrs.to_vec(),
        mp: kvm_mp_state::default(),
        events: kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
            ..Default::default()
        },
    }
}

fn save(power_on: &KvmState, kvm: &KvmState, level: Level) -> Result<CpuX86, MachineError> {
    let xsave = XsaveLayout::new(&CpuId::from_entries(&[]).unwrap());
    Context { xsave: &xsave, power_on, level }.save(kvm, 0, 0)
}

fn load(power_on: &KvmState, cpu: &CpuX86) -> Result<KvmState, MachineError> {
    let xsave = XsaveLayout::new(&CpuId::from_entries(&[]).unwrap());
    Context { xsave: &xsave, power_on, level: Level::V10_0 }.load(cpu)
}

fn refusal<T>(result: Result<T, MachineError>) -> String {
    result.err().expect("it is refused").0
}

fn round_trip(kvm: &KvmState) -> KvmState {
    load(&vcpu(&[]), &save(kvm, kvm, Level::V10_0).unwrap()).unwrap()
}

#[test]
fn an_msr_without_a_place_may_hold_only_its_power_on_value() {
    let power_on = vcpu(&[(0x1234, 5)]);
    assert!(save(&power_on, &power_on, Level::V10_0).is_ok());
    let text = refusal(save(&power_on, &vcpu(&[(0x1234, 6)]), Level::V10_0));
    assert!(text.contains("0x1234"), "{text}");
}

#[test]
fn amds_hwcr_is_refused_where_the_peer_would_drop_it() {
    let (power_on, written) = (vcpu(&[(msrs::HWCR, 0)]), vcpu(&[(msrs::HWCR, 1 << 24)]));
    assert!(save(&power_on, &power_on, Level::V7_2).is_ok());
    assert!(refusal(save(&power_on, &written, Level::V7_2)).contains("0xc0010015"));
    assert_eq!(save(&power_on, &written, Level::V10_0).unwrap().msrs.hwcr, 1 << 24);
}

#[test]
fn an_msr_this_host_lacks_must_hold_what_it_holds_everywhere() {
    let mut cpu = save(&vcpu(&[]), &vcpu(&[]), Level::V10_0).unwrap();
    assert!(load(&vcpu(&[]), &cpu).is_ok());
    cpu.msrs.xss = 1;
    assert!(refusal(load(&vcpu(&[]), &cpu)).contains("0xda0"));
}

#[test]
fn interrupts_and_nmis_on_their_way_come_back() {
    let mut kvm = vcpu(&[]);
    let events = &mut kvm.events;
    (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, 0x61, 0);
    events.interrupt.shadow = SHADOW_ANY;
    (events.nmi.injected, events.nmi.pending, events.nmi.masked) = (1, 1, 1);
    events.triple_fault.pending = 1;
    assert_eq!(round_trip(&kvm).events, kvm.events);
}

#[test]
fn exceptions_come_back_as_pending_or_injected_as_they_were() {
    let mut kvm = vcpu(&[]);
    (kvm.events.exception.nr, kvm.events.exception.injected) = (6, 1);
    assert_eq!(round_trip(&kvm).events, kvm.events);
    (kvm.events.exception.nr, kvm.events.exception.injected, kvm.events.exception.pending) = (1, 0, 1);
    (kvm.events.exception_has_payload, kvm.events.exception_payload) = (1, 0x4000);
    assert_eq!(round_trip(&kvm).events, kvm.events);
}

#[test]
fn what_the_section_cannot_tell_is_refused() {
    let refused = |change: fn(&mut kvm_vcpu_events)| {
        let mut kvm = vcpu(&[]);
        change(&mut kvm.events);
        refusal(save(&kvm, &kvm, Level::V10_0))
    };
    let code = refused(|events| {
        (events.exception.nr, events.exception.injected) = (14, 1);
        (events.exception.has_error_code, events.exception.error_code) = (1, 6);
    });
    assert!(code.contains("exception 14") && code.contains("0x6"), "{code}");
    assert!(refused(|events| events.smi.pending = 1).contains("system management"));
}

#[test]
fn performance_counters_are_carried_and_refused_where_there_are_none() {
    let kvm = vcpu(&[(0xc3, 7), (0x187, 8), (0x30b, 9), (0x38f, 10)]);
    let cpu = save(&kvm, &kvm, Level::V10_0).unwrap();
    let pmu = cpu.msrs.pmu;
    assert_eq!(
        (pmu.gp_counters[2], pmu.event_select[1], pmu.fixed_counters[2], pmu.global_ctrl),
        (7, 8, 9, 10)
    );
    assert_eq!(load(&kvm, &cpu).unwrap().msrs, kvm.msrs);
    assert!(refusal(load(&vcpu(&[]), &cpu)).contains("MSR 0xc3"));
}

#[test]
fn what_kvm_has_no_place_for_is_refused_by_name() {
    let refused = |part: &str, change: fn(&mut CpuX86)| {
        let mut cpu = save(&vcpu(&[]), &vcpu(&[]), Level::V10_0).unwrap();
        change(&mut cpu);
        let text = refusal(load(&vcpu(&[]), &cpu));
        assert!(text.contains(part), "{part}: {text}");
    };
    refused("env.intercept", |cpu| cpu.svm.intercept = 1);
    refused("env.intercept", |cpu| cpu.hflags |= hflags::SVM_GUEST);
    refused("env.xtiledata", |cpu| {
        cpu.msrs.amx = Some(AmxTiles { config: [1; 64], ..AmxTiles::default() });
    });
    refused("env.a20_mask", |cpu| cpu.a20_mask = !(1 << 20));
    refused("env.fpregs_format", |cpu| cpu.fpregs_format = 1);
    refused("env.hflags", |cpu| cpu.hflags |= hflags::SMM);
    refused("error code", |cpu| (cpu.events.exception_nr, cpu.events.has_error_code) = (14, 1));
    refused("MSR 0x48", |cpu| cpu.msrs.spec_ctrl = 1);
    refused("MSR 0xda0", |cpu| cpu.msrs.xss = 1);
    refused("MSR 0x1c5", |cpu| cpu.msrs.xfd = Some([0, 1]));
    refused("MSR 0x4b564d03", |cpu| cpu.msrs.steal_time = 1);
    let mut blind = vcpu(&[]);
    blind.events.flags = 0;
    let mut cpu = save(&vcpu(&[]), &vcpu(&[]), Level::V10_0).unwrap();
    cpu.msrs.triple_fault = 1;
    assert!(refusal(load(&blind, &cpu)).contains("env.triple_fault_pending"));
    cpu.msrs.triple_fault = 0;
    (cpu.msrs.exception.has_payload, cpu.events.exception_nr) = (1, 1);
    assert!(refusal(load(&blind, &cpu)).contains("env.exception_payload"));
}

#[test]
fn every_attribute_of_a_segment_has_its_bit() {
    let unusable = kvm_segment { base: 7, unusable: 1, ..kvm_segment::default() };
    assert_eq!(save_segment(&unusable), Segment { base: 7, ..Segment::default() });
    assert_eq!(load_segment(&save_segment(&unusable)), unusable);
    for bit in (8..16).chain(20..24) {
        let flags = 1 << bit | 1 << 15;
        let segment = Segment { selector: 8, base: 1, limit: 2, flags };
        assert_eq!(save_segment(&load_segment(&segment)), segment, "bit {bit}");
    }
}
