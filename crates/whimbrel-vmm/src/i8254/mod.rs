//! The 8254, which is KVM's: its section, and its timer stopped while the machine is.
//!
//! KVM counts in the host's monotonic time, the section in the virtual clock. KVM's timer goes on while no vCPU runs, so on a stop its
//! state is taken and channel 0 is given a mode that has no timer; on a start all is put back. KVM then begins a period anew:
//! at most one period's phase is lost, as with QEMU.
//!
//! ```text
//! runs ── stop: KVM_GET_PIT2, hold, timer off ──▶ held ── start: KVM_SET_PIT2 ──▶ runs
//!                                                  ▲ load; apply puts it into KVM with the timer off
//! ```

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_channel_state, kvm_pit_config, kvm_pit_state2,
};
use whimbrel::downcast;
use whimbrel::handlers::{Device, StateChange};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::error::Error;
use crate::kvm::KvmVm;
use crate::lock;
use crate::state::{I8254, PitChannel};
use crate::timer::VirtualClock;

/// Ticks a second.
const FREQUENCY: i128 = 1_193_182;
const SECOND: i128 = 1_000_000_000;
/// What a count of 0 means.
const FULL_COUNT: i32 = 0x1_0000;
/// In no mode at all KVM's channel 0 has no timer.
const NO_MODE: u8 = 0xff;
const MODES: u8 = 8;

/// The device.
pub struct Pit {
    kvm: Arc<KvmVm>,
    clock: Arc<VirtualClock>,
    held: Mutex<Held>,
}

struct Held {
    /// As of the last stop.
    state: I8254,
    /// KVM's timer is on.
    running: bool,
}

impl Pit {
    /// Makes KVM's, at power-on.
    ///
    /// # Errors
    /// If KVM has none.
    pub fn new(kvm: Arc<KvmVm>, clock: Arc<VirtualClock>) -> Result<Self, Error> {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        kvm.vm.create_pit2(config).map_err(Error::kvm("KVM_CREATE_PIT2"))?;
        let held = Held { state: power_on(clock.now()), running: false };
        Ok(Self { held: Mutex::new(held), kvm, clock })
    }

    /// Puts the held state into KVM, without its timer.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn apply(&self) -> Result<(), MachineError> {
        self.put(&lock(&self.held).state, false)
    }

    /// Back to power-on; no vCPU runs, but a machine that is running is not stopped for it.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn reset(&self) -> Result<(), MachineError> {
        let mut held = lock(&self.held);
        held.state = power_on(self.clock.now());
        self.put(&held.state, held.running)
    }

    fn put(&self, state: &I8254, timer: bool) -> Result<(), MachineError> {
        let mut state = self.to_kvm(state);
        if !timer {
            state.channels[0].mode = NO_MODE;
        }
        self.kvm.vm.set_pit2(&state).map_err(|error| format!("i8254: KVM_SET_PIT2: {error}").into())
    }

    fn read(&self) -> Result<I8254, MachineError> {
        let state = self.kvm.vm.get_pit2().map_err(|error| format!("i8254: KVM_GET_PIT2: {error}"))?;
        let now = self.clock.now();
        let ahead = now.saturating_sub(monotonic());
        let mut channels = state.channels.map(|channel| from_kvm(&channel, ahead));
        channels[0].next_transition_time = next_transition(&channels[0], now);
        let irq_disabled = u32::from(state.flags & KVM_PIT_FLAGS_HPET_LEGACY != 0);
        Ok(I8254 { irq_disabled, channels, next_transition_time: channels[0].next_transition_time })
    }

    fn to_kvm(&self, state: &I8254) -> kvm_pit_state2 {
        let ahead = self.clock.now().saturating_sub(monotonic());
        kvm_pit_state2 {
            channels: state.channels.map(|channel| to_kvm(&channel, ahead)),
            flags: if state.irq_disabled != 0 { KVM_PIT_FLAGS_HPET_LEGACY } else { 0 },
            ..Default::default()
        }
    }
}

impl StateChange for Pit {
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        let mut held = lock(&self.held);
        if held.running && !running {
            held.state = self.read()?;
        }
        self.put(&held.state, running)?;
        held.running = running;
        Ok(())
    }
}

impl Device for Pit {
    /// The machine is stopped.
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(lock(&self.held).state.clone()))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(I8254::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = downcast::<I8254>(state)?;
        for (index, channel) in state.channels.iter().enumerate() {
            if !(0..=FULL_COUNT).contains(&channel.count) {
                return Err(format!("channels[{index}].count: {} is no count", channel.count).into());
            }
            if channel.mode >= MODES {
                return Err(format!("channels[{index}].mode: there is no mode {}", channel.mode).into());
            }
        }
        lock(&self.held).state = *state;
        Ok(())
    }
}

/// The host's clock by which KVM counts, in ns.
fn monotonic() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// QEMU's, at a virtual time in ns.
fn power_on(now: i64) -> I8254 {
    let mut channels = [true, true, false].map(|gate| PitChannel {
        count: FULL_COUNT,
        mode: 3,
        gate: gate.into(),
        count_load_time: now,
        ..Default::default()
    });
    channels[0].next_transition_time = next_transition(&channels[0], now);
    I8254 { irq_disabled: 0, channels, next_transition_time: channels[0].next_transition_time }
}

/// When the output changes next, as the data sheet's modes have it; −1: never. KVM needs no such time, an emulator does.
fn next_transition(channel: &PitChannel, now: i64) -> i64 {
    let count = i128::from(if channel.count == 0 { FULL_COUNT } else { channel.count });
    let ticks = i128::from(now.saturating_sub(channel.count_load_time).max(0)) * FREQUENCY / SECOND;
    let period = ticks / count * count;
    let at = match channel.mode {
        2 => period + count,
        // A square wave: high for the first half, low for the second.
        3 if ticks - period < (count + 1) / 2 => period + (count + 1) / 2,
        3 => period + count,
        _ if ticks < count => count,
        _ => return -1,
    };
    let after = at * SECOND / FREQUENCY;
    i64::try_from(after).map_or(-1, |after| channel.count_load_time.saturating_add(after))
}

/// `ahead`: virtual time minus the host's.
fn from_kvm(channel: &kvm_pit_channel_state, ahead: i64) -> PitChannel {
    PitChannel {
        count: channel.count as i32,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched,
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: channel.mode,
        bcd: channel.bcd,
        gate: channel.gate,
        count_load_time: channel.count_load_time.saturating_add(ahead),
        next_transition_time: 0,
    }
}

fn to_kvm(channel: &PitChannel, ahead: i64) -> kvm_pit_channel_state {
    kvm_pit_channel_state {
        count: channel.count as u32,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched,
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: channel.mode,
        bcd: channel.bcd,
        gate: channel.gate,
        count_load_time: channel.count_load_time.saturating_sub(ahead),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_transition_after_power_on_is_qemus() {
        assert_eq!(power_on(0).next_transition_time, 27_462_700);
        assert_eq!(power_on(1_000).next_transition_time, 27_463_700);
    }

    #[test]
    fn transitions_follow_the_mode() {
        let millisecond = 1_000_000;
        let at = |mode, now| {
            let channel = PitChannel { mode, count: 11_932, ..Default::default() };
            let next = next_transition(&channel, now * millisecond);
            if next < 0 { next } else { (next + millisecond / 2) / millisecond }
        };
        // 11932 ticks are 10 ms.
        assert_eq!([at(2, 0), at(2, 12), at(3, 1), at(3, 6), at(3, 11)], [10, 20, 5, 10, 15]);
        assert_eq!([at(0, 1), at(0, 11), at(4, 1), at(4, 11)], [10, -1, 10, -1]);
    }

    #[test]
    fn a_channel_comes_back_with_its_time_on_the_other_clock() {
        let channel = PitChannel {
            count: 0x1_0000,
            latched_count: 7,
            mode: 2,
            gate: 1,
            count_load_time: 5_000,
            ..Default::default()
        };
        assert_eq!(to_kvm(&channel, 3_000).count_load_time, 2_000);
        assert_eq!(from_kvm(&to_kvm(&channel, 3_000), 3_000), channel);
    }
}
