//! `arm_gicv3`: a GICv3, its distributor and each vCPU's redistributor and CPU interface.

use whimbrel_vmstate::{Intent, Present, Result, Visitor, VmState, Vmsd};

const CPU: Vmsd = Vmsd::new("arm_gicv3_cpu", 1);
const SRE_EL1: Vmsd = Vmsd::new("arm_gicv3_cpu/sre_el1", 1);
const NO_SHIFT_BUG: Vmsd = Vmsd::new("arm_gicv3/gicd_no_migration_shift_bug", 1);

/// Words of a bitmap with one bit an interrupt.
pub const GIC_WORDS: usize = 32;
/// Interrupts that have a priority and a route: the numbers above are special.
pub const GIC_IRQS: usize = 1020;

/// A GICv3. Bitmaps and arrays are indexed by interrupt number; the first 32, private to each vCPU, are in [`GicV3Cpu`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// GICD_CTLR.
    pub ctlr: u32,
    /// GICD_STATUSR: of the one security state, and the other's.
    pub statusr: [u32; 2],
    /// GICD_IGROUPR.
    pub group: [u32; GIC_WORDS],
    /// GICD_IGRPMODR.
    pub grpmod: [u32; GIC_WORDS],
    /// GICD_ISENABLER.
    pub enabled: [u32; GIC_WORDS],
    /// Latched pending state.
    pub pending: [u32; GIC_WORDS],
    /// GICD_ISACTIVER.
    pub active: [u32; GIC_WORDS],
    /// Levels of the input lines.
    pub level: [u32; GIC_WORDS],
    /// GICD_ICFGR, one bit an interrupt: 1 is edge-triggered.
    pub edge_trigger: [u32; GIC_WORDS],
    /// GICD_IPRIORITYR.
    pub ipriority: [u8; GIC_IRQS],
    /// GICD_IROUTER.
    pub irouter: [u64; GIC_IRQS],
    /// GICD_NSACR.
    pub nsacr: [u32; 64],
    /// One a vCPU. Their number is not in the stream: both sides know it.
    pub cpus: Vec<GicV3Cpu>,
    /// The bitmaps stand where their index says; a very old QEMU with KVM shifted them.
    pub no_migration_shift_bug: bool,
}

/// A vCPU's redistributor (GICR) and CPU interface (ICC). Arrays over groups are: 0, 1 secure, 1 non-secure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3Cpu {
    /// Levels of the private input lines.
    pub level: u32,
    /// GICR_CTLR.
    pub ctlr: u32,
    /// GICR_STATUSR, as the distributor's.
    pub statusr: [u32; 2],
    /// GICR_WAKER.
    pub waker: u32,
    /// GICR_PROPBASER.
    pub propbaser: u64,
    /// GICR_PENDBASER.
    pub pendbaser: u64,
    /// GICR_IGROUPR0.
    pub igroupr0: u32,
    /// GICR_ISENABLER0.
    pub ienabler0: u32,
    /// Latched pending state.
    pub ipendr0: u32,
    /// GICR_ISACTIVER0.
    pub iactiver0: u32,
    /// GICR_ICFGR, one bit an interrupt.
    pub edge_trigger: u32,
    /// GICR_IGRPMODR0.
    pub igrpmodr0: u32,
    /// GICR_NSACR.
    pub nsacr: u32,
    /// GICR_IPRIORITYR.
    pub ipriorityr: [u8; 32],
    /// ICC_CTLR_EL1: secure, non-secure.
    pub icc_ctlr_el1: [u64; 2],
    /// ICC_PMR_EL1.
    pub icc_pmr_el1: u64,
    /// ICC_BPR.
    pub icc_bpr: [u64; 3],
    /// ICC_AP0R and ICC_AP1R: four registers a group.
    pub icc_apr: [[u64; 4]; 3],
    /// ICC_IGRPEN.
    pub icc_igrpen: [u64; 3],
    /// ICC_CTLR_EL3.
    pub icc_ctlr_el3: u64,
    /// ICC_SRE_EL1; 7, system registers only, where the stream does not say.
    pub icc_sre_el1: u64,
}

/// All system registers: ICC_SRE_EL1 of a GIC without a memory-mapped CPU interface.
pub const SRE_ALL: u64 = 7;

impl GicV3 {
    /// A blank one for `cpus` vCPUs.
    pub fn new(cpus: usize) -> Self {
        Self {
            ctlr: 0,
            statusr: [0; 2],
            group: [0; GIC_WORDS],
            grpmod: [0; GIC_WORDS],
            enabled: [0; GIC_WORDS],
            pending: [0; GIC_WORDS],
            active: [0; GIC_WORDS],
            level: [0; GIC_WORDS],
            edge_trigger: [0; GIC_WORDS],
            ipriority: [0; GIC_IRQS],
            irouter: [0; GIC_IRQS],
            nsacr: [0; 64],
            cpus: vec![GicV3Cpu::default(); cpus],
            no_migration_shift_bug: true,
        }
    }
}

impl Default for GicV3Cpu {
    fn default() -> Self {
        Self {
            level: 0,
            ctlr: 0,
            statusr: [0; 2],
            waker: 0,
            propbaser: 0,
            pendbaser: 0,
            igroupr0: 0,
            ienabler0: 0,
            ipendr0: 0,
            iactiver0: 0,
            edge_trigger: 0,
            igrpmodr0: 0,
            nsacr: 0,
            ipriorityr: [0; 32],
            icc_ctlr_el1: [0; 2],
            icc_pmr_el1: 0,
            icc_bpr: [0; 3],
            icc_apr: [[0; 4]; 3],
            icc_igrpen: [0; 3],
            icc_ctlr_el3: 0,
            icc_sre_el1: SRE_ALL,
        }
    }
}

impl VmState for GicV3 {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("arm_gicv3", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("gicd_ctlr", &mut self.ctlr)?;
        v.array("gicd_statusr", &mut self.statusr)?;
        v.array("group", &mut self.group)?;
        v.array("grpmod", &mut self.grpmod)?;
        v.array("enabled", &mut self.enabled)?;
        v.array("pending", &mut self.pending)?;
        v.array("active", &mut self.active)?;
        v.array("level", &mut self.level)?;
        v.array("edge_trigger", &mut self.edge_trigger)?;
        v.array("gicd_ipriority", &mut self.ipriority)?;
        v.array("gicd_irouter", &mut self.irouter)?;
        v.array("gicd_nsacr", &mut self.nsacr)?;
        v.structs("cpu", CPU, &mut self.cpus, GicV3Cpu::fields)?;
        let present = v.subsection(NO_SHIFT_BUG, true, &mut |v| {
            v.bool("gicd_no_migration_shift_bug", &mut self.no_migration_shift_bug)
        })?;
        if v.intent() == Intent::Load && (present == Present::No || !self.no_migration_shift_bug) {
            let why = "its bitmaps are shifted, as very old versions of QEMU left them";
            return Err(v.refuse("gicd_no_migration_shift_bug", why));
        }
        Ok(())
    }
}

impl GicV3Cpu {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("level", &mut self.level)?;
        v.u32("gicr_ctlr", &mut self.ctlr)?;
        v.array("gicr_statusr", &mut self.statusr)?;
        v.u32("gicr_waker", &mut self.waker)?;
        v.u64("gicr_propbaser", &mut self.propbaser)?;
        v.u64("gicr_pendbaser", &mut self.pendbaser)?;
        v.u32("gicr_igroupr0", &mut self.igroupr0)?;
        v.u32("gicr_ienabler0", &mut self.ienabler0)?;
        v.u32("gicr_ipendr0", &mut self.ipendr0)?;
        v.u32("gicr_iactiver0", &mut self.iactiver0)?;
        v.u32("edge_trigger", &mut self.edge_trigger)?;
        v.u32("gicr_igrpmodr0", &mut self.igrpmodr0)?;
        v.u32("gicr_nsacr", &mut self.nsacr)?;
        v.array("gicr_ipriorityr", &mut self.ipriorityr)?;
        v.array("icc_ctlr_el1", &mut self.icc_ctlr_el1)?;
        v.u64("icc_pmr_el1", &mut self.icc_pmr_el1)?;
        v.array("icc_bpr", &mut self.icc_bpr)?;
        v.array("icc_apr", self.icc_apr.as_flattened_mut())?;
        v.array("icc_igrpen", &mut self.icc_igrpen)?;
        v.u64("icc_ctlr_el3", &mut self.icc_ctlr_el3)?;
        v.optional(SRE_EL1, "icc_sre_el1", &mut self.icc_sre_el1, SRE_ALL)?;
        Ok(())
    }
}
