//! KVM's dirty logs under a guest that writes as fast as it can: no write is lost, whichever log it is.

#![cfg(target_arch = "x86_64")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beacon::CommandLine;
use common::kvm;
use common::moving::{Guest, image};
use whimbrel::DirtyBitmap;
use whimbrel::dirty::DirtySource;
use whimbrel::dirty::kvm::ring::KvmDirtyRings;
use whimbrel::machine::Machine;
use whimbrel::memory::PAGE_SIZE;
use whimbrel_vmm::{DirtyTracking, Vm, VmConfig};

/// Beyond the guest's own memory: the host writes there, as a device would.
const HOST_WRITES: u64 = 32 << 20;
/// The engine re-arms so many pages at a time.
const CHUNK: u64 = 1024;

/// A copy of guest RAM, kept by nothing but the log's order: sync, re-arm, read.
struct Copy<'a> {
    vm: &'a Vm,
    log: Box<dyn DirtySource>,
    blocks: Vec<Vec<u8>>,
    /// Pages that were found dirty after the first round.
    found: u64,
}

impl<'a> Copy<'a> {
    /// Starts the log, and copies everything once.
    fn begin(vm: &'a Vm) -> Self {
        let mut log = vm.dirty_source().unwrap();
        log.start().unwrap();
        let mut blocks = Vec::new();
        for block in vm.ram() {
            let mut bytes = vec![0; block.len() as usize];
            block.read(0, &mut bytes).unwrap();
            blocks.push(bytes);
        }
        Self { vm, log, blocks, found: 0 }
    }

    /// One round. `last`: the vCPUs are paused.
    fn round(&mut self, last: bool) {
        for (index, block) in self.vm.ram().iter().enumerate() {
            let mut dirty = DirtyBitmap::empty(block.pages());
            let found = if last {
                self.log.last_sync(index, &mut dirty).unwrap()
            } else {
                self.log.sync(index, &mut dirty).unwrap()
            };
            assert_eq!(found, dirty.count());
            self.found += found;
            let mut armed = None;
            let mut from = 0;
            while let Some(page) = dirty.next(from) {
                let chunk = page - page % CHUNK;
                if armed.replace(chunk) != Some(chunk) {
                    self.log.rearm(index, chunk..(chunk + CHUNK).min(block.pages())).unwrap();
                }
                let at = page * PAGE_SIZE;
                let bytes = &mut self.blocks[index][at as usize..(at + PAGE_SIZE) as usize];
                block.read(at, bytes).unwrap();
                from = page + 1;
            }
        }
    }

    /// Pages of which the copy is not the memory.
    fn stale(&self) -> Vec<(usize, u64)> {
        let mut stale = Vec::new();
        for (index, (block, copy)) in self.vm.ram().iter().zip(&self.blocks).enumerate() {
            let mut page = [0; PAGE_SIZE as usize];
            for (number, copied) in (0..).zip(copy.chunks(PAGE_SIZE as usize)) {
                block.read(number * PAGE_SIZE, &mut page).unwrap();
                if page != *copied {
                    stale.push((index, number));
                }
            }
        }
        stale
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.log.stop();
    }
}

/// Whether this host has a dirty ring; without it the test is announced as skipped.
fn tracks(test: &str, dirty: DirtyTracking) -> bool {
    let config = VmConfig { dirty, incoming: true, ..VmConfig::default() };
    match Vm::new(config) {
        Ok(_) => true,
        Err(error) => common::skip(test, &error.to_string()),
    }
}

fn assert_nothing_is_lost(test: &str, cpus: u32, dirty: DirtyTracking) {
    let (true, Some(kernel)) = (kvm(test) && tracks(test, dirty), image(test)) else { return };
    let line = CommandLine { cpus, set_mib: 16, mem_mib: 20, rate_mib_per_s: 0, ..CommandLine::default() };
    let guest = Guest::with(test, &line, &kernel, VmConfig { dirty, ..VmConfig::default() });
    guest.resume();
    guest.wait("the guest works", |control| {
        control.vcpus.iter().all(|vcpu| vcpu.progress > 0 || !vcpu.started)
    });
    let done = AtomicBool::new(false);
    let threads: Vec<_> = guest
        .vm
        .vcpu_threads()
        .into_iter()
        .chain([rustix::thread::gettid().as_raw_nonzero().get()])
        .collect();
    std::thread::scope(|scope| {
        // Ends the other threads even if an assertion fails.
        let _done = SetOnDrop(&done);
        scope.spawn(|| signal(&threads, &done));
        scope.spawn(|| write_from_the_host(&guest.vm, &done));
        for attempt in 0..3 {
            let mut copy = Copy::begin(&guest.vm);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(1500) {
                copy.round(false);
                // With a pause now and then the small rings run over.
                std::thread::sleep(Duration::from_millis(attempt * 4));
            }
            assert!(copy.found > 1000, "too little happened: {}", copy.found);
            println!("{test}: attempt {attempt}: {} pages", copy.found);
            if attempt == 1 {
                // Given up while the guest runs: the next attempt begins with what this one has left in the rings.
                continue;
            }
            guest.stop();
            copy.round(false);
            done.store(attempt == 2, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            copy.round(true);
            if attempt == 2 {
                assert_eq!(copy.stale(), [], "attempt {attempt}");
            } else {
                assert_eq!(without_host_writes(copy.stale()), [], "attempt {attempt}");
            }
            guest.resume();
        }
    });
    // The guest was not held up: its rings are emptied whether anyone tracks or not.
    let reached = guest.control().unwrap().vcpus[0].progress;
    guest.wait("the guest works on", |control| control.vcpus[0].progress > reached + 100_000);
    guest.stop();
    assert_eq!(guest.verify().control.faults(), 0);
}

/// The host goes on writing between the attempts.
fn without_host_writes(mut stale: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
    stale.retain(|(_, page)| *page < HOST_WRITES / PAGE_SIZE);
    stale
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Signals come at any time: kicks, timers, profilers. They may cost time and nothing else.
fn signal(threads: &[i32], done: &AtomicBool) {
    let pid = std::process::id();
    while !done.load(Ordering::Relaxed) {
        for thread in threads {
            // SAFETY: the signal that kicks vCPUs, for which they have installed a handler that does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, *thread, libc::SIGRTMIN()) };
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn write_from_the_host(vm: &Vm, done: &AtomicBool) {
    let mut count = 0_u64;
    while !done.load(Ordering::Relaxed) {
        count += 1;
        vm.write_physical(HOST_WRITES + count % 64 * PAGE_SIZE, &count.to_le_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// The smallest ring, which is full all the time.
const RING: DirtyTracking = DirtyTracking::Ring { entries: KvmDirtyRings::MIN_ENTRIES };

#[test]
fn the_bitmap_loses_no_write_of_two_vcpus() {
    assert_nothing_is_lost("the_bitmap_loses_no_write_of_two_vcpus", 2, DirtyTracking::Bitmap);
}

#[test]
fn a_small_ring_loses_no_write_of_one_vcpu() {
    assert_nothing_is_lost("a_small_ring_loses_no_write_of_one_vcpu", 1, RING);
}

#[test]
fn small_rings_lose_no_write_of_two_vcpus() {
    assert_nothing_is_lost("small_rings_lose_no_write_of_two_vcpus", 2, RING);
}

#[test]
fn a_ring_of_a_size_that_kvm_has_not_is_refused_and_says_what_there_is() {
    let test = "a_ring_of_a_size_that_kvm_has_not_is_refused_and_says_what_there_is";
    if !(kvm(test) && tracks(test, RING)) {
        return;
    }
    for entries in [0, 512, 3000, 1 << 31] {
        let config = VmConfig { dirty: DirtyTracking::Ring { entries }, ..VmConfig::default() };
        let error = Vm::new(config).err().expect("refused").to_string();
        assert!(error.contains(&format!("{entries} entries: a power of two from 1024 to ")), "{error}");
    }
}
