//! What the tests on real KVM share: skipping where there is none, and a guest of a few instructions.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod compare;
pub mod moving;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use whimbrel_vmm::{CharBackend, Debugcon, GuestEvents, Image, MemoryBackend, VmConfig};

/// Whether this test can run. Without /dev/kvm it says so, or fails if skips are not allowed (`WHIMBREL_NO_SKIP=1`).
pub fn kvm(test: &str) -> bool {
    let reason = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => return true,
        Err(error) => format!("/dev/kvm: {error}"),
    };
    skip(test, &reason)
}

/// Says that a test cannot run, or fails it if skips are not allowed. Always false.
pub fn skip(test: &str, reason: &str) -> bool {
    assert!(
        std::env::var_os("WHIMBREL_NO_SKIP").is_none_or(|v| v != "1"),
        "{test} may not be skipped: {reason}"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
    false
}

/// A PVH kernel: this 32-bit code at 1 MiB, entered at its first byte, with EBX at the start info.
pub fn kernel(code: &[u8]) -> Image {
    const HEADERS: usize = 64 + 2 * 56;
    const NOTE: usize = 12 + 4 + 4;
    let load = 0x10_0000u64;
    let mut elf = vec![0; HEADERS];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes()); // executable
    put(18, &62u16.to_le_bytes()); // x86-64
    put(20, &1u32.to_le_bytes());
    put(24, &load.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut segment = |at: usize, kind: u32, offset: usize, address: u64, len: usize| {
        put(at, &kind.to_le_bytes());
        put(at + 8, &(offset as u64).to_le_bytes());
        put(at + 16, &address.to_le_bytes());
        put(at + 24, &address.to_le_bytes());
        put(at + 32, &(len as u64).to_le_bytes());
        put(at + 40, &(len as u64).to_le_bytes());
        put(at + 48, &4u64.to_le_bytes());
    };
    segment(64, 1, HEADERS + NOTE, load, code.len());
    segment(64 + 56, 4, HEADERS, 0, NOTE);
    // One note: name "Xen", type XEN_ELFNOTE_PHYS32_ENTRY, a 32-bit address.
    for word in [4u32, 4, 18] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend((load as u32).to_le_bytes());
    elf.extend(code);
    Image::Bytes(elf.into())
}

/// A machine of 64 MiB with its debug console in a file.
pub fn config(kernel: Image, console: &Console) -> VmConfig {
    VmConfig {
        memory: 64 << 20,
        backend: MemoryBackend::Anonymous,
        kernel: Some(kernel),
        debugcon: Some(Debugcon { port: 0xe9, backend: CharBackend::File(console.path.clone()) }),
        ..VmConfig::default()
    }
}

/// A file a guest writes to.
pub struct Console {
    /// Where it is.
    pub path: PathBuf,
}

impl Console {
    /// An empty one.
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("whimbrel-{}-{test}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self { path }
    }

    /// What was written so far.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.path) {
            file.read_to_end(&mut bytes).unwrap();
        }
        bytes
    }

    /// Waits until what was written satisfies `f`.
    pub fn wait(&self, what: &str, f: impl Fn(&[u8]) -> bool) {
        let bytes = || String::from_utf8_lossy(&self.bytes()).into_owned();
        eventually(what, || f(&self.bytes()))
            .unwrap_or_else(|| panic!("{what}; the console has {:?}", bytes()));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Waits up to a minute.
pub fn eventually(_what: &str, mut f: impl FnMut() -> bool) -> Option<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if f() {
            return Some(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// What a guest did to its machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Reset,
    Shutdown,
    Failed(String),
}

/// A listener and what it hears.
pub fn events() -> (impl GuestEvents, Receiver<Event>) {
    let (sender, receiver) = channel();
    (Listener(Arc::new(std::sync::Mutex::new(sender))), receiver)
}

struct Listener(Arc<std::sync::Mutex<std::sync::mpsc::Sender<Event>>>);

impl Listener {
    fn tell(&self, event: Event) {
        let _ = self.0.lock().unwrap().send(event);
    }
}

impl GuestEvents for Listener {
    fn guest_reset(&self) {
        self.tell(Event::Reset);
    }
    fn guest_shutdown(&self) {
        self.tell(Event::Shutdown);
    }
    fn guest_failed(&self, text: String) {
        self.tell(Event::Failed(text));
    }
}
