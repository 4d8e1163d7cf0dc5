//! bzImage: Linux as distributions ship it, compressed, with a header that says how to enter it (Linux's boot protocol for x86).

use std::io::Cursor;

use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::GuestAddress;

use super::{ACPI, Boot, COMMAND_LINE, Entry, ONE_MIB, failed, memory_map};
use crate::error::Error;
use crate::memory::GuestRam;

const ZERO_PAGE: u64 = 0x5000;
/// Where the header's magic number stands.
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// The protocol's oldest version that knows `acpi_rsdp_addr` (2.14) is newer than what else is used here.
const OLDEST: u16 = 0x020e;
/// A loader that has no number of its own.
const UNKNOWN_LOADER: u8 = 0xff;

/// Whether an image is one.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Writes kernel, initrd and zero page.
pub(super) fn load(boot: &Boot, ram: &GuestRam) -> Result<Entry, Error> {
    let loaded =
        BzImage::load(ram.ram(), None, &mut Cursor::new(&boot.kernel[..]), Some(GuestAddress(ONE_MIB)))
            .map_err(|error| failed("loading the bzImage", &error))?;
    let Some(mut header) = loaded.setup_header.filter(|header| header.version >= OLDEST) else {
        return Err(Error::Kernel("the bzImage is of a boot protocol before 2.14 (Linux 4.20)".into()));
    };
    let limit = header.cmdline_size as usize;
    if boot.command_line.len() > limit + 1 {
        return Err(Error::Kernel(format!("this kernel's command line is at most {limit} bytes long")));
    }
    header.type_of_loader = UNKNOWN_LOADER;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some(initrd) = boot.load_initrd(ram, u64::from(header.initrd_addr_max) + 1)? {
        // Below 4 GiB: the limit is a number of 32 bits.
        header.ramdisk_image = initrd.at as u32;
        header.ramdisk_size = initrd.len as u32;
    }
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: ACPI, ..Default::default() };
    let map = memory_map(ram);
    page.e820_entries = map.len() as u8;
    for (entry, range) in page.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.at, size: range.len, r#type: range.kind };
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&page, GuestAddress(ZERO_PAGE)), ram.ram())
        .map_err(|error| failed("zero page", &error))?;
    Ok(Entry { rip: loaded.kernel_load.0, rbx: 0, rsi: ZERO_PAGE })
}
