//! The control block: the guest's account of itself at a fixed guest-physical address.
//!
//! All fields are little-endian. The header fills a page at one of [`ADDRESSES`]; the block of vCPU *n* (its APIC id, or its
//! lowest affinity) is the page at that address + 0x1000 × (n + 1). What is not listed is zero.
//!
//! | header offset | type | field |
//! |---|---|---|
//! | 0x00 | u64 | magic [`MAGIC`] |
//! | 0x08, 0x0c | u32 | version [`VERSION`]; state: 1 filling, 2 running |
//! | 0x10, 0x18 | u64 | seed; TSC frequency in kHz |
//! | 0x20, 0x24 | u32 | source of the frequency (1 option, 2 the CPU, 3 kvmclock, 4 LAPIC timer); LAPIC timer frequency in kHz |
//! | 0x28, 0x2c | u32 | worker vCPUs; all vCPUs |
//! | 0x30 | u64 | classes of held registers that are checked, bit = [`Class`] |
//! | 0x38, 0x3c | u32 | fill (0 zero, 1 random); heartbeat port |
//! | 0x40, 0x48 | u64 | heartbeat period in µs; panics |
//! | 0x50 | u64 | data pages in all ranges |
//! | 0x58, 0x60 | u64 | working set: index of its first data page, pages |
//! | 0x68, 0x70 | u64 | fill: index of its first data page, pages |
//! | 0x78 | u64 | number of ranges, at most 8 |
//! | 0x80 | 8 × (u64, u64) | ranges of data pages: first page (address / 4096), pages. Data pages are numbered through them |
//! | 0x400 | 1024 bytes | command line, NUL-terminated |
//!
//! | vCPU offset | type | field |
//! |---|---|---|
//! | 0x00, 0x04 | u32 | role: 0 none, 1 worker, 2 sleeper, 3 waiting for SIPI; started |
//! | 0x08, 0x10 | u64 | its slice of the working set: first data page, pages |
//! | 0x18 | u64 | progress *p*: pages rewritten. With *n* pages in the slice, page *i* holds generation ⌊p/n⌋ + 1 if *i* < p mod n, else ⌊p/n⌋ |
//! | 0x20 | u64 | page (address / 4096) being rewritten, all ones: none. Its words are written in ascending order |
//! | 0x28, 0x30, 0x38 | u64 | its slice of the fill: first data page, pages; fill pages re-read |
//! | 0x40 | u64 | random pages looked at for "at most one edge" |
//! | 0x48, 0x50 | u64 | heartbeats; largest gap between two, in TSC ticks |
//! | 0x58 | u64 | timer interrupts |
//! | 0x60, 0x68 | u64 | number of the beat that ended the largest gap; TSC at the last beat |
//! | 0x70, 0x78 | u64 | times the timer was found lost; wakeups from HLT |
//! | 0x80, 0x88 | u64 | self-IPIs taken while held back; spurious interrupts |
//! | 0x90, 0x98 | u64 | self-IPIs sent; taken |
//! | 0xa0, 0xa8, 0xb0 | u64 | self-IPIs found lost; duplicated; 1 while one is held pending |
//! | 0xb8, 0xc0, 0xc8 | u64 | serial bytes received; their sum; the last |
//! | 0xd0 | 5 × u64 | mismatches: stale, foreign, corrupt, blank pages; registers |
//! | 0xf8 | 12 × u64 | checks made, by [`Class`] |
//! | 0x158 | 12 × u64 | checks failed, by [`Class`] |
//! | 0x1b8 | u64 | faults recorded: pages, registers, interrupts |
//! | 0x400 | 16 × 64 bytes | the first faults: u32 kind (1 stale, 2 foreign, 3 corrupt, 4 blank, 5 register, 6 interrupt), u32 what (register: class << 8 \| number), u64 page, u64 expected, 2 × u64 found, u64 progress, u64 TSC |

use std::time::Duration;

use crate::{Error, GuestMemory};

/// Guest-physical addresses of the control block: on x86-64, and on aarch64, where RAM begins at 1 GiB.
pub const ADDRESSES: [u64; 2] = [0x11_0000, 0x4031_0000];
/// The bytes `!BEACON1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"!BEACON1");
/// Version of the layout above.
pub const VERSION: u32 = 1;
/// vCPUs the block has room for.
pub const MAX_VCPUS: usize = 16;

const PAGE: usize = 4096;
const RUNNING: u32 = 2;
const MAX_RANGES: u64 = 8;
const MAX_RECORDS: u64 = 16;

/// Classes of values that the guest holds in registers and re-checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// x87: control, status and tag words, five values on the stack.
    X87 = 0,
    /// SSE: MXCSR and XMM0–15. aarch64: FPCR, FPSR and V0–31.
    Sse = 1,
    /// AVX: the high halves of YMM0–15.
    Avx = 2,
    /// The bases of FS and GS. aarch64: TPIDR_EL0 and TPIDRRO_EL0.
    SegmentBase = 3,
    /// DR0–3. aarch64: the addresses of two breakpoints and two watchpoints.
    Debug = 4,
    /// RFLAGS: ID and DF. aarch64: N, Z and C.
    Flags = 5,
    /// General registers.
    General = 6,
    /// MSRs: kernel GS base, STAR, LSTAR, CSTAR, FMASK, SYSENTER. aarch64: TPIDR_EL1, SP_EL0, FAR_EL1, CONTEXTIDR_EL1, TTBR1_EL1.
    Msr = 7,
    /// kvmclock: time must not run backwards, and its MSR must stay set. aarch64: the virtual counter.
    Clock = 8,
    /// AVX-512: K0–7, the high halves of ZMM0–15, ZMM16–31.
    Avx512 = 9,
}

/// A run of data pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical address / 4096.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
}

/// A run of data pages by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Number of the first data page.
    pub first: u64,
    /// How many.
    pub pages: u64,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing: not there, or never started.
    Unused,
    /// Dirties and checks.
    Worker,
    /// Sleeps in HLT.
    Sleeper,
    /// Waits for SIPI.
    Waiting,
}

/// A fault the guest found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// See the table.
    pub kind: u32,
    /// See the table.
    pub what: u32,
    /// The page, for a page.
    pub page: u64,
    /// The expected generation, value or count.
    pub expected: u64,
    /// What was found.
    pub found: [u64; 2],
    /// The vCPU's progress at that moment.
    pub progress: u64,
    /// The TSC at that moment.
    pub tsc: u64,
}

/// One vCPU's account.
#[derive(Clone, Debug)]
pub struct Vcpu {
    /// What it does.
    pub role: Role,
    /// Whether it has run guest code.
    pub started: bool,
    /// Its part of the working set.
    pub set: Slice,
    /// Pages rewritten.
    pub progress: u64,
    /// The page being rewritten.
    pub writing: Option<u64>,
    /// Its part of the fill.
    pub fill: Slice,
    /// Fill pages re-read.
    pub scanned: u64,
    /// Random pages looked at for "at most one edge".
    pub edges: u64,
    /// Heartbeats.
    pub beats: u64,
    /// Largest gap between two heartbeats in TSC ticks.
    pub max_gap_ticks: u64,
    /// Number of the beat that ended the largest gap.
    pub max_gap_beat: u64,
    /// Timer interrupts.
    pub ticks: u64,
    /// Times the timer was found lost.
    pub timer_lost: u64,
    /// Wakeups from HLT.
    pub wakeups: u64,
    /// Spurious interrupts.
    pub spurious: u64,
    /// Self-IPIs sent.
    pub ipis_sent: u64,
    /// Self-IPIs taken.
    pub ipis_taken: u64,
    /// Self-IPIs found early, lost, duplicated.
    pub ipi_faults: [u64; 3],
    /// Whether a self-IPI is held pending right now.
    pub ipi_held: bool,
    /// Serial bytes received.
    pub serial_bytes: u64,
    /// Their sum.
    pub serial_sum: u64,
    /// The last of them.
    pub serial_last: u8,
    /// Stale, foreign, corrupt and blank pages.
    pub page_mismatches: [u64; 4],
    /// Register mismatches.
    pub register_mismatches: u64,
    /// Checks made, by [`Class`].
    pub checks: [u64; 12],
    /// Checks failed, by [`Class`].
    pub failures: [u64; 12],
    /// All faults found.
    pub faults: u64,
    /// The first of them.
    pub first_faults: Vec<Fault>,
}

impl Vcpu {
    /// The generation that page `index` of its slice holds, but for the page being written.
    pub fn generation(&self, index: u64) -> u64 {
        let pass = self.progress.checked_div(self.set.pages).unwrap_or(0);
        let cursor = self.progress.checked_rem(self.set.pages).unwrap_or(0);
        if index < cursor { pass.wrapping_add(1) } else { pass }
    }
}

/// The guest's account of itself.
#[derive(Clone, Debug)]
pub struct ControlBlock {
    /// Seed of every page's content.
    pub seed: u64,
    /// TSC frequency in kHz, and where the guest has it from.
    pub tsc_khz: u64,
    /// See the table.
    pub tsc_source: u32,
    /// Worker vCPUs.
    pub workers: u32,
    /// Whether the fill is incompressible; else it is zero.
    pub fill_random: bool,
    /// Bit set of [`Class`].
    pub classes: u64,
    /// Panics.
    pub panics: u64,
    /// Ranges of data pages.
    pub ranges: Vec<Range>,
    /// The working set.
    pub set: Slice,
    /// The fill.
    pub fill: Slice,
    /// The command line as the guest got it.
    pub command_line: String,
    /// The vCPUs that have a role, in order of their APIC ids.
    pub vcpus: Vec<Vcpu>,
}

impl ControlBlock {
    /// Reads the block of a stopped guest and checks that it doesn't contradict itself.
    pub fn read(memory: &impl GuestMemory) -> Result<Self, Error> {
        let (address, header) = Self::find(memory)?;
        if header.u32(8) != VERSION {
            return Err(Error::Version { found: header.u32(8) });
        }
        if header.u32(0x0c) != RUNNING {
            return Err(Error::NotReady { state: header.u32(0x0c) });
        }
        let ranges = at_most("ranges", header.u64(0x78), MAX_RANGES)?;
        let vcpus = at_most("vcpus", u64::from(header.u32(0x2c)), MAX_VCPUS as u64)?;
        let line = &header.0[0x400..0x800];
        let block = Self {
            seed: header.u64(0x10),
            tsc_khz: header.u64(0x18),
            tsc_source: header.u32(0x20),
            workers: header.u32(0x28),
            fill_random: header.u32(0x38) != 0,
            classes: header.u64(0x30),
            panics: header.u64(0x48),
            ranges: (0..ranges)
                .map(|n| Range { first_page: header.u64(0x80 + 16 * n), pages: header.u64(0x88 + 16 * n) })
                .collect(),
            set: header.slice(0x58),
            fill: header.slice(0x68),
            command_line: String::from_utf8_lossy(line.split(|&byte| byte == 0).next().unwrap_or(line))
                .into_owned(),
            vcpus: (0..vcpus)
                .map(|n| Vcpu::parse(&Page::read(memory, address + (PAGE * (n + 1)) as u64)?))
                .collect::<Result<_, Error>>()?,
        };
        block.check(header.u64(0x50))?;
        Ok(block)
    }

    /// The header, and where it is. Memory that is not there at the other machine's address is no fault.
    fn find(memory: &impl GuestMemory) -> Result<(u64, Page), Error> {
        let at = |address| {
            let header = Page::read(memory, address)?;
            let found = header.u64(0);
            if found == MAGIC { Ok((address, header)) } else { Err(Error::NoControlBlock { found }) }
        };
        let [first, second] = ADDRESSES;
        at(first).or_else(|error| {
            at(second).map_err(|other| match (&error, &other) {
                (Error::Memory { .. }, Error::NoControlBlock { .. }) => other,
                _ => error,
            })
        })
    }

    /// The page number (guest-physical address / 4096) of data page `index`.
    pub fn data_page(&self, mut index: u64) -> Option<u64> {
        for range in &self.ranges {
            if index < range.pages {
                return range.first_page.checked_add(index);
            }
            index -= range.pages;
        }
        None
    }

    /// Whether values of `class` are being checked.
    pub fn holds(&self, class: Class) -> bool {
        self.classes & (1 << class as u8) != 0
    }

    /// Faults that the guest itself found, panics included.
    pub fn faults(&self) -> u64 {
        self.vcpus.iter().fold(self.panics, |sum, vcpu| sum.saturating_add(vcpu.faults))
    }

    /// The largest gap between two heartbeats that the guest itself saw.
    pub fn largest_gap(&self) -> Duration {
        let ticks = self.vcpus.first().map_or(0, |vcpu| vcpu.max_gap_ticks);
        let nanoseconds = u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Slices must lie within the data pages, and those within the address space.
    fn check(&self, data_pages: u64) -> Result<(), Error> {
        let mut sum = 0u64;
        for range in &self.ranges {
            sum = sum.saturating_add(range.pages);
            if range.first_page.saturating_add(range.pages) > 1 << 40 {
                return Err(Error::Damaged { field: "range", value: range.first_page });
            }
        }
        if sum != data_pages {
            return Err(Error::Damaged { field: "data pages", value: data_pages });
        }
        let slices = self.vcpus.iter().flat_map(|vcpu| [vcpu.set, vcpu.fill]).chain([self.set, self.fill]);
        for slice in slices {
            if slice.first.saturating_add(slice.pages) > data_pages {
                return Err(Error::Damaged { field: "slice", value: slice.first });
            }
        }
        let workers = self.vcpus.iter().filter(|vcpu| vcpu.role == Role::Worker);
        let shares: u64 = workers.map(|vcpu| vcpu.set.pages).fold(0, u64::saturating_add);
        if shares != self.set.pages {
            return Err(Error::Damaged { field: "working set", value: shares });
        }
        Ok(())
    }
}

impl Vcpu {
    fn parse(page: &Page) -> Result<Self, Error> {
        let role = match page.u32(0) {
            0 => Role::Unused,
            1 => Role::Worker,
            2 => Role::Sleeper,
            3 => Role::Waiting,
            other => return Err(Error::Damaged { field: "role", value: u64::from(other) }),
        };
        let faults = page.u64(0x1b8);
        Ok(Self {
            role,
            started: page.u32(4) != 0,
            set: page.slice(0x08),
            progress: page.u64(0x18),
            writing: Some(page.u64(0x20)).filter(|&writing| writing != u64::MAX),
            fill: page.slice(0x28),
            scanned: page.u64(0x38),
            edges: page.u64(0x40),
            beats: page.u64(0x48),
            max_gap_ticks: page.u64(0x50),
            ticks: page.u64(0x58),
            max_gap_beat: page.u64(0x60),
            timer_lost: page.u64(0x70),
            wakeups: page.u64(0x78),
            spurious: page.u64(0x88),
            ipis_sent: page.u64(0x90),
            ipis_taken: page.u64(0x98),
            ipi_faults: [0x80, 0xa0, 0xa8].map(|offset| page.u64(offset)),
            ipi_held: page.u64(0xb0) != 0,
            serial_bytes: page.u64(0xb8),
            serial_sum: page.u64(0xc0),
            serial_last: page.0[0xc8],
            page_mismatches: page.array(0xd0),
            register_mismatches: page.u64(0xf0),
            checks: page.array(0xf8),
            failures: page.array(0x158),
            faults,
            first_faults: (0..faults.min(MAX_RECORDS) as usize).map(|n| page.fault(0x400 + 64 * n)).collect(),
        })
    }
}

/// A page of the block; offsets are those of the tables.
struct Page([u8; PAGE]);

impl Page {
    fn read(memory: &impl GuestMemory, gpa: u64) -> Result<Self, Error> {
        let mut page = Self([0; PAGE]);
        memory.read(gpa, &mut page.0).map_err(|source| Error::Memory { gpa, source })?;
        Ok(page)
    }

    fn u32(&self, offset: usize) -> u32 {
        (self.u64(offset & !7) >> (8 * (offset & 7))) as u32
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.0[offset + n]))
    }

    fn array<const N: usize>(&self, offset: usize) -> [u64; N] {
        std::array::from_fn(|n| self.u64(offset + 8 * n))
    }

    fn slice(&self, offset: usize) -> Slice {
        Slice { first: self.u64(offset), pages: self.u64(offset + 8) }
    }

    fn fault(&self, offset: usize) -> Fault {
        Fault {
            kind: self.u32(offset),
            what: self.u32(offset + 4),
            page: self.u64(offset + 8),
            expected: self.u64(offset + 16),
            found: self.array(offset + 24),
            progress: self.u64(offset + 40),
            tsc: self.u64(offset + 48),
        }
    }
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<usize, Error> {
    if value > limit { Err(Error::Damaged { field, value }) } else { Ok(value as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_steps_at_the_cursor() {
        let mut vcpu = Vcpu::parse(&Page([0; PAGE])).expect("an unused vCPU");
        vcpu.set.pages = 4;
        vcpu.progress = 4 * 7 + 2;
        assert_eq!([0, 1, 2, 3].map(|index| vcpu.generation(index)), [8, 8, 7, 7]);
        vcpu.progress = 0;
        assert_eq!([0, 3].map(|index| vcpu.generation(index)), [0, 0]);
    }
}
