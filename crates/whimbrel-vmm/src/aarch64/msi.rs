//! A test's device: it sends the MSIs that it is told to, as any PCI device would.
//!
//! A line `DEVICE EVENT` (numbers, decimal or 0x…) is answered by `DEVICE EVENT sent`, `… blocked` if the guest has not mapped
//! it, or `… ERROR`. While the vCPUs are paused lines wait, so that every MSI that was answered by `sent` is one that the stop
//! has kept: no MSI is sent after the pending tables were written. A guest that has arrived takes them before it runs.

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MSI_VALID_DEVID, kvm_msi};

use super::kvm::KvmVm;
use super::map::ITS_TRANSLATER;
use crate::chardev::{Output, Receiver};
use crate::lock;

/// Longer lines are none.
const LINE_MAX: usize = 64;

/// The device.
pub(super) struct MsiSender {
    kvm: Arc<KvmVm>,
    output: Output,
    inner: Mutex<Inner>,
}

struct Inner {
    line: Vec<u8>,
    open: bool,
}

impl MsiSender {
    /// Of this VM, answering to `output`. Closed.
    pub(super) fn new(kvm: Arc<KvmVm>, output: Output) -> Self {
        Self { kvm, output, inner: Mutex::new(Inner { line: Vec::new(), open: false }) }
    }

    /// Sends from now on, or no more.
    pub(super) fn open(&self, open: bool) {
        lock(&self.inner).open = open;
    }

    fn send(&self, line: &[u8]) -> String {
        let text = String::from_utf8_lossy(line);
        let Some((device, event)) = parse(&text) else { return format!("{text}: no DEVICE EVENT\n") };
        let msi = kvm_msi {
            address_lo: ITS_TRANSLATER as u32,
            address_hi: (ITS_TRANSLATER >> 32) as u32,
            data: event,
            devid: device,
            flags: KVM_MSI_VALID_DEVID,
            ..kvm_msi::default()
        };
        match self.kvm.vm.signal_msi(msi) {
            Ok(0) => format!("{device} {event} blocked\n"),
            Ok(_) => format!("{device} {event} sent\n"),
            Err(error) => format!("{device} {event} {error}\n"),
        }
    }
}

impl Receiver for MsiSender {
    /// A line at a time, under the lock: who closes waits for the MSI that is being sent.
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        if !inner.open {
            return 0;
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(bytes.len());
        let room = LINE_MAX.saturating_sub(inner.line.len());
        inner.line.extend_from_slice(&bytes[..taken.min(room)]);
        if end.is_none() {
            return taken;
        }
        let line = std::mem::take(&mut inner.line);
        self.output.write(self.send(&line).as_bytes());
        taken + 1
    }
}

fn parse(line: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let mut words = line.split_ascii_whitespace();
    let parsed = (number(words.next()?)?, number(words.next()?)?);
    words.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_two_numbers() {
        assert_eq!(parse("5 0x10\r"), Some((5, 16)));
        for no in ["", "5", "5 6 7", "5 x", "-1 0", "99999999999 0"] {
            assert_eq!(parse(no), None, "{no}");
        }
    }
}
