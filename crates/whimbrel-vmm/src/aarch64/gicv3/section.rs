//! Between the GICv3 in KVM and its section `arm_gicv3`.
//!
//! The order of a restore, by which no interrupt fires half configured:
//! GICD_CTLR (affinity routing decides what the rest means); where LPI tables are, of all vCPUs, then each redistributor (its
//! CTLR switches LPIs on); the distributor; the CPU interfaces. Within each: enabled, group, route, trigger, level before
//! pending, then active and priority.

use whimbrel::machine::MachineError;

use super::registers::*;
use crate::aarch64::attributes::KvmDevice;
use crate::aarch64::map::{FIRST_SPI, GIC_IRQS};
use crate::state::{GIC_WORDS, GicV3, GicV3Cpu};

/// Groups of the section's arrays: 0, and 1 non-secure, which is the only group 1 there is without a secure state.
const GROUP_0: usize = 0;
const GROUP_1: usize = 2;
/// The section's non-secure ICC_CTLR_EL1.
const NON_SECURE: usize = 1;
/// Software-generated interrupts are always edge-triggered.
const SGI_EDGES: u32 = 0xffff;

/// Reads all of it.
///
/// # Errors
/// Names the register.
pub(super) fn capture(device: &KvmDevice, cpus: &[u64]) -> Result<GicV3, MachineError> {
    let d = Part::Distributor;
    let mut gic = GicV3::new(cpus.len());
    gic.ctlr = d.get(device, GICD_CTLR)?;
    gic.statusr[0] = d.get(device, GICD_STATUSR)?;
    for word in spi_words() {
        let at = word as u64 * 4;
        gic.group[word] = d.get(device, IGROUPR + at)?;
        gic.enabled[word] = d.get(device, ISENABLER + at)?;
        gic.pending[word] = d.get(device, ISPENDR + at)?;
        gic.active[word] = d.get(device, ISACTIVER + at)?;
        gic.level[word] = d.levels(device, word as u64 * 32)?;
        gic.edge_trigger[word] = edges(device, d, word as u64)?;
    }
    for intid in (FIRST_SPI..GIC_IRQS).step_by(4) {
        let priorities = d.get(device, IPRIORITYR + u64::from(intid))?;
        gic.ipriority[intid as usize..][..4].copy_from_slice(&priorities.to_le_bytes());
    }
    for intid in FIRST_SPI..GIC_IRQS {
        gic.irouter[intid as usize] = d.get_wide(device, GICD_IROUTER + u64::from(intid) * 8)?;
    }
    for (cpu, affinity) in gic.cpus.iter_mut().zip(cpus) {
        capture_cpu(device, *affinity, cpu)?;
    }
    Ok(gic)
}

fn capture_cpu(device: &KvmDevice, affinity: u64, cpu: &mut GicV3Cpu) -> Result<(), MachineError> {
    let r = Part::Redistributor(affinity);
    let sgi = |register| r.get(device, GICR_SGI_FRAME + register);
    cpu.ctlr = r.get(device, GICR_CTLR)?;
    cpu.statusr[0] = r.get(device, GICR_STATUSR)?;
    cpu.waker = r.get(device, GICR_WAKER)?;
    cpu.propbaser = r.get_wide(device, GICR_PROPBASER)?;
    cpu.pendbaser = r.get_wide(device, GICR_PENDBASER)?;
    cpu.igroupr0 = sgi(IGROUPR)?;
    cpu.ienabler0 = sgi(ISENABLER)?;
    cpu.ipendr0 = sgi(ISPENDR)?;
    cpu.iactiver0 = sgi(ISACTIVER)?;
    cpu.level = r.levels(device, 0)?;
    cpu.edge_trigger = SGI_EDGES | unpack_edges(sgi(ICFGR + 4)?) << 16;
    for (word, priorities) in cpu.ipriorityr.chunks_exact_mut(4).enumerate() {
        priorities.copy_from_slice(&sgi(IPRIORITYR + word as u64 * 4)?.to_le_bytes());
    }
    let icc = |register| get_icc(device, affinity, register);
    cpu.icc_sre_el1 = icc(ICC_SRE_EL1)?;
    cpu.icc_ctlr_el1[NON_SECURE] = icc(ICC_CTLR_EL1)?;
    cpu.icc_igrpen[GROUP_0] = icc(ICC_IGRPEN0_EL1)?;
    cpu.icc_igrpen[GROUP_1] = icc(ICC_IGRPEN1_EL1)?;
    cpu.icc_pmr_el1 = icc(ICC_PMR_EL1)?;
    cpu.icc_bpr[GROUP_0] = icc(ICC_BPR0_EL1)?;
    cpu.icc_bpr[GROUP_1] = icc(ICC_BPR1_EL1)?;
    for n in 0..active_registers(cpu.icc_ctlr_el1[NON_SECURE]) {
        cpu.icc_apr[GROUP_0][n as usize] = icc(icc_ap0r(n))?;
        cpu.icc_apr[GROUP_1][n as usize] = icc(icc_ap1r(n))?;
    }
    Ok(())
}

/// Writes all of it.
///
/// # Errors
/// Names the register.
pub(super) fn put(device: &KvmDevice, cpus: &[u64], gic: &GicV3) -> Result<(), MachineError> {
    let d = Part::Distributor;
    d.set(device, GICD_CTLR, gic.ctlr)?;
    for (cpu, affinity) in gic.cpus.iter().zip(cpus) {
        let r = Part::Redistributor(*affinity);
        r.set_wide(device, GICR_PROPBASER, cpu.propbaser)?;
        r.set_wide(device, GICR_PENDBASER, cpu.pendbaser)?;
    }
    for (cpu, affinity) in gic.cpus.iter().zip(cpus) {
        put_redistributor(device, Part::Redistributor(*affinity), cpu)?;
    }
    d.set(device, GICD_STATUSR, gic.statusr[0])?;
    for word in spi_words() {
        let at = word as u64 * 4;
        d.set(device, ICENABLER + at, !0)?;
        d.set(device, ISENABLER + at, gic.enabled[word])?;
        d.set(device, IGROUPR + at, gic.group[word])?;
    }
    for intid in FIRST_SPI..GIC_IRQS {
        d.set_wide(device, GICD_IROUTER + u64::from(intid) * 8, gic.irouter[intid as usize])?;
    }
    for word in spi_words() {
        let at = word as u64 * 4;
        let [low, high] = pack_edges(gic.edge_trigger[word]);
        d.set(device, ICFGR + at * 2, low)?;
        d.set(device, ICFGR + at * 2 + 4, high)?;
        d.set_levels(device, word as u64 * 32, gic.level[word])?;
        d.set(device, ICPENDR + at, !0)?;
        d.set(device, ISPENDR + at, gic.pending[word])?;
        d.set(device, ICACTIVER + at, !0)?;
        d.set(device, ISACTIVER + at, gic.active[word])?;
    }
    for intid in (FIRST_SPI..GIC_IRQS).step_by(4) {
        let priorities: [u8; 4] = std::array::from_fn(|i| gic.ipriority[intid as usize + i]);
        d.set(device, IPRIORITYR + u64::from(intid), u32::from_le_bytes(priorities))?;
    }
    for (cpu, affinity) in gic.cpus.iter().zip(cpus) {
        put_interface(device, *affinity, cpu)?;
    }
    Ok(())
}

fn put_redistributor(device: &KvmDevice, r: Part, cpu: &GicV3Cpu) -> Result<(), MachineError> {
    let sgi = |register, value| r.set(device, GICR_SGI_FRAME + register, value);
    r.set(device, GICR_CTLR, cpu.ctlr)?;
    r.set(device, GICR_STATUSR, cpu.statusr[0])?;
    r.set(device, GICR_WAKER, cpu.waker)?;
    sgi(IGROUPR, cpu.igroupr0)?;
    sgi(ICENABLER, !0)?;
    sgi(ISENABLER, cpu.ienabler0)?;
    sgi(ICFGR + 4, pack_edges(cpu.edge_trigger)[1])?;
    r.set_levels(device, 0, cpu.level)?;
    sgi(ICPENDR, !0)?;
    sgi(ISPENDR, cpu.ipendr0)?;
    sgi(ICACTIVER, !0)?;
    sgi(ISACTIVER, cpu.iactiver0)?;
    for (word, priorities) in cpu.ipriorityr.as_chunks::<4>().0.iter().enumerate() {
        sgi(IPRIORITYR + word as u64 * 4, u32::from_le_bytes(*priorities))?;
    }
    Ok(())
}

fn put_interface(device: &KvmDevice, affinity: u64, cpu: &GicV3Cpu) -> Result<(), MachineError> {
    let icc = |register, value| set_icc(device, affinity, register, value);
    icc(ICC_SRE_EL1, cpu.icc_sre_el1)?;
    icc(ICC_CTLR_EL1, cpu.icc_ctlr_el1[NON_SECURE])?;
    icc(ICC_IGRPEN0_EL1, cpu.icc_igrpen[GROUP_0])?;
    icc(ICC_IGRPEN1_EL1, cpu.icc_igrpen[GROUP_1])?;
    icc(ICC_PMR_EL1, cpu.icc_pmr_el1)?;
    icc(ICC_BPR0_EL1, cpu.icc_bpr[GROUP_0])?;
    icc(ICC_BPR1_EL1, cpu.icc_bpr[GROUP_1])?;
    for n in (0..active_registers(cpu.icc_ctlr_el1[NON_SECURE])).rev() {
        icc(icc_ap0r(n), cpu.icc_apr[GROUP_0][n as usize])?;
        icc(icc_ap1r(n), cpu.icc_apr[GROUP_1][n as usize])?;
    }
    Ok(())
}

/// Switches LPIs off: while they are on, where their tables are cannot change.
///
/// # Errors
/// Names the register.
pub(super) fn disable_lpis(device: &KvmDevice, cpus: &[u64]) -> Result<(), MachineError> {
    cpus.iter().try_for_each(|affinity| {
        let r = Part::Redistributor(*affinity);
        let ctlr = r.get(device, GICR_CTLR)?;
        r.set(device, GICR_CTLR, ctlr & !ENABLE_LPIS)
    })
}

/// Words of the bitmaps that hold shared interrupts.
fn spi_words() -> std::ops::Range<usize> {
    FIRST_SPI as usize / 32..(GIC_IRQS as usize / 32).min(GIC_WORDS)
}

/// Registers of active priorities, by the number of priority bits that ICC_CTLR_EL1 tells: 5, 6 or 7 of them have 1, 2 or 4.
fn active_registers(icc_ctlr: u64) -> u64 {
    match (icc_ctlr >> 8 & 7) + 1 {
        0..=5 => 1,
        6 => 2,
        _ => 4,
    }
}

/// Which of 32 interrupts are edge-triggered.
fn edges(device: &KvmDevice, part: Part, word: u64) -> Result<u32, MachineError> {
    let at = ICFGR + word * 8;
    Ok(unpack_edges(part.get(device, at)?) | unpack_edges(part.get(device, at + 4)?) << 16)
}

/// GICD_ICFGR has two bits an interrupt, of which the higher says edge; the section one.
fn unpack_edges(icfgr: u32) -> u32 {
    (0..16).fold(0, |edges, n| edges | (icfgr >> (2 * n + 1) & 1) << n)
}

/// The two words of GICD_ICFGR for 32 interrupts.
fn pack_edges(edges: u32) -> [u32; 2] {
    [edges & 0xffff, edges >> 16]
        .map(|half| (0..16).fold(0, |icfgr, n| icfgr | (half >> n & 1) << (2 * n + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trigger_bits_go_back_and_forth() {
        assert_eq!(unpack_edges(0b10_00_10), 0b101);
        assert_eq!(pack_edges(0x8000_0003), [0b1010, 0x8000_0000]);
        for edges in [0, 1, 0xffff_ffff, 0xdead_beef] {
            let [low, high] = pack_edges(edges);
            assert_eq!(unpack_edges(low) | unpack_edges(high) << 16, edges);
        }
    }

    #[test]
    fn active_priorities_take_registers_by_their_bits() {
        assert_eq!([4, 5, 6].map(|pri_bits| active_registers(pri_bits << 8)), [1, 2, 4]);
    }
}
