//! `cargo xtask fetch nested`: what runs Linux inside Linux on a machine whose own KVM cannot, and what builds for aarch64.
//!
//! ```text
//! nested/x86   vmlinuz, vmlinux      a Debian cloud kernel, as it comes and unpacked (an ELF with a PVH entry)
//!              modules/*.ko          its KVM, for nested guests
//!              busybox               static
//! nested/arm   vmlinuz-6.12          with KVM's dirty ring
//!              vmlinuz-6.1           without
//!              busybox               static, aarch64
//!              qemu-aarch64          runs aarch64 programs here
//!              rustc                 a Rust compiler with the standard library of both architectures
//! ```
//! The names are links into the unpacked packages. The emulator itself is `cargo xtask fetch qemu10`.

use std::fs;
use std::path::{Path, PathBuf};

use super::debian::{Debian, Package};
use super::{cache, create, executable, whole, write};

/// Makes a whole of what was unpacked: the folder it is in, the one it will be in.
type Finish = fn(&Path, &Path) -> Result<(), String>;
/// By architecture: what is unpacked, and what makes it a whole.
const SETS: &[(&str, &[Package], Finish)] = &[("x86", X86, finish_x86), ("arm", ARM, finish_arm)];
// A kernel's package that names no version depends on one that does.
#[rustfmt::skip]
const X86: &[Package] = &[
    Package { name: "linux-image-cloud-amd64", suite: "bookworm", with: &["linux-image-6"], into: "kernel" },
    Package { name: "busybox-static", suite: "bookworm", with: &[], into: "busybox-static" },
];
#[rustfmt::skip]
const ARM: &[Package] = &[
    Package { name: "linux-image-cloud-arm64:arm64", suite: "bookworm-backports", with: &["linux-image-6"], into: "kernel-6.12" },
    Package { name: "linux-image-cloud-arm64:arm64", suite: "bookworm", with: &["linux-image-6"], into: "kernel-6.1" },
    Package { name: "busybox-static:arm64", suite: "bookworm", with: &[], into: "busybox-static" },
    Package { name: "qemu-user-static", suite: "bookworm", with: &[], into: "qemu-user" },
    Package { name: "rustc-web", suite: "bookworm-security", with: &["libstd-rust-web", "libllvm"], into: "rust" },
    Package { name: "libstd-rust-web-dev:arm64", suite: "bookworm-security", with: &[], into: "rust" },
];

/// A name in the folder, and the file it stands for: a path in which one `*` stands for whatever is there.
type Link = (&'static str, &'static str);
const X86_LINKS: &[Link] = &[
    ("vmlinuz", "kernel/boot/vmlinuz-*"),
    ("modules/irqbypass.ko", "kernel/lib/modules/*/kernel/virt/lib/irqbypass.ko"),
    ("modules/kvm.ko", "kernel/lib/modules/*/kernel/arch/x86/kvm/kvm.ko"),
    ("modules/kvm-amd.ko", "kernel/lib/modules/*/kernel/arch/x86/kvm/kvm-amd.ko"),
    ("busybox", "busybox-static/bin/busybox"),
];
const ARM_LINKS: &[Link] = &[
    ("vmlinuz-6.12", "kernel-6.12/boot/vmlinuz-*"),
    ("vmlinuz-6.1", "kernel-6.1/boot/vmlinuz-*"),
    ("busybox", "busybox-static/bin/busybox"),
    ("qemu-aarch64", "qemu-user/usr/bin/qemu-aarch64-static"),
];

/// In a bzImage: the sectors of its setup code; where its compressed kernel begins behind that, and its length.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD: usize = 0x248;
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block unpacks to, at most.
const LZ4_BLOCK: usize = 8 << 20;

/// Fetches what is missing: of one architecture, or of both.
///
/// # Errors
/// What failed, and what to do about it.
pub(crate) fn nested(wanted: Option<&str>) -> Result<(), String> {
    for (name, packages, finish) in SETS {
        if wanted.is_some_and(|wanted| wanted != *name) {
            continue;
        }
        let target = cache().join("nested").join(name);
        whole(&target, |work| {
            let root = work.join("root");
            Debian::new(work)?.unpack(packages, &root)?;
            finish(&root, &target)?;
            Ok(root)
        })?;
        println!("{}", target.display());
    }
    Ok(())
}

fn finish_x86(root: &Path, _: &Path) -> Result<(), String> {
    links(root, X86_LINKS)?;
    unpack_kernel(&root.join("vmlinuz"), &root.join("vmlinux"))
}

fn finish_arm(root: &Path, target: &Path) -> Result<(), String> {
    links(root, ARM_LINKS)?;
    let usr = target.join("rust/usr");
    let usr = usr.display();
    let wrapper =
        format!("#!/bin/sh\nLD_LIBRARY_PATH='{usr}/lib/x86_64-linux-gnu' exec '{usr}/bin/rustc' \"$@\"\n");
    write(&root.join("rustc"), &wrapper)?;
    executable(&root.join("rustc"))
}

fn links(root: &Path, links: &[Link]) -> Result<(), String> {
    for (name, pattern) in links {
        let found = find(root, pattern).ok_or_else(|| format!("no {pattern} in what was fetched"))?;
        let name = root.join(name);
        create(name.parent().unwrap_or(root))?;
        // A hard link: it stays right when the whole is moved to its place.
        fs::hard_link(&found, &name).map_err(|error| format!("{}: {error}", name.display()))?;
    }
    Ok(())
}

/// The one file that a pattern stands for.
fn find(root: &Path, pattern: &str) -> Option<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return Some(root.join(pattern)) };
    let (folder, start) = before.rsplit_once('/')?;
    let entries = fs::read_dir(root.join(folder)).ok()?.flatten();
    let name =
        entries.map(|entry| entry.file_name()).find(|name| name.to_string_lossy().starts_with(start))?;
    // Collected again: without the slash that joining nothing leaves.
    Some(root.join(folder).join(name).join(after.trim_start_matches('/')).components().collect())
}

/// The ELF that a bzImage carries.
fn unpack_kernel(image: &Path, to: &Path) -> Result<(), String> {
    let failed = |what: &str| format!("{}: {what}", image.display());
    let bytes = fs::read(image).map_err(|error| failed(&error.to_string()))?;
    let payload = payload(&bytes).ok_or_else(|| failed("not a bzImage"))?;
    let elf = unpack_lz4(payload).ok_or_else(|| failed("the kernel in it is not compressed by LZ4"))?;
    fs::write(to, elf).map_err(|error| failed(&error.to_string()))
}

/// LZ4's legacy frame, as the kernel's build makes it: a magic number, blocks each after its length, and at the end the
/// whole's length.
fn unpack_lz4(frame: &[u8]) -> Option<Vec<u8>> {
    let mut rest = frame.strip_prefix(&LZ4_MAGIC)?;
    let mut whole = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        if after.is_empty() {
            let expected = u32::from_le_bytes(*len) as usize;
            return (whole.len() == expected).then_some(whole);
        }
        let (block, next) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        whole.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).ok()?);
        rest = next;
    }
    None
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        image.get(at..at + 4).map(|bytes| u32::from_le_bytes(std::array::from_fn(|i| bytes[i])) as usize)
    };
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = setup.checked_add(word(PAYLOAD)?)?;
    image.get(start..start.checked_add(word(PAYLOAD + 4)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_the_file_whose_name_has_a_version() {
        let root = std::env::temp_dir().join(format!("whimbrel-find-{}", std::process::id()));
        fs::create_dir_all(root.join("lib/modules/6.1/kernel")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join("boot/config-6.1"), "").unwrap();
        fs::write(root.join("boot/vmlinuz-6.1"), "").unwrap();
        assert_eq!(find(&root, "boot/vmlinuz-*"), Some(root.join("boot/vmlinuz-6.1")));
        assert_eq!(find(&root, "lib/modules/*/kernel/a.ko"), Some(root.join("lib/modules/6.1/kernel/a.ko")));
        assert_eq!(find(&root, "boot/initrd-*"), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_legacy_lz4_frame_unpacks_if_its_length_is_right() {
        let block = lz4_flex::block::compress(&[7; 1000]);
        let frame = |len: u32| {
            [&LZ4_MAGIC[..], &(block.len() as u32).to_le_bytes(), &block, &len.to_le_bytes()].concat()
        };
        assert_eq!(unpack_lz4(&frame(1000)), Some(vec![7; 1000]));
        assert_eq!(unpack_lz4(&frame(999)), None);
        assert_eq!(unpack_lz4(&frame(1000)[1..]), None, "another magic number");
        assert_eq!(unpack_lz4(&frame(1000)[..20]), None, "cut short");
    }

    #[test]
    fn the_payload_of_a_bzimage_is_where_its_header_says() {
        let mut image = vec![0; 2048];
        image[SETUP_SECTORS] = 1;
        image[PAYLOAD..PAYLOAD + 8].copy_from_slice(&[16, 0, 0, 0, 4, 0, 0, 0]);
        image[1040..1044].copy_from_slice(b"\xfd7zX");
        assert_eq!(payload(&image), Some(&b"\xfd7zX"[..]));
        image[PAYLOAD + 7] = 0xff;
        assert_eq!(payload(&image), None, "beyond the end");
        assert_eq!(payload(b"short"), None);
    }
}
