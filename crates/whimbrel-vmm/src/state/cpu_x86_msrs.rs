//! The optional parts of the `cpu` section, each a subsection `cpu/…` that is sent when it says more than a reset would.
//!
//! Those of QEMU's list that a guest of ours cannot have (Hyper-V, Xen, MPX, nested virtualization, SGX, Intel PT, arch LBR, FRED) are
//! not here: a stream that has one is refused by its name. A part that QEMU 7.2 doesn't know is not sent at that level.

use whimbrel_vmstate::{Level, Result, Visitor, Vmsd};

/// What the machine's firmware finds in IA32_MISC_ENABLE: fast strings on.
const MISC_ENABLE_RESET: u64 = 1;
/// Guests poll in the host unless they say otherwise.
const POLL_CONTROL_RESET: u64 = 1;

const fn part(name: &'static str) -> Vmsd {
    Vmsd::new(name, 1)
}

/// The optional parts of a vCPU's state. `Default` is what their absence means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuMsrs {
    /// An exception that KVM told of with its payload, or as pending.
    pub exception: ExceptionInfo,
    /// KVM: asynchronous page faults.
    pub async_pf_en: u64,
    /// KVM: interrupt for asynchronous page faults.
    pub async_pf_int: u64,
    /// KVM: paravirtual end of interrupt.
    pub pv_eoi_en: u64,
    /// KVM: steal time.
    pub steal_time: u64,
    /// KVM: polling before a halt; 1 after a reset.
    pub poll_control: u64,
    /// x87: the last instruction and its operand.
    pub fpu_last_op: FpuLastOp,
    /// TSC_ADJUST.
    pub tsc_adjust: u64,
    /// TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// MISC_ENABLE; 1 after a reset.
    pub misc_enable: u64,
    /// FEATURE_CONTROL.
    pub feature_control: u64,
    /// Performance counters.
    pub pmu: Pmu,
    /// AVX-512 registers.
    pub avx512: Avx512,
    /// XSS.
    pub xss: u64,
    /// UMWAIT_CONTROL.
    pub umwait: u32,
    /// Frequency of the TSC, in kHz; 0: not known.
    pub tsc_khz: i64,
    /// Number of SMIs.
    pub smi_count: u64,
    /// PKRU.
    pub pkru: u32,
    /// PKRS.
    pub pkrs: u32,
    /// SPEC_CTRL.
    pub spec_ctrl: u64,
    /// AMD TSC_RATIO, where the CPU has it.
    pub amd_tsc_scale: Option<u64>,
    /// MCG_EXT_CTL.
    pub mcg_ext_ctl: u64,
    /// VIRT_SPEC_CTRL.
    pub virt_ssbd: u64,
    /// TSX_CTRL.
    pub tsx_ctrl: u32,
    /// The page directory pointers of PAE paging, where KVM tells of them.
    pub pdptrs: Option<[u64; 4]>,
    /// XFD and XFD_ERR, where the CPU has them.
    pub xfd: Option<[u64; 2]>,
    /// AMD HWCR; 10.0 and later.
    pub hwcr: u64,
    /// AMX tiles, where the CPU has them.
    pub amx: Option<AmxTiles>,
    /// A triple fault waits.
    pub triple_fault: u8,
}

/// An exception with more than number and error code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExceptionInfo {
    /// It waits to be injected.
    pub pending: u8,
    /// It is being injected.
    pub injected: u8,
    /// `payload` counts.
    pub has_payload: u8,
    /// CR2 or DR6, not yet put there.
    pub payload: u64,
}

/// The last x87 instruction that was not a control instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FpuLastOp {
    /// Opcode.
    pub opcode: u16,
    /// Its address.
    pub instruction: u64,
    /// Its operand's address.
    pub data: u64,
}

/// Architectural performance monitoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pmu {
    /// FIXED_CTR_CTRL.
    pub fixed_ctr_ctrl: u64,
    /// PERF_GLOBAL_CTRL.
    pub global_ctrl: u64,
    /// PERF_GLOBAL_STATUS.
    pub global_status: u64,
    /// PERF_GLOBAL_OVF_CTRL.
    pub global_ovf_ctrl: u64,
    /// Fixed counters.
    pub fixed_counters: [u64; 3],
    /// General counters.
    pub gp_counters: [u64; 18],
    /// Event selectors.
    pub event_select: [u64; 18],
}

/// AVX-512 registers beyond the AVX ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Avx512 {
    /// Mask registers.
    pub opmask: [u64; 8],
    /// Bits 256 to 511 of ZMM0 to ZMM15, low word first.
    pub zmm_hi256: [[u64; 4]; 16],
    /// ZMM16 to ZMM31, low word first.
    pub hi16_zmm: [[u64; 8]; 16],
}

/// AMX tile registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmxTiles {
    /// Configuration.
    pub config: [u8; 64],
    /// Eight tiles of 1 KiB.
    pub data: Box<[u8; 8192]>,
}

impl Default for AmxTiles {
    fn default() -> Self {
        AmxTiles { config: [0; 64], data: Box::new([0; 8192]) }
    }
}

impl Default for CpuMsrs {
    fn default() -> Self {
        CpuMsrs {
            exception: ExceptionInfo::default(),
            async_pf_en: 0,
            async_pf_int: 0,
            pv_eoi_en: 0,
            steal_time: 0,
            poll_control: POLL_CONTROL_RESET,
            fpu_last_op: FpuLastOp::default(),
            tsc_adjust: 0,
            tsc_deadline: 0,
            misc_enable: MISC_ENABLE_RESET,
            feature_control: 0,
            pmu: Pmu::default(),
            avx512: Avx512::default(),
            xss: 0,
            umwait: 0,
            tsc_khz: 0,
            smi_count: 0,
            pkru: 0,
            pkrs: 0,
            spec_ctrl: 0,
            amd_tsc_scale: None,
            mcg_ext_ctl: 0,
            virt_ssbd: 0,
            tsx_ctrl: 0,
            pdptrs: None,
            xfd: None,
            hwcr: 0,
            amx: None,
            triple_fault: 0,
        }
    }
}

impl CpuMsrs {
    /// All parts, in QEMU's order.
    pub(super) fn subsections(&mut self, v: &mut dyn Visitor) -> Result<()> {
        self.exception.subsection(v)?;
        v.optional(part("cpu/async_pf_msr"), "env.async_pf_en_msr", &mut self.async_pf_en, 0)?;
        v.optional(part("cpu/async_pf_int_msr"), "env.async_pf_int_msr", &mut self.async_pf_int, 0)?;
        v.optional(part("cpu/async_pv_eoi_msr"), "env.pv_eoi_en_msr", &mut self.pv_eoi_en, 0)?;
        v.optional(part("cpu/steal_time_msr"), "env.steal_time_msr", &mut self.steal_time, 0)?;
        let poll_control = part("cpu/poll_control_msr");
        v.optional(poll_control, "env.poll_control_msr", &mut self.poll_control, POLL_CONTROL_RESET)?;
        self.fpu_last_op.subsection(v)?;
        v.optional(part("cpu/msr_tsc_adjust"), "env.tsc_adjust", &mut self.tsc_adjust, 0)?;
        v.optional(part("cpu/msr_tscdeadline"), "env.tsc_deadline", &mut self.tsc_deadline, 0)?;
        let misc_enable = part("cpu/msr_ia32_misc_enable");
        v.optional(misc_enable, "env.msr_ia32_misc_enable", &mut self.misc_enable, MISC_ENABLE_RESET)?;
        let feature_control = part("cpu/msr_ia32_feature_control");
        v.optional(feature_control, "env.msr_ia32_feature_control", &mut self.feature_control, 0)?;
        self.pmu.subsection(v)?;
        self.avx512.subsection(v)?;
        v.optional(part("cpu/xss"), "env.xss", &mut self.xss, 0)?;
        v.optional(part("cpu/umwait"), "env.umwait", &mut self.umwait, 0)?;
        v.optional(part("cpu/tsc_khz"), "env.tsc_khz", &mut self.tsc_khz, 0)?;
        v.optional(part("cpu/msr_smi_count"), "env.msr_smi_count", &mut self.smi_count, 0)?;
        v.optional(part("cpu/pkru"), "env.pkru", &mut self.pkru, 0)?;
        v.optional(part("cpu/pkrs"), "env.pkrs", &mut self.pkrs, 0)?;
        v.optional(part("cpu/spec_ctrl"), "env.spec_ctrl", &mut self.spec_ctrl, 0)?;
        v.option(part("cpu/amd_tsc_scale_msr"), &mut self.amd_tsc_scale, |ratio, v| {
            v.u64("env.amd_tsc_scale_msr", ratio)
        })?;
        v.optional(part("cpu/mcg_ext_ctl"), "env.mcg_ext_ctl", &mut self.mcg_ext_ctl, 0)?;
        v.optional(part("cpu/virt_ssbd"), "env.virt_ssbd", &mut self.virt_ssbd, 0)?;
        v.optional(part("cpu/msr_tsx_ctrl"), "env.tsx_ctrl", &mut self.tsx_ctrl, 0)?;
        v.option(part("cpu/pdptrs"), &mut self.pdptrs, |pdptrs, v| v.array("env.pdptrs", pdptrs))?;
        v.option(part("cpu/msr_xfd"), &mut self.xfd, |[xfd, error], v| {
            v.u64("env.msr_xfd", xfd)?;
            v.u64("env.msr_xfd_err", error)
        })?;
        let hwcr_needed = self.hwcr != 0 && v.level() >= Level::V10_0;
        v.subsection(part("cpu/msr_hwcr"), hwcr_needed, &mut |v| v.u64("env.msr_hwcr", &mut self.hwcr))?;
        v.option(part("cpu/intel_amx_xtile"), &mut self.amx, |amx, v| {
            v.array("env.xtilecfg", &mut amx.config)?;
            v.array("env.xtiledata", amx.data.as_mut_slice())
        })?;
        v.optional(part("cpu/triple_fault"), "env.triple_fault_pending", &mut self.triple_fault, 0)?;
        Ok(())
    }
}

impl ExceptionInfo {
    fn subsection(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let needed = self.pending != 0 || self.has_payload != 0;
        v.subsection(part("cpu/exception_info"), needed, &mut |v| {
            v.u8("env.exception_pending", &mut self.pending)?;
            v.u8("env.exception_injected", &mut self.injected)?;
            v.u8("env.exception_has_payload", &mut self.has_payload)?;
            v.u64("env.exception_payload", &mut self.payload)
        })?;
        Ok(())
    }
}

impl FpuLastOp {
    fn subsection(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let needed = *self != Self::default();
        v.subsection(part("cpu/fpop_ip_dp"), needed, &mut |v| {
            v.u16("env.fpop", &mut self.opcode)?;
            v.u64("env.fpip", &mut self.instruction)?;
            v.u64("env.fpdp", &mut self.data)
        })?;
        Ok(())
    }
}

impl Pmu {
    fn subsection(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let needed = *self != Self::default();
        v.subsection(part("cpu/msr_architectural_pmu"), needed, &mut |v| {
            v.u64("env.msr_fixed_ctr_ctrl", &mut self.fixed_ctr_ctrl)?;
            v.u64("env.msr_global_ctrl", &mut self.global_ctrl)?;
            v.u64("env.msr_global_status", &mut self.global_status)?;
            v.u64("env.msr_global_ovf_ctrl", &mut self.global_ovf_ctrl)?;
            v.array("env.msr_fixed_counters", &mut self.fixed_counters)?;
            v.array("env.msr_gp_counters", &mut self.gp_counters)?;
            v.array("env.msr_gp_evtsel", &mut self.event_select)
        })?;
        Ok(())
    }
}

impl Avx512 {
    fn subsection(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let needed = *self != Self::default();
        v.subsection(part("cpu/avx512"), needed, &mut |v| {
            v.array("env.opmask_regs", &mut self.opmask)?;
            v.structs("env.xmm_regs", Vmsd::new("zmmh_reg", 1), &mut self.zmm_hi256, |words, v| {
                words
                    .iter_mut()
                    .zip(["_q_ZMMReg[4]", "_q_ZMMReg[5]", "_q_ZMMReg[6]", "_q_ZMMReg[7]"])
                    .try_for_each(|(word, name)| v.u64(name, word))
            })?;
            v.structs("env.xmm_regs", Vmsd::new("hi16_zmm_reg", 1), &mut self.hi16_zmm, |words, v| {
                words.iter_mut().zip(HI16_WORDS).try_for_each(|(word, name)| v.u64(name, word))
            })
        })?;
        Ok(())
    }
}

const HI16_WORDS: [&str; 8] = [
    "_q_ZMMReg[0]",
    "_q_ZMMReg[1]",
    "_q_ZMMReg[2]",
    "_q_ZMMReg[3]",
    "_q_ZMMReg[4]",
    "_q_ZMMReg[5]",
    "_q_ZMMReg[6]",
    "_q_ZMMReg[7]",
];
