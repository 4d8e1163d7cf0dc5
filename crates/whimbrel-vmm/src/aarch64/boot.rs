//! Direct boot of an arm64 Linux `Image` (Linux: Documentation/arch/arm64/booting).
//!
//! ```text
//! RAM            device tree, at most 2 MiB (X0 points here)
//! RAM + 2 MiB    kernel, plus its text offset if that is less than 2 MiB; else the kernel at its text offset into RAM, as in QEMU
//! …              initrd: halfway into RAM, at most 128 MiB, and behind the kernel
//! ```
//! Everything is written through the regions, so the dirty log sees a reset during a migration.

use std::io::Cursor;
use std::sync::Arc;

use linux_loader::loader::{KernelLoader, PE};
use vm_memory::GuestAddress;
use whimbrel::memory::PAGE_SIZE;

use super::fdt::Tree;
use super::map;
use super::vcpu::Entry;
use crate::config::VmConfig;
use crate::error::Error;
use crate::memory::GuestRam;

const DEVICE_TREE: u64 = map::RAM;
/// Kernels are aligned to it, and expect a device tree to lie within one.
const TWO_MIB: u64 = 2 << 20;
const INITRD_MAX: u64 = 128 << 20;
/// Offsets in an `Image`'s header: how far the kernel is to lie from a 2 MiB boundary; what it takes, with what is not in the file.
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;

/// Images to boot, and how to enter them.
pub(super) struct Boot {
    kernel: Arc<[u8]>,
    initrd: Option<(u64, Arc<[u8]>)>,
    device_tree: Vec<u8>,
}

impl Boot {
    /// Reads the images of a configuration; `None` if it has no kernel. `cpus`: the vCPUs' affinities.
    ///
    /// # Errors
    /// If a file cannot be read, or what is to be booted does not fit.
    pub(super) fn new(config: &VmConfig, cpus: &[u64]) -> Result<Option<Self>, Error> {
        let Some(kernel) = &config.kernel else { return Ok(None) };
        let kernel = kernel.read()?;
        let initrd = match &config.initrd {
            Some(image) => {
                let bytes = image.read()?;
                Some((place_initrd(config.memory, &kernel, bytes.len() as u64)?, bytes))
            }
            None => None,
        };
        let tree = Tree {
            memory: config.memory,
            cpus,
            command_line: &config.command_line,
            initrd: initrd.as_ref().map(|(at, bytes)| (*at, at + bytes.len() as u64)),
        };
        let device_tree = tree.build().map_err(|error| Error::Kernel(format!("device tree: {error}")))?;
        if device_tree.len() as u64 > TWO_MIB {
            return Err(Error::Kernel("the command line is too long for the device tree".into()));
        }
        Ok(Some(Self { kernel, initrd, device_tree }))
    }

    /// Writes everything into RAM; where the first vCPU begins.
    ///
    /// # Errors
    /// If the kernel is no `Image` or does not fit.
    pub(super) fn load(&self, ram: &GuestRam) -> Result<Entry, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::Kernel(format!("{what}: {error}"));
        let base = GuestAddress(map::RAM + kernel_base(&self.kernel));
        let loaded = PE::load(ram.ram(), Some(base), &mut Cursor::new(&self.kernel[..]), None)
            .map_err(|error| failed("loading the Image", &error))?;
        ram.write(DEVICE_TREE, &self.device_tree).map_err(|error| failed("device tree", &error))?;
        if let Some((at, bytes)) = &self.initrd {
            ram.write(*at, bytes).map_err(|error| failed("initrd", &error))?;
        }
        Ok(Entry { pc: loaded.kernel_load.0, x0: DEVICE_TREE })
    }
}

/// Where in RAM the boundary is that the kernel counts its text offset from.
fn kernel_base(kernel: &[u8]) -> u64 {
    if field(kernel, TEXT_OFFSET) >= TWO_MIB { 0 } else { TWO_MIB }
}

fn field(kernel: &[u8], at: usize) -> u64 {
    kernel.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(std::array::from_fn(|index| bytes[index])))
}

fn place_initrd(memory: u64, kernel: &[u8], len: u64) -> Result<u64, Error> {
    let kernel_end = kernel_base(kernel)
        .saturating_add(field(kernel, TEXT_OFFSET))
        .saturating_add(field(kernel, IMAGE_SIZE).max(kernel.len() as u64));
    let at = (memory / 2).min(INITRD_MAX).max(kernel_end).checked_next_multiple_of(PAGE_SIZE);
    match at.and_then(|at| Some((at, at.checked_add(len)?))) {
        Some((at, end)) if end <= memory => Ok(map::RAM + at),
        _ => Err(Error::Kernel("kernel and initrd do not fit into RAM".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initrd_lies_behind_the_kernel_and_within_ram() {
        let mut kernel = vec![0; 64];
        assert_eq!(place_initrd(64 << 20, &kernel, 100).unwrap(), map::RAM + (32 << 20));
        assert_eq!(place_initrd(1 << 30, &kernel, 100).unwrap(), map::RAM + INITRD_MAX);
        kernel[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&(40u64 << 20).to_le_bytes());
        assert_eq!(place_initrd(64 << 20, &kernel, 100).unwrap(), map::RAM + (42 << 20));
        assert!(place_initrd(64 << 20, &kernel, 23 << 20).is_err());
        kernel[TEXT_OFFSET..TEXT_OFFSET + 8].copy_from_slice(&TWO_MIB.to_le_bytes());
        assert_eq!(kernel_base(&kernel), 0);
        assert_eq!(place_initrd(64 << 20, &kernel, 100).unwrap(), map::RAM + (42 << 20));
        kernel[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(place_initrd(64 << 20, &kernel, 1).is_err());
    }
}
