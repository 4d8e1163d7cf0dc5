//! `fw_cfg`: where the guest stands in reading the firmware configuration.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const VMSD: Vmsd = Vmsd::new("fw_cfg", 2).since(1);
const DMA: Vmsd = Vmsd::new("fw_cfg/dma", 0);
const ACPI_MR: Vmsd = Vmsd::new("fw_cfg/acpi_mr", 1);

/// The selected entry and the DMA address; what the entries hold is built anew by each side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FwCfg {
    /// Selected entry; 0xffff: none.
    pub cur_entry: u16,
    /// Offset of the next byte in it.
    pub cur_offset: u32,
    /// Address written to the DMA register, where there is one.
    pub dma_addr: Option<u64>,
    /// Sizes of the ACPI blobs, where there are any.
    pub acpi: Option<FwCfgAcpi>,
}

/// Sizes of the ACPI blobs, in bytes: their RAM blocks are resizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FwCfgAcpi {
    /// Of the tables.
    pub table_size: u64,
    /// Of the linker script.
    pub linker_size: u64,
    /// Of the root pointer.
    pub rsdp_size: u64,
}

impl VmState for FwCfg {
    fn vmsd(&self) -> Vmsd {
        VMSD
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u16("cur_entry", &mut self.cur_entry)?;
        let version = v.version();
        // Version 1 carried the offset as 16 bits.
        let mut narrow = u16::try_from(self.cur_offset).unwrap_or(u16::MAX);
        v.when(version == 1, &mut |v| v.u16("cur_offset", &mut narrow))?;
        v.since(2, &mut |v| v.u32("cur_offset", &mut self.cur_offset))?;
        if version == 1 {
            self.cur_offset = narrow.into();
        }
        v.option(DMA, &mut self.dma_addr, |dma_addr, v| v.u64("dma_addr", dma_addr))?;
        v.option(ACPI_MR, &mut self.acpi, |acpi, v| {
            v.u64("table_mr_size", &mut acpi.table_size)?;
            v.u64("linker_mr_size", &mut acpi.linker_size)?;
            v.u64("rsdp_mr_size", &mut acpi.rsdp_size)
        })
    }
}
