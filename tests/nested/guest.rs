//! A Debian cloud kernel with the worker as the guest, and what is to be seen of it on its console.

use std::path::Path;
use std::time::Duration;

use whimbrel_e2e::initramfs::Initramfs;
use whimbrel_e2e::l1::{self, Arch};
use whimbrel_e2e::{Vm, wait_for};

/// Where L1 has the guest's initramfs.
pub(crate) const INITRD: &str = "/guest/initrd";
/// How long the guest may take to boot, or to say all it has to say.
const GUEST: Duration = Duration::from_secs(150);
/// The guest's last line.
const END: &str = "guest: end";
/// What Linux says when something is wrong with its clocks, CPUs, interrupts or itself.
const WARNINGS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Call Trace",
    "Oops",
    "Kernel panic",
    "unstable",
    "stall",
    "lockup",
    "went backwards",
    "nobody cared",
    "Internal error",
];

const INIT: &str = "#!/bin/busybox sh\n\
    /bin/busybox mount -t proc proc /proc; /bin/busybox mount -t sysfs sys /sys\n\
    /bin/worker; echo \"guest: the worker ended with $?\"\n\
    echo \"guest: clocksource $(/bin/busybox cat /sys/devices/system/clocksource/clocksource0/current_clocksource)\"\n\
    /bin/busybox grep -E 'timer|ttyS0|cascade|uart' /proc/interrupts\n\
    /bin/busybox dmesg; echo 'guest: end'\n\
    read line; /bin/busybox poweroff -f\n\
    while :; do /bin/busybox sleep 1000; done\n";

/// One of the worker's lines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tick {
    /// It counts from 1.
    pub(crate) number: u64,
    /// The counter of a vCPU: TSC, or arm's virtual counter.
    pub(crate) counter: u64,
    /// The guest's clock.
    pub(crate) monotonic: Duration,
    /// The clock's largest step since the line before.
    pub(crate) gap: Duration,
}

impl Tick {
    /// What the counter counts in a second of the guest's clock, from the first of some ticks to the last.
    #[track_caller]
    pub(crate) fn frequency(ticks: &[Self]) -> f64 {
        let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else { panic!("no ticks") };
        (last.counter - first.counter) as f64 / (last.monotonic - first.monotonic).as_secs_f64()
    }
}

/// The guest's initramfs, made outside of L1.
pub(crate) fn initramfs(arch: Arch) -> Vec<u8> {
    let architecture = if arch == Arch::X86 { "x86_64" } else { "aarch64" };
    let worker = l1::cross(architecture, &["build", "--release", "--package", "worker"], "worker");
    let mut root = Initramfs::new(&arch.fetched("busybox"), INIT);
    root.copy(Path::new(&worker), "/bin/worker");
    root.finish()
}

/// The ticks on a machine's console, the oldest first. What is not whole is left out.
pub(crate) fn ticks(vm: &Vm) -> Vec<Tick> {
    let text = vm.console.text();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let tick = |line: &str| {
        let words: Vec<_> = line.trim().strip_prefix("worker: tick ")?.split(' ').collect();
        let [number, "counter", counter, "monotonic", monotonic, "gap", gap] = words.as_slice() else {
            return None;
        };
        let time = |text: &str| text.parse().ok().map(Duration::from_nanos);
        let (number, counter) = (number.parse().ok()?, counter.parse().ok()?);
        Some(Tick { number, counter, monotonic: time(monotonic)?, gap: time(gap)? })
    };
    whole.lines().filter_map(tick).collect()
}

/// Waits until a machine's console has so many ticks; the last.
#[track_caller]
pub(crate) fn wait_ticks(vm: &mut Vm, count: usize) -> Tick {
    wait_for(&format!("{count} ticks"), GUEST, || {
        if let Some(status) = vm.process.ended() {
            panic!("the machine ended with {status}: {}", vm.console.text());
        }
        let ticks = ticks(vm);
        ticks.last().copied().filter(|_| ticks.len() >= count)
    })
}

/// Ends the worker; checks what it and Linux have to say, and shows it. `clocksource`: what Linux must keep time by.
#[track_caller]
pub(crate) fn assert_sane(vm: &Vm, clocksource: &str) {
    vm.console.send(b"\n");
    wait_for("the guest's last word", GUEST, || vm.console.text().contains(END).then_some(()));
    let text = vm.console.text();
    println!("{text}");
    assert!(text.contains("guest: the worker ended with 0"), "the worker found something wrong");
    assert!(text.contains(&format!("guest: clocksource {clocksource}")), "not {clocksource}");
    let warnings = warnings(&text);
    assert!(warnings.is_empty(), "Linux warns: {warnings:#?}");
}

/// Has Linux switch its machine off, which ends the process. Behind [`assert_sane`].
#[track_caller]
pub(crate) fn power_off(vm: &mut Vm) {
    vm.console.send(b"\n");
    let status = vm.process.wait(GUEST);
    assert!(status.success(), "{status}: {}", vm.process.log());
}

fn warnings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| WARNINGS.iter().any(|warning| line.contains(warning))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_when_a_clock_went_wrong_is_a_warning_and_its_command_line_is_none() {
        let fine = "[    0.0] Command line: quiet tsc=reliable no_timer_check panic=-1\n[    1.4] smp: Brought up 1 node, 2 CPUs";
        assert!(warnings(fine).is_empty());
        for bad in [
            "[   20.1] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large",
            "[   43.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
            "[   43.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[    2.0] WARNING: CPU: 0 PID: 1 at kernel/time/timekeeping.c:1",
        ] {
            assert_eq!(warnings(&format!("{fine}\n{bad}")), [bad]);
        }
    }
}
