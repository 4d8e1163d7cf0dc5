//! The worker: the one program of a Linux guest that is moved while it works. Linux starts it, it says on its standard output how
//! it is, and ends when it reads a line. It knows nothing of the move.
//!
//! ```text
//! worker: ready                                             all memory written once
//! worker: tick 17 counter 8840325000 monotonic 3400125017 gap 1700042
//!                                                           five a second: the CPU's counter; in ns the monotonic clock, and its
//!                                                           largest step since the last tick
//! worker: done ticks 58 pages 91234 backwards 0 drifted 0 corrupt 0
//! ```
//! Its exit status is 0 if the three last are 0. Built static: `cargo xtask cross x86_64 build --release --package worker`.

mod clocks;
mod memory;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clocks::Clocks;
use memory::Pages;

/// Between two lines. Each needs a timer interrupt.
const TICK: Duration = Duration::from_millis(200);
/// Between two looks at the clocks and a few pages, on every vCPU.
const STEP: Duration = Duration::from_millis(1);
const PAGES_A_STEP: usize = 16;
/// MiB that the threads together write and check, if the argument names no other number.
const MEMORY_MIB: usize = 16;

fn main() -> ExitCode {
    let mib = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(MEMORY_MIB);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let (clocks, done) = (Clocks::new(), AtomicBool::new(false));
    let (written, corrupt) = (AtomicU64::new(0), AtomicU64::new(0));
    let ticks = thread::scope(|scope| {
        let ready: Vec<_> = (0..cpus).map(|_| std::sync::mpsc::sync_channel(0)).collect();
        for (cpu, (tell, _)) in ready.iter().enumerate() {
            let (clocks, done, written, corrupt, tell) = (&clocks, &done, &written, &corrupt, tell.clone());
            scope.spawn(move || {
                clocks::pin(cpu);
                let mut pages = Pages::new(cpu as u64, (mib << 20) / memory::PAGE / cpus);
                // Nobody listens only if the main thread has panicked.
                let _ = tell.send(());
                let mut last = clocks.look(0);
                while !done.load(Ordering::Relaxed) {
                    thread::sleep(STEP);
                    last = clocks.look(last);
                    corrupt.fetch_add(pages.step(PAGES_A_STEP), Ordering::Relaxed);
                    written.fetch_add(PAGES_A_STEP as u64, Ordering::Relaxed);
                }
            });
        }
        for (_, told) in &ready {
            let _ = told.recv();
        }
        println!("worker: ready");
        // Not scoped: it may read for ever.
        let (tell, asked) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let _ = std::io::stdin().read_line(&mut String::new());
            let _ = tell.send(());
        });
        let mut ticks = 0u64;
        while asked.recv_timeout(TICK).is_err() {
            ticks += 1;
            let (counter, monotonic) = (clocks::counter(), clocks::monotonic());
            println!(
                "worker: tick {ticks} counter {counter} monotonic {monotonic} gap {}",
                clocks.take_gap()
            );
        }
        done.store(true, Ordering::Relaxed);
        ticks
    });
    let faults = [clocks.backwards(), clocks.drifted(), corrupt.into_inner()];
    let [backwards, drifted, corrupt] = faults;
    println!(
        "worker: done ticks {ticks} pages {} backwards {backwards} drifted {drifted} corrupt {corrupt}",
        written.into_inner()
    );
    if faults == [0; 3] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
