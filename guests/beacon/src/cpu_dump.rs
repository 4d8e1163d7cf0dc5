//! The second guest, [`CPU_DUMP`](crate::CPU_DUMP): it tells what CPU it sees. It dumps CPUID and the MSRs that
//! describe the CPU to port 0xe9 when it starts, and again for every byte it receives on its serial line. The byte `M` has it set
//! MISC_FEATURES_ENABLES (MSR 0x140) to 1 first, `m` to 0: a register that no migration stream carries.
//!
//! A dump is a row of records of six little-endian words:
//!
//! | record | words |
//! |---|---|
//! | a CPUID leaf | leaf, sub-leaf, EAX, EBX, ECX, EDX |
//! | an MSR | number, 2³²−1, low half, high half, 1: it exists (0: #GP), 0 |
//! | the end | 2³²−1, 2³²−1, anything |

use std::collections::BTreeMap;
use std::fmt;

const RECORD: usize = 24;
const NONE: u32 = u32::MAX;

/// What a guest's CPU says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuDump {
    /// EAX, EBX, ECX and EDX by leaf and sub-leaf.
    pub leaves: BTreeMap<(u32, u32), [u32; 4]>,
    /// MSRs by number; `None`: the CPU has none.
    pub msrs: BTreeMap<u32, Option<u64>>,
}

impl CpuDump {
    /// The whole dumps in what a guest wrote; one that is still being written is left out.
    pub fn parse(bytes: &[u8]) -> Vec<Self> {
        let mut dumps = Vec::new();
        let mut dump = Self::default();
        for record in bytes.chunks_exact(RECORD) {
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| record[4 * at + byte]));
            match (word(0), word(1)) {
                (NONE, NONE) => dumps.push(std::mem::take(&mut dump)),
                (msr, NONE) => {
                    let value = u64::from(word(2)) | u64::from(word(3)) << 32;
                    dump.msrs.insert(msr, (word(4) != 0).then_some(value));
                }
                place => {
                    dump.leaves.insert(place, [2, 3, 4, 5].map(word));
                }
            }
        }
        dumps
    }

    /// What another dump says otherwise, a line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let leaves = self.leaves.iter().filter_map(|(place, mine)| {
            let theirs = other.leaves.get(place);
            let (leaf, index) = place;
            (theirs != Some(mine)).then(|| format!("CPUID {leaf:#x}.{index}: {mine:x?}, {theirs:x?}"))
        });
        let msrs = self.msrs.iter().filter_map(|(msr, mine)| {
            let theirs = other.msrs.get(msr);
            (theirs != Some(mine)).then(|| format!("MSR {msr:#x}: {mine:x?}, {theirs:x?}"))
        });
        let missing = (self.leaves.len(), self.msrs.len()) != (other.leaves.len(), other.msrs.len());
        leaves.chain(msrs).chain(missing.then(|| "one dump is longer".to_owned())).collect()
    }
}

/// Every leaf that says something, and every MSR.
impl fmt::Display for CpuDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((leaf, index), [eax, ebx, ecx, edx]) in &self.leaves {
            if eax | ebx | ecx | edx != 0 {
                writeln!(f, "{leaf:#010x}.{index} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")?;
            }
        }
        for (msr, value) in &self.msrs {
            match value {
                Some(value) => writeln!(f, "msr {msr:#010x} {value:#x}")?,
                None => writeln!(f, "msr {msr:#010x} none")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn whole_dumps_are_read_and_compared() {
        let dump = bytes(&[
            1, 0, 2, 3, 4, 5, 0x10a, NONE, 7, 8, 1, 0, 0x345, NONE, 0, 0, 0, 0, NONE, NONE, 0, 0, 0, 0,
        ]);
        let again = bytes(&[
            1, 0, 2, 3, 9, 5, 0x10a, NONE, 7, 8, 1, 0, 0x345, NONE, 0, 0, 0, 0, NONE, NONE, 0, 0, 0, 0,
        ]);
        let dumps = CpuDump::parse(&[&dump[..], &again, &dump[..30]].concat());
        assert_eq!(dumps.len(), 2);
        assert_eq!(dumps[0].leaves[&(1, 0)], [2, 3, 4, 5]);
        assert_eq!((dumps[0].msrs[&0x10a], dumps[0].msrs[&0x345]), (Some(0x8_0000_0007), None));
        assert_eq!(dumps[0].differences(&dumps[0]), [""; 0]);
        let differences = dumps[0].differences(&dumps[1]);
        assert!(matches!(&differences[..], [one] if one.starts_with("CPUID 0x1.0")), "{differences:?}");
    }
}
