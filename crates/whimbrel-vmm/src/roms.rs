//! ROM blocks: files of the firmware interface that are blocks of RAM in the stream, so that a guest still in its firmware reads on what
//! it began to read elsewhere. The guest does not see them in its memory.
//!
//! A machine has the ROMs that came with its guest, in the sizes the source announced, and sends them on.

use whimbrel::machine::{AnnouncedBlock, MachineError};
use whimbrel::memory::PAGE_SIZE;

use crate::memory::GuestRam;

/// What the names of ROM blocks begin with; the rest is the file's name.
pub const PREFIX: &str = "/rom@";
/// The largest ROM taken: QEMU's largest here, the tables, may grow to 2 MiB.
const LARGEST: u64 = 16 << 20;
/// The most ROMs taken.
const MOST: usize = 32;

/// Makes the ROM blocks among `announced`; those that are none are left to whoever knows them.
///
/// # Errors
/// Names the block that cannot be had.
pub fn adopt(ram: &GuestRam, announced: &[AnnouncedBlock]) -> Result<(), MachineError> {
    let roms: Vec<_> = announced
        .iter()
        .filter(|block| block.name.starts_with(PREFIX))
        .map(|block| (block.name.as_str(), block.len))
        .collect();
    if roms.is_empty() {
        return Ok(());
    }
    if roms.len() > MOST {
        return Err(format!("{} ROM blocks: at most {MOST}", roms.len()).into());
    }
    if let Some((name, len)) = roms.iter().find(|(_, len)| !(PAGE_SIZE..=LARGEST).contains(len)) {
        return Err(
            format!("ROM block '{name}' of {len:#x} bytes: at most {LARGEST:#x}, and not empty").into()
        );
    }
    ram.add_roms(&roms).map_err(|error| error.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MemoryBackend, VmConfig};

    fn ram() -> GuestRam {
        let config = VmConfig { memory: 8 << 20, backend: MemoryBackend::Anonymous, ..VmConfig::default() };
        GuestRam::new(&config).unwrap()
    }

    fn announced(blocks: &[(&str, u64)]) -> Vec<AnnouncedBlock> {
        blocks.iter().map(|(name, len)| AnnouncedBlock { name: (*name).into(), len: *len }).collect()
    }

    #[test]
    fn roms_are_made_in_the_sizes_announced_and_nothing_else_is() {
        let ram = ram();
        let blocks =
            announced(&[("microvm.ram", 8 << 20), ("/rom@etc/acpi/tables", 0x3000), ("other", 0x1000)]);
        adopt(&ram, &blocks).unwrap();
        let names: Vec<_> = ram.blocks().iter().map(|block| (block.name(), block.len())).collect();
        assert_eq!(names[2..], [("/rom@etc/acpi/tables", 0x3000)]);
        ram.blocks()[2].write(0x2fff, &[1]).unwrap();
        adopt(&ram, &blocks).unwrap();
        let mut byte = [0];
        ram.blocks()[2].read(0x2fff, &mut byte).unwrap();
        assert_eq!(byte, [1], "a second attempt finds the same blocks");
        let other = announced(&[("/rom@etc/acpi/tables", 0x4000)]);
        assert!(adopt(&ram, &other).unwrap_err().0.contains("announced before"));
    }

    #[test]
    fn what_no_machine_has_is_refused_by_name() {
        let many: Vec<_> =
            (0..=MOST).map(|n| AnnouncedBlock { name: format!("/rom@{n}"), len: PAGE_SIZE }).collect();
        assert!(adopt(&ram(), &many).unwrap_err().0.contains("33"));
        for len in [0, LARGEST + PAGE_SIZE] {
            assert!(adopt(&ram(), &announced(&[("/rom@big", len)])).unwrap_err().0.contains("/rom@big"));
        }
        assert!(adopt(&ram(), &announced(&[("pc.rom", 1 << 40)])).is_ok(), "the engine names those");
    }
}
