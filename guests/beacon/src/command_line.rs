//! The guest's command line: the one specification of its options and of their defaults.
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `hb=PORT,USEC` | `0xe9,1000` | a heartbeat byte (sequence mod 256) on I/O port PORT every USEC µs, by vCPU 0; USEC 0: none |
//! | `say=PORT` | `0x3f8` | the port of the text lines; 0: silent |
//! | `seed=N` | `0x5eed` | seed of every page's content |
//! | `mem=MIB` | `0` | memory in use: working set and fill; 0: all the guest has |
//! | `set=MIB` | `16` | working set, dirtied over and over; shared out evenly between the workers |
//! | `rate=MIB_PER_S` | `64` | dirty rate of all workers together; 0: as fast as possible |
//! | `fill=zero\|random` | `zero` | memory beyond the working set: untouched, or incompressible (generation 0) |
//! | `at=low\|high` | `low` | the working set is the first or the last part of the memory in use |
//! | `scan=MIB_PER_S` | 16 with `fill=random`, else 0 | rate at which the fill is re-read and checked |
//! | `cpus=N` | `1` | worker vCPUs (APIC ids 0 to N−1) |
//! | `sleep=0\|1` | `0` | one further vCPU sleeps in HLT, woken by its LAPIC timer |
//! | `wait=0\|1` | `0` | one further vCPU gets INIT and is left waiting for SIPI until the serial byte `S` |
//! | `tick=USEC` | `10000` | period of each vCPU's LAPIC timer; 0: no timer |
//! | `pend=0\|1` | `0` | each worker keeps a self-IPI pending half of the time (TPR raised) and counts its delivery |
//! | `serial=0\|1` | `1` | take serial receive interrupts (16550 at 0x3f8, IOAPIC pin 4) |
//! | `echo=0\|1` | `0` | send received serial bytes back |
//! | `hold=0\|1` | `1` | hold and re-check register values |
//! | `avx=0\|1\|2` | `2` | hold values, where CPUID offers them, in the high halves of YMM0–15 (1) and in ZMM0–31 and K0–7 (2) |
//! | `tsc_khz=N` | `0` | TSC frequency; 0: found out by the guest |
//!
//! Numbers are decimal, or hexadecimal with `0x`. Ports lie below 0x1000. A serial byte `S` starts the waiting vCPU, `P`
//! ends the guest by a triple fault, `Z` zeroes the largest gap, `?` asks for a status line; every byte is counted.

use std::fmt;

/// What lies in the memory beyond the working set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Never touched: reads as zero.
    #[default]
    Zero,
    /// Incompressible: generation 0 of the page function.
    Random,
}

/// Which part of the memory in use is the working set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The first part.
    #[default]
    Low,
    /// The last part: above 4 GiB in a big guest.
    High,
}

/// Vector registers beyond SSE that the guest holds values in, where CPUID offers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Avx {
    /// None: for a VMM that doesn't carry what CPUID offers (QEMU with a CPU model without AVX, on a KVM that can't
    /// hide it).
    None = 0,
    /// The high halves of YMM0–15.
    Avx = 1,
    /// Those, ZMM0–31 and K0–7.
    #[default]
    Avx512 = 2,
}

/// The numbered heartbeat byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// I/O port, below 0x1000: 0xe9 (debug console) or 0x3f8 (serial; give `say` another port then).
    pub port: u16,
    /// Period in microseconds; 0 for none.
    pub period_us: u32,
}

/// A guest command line; `to_string()` writes it out in full.
///
/// ```
/// let line = beacon::CommandLine { set_mib: 512, rate_mib_per_s: 200, cpus: 2, ..Default::default() };
/// assert!(line.to_string().contains("set=512 rate=200"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// `hb`: the heartbeat.
    pub heartbeat: Heartbeat,
    /// `say`: port of the text lines, 0 for none.
    pub say_port: u16,
    /// `seed` of every page's content.
    pub seed: u64,
    /// `mem`: memory in use in MiB, 0 for all.
    pub mem_mib: u64,
    /// `set`: working set in MiB.
    pub set_mib: u64,
    /// `rate`: dirty rate of all workers together in MiB/s, 0 for as fast as possible.
    pub rate_mib_per_s: u64,
    /// `fill`: what lies beyond the working set.
    pub fill: Fill,
    /// `at`: where the working set lies.
    pub placement: Placement,
    /// `scan`: rate in MiB/s at which the fill is re-checked; `None` for the default.
    pub scan_mib_per_s: Option<u64>,
    /// `cpus`: worker vCPUs.
    pub cpus: u32,
    /// `sleep`: one further vCPU sleeps in HLT.
    pub sleeper: bool,
    /// `wait`: one further vCPU waits for SIPI.
    pub waiter: bool,
    /// `tick`: LAPIC timer period in microseconds, 0 for none.
    pub tick_us: u32,
    /// `pend`: keep self-IPIs pending.
    pub pend: bool,
    /// `serial`: take serial receive interrupts.
    pub serial: bool,
    /// `echo`: send received bytes back.
    pub echo: bool,
    /// `hold`: hold and re-check register values.
    pub hold: bool,
    /// `avx`: how far to hold values in vector registers beyond SSE.
    pub avx: Avx,
    /// `tsc_khz`: TSC frequency in kHz, 0 to let the guest find out.
    pub tsc_khz: u64,
}

impl CommandLine {
    /// How many vCPUs the machine must have for this command line.
    pub fn vcpus(&self) -> u32 {
        self.cpus + u32::from(self.sleeper) + u32::from(self.waiter)
    }
}

impl Default for CommandLine {
    fn default() -> Self {
        Self {
            heartbeat: Heartbeat { port: 0xe9, period_us: 1000 },
            say_port: 0x3f8,
            seed: 0x5eed,
            mem_mib: 0,
            set_mib: 16,
            rate_mib_per_s: 64,
            fill: Fill::Zero,
            placement: Placement::Low,
            scan_mib_per_s: None,
            cpus: 1,
            sleeper: false,
            waiter: false,
            tick_us: 10_000,
            pend: false,
            serial: true,
            echo: false,
            hold: true,
            avx: Avx::Avx512,
            tsc_khz: 0,
        }
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fill = match self.fill {
            Fill::Zero => "zero",
            Fill::Random => "random",
        };
        let at = match self.placement {
            Placement::Low => "low",
            Placement::High => "high",
        };
        write!(f, "hb={:#x},{} say={:#x}", self.heartbeat.port, self.heartbeat.period_us, self.say_port)?;
        write!(
            f,
            " seed={:#x} mem={} set={} rate={}",
            self.seed, self.mem_mib, self.set_mib, self.rate_mib_per_s
        )?;
        write!(f, " fill={fill} at={at}")?;
        if let Some(scan) = self.scan_mib_per_s {
            write!(f, " scan={scan}")?;
        }
        write!(f, " cpus={} sleep={} wait={}", self.cpus, u8::from(self.sleeper), u8::from(self.waiter))?;
        write!(f, " tick={} pend={} serial={}", self.tick_us, u8::from(self.pend), u8::from(self.serial))?;
        write!(f, " echo={} hold={} avx={}", u8::from(self.echo), u8::from(self.hold), self.avx as u8)?;
        if self.tsc_khz != 0 {
            write!(f, " tsc_khz={}", self.tsc_khz)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_line_names_every_default_of_the_table() {
        assert_eq!(
            CommandLine::default().to_string(),
            "hb=0xe9,1000 say=0x3f8 seed=0x5eed mem=0 set=16 rate=64 fill=zero at=low cpus=1 sleep=0 wait=0 \
             tick=10000 pend=0 serial=1 echo=0 hold=1 avx=2"
        );
    }

    #[test]
    fn optional_values_are_written_only_when_given() {
        let line =
            CommandLine { scan_mib_per_s: Some(3), tsc_khz: 2_000_000, ..CommandLine::default() }.to_string();
        assert!(line.contains(" scan=3 "), "{line}");
        assert!(line.ends_with(" tsc_khz=2000000"), "{line}");
    }

    #[test]
    fn sleeper_and_waiter_need_a_vcpu_each() {
        let line = CommandLine { cpus: 2, sleeper: true, waiter: true, ..CommandLine::default() };
        assert_eq!(line.vcpus(), 4);
    }
}
