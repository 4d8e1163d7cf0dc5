//! Between KVM's structs and the `cpu` section.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_dtable, kvm_segment, kvm_sregs2,
    kvm_vcpu_events,
};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::Level;

use super::kvm_state::{KvmState, XsaveArea};
use super::xsave::XsaveLayout;
use super::{hflags, msrs};
use crate::state::{AmxTiles, CpuX86, Segment, Svm};

/// `kvm_sregs2.flags`: the PDPTRs are valid.
const PDPTRS_VALID: u64 = 1;
/// STI and load of SS: KVM's two reasons of an interrupt shadow, of which the section tells only that there is one.
const SHADOW_ANY: u8 = 3;
/// Double fault and alignment check: their error code is always 0.
const ZERO_ERROR_CODE: [i32; 2] = [8, 17];
/// x86's KVM_MP_STATE_HALTED.
pub(super) const MP_HALTED: u32 = 3;

/// What the conversion needs to know beside the state.
pub(super) struct Context<'a> {
    /// Where XSAVE components lie.
    pub(super) xsave: &'a XsaveLayout,
    /// The vCPU at power-on: what an MSR without a place must still hold, and what the section doesn't speak of.
    pub(super) power_on: &'a KvmState,
    /// Whose sections to match.
    pub(super) level: Level,
}

impl Context<'_> {
    /// A captured vCPU as its section.
    ///
    /// # Errors
    /// Names what the section has no place for.
    pub(super) fn save(&self, kvm: &KvmState, tsc_khz: u32, mcg_cap: u64) -> Result<CpuX86, MachineError> {
        let mut cpu = CpuX86 { a20_mask: -1, mcg_cap, smbase: SMBASE, ..CpuX86::default() };
        cpu.msrs.tsc_khz = tsc_khz.into();
        let r = &kvm.regs;
        cpu.regs = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        (cpu.eip, cpu.eflags) = (r.rip, r.rflags);
        save_system(&kvm.sregs, &mut cpu);
        self.xsave.save(&kvm.xsave, &mut cpu)?;
        cpu.xcr0 = kvm.xcrs.xcrs[0].value;
        let d = &kvm.debug;
        cpu.dr = [d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7, d.dr6, d.dr7];
        self.save_msrs(kvm, &mut cpu)?;
        cpu.mp_state = kvm.mp.mp_state;
        save_events(&kvm.events, &mut cpu)?;
        cpu.hflags = hflags::hflags(&cpu, kvm.events.interrupt.shadow != 0);
        cpu.hflags2 = hflags::hflags2(kvm.events.nmi.masked != 0);
        Ok(cpu)
    }

    /// A section as a vCPU to write into KVM.
    ///
    /// # Errors
    /// Names what this host cannot hold.
    pub(super) fn load(&self, cpu: &CpuX86) -> Result<KvmState, MachineError> {
        refuse_what_kvm_has_no_place_for(cpu)?;
        let mut kvm = self.power_on.clone();
        let r = &mut kvm.regs;
        [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ] = cpu.regs;
        (r.rip, r.rflags) = (cpu.eip, cpu.eflags);
        load_system(cpu, &mut kvm.sregs);
        self.xsave.load(cpu, &mut kvm.xsave)?;
        kvm.xcrs.xcrs[0].value = cpu.xcr0;
        kvm.debug.db.copy_from_slice(&cpu.dr[..4]);
        (kvm.debug.dr6, kvm.debug.dr7) = (cpu.dr[6], cpu.dr[7]);
        self.load_msrs(cpu, &mut kvm)?;
        kvm.mp.mp_state = mp_state(cpu)?;
        kvm.events = load_events(cpu, self.power_on.events.flags)?;
        Ok(kvm)
    }

    /// Whether a vCPU's longer-lived state, of which these were read, could be saved. What is on its way into the guest is left
    /// to the moment of saving: it is gone a moment later.
    ///
    /// # Errors
    /// Names what the section has no place for.
    pub(super) fn check(&self, msrs: Vec<(u32, u64)>, xsave: XsaveArea) -> Result<(), MachineError> {
        let mut cpu = CpuX86 { smbase: SMBASE, ..CpuX86::default() };
        let kvm = KvmState { msrs, xsave, ..self.power_on.clone() };
        self.xsave.save(&kvm.xsave, &mut cpu)?;
        self.save_msrs(&kvm, &mut cpu)
    }

    fn save_msrs(&self, kvm: &KvmState, cpu: &mut CpuX86) -> Result<(), MachineError> {
        for (index, value) in &kvm.msrs {
            let carried =
                msrs::set(cpu, *index, *value) && (*index != msrs::HWCR || self.level >= Level::V10_0);
            if !carried && self.power_on.msr(*index) != Some(*value) {
                return Err(
                    format!("MSR {index:#x} holds {value:#x}, and the section has no place for it").into()
                );
            }
        }
        Ok(())
    }

    fn load_msrs(&self, cpu: &CpuX86, kvm: &mut KvmState) -> Result<(), MachineError> {
        let absent = CpuX86 { smbase: SMBASE, ..CpuX86::default() };
        kvm.msrs.clear();
        for index in msrs::all() {
            let Some(value) = msrs::get(cpu, index) else { continue };
            if self.power_on.msr(index).is_some() {
                kvm.msrs.push((index, value));
            } else if msrs::get(&absent, index) != Some(value) {
                return Err(format!("MSR {index:#x}: this host has none to hold {value:#x}").into());
            }
        }
        Ok(())
    }
}

/// Parts of the section that an emulated CPU may have in use, or a nested guest's; KVM has nothing to put them in.
fn refuse_what_kvm_has_no_place_for(cpu: &CpuX86) -> Result<(), MachineError> {
    let nested = Svm { vm_hsave: 0, ..cpu.svm } != Svm::default() || cpu.hflags & hflags::SVM_GUEST != 0;
    let tiles = cpu.msrs.amx.as_ref().is_some_and(|amx| *amx != AmxTiles::default());
    let refusals = [
        (nested, "env.intercept: the vCPU is in a nested guest"),
        (tiles, "env.xtiledata: AMX tiles are in use, which this machine does not offer"),
        (cpu.a20_mask != -1, "env.a20_mask: the A20 gate is closed, which KVM does not know"),
        (
            cpu.fpregs_format != 0,
            "env.fpregs_format_vmstate: the x87 registers are in a form that KVM's are not",
        ),
        (
            cpu.hflags & hflags::SMM != 0,
            "env.hflags: the vCPU is in system management mode, which this machine does not have",
        ),
    ];
    match refusals.into_iter().find(|(refused, _)| *refused) {
        Some((_, why)) => Err(why.into()),
        None => Ok(()),
    }
}

/// What SMBASE is while no BIOS has moved it.
const SMBASE: u32 = 0x3_0000;

fn save_system(s: &kvm_sregs2, cpu: &mut CpuX86) {
    cpu.segs = [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(save_segment);
    (cpu.ldt, cpu.tr) = (save_segment(&s.ldt), save_segment(&s.tr));
    let table =
        |table: &kvm_dtable| Segment { base: table.base, limit: table.limit.into(), ..Segment::default() };
    (cpu.gdt, cpu.idt) = (table(&s.gdt), table(&s.idt));
    (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) = (s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
    cpu.msrs.pdptrs = (s.flags & PDPTRS_VALID != 0).then_some(s.pdptrs);
}

/// The LAPIC's fields of `kvm_sregs2` (APIC base, CR8) are the `apic` section's.
fn load_system(cpu: &CpuX86, s: &mut kvm_sregs2) {
    [s.es, s.cs, s.ss, s.ds, s.fs, s.gs] = cpu.segs.each_ref().map(load_segment);
    (s.ldt, s.tr) = (load_segment(&cpu.ldt), load_segment(&cpu.tr));
    let table = |segment: &Segment| kvm_dtable {
        base: segment.base,
        limit: segment.limit as u16,
        ..Default::default()
    };
    (s.gdt, s.idt) = (table(&cpu.gdt), table(&cpu.idt));
    (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer);
    s.flags = if cpu.msrs.pdptrs.is_some() { PDPTRS_VALID } else { 0 };
    s.pdptrs = cpu.msrs.pdptrs.unwrap_or_default();
}

/// Running, uninitialized, INIT received, halted, SIPI received: KVM itself takes any number.
fn mp_state(cpu: &CpuX86) -> Result<u32, MachineError> {
    match cpu.mp_state {
        state @ 0..=4 => Ok(state),
        state => Err(format!("MP_STATE: a vCPU has no state {state}").into()),
    }
}

/// An unusable segment has no attributes in the section.
fn save_segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attributes = u32::from(s.type_) << 8
        | bit(s.s, 12)
        | u32::from(s.dpl & 3) << 13
        | bit(s.present, 15)
        | bit(s.avl, 20)
        | bit(s.l, 21)
        | bit(s.db, 22)
        | bit(s.g, 23);
    let flags = if s.unusable != 0 { 0 } else { attributes };
    Segment { selector: s.selector.into(), base: s.base, limit: s.limit, flags }
}

fn load_segment(s: &Segment) -> kvm_segment {
    let bit = |at: u32| (s.flags >> at & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector as u16,
        type_: (s.flags >> 8 & 0xf) as u8,
        present: bit(15),
        dpl: (s.flags >> 13 & 3) as u8,
        db: bit(22),
        s: bit(12),
        l: bit(21),
        g: bit(23),
        avl: bit(20),
        unusable: 1 - bit(15),
        padding: 0,
    }
}

fn save_events(events: &kvm_vcpu_events, cpu: &mut CpuX86) -> Result<(), MachineError> {
    let exception = &events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        if exception.has_error_code != 0 && exception.error_code != 0 {
            let (nr, code) = (exception.nr, exception.error_code);
            return Err(format!(
                "exception {nr} with error code {code:#x} waits, and the section cannot hold the code"
            )
            .into());
        }
        cpu.events.exception_nr = exception.nr.into();
        cpu.events.has_error_code = exception.has_error_code;
    } else {
        cpu.events.exception_nr = -1;
    }
    cpu.msrs.exception.pending = exception.pending;
    cpu.msrs.exception.injected = exception.injected;
    cpu.msrs.exception.has_payload = events.exception_has_payload;
    cpu.msrs.exception.payload = events.exception_payload;
    cpu.events.interrupt_injected =
        if events.interrupt.injected != 0 { events.interrupt.nr.into() } else { -1 };
    cpu.events.soft_interrupt = events.interrupt.soft;
    cpu.events.nmi_injected = events.nmi.injected;
    cpu.events.nmi_pending = events.nmi.pending;
    cpu.events.sipi_vector = events.sipi_vector;
    cpu.msrs.triple_fault = events.triple_fault.pending;
    let smi = &events.smi;
    if smi.smm != 0 || smi.pending != 0 || smi.latched_init != 0 {
        return Err("a system management interrupt is under way, and no section carries it".into());
    }
    Ok(())
}

/// `flags`: which parts this host's KVM knows.
fn load_events(cpu: &CpuX86, flags: u32) -> Result<kvm_vcpu_events, MachineError> {
    let byte = |value: i32, what: &str| {
        u8::try_from(value).map_err(|_| MachineError(format!("{what} {value} is no vector")))
    };
    let mut events = kvm_vcpu_events { flags, sipi_vector: cpu.events.sipi_vector, ..Default::default() };
    let unknown = |known: u32, used: bool| used && flags & known == 0;
    if unknown(KVM_VCPUEVENT_VALID_PAYLOAD, cpu.msrs.exception.has_payload != 0) {
        return Err("env.exception_payload: this host's KVM takes no payload of an exception".into());
    }
    if unknown(KVM_VCPUEVENT_VALID_TRIPLE_FAULT, cpu.msrs.triple_fault != 0) {
        return Err("env.triple_fault_pending: this host's KVM takes no triple fault that waits".into());
    }
    if cpu.events.exception_nr >= 0 {
        let info = &cpu.msrs.exception;
        if cpu.events.has_error_code != 0 && !ZERO_ERROR_CODE.contains(&cpu.events.exception_nr) {
            let nr = cpu.events.exception_nr;
            return Err(format!(
                "env.exception_nr: exception {nr} waits, and its error code is not in the section"
            )
            .into());
        }
        events.exception.nr = byte(cpu.events.exception_nr, "exception")?;
        events.exception.has_error_code = cpu.events.has_error_code;
        events.exception.pending = info.pending;
        // Without the subsection an exception is one being injected.
        events.exception.injected = if info.pending == 0 { 1 } else { info.injected };
        events.exception_has_payload = info.has_payload;
        events.exception_payload = info.payload;
    }
    if cpu.events.interrupt_injected >= 0 {
        events.interrupt.injected = 1;
        events.interrupt.nr = byte(cpu.events.interrupt_injected, "interrupt")?;
        events.interrupt.soft = cpu.events.soft_interrupt;
    }
    events.interrupt.shadow = if cpu.hflags & hflags::INHIBIT != 0 { SHADOW_ANY } else { 0 };
    events.nmi.injected = cpu.events.nmi_injected;
    events.nmi.pending = cpu.events.nmi_pending;
    events.nmi.masked = u8::from(cpu.hflags2 & hflags::NMI_MASKED != 0);
    events.triple_fault.pending = cpu.msrs.triple_fault;
    Ok(events)
}

#[cfg(test)]
mod tests;
