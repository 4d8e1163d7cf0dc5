//! What whoever drives a machine reaches of it beside [`Machine`](whimbrel::machine::Machine): alike on every architecture.

use crate::Vm;
use crate::events::GuestEvents;
use crate::vcpu::Vcpu;

impl Vm {
    /// Where guest resets and failures go. The first call counts.
    pub fn attach(&self, events: impl GuestEvents + 'static) {
        self.events.attach(events);
    }

    /// Reads guest-physical memory.
    ///
    /// # Errors
    /// If the range leaves guest memory.
    pub fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.ram.read(gpa, buf)
    }

    /// Writes guest-physical memory; the dirty log sees it.
    ///
    /// # Errors
    /// If the range leaves guest memory.
    pub fn write_physical(&self, gpa: u64, buf: &[u8]) -> std::io::Result<()> {
        self.ram.write(gpa, buf)
    }

    /// The system's numbers of the vCPUs' threads, in the vCPUs' order.
    pub fn vcpu_threads(&self) -> Vec<i32> {
        self.vcpus().map(Vcpu::thread_id).collect()
    }
}

impl Drop for Vm {
    /// No vCPU outlives the memory it runs in, even if a registry still holds it.
    fn drop(&mut self) {
        self.vcpus().for_each(Vcpu::end);
    }
}
