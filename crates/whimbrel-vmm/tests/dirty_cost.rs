//! What a sync of each of KVM's dirty logs costs. A measurement, not a check: `docs/operate.md` has the command and the figures.

#![cfg(target_arch = "x86_64")]

mod common;

use std::time::{Duration, Instant};

use beacon::CommandLine;
use common::moving::image;
use whimbrel::DirtyBitmap;
use whimbrel::dirty::kvm::ring::KvmDirtyRings;
use whimbrel::machine::Machine;
use whimbrel_vmm::{CharBackend, DirtyTracking, Vm, VmConfig};

const ROUNDS: usize = 200;
/// Between two syncs; at 4 MiB/s the guest writes some ten pages meanwhile.
const PAUSE: Duration = Duration::from_millis(10);
/// Pages that the engine re-arms at a time.
const CHUNK: u64 = 1024;

/// Of one machine, medians.
struct Cost {
    sync: Duration,
    rearm: Duration,
    pages: u64,
}

impl Cost {
    fn round(&self) -> f64 {
        (self.sync + self.rearm).as_secs_f64()
    }
}

fn measure(dirty: DirtyTracking, kernel: &whimbrel_vmm::Image) -> Cost {
    let line =
        CommandLine { set_mib: 1, mem_mib: 16, rate_mib_per_s: 4, serial: false, ..Default::default() };
    let config = VmConfig {
        memory: 4 << 30,
        dirty,
        kernel: Some(kernel.clone()),
        command_line: line.to_string(),
        serial: Some(CharBackend::Null),
        ..VmConfig::default()
    };
    let (vm, _registry) = Vm::new(config).unwrap();
    vm.state_changed(true).unwrap();
    vm.resume_vcpus().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let mut log = vm.dirty_source().unwrap();
    log.start().unwrap();
    let mut found: Vec<_> = vm.ram().iter().map(|block| DirtyBitmap::empty(block.pages())).collect();
    let (mut syncs, mut rearms, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        let begin = Instant::now();
        let new: u64 = found.iter_mut().enumerate().map(|(block, into)| log.sync(block, into).unwrap()).sum();
        syncs.push(begin.elapsed());
        let begin = Instant::now();
        for (block, found) in found.iter_mut().enumerate() {
            let mut from = 0;
            while let Some(page) = found.next(from) {
                let chunk = page - page % CHUNK;
                from = chunk + CHUNK;
                log.rearm(block, chunk..from.min(found.pages())).unwrap();
            }
            found.drain_words(|_, _| ());
        }
        rearms.push(begin.elapsed());
        counts.push(new);
    }
    log.stop();
    vm.pause_vcpus().unwrap();
    Cost { sync: median(syncs), rearm: median(rearms), pages: median(counts) }
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn a_sync_at_4_gib_with_few_dirty_pages() {
    let test = "a_sync_at_4_gib_with_few_dirty_pages";
    let (true, Some(kernel)) = (common::kvm(test), image(test)) else { return };
    let ring = DirtyTracking::Ring { entries: KvmDirtyRings::DEFAULT_ENTRIES };
    for turn in 0..3 {
        let [bitmap, ring] = [DirtyTracking::Bitmap, ring].map(|dirty| measure(dirty, &kernel));
        for (name, cost) in [("bitmap", &bitmap), ("ring", &ring)] {
            println!("{turn} {name}: sync {:?}, re-arm {:?}, {} pages", cost.sync, cost.rearm, cost.pages);
        }
        println!("{turn} bitmap / ring: {:.1}", bitmap.round() / ring.round());
    }
}
