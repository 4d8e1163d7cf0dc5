//! `apic`: one vCPU's local APIC.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// A local APIC. 181 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apic {
    /// Low half of the APIC base MSR: address, x2APIC, enable and BSP bits.
    pub apicbase: u32,
    /// APIC id.
    pub id: u8,
    /// Arbitration id.
    pub arb_id: u8,
    /// Task priority.
    pub tpr: u8,
    /// Spurious interrupt vector register.
    pub spurious_vec: u32,
    /// Logical destination.
    pub log_dest: u8,
    /// Destination format: 0xf flat, 0 cluster.
    pub dest_mode: u8,
    /// In service.
    pub isr: [u32; 8],
    /// Trigger mode.
    pub tmr: [u32; 8],
    /// Interrupt requests.
    pub irr: [u32; 8],
    /// Local vectors: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Error status.
    pub esr: u32,
    /// Interrupt command: low word, high word.
    pub icr: [u32; 2],
    /// Divide configuration register.
    pub divide_conf: u32,
    /// The timer's divisor as a power of two.
    pub count_shift: i32,
    /// Initial count.
    pub initial_count: u32,
    /// Virtual time at which the initial count was written, in ns.
    pub initial_count_load_time: i64,
    /// Virtual time of the next expiry, in ns.
    pub next_time: i64,
    /// Expiry of the timer, in ns; −1: not armed.
    pub timer_expiry: i64,
    /// A vCPU that waits for its startup IPI.
    pub sipi: Option<SipiWait>,
}

/// The wait for a startup IPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SipiWait {
    /// Vector of the IPI, once it came.
    pub sipi_vector: i32,
    /// 1: waits.
    pub wait_for_sipi: i32,
}

impl Default for Apic {
    fn default() -> Self {
        Apic {
            apicbase: 0,
            id: 0,
            arb_id: 0,
            tpr: 0,
            spurious_vec: 0,
            log_dest: 0,
            dest_mode: 0,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            lvt: [0; 6],
            esr: 0,
            icr: [0; 2],
            divide_conf: 0,
            count_shift: 0,
            initial_count: 0,
            initial_count_load_time: 0,
            next_time: 0,
            timer_expiry: -1,
            sipi: None,
        }
    }
}

impl VmState for Apic {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("apic", 3)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("apicbase", &mut self.apicbase)?;
        v.u8("id", &mut self.id)?;
        v.u8("arb_id", &mut self.arb_id)?;
        v.u8("tpr", &mut self.tpr)?;
        v.u32("spurious_vec", &mut self.spurious_vec)?;
        v.u8("log_dest", &mut self.log_dest)?;
        v.u8("dest_mode", &mut self.dest_mode)?;
        v.array("isr", &mut self.isr)?;
        v.array("tmr", &mut self.tmr)?;
        v.array("irr", &mut self.irr)?;
        v.array("lvt", &mut self.lvt)?;
        v.u32("esr", &mut self.esr)?;
        v.array("icr", &mut self.icr)?;
        v.u32("divide_conf", &mut self.divide_conf)?;
        v.i32("count_shift", &mut self.count_shift)?;
        v.u32("initial_count", &mut self.initial_count)?;
        v.i64("initial_count_load_time", &mut self.initial_count_load_time)?;
        v.i64("next_time", &mut self.next_time)?;
        // A timer in meaning, but QEMU describes it as a number.
        v.i64("timer_expiry", &mut self.timer_expiry)?;
        v.option(Vmsd::new("apic_sipi", 1), &mut self.sipi, |sipi, v| {
            v.i32("sipi_vector", &mut sipi.sipi_vector)?;
            v.i32("wait_for_sipi", &mut sipi.wait_for_sipi)
        })
    }
}
