//! The loop of a vCPU thread: enter the guest, serve the exit, come to the gate when asked.

use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Shared;
use crate::arch;
use crate::bus::{Asked, Bus};
use crate::dirty::DirtyLog;
use crate::events::GuestEvents;
use crate::lock;

/// Where exits go.
pub struct Exits {
    /// Port and MMIO.
    pub bus: Bus,
    /// What the guest does to the machine as a whole.
    pub events: Arc<dyn GuestEvents>,
    /// Full dirty rings.
    pub dirty: DirtyLog,
}

/// Whether the vCPU can enter the guest again.
enum Next {
    Enter,
    Hold,
}

/// Runs until the gate says to end.
pub(super) fn run(shared: &Shared, index: u32, exits: &Exits) {
    while shared.gate.pass() {
        let mut fd = lock(&shared.fd);
        loop {
            // This order closes the race with a kick: whoever closes the gate then sets the flag, so either the gate is seen
            // closed here or KVM_RUN returns at once.
            shared.immediate_exit.set(0);
            if shared.gate.is_closed() {
                break;
            }
            if let Next::Hold = enter(&mut fd, index, exits) {
                shared.gate.hold();
            }
        }
        // A port or MMIO exit is finished by the next KVM_RUN only: without it the registers would be those of an instruction
        // half done. Finishing one (a string instruction, a split access) may lead to another.
        shared.immediate_exit.set(1);
        while !interrupted(&mut fd, index, exits) {}
    }
}

/// One KVM_RUN that enters no guest code. `true`: nothing was left to finish.
fn interrupted(fd: &mut VcpuFd, index: u32, exits: &Exits) -> bool {
    match fd.run() {
        Ok(exit) => match serve(exit, exits) {
            Served::Done => false,
            // With immediate_exit no guest code runs, so this can only be an exit that was held already.
            Served::Reset | Served::Shutdown | Served::InternalError | Served::Failed(_) => true,
        },
        Err(error) => {
            if !matches!(error.errno(), libc::EINTR | libc::EAGAIN) {
                tracing::error!(vcpu = index, %error, "KVM_RUN, finishing an exit");
            }
            true
        }
    }
}

fn enter(fd: &mut VcpuFd, index: u32, exits: &Exits) -> Next {
    let served = match fd.run() {
        Ok(exit) => serve(exit, exits),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Served::Done,
        Err(error) => Served::Failed(format!("KVM_RUN: {error}")),
    };
    match served {
        Served::Done => return Next::Enter,
        Served::Reset => exits.events.guest_reset(),
        Served::Shutdown => exits.events.guest_shutdown(),
        Served::InternalError => {
            let why = internal_error(fd);
            failed(fd, index, exits, &why);
        }
        Served::Failed(why) => failed(fd, index, exits, &why),
    }
    Next::Hold
}

fn failed(fd: &VcpuFd, index: u32, exits: &Exits, why: &str) {
    let at = arch::program_counter(fd).map(|pc| format!(" at {pc:#x}")).unwrap_or_default();
    exits.events.guest_failed(format!("vCPU {index}: {why}{at}"));
}

/// KVM's own reason for an internal error.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: after this exit the member `internal` is the one KVM has filled; it is plain numbers.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".into(),
        other => format!("KVM internal error {other}"),
    }
}

enum Served {
    Done,
    Reset,
    Shutdown,
    InternalError,
    Failed(String),
}

fn serve(exit: VcpuExit<'_>, exits: &Exits) -> Served {
    match exit {
        VcpuExit::IoIn(port, data) => exits.bus.read(port, data),
        VcpuExit::IoOut(port, data) => exits.bus.write(port, data),
        VcpuExit::MmioRead(address, data) => exits.bus.read_mmio(address, data),
        VcpuExit::MmioWrite(address, data) => match exits.bus.write_mmio(address, data) {
            Asked::Nothing => {}
            Asked::Reset => return Served::Reset,
            Asked::Shutdown => return Served::Shutdown,
        },
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => {}
        // kvm-ioctls has no name for it.
        VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => match exits.dirty.ring_full() {
            Ok(()) => {}
            Err(error) => return Served::Failed(error.to_string()),
        },
        // A triple fault: what a PC does then is reset.
        VcpuExit::Shutdown => return Served::Reset,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Served::Reset,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Served::Shutdown,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
            return Served::Failed("the guest crashed".into());
        }
        VcpuExit::InternalError => {
            return Served::InternalError;
        }
        VcpuExit::FailEntry(reason, _) => {
            return Served::Failed(format!("the guest cannot be entered ({reason:#x})"));
        }
        other => return Served::Failed(format!("unexpected exit: {other:?}")),
    }
    Served::Done
}
