//! What serial ports have in common, whichever chip the guest sees: input that is taken while the machine runs, an interrupt line
//! that follows the registers. What the registers mean is each chip's own matter.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use crate::chardev::{Output, Receiver};
use crate::lock;

/// Drives an interrupt line.
pub(crate) type Line = Box<dyn Fn(bool) + Send + Sync>;

/// Everything the guest can see of a chip, and the queue behind it.
pub(crate) trait Registers: Clone + Send {
    fn power_on() -> Self;

    /// Whether the interrupt line is high.
    fn interrupt(&self) -> bool;

    /// How many bytes the receive queue still takes.
    fn room(&self) -> usize;

    /// A byte has come.
    fn push(&mut self, byte: u8);

    /// What is sent is received, and nothing else.
    fn loops_back(&self) -> bool;
}

/// A running serial port.
pub(crate) struct Uart<R> {
    inner: Mutex<Inner<R>>,
    output: Output,
    line: Line,
}

struct Inner<R> {
    registers: R,
    line: bool,
    running: bool,
    /// Came with a loaded state; not sent before the guest runs here, for until then it may yet run on there.
    unsent: Vec<u8>,
}

impl<R: Registers> Uart<R> {
    /// A stopped device after power-on.
    pub(crate) fn new(output: Output, line: Line) -> Self {
        let inner = Inner { registers: R::power_on(), line: false, running: false, unsent: Vec::new() };
        Self { inner: Mutex::new(inner), output, line }
    }

    /// Takes input from now on, or no more.
    pub(crate) fn set_running(&self, running: bool) {
        let mut inner = lock(&self.inner);
        inner.running = running;
        if running {
            self.output.write(&std::mem::take(&mut inner.unsent));
        }
    }

    /// Back to power-on.
    pub(crate) fn reset(&self) {
        let mut port = self.access();
        *port = R::power_on();
        port.inner.unsent.clear();
    }

    /// Puts a loaded state in, and bytes still to be sent. The line is not driven: the interrupt controllers' own state says what
    /// they have seen of it.
    pub(crate) fn restore(&self, registers: R, unsent: Vec<u8>) {
        let mut inner = lock(&self.inner);
        inner.line = registers.interrupt();
        inner.registers = registers;
        inner.unsent = unsent;
    }

    pub(crate) fn registers(&self) -> R {
        lock(&self.inner).registers.clone()
    }

    /// The registers, for as long as nobody else may have them. The line follows at the end.
    pub(crate) fn access(&self) -> Access<'_, R> {
        Access { inner: lock(&self.inner), uart: self }
    }
}

/// See [`Uart::access`].
pub(crate) struct Access<'a, R: Registers> {
    inner: MutexGuard<'a, Inner<R>>,
    uart: &'a Uart<R>,
}

impl<R: Registers> Access<'_, R> {
    /// The line follows now.
    pub(crate) fn settle(&mut self) {
        let line = self.interrupt();
        if line != self.inner.line {
            self.inner.line = line;
            (self.uart.line)(line);
        }
    }

    /// Sends a byte: to the outside, or to the receiver.
    pub(crate) fn send(&mut self, byte: u8) {
        if self.loops_back() {
            self.push(byte);
        } else {
            self.uart.output.write(&[byte]);
        }
    }
}

impl<R: Registers> Deref for Access<'_, R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.inner.registers
    }
}

impl<R: Registers> DerefMut for Access<'_, R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.inner.registers
    }
}

impl<R: Registers> Drop for Access<'_, R> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl<R: Registers> Receiver for Uart<R> {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut port = self.access();
        if !port.inner.running || port.loops_back() {
            return 0;
        }
        let count = port.room().min(bytes.len());
        bytes[..count].iter().for_each(|byte| port.push(*byte));
        count
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::chardev;
    use crate::config::CharBackend;

    /// A running device on a null backend, and the number of rising edges of its line.
    pub(crate) fn running<R: Registers>() -> (Uart<R>, Arc<AtomicU32>) {
        let edges = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&edges);
        let line = Box::new(move |level| {
            seen.fetch_add(u32::from(level), Ordering::SeqCst);
        });
        let (output, _) = chardev::open(&CharBackend::Null).unwrap();
        let uart = Uart::new(output, line);
        uart.set_running(true);
        (uart, edges)
    }
}
