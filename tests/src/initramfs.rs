//! Initial RAM file systems for Linux: cpio archives (`newc`), made in memory.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    inodes: u32,
    names: BTreeSet<String>,
}

impl Initramfs {
    /// With a static busybox and an `/init`, a script for its shell.
    ///
    /// # Panics
    /// If busybox cannot be read.
    pub fn new(busybox: &Path, init: &str) -> Self {
        let mut archive = Self::default();
        for folder in ["dev", "proc", "sys", "tmp"] {
            archive.folders(&format!("/{folder}/"));
        }
        archive.copy(busybox, "/bin/busybox");
        archive.file("/init", init.as_bytes(), 0o755);
        archive
    }

    /// Adds a file, and the folders it is in.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) {
        self.folders(path);
        self.entry(path.trim_start_matches('/'), FILE | mode, content);
    }

    /// Adds a file of this machine.
    ///
    /// # Panics
    /// If it cannot be read.
    #[track_caller]
    pub fn copy(&mut self, source: &Path, path: &str) {
        let read =
            || Ok::<_, std::io::Error>((std::fs::read(source)?, source.metadata()?.permissions().mode()));
        let (content, mode) = read().unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        self.file(path, &content, mode & 0o777);
    }

    /// Adds a program of this machine, with the shared libraries it is linked to.
    ///
    /// # Panics
    /// If it cannot be read.
    #[track_caller]
    pub fn program(&mut self, source: &Path, path: &str) {
        self.copy(source, path);
        // A static program has none, which ldd calls a failure.
        let listed = Command::new("ldd").arg(source).output().expect("ldd runs").stdout;
        for library in libraries(&String::from_utf8_lossy(&listed)) {
            if !self.names.contains(library.trim_start_matches('/')) {
                self.copy(Path::new(library), library);
            }
        }
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn folders(&mut self, path: &str) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            if !self.names.contains(&path[..end]) {
                self.entry(&path[..end], DIRECTORY, &[]);
            }
        }
    }

    /// Magic, then 13 numbers of 8 hexadecimal digits, name and content, each padded to 4 bytes.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let (name_len, len) = (name.len() as u32 + 1, content.len() as u32);
        let numbers = [self.inodes, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        let digits: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        write!(self.bytes, "070701{digits}{name}\0").expect("a vector takes it");
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self.names.insert(name.to_owned());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The paths in ldd's answer.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed.split_whitespace().filter(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Initramfs::default();
        archive.file("/a/b", b"hello", 0o644);
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert_eq!((bytes.len() % 4, bytes.iter().filter(|byte| **byte == b'/').count()), (0, 1));
        let file = text.find("a/b\0").expect("the file's name");
        assert_eq!(&text[file - 110..file - 88], "07070100000002000081a4");
        assert_eq!(&bytes[file + 6..file + 11], b"hello", "name padded to 4 bytes from the entry's start");
        assert!(text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let listed =
            "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(libraries(listed).collect::<Vec<_>>(), ["/lib/libc.so.6", "/lib64/ld.so"]);
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
    }
}
