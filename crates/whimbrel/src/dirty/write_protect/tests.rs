use super::*;
use crate::memory::Region;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vm_memory::{FileOffset, GuestAddress};

const PAGES: u64 = 4096;

fn private() -> RamBlock {
    let region = |gpa, pages| {
        Arc::new(Region::from_range(GuestAddress(gpa), (pages * PAGE_SIZE) as usize, None).unwrap())
    };
    RamBlock::new("private", vec![region(0, 1024), region(1 << 32, PAGES - 1024)], true)
}

fn shared() -> RamBlock {
    let file = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, PAGES * PAGE_SIZE).unwrap();
    let file = Some(FileOffset::new(file.into(), 0));
    let region = Region::from_range(GuestAddress(0), (PAGES * PAGE_SIZE) as usize, file).unwrap();
    RamBlock::new("shared", vec![Arc::new(region)], true)
}

/// The first word of a page, as a vCPU sees it: writes to it are not logged by `vm-memory`.
fn word(block: &RamBlock, page: u64) -> &AtomicU64 {
    let guard = block.slice(page * PAGE_SIZE, 8).unwrap().ptr_guard_mut();
    // SAFETY: eight aligned bytes of the block, mapped as long as it is borrowed, and only used as an atomic.
    unsafe { AtomicU64::from_ptr(guard.as_ptr().cast()) }
}

fn dirty(log: &mut WriteProtect, block: usize) -> Vec<u64> {
    let mut dirty = DirtyBitmap::empty(PAGES);
    log.sync(block, &mut dirty).unwrap();
    (0..PAGES).filter(|page| dirty.contains(*page)).collect()
}

#[test]
fn each_write_is_reported_once_on_its_block_and_page() {
    let blocks = [private(), shared()];
    let mut log = WriteProtect::new(&blocks, Writers::UserSpace);
    word(&blocks[0], 7).store(1, Ordering::Relaxed);
    log.start().unwrap();
    assert_eq!((dirty(&mut log, 0), dirty(&mut log, 1)), (vec![], vec![]));
    for page in [0, 1023, 1024, 4095] {
        word(&blocks[0], page).store(2, Ordering::Relaxed);
    }
    word(&blocks[1], 77).store(3, Ordering::Relaxed);
    assert_eq!((dirty(&mut log, 0), dirty(&mut log, 1)), (vec![0, 1023, 1024, 4095], vec![77]));
    assert_eq!((dirty(&mut log, 0), dirty(&mut log, 1)), (vec![], vec![]));
}

#[test]
fn a_page_is_reported_again_only_after_it_was_rearmed() {
    let blocks = [private()];
    let mut log = WriteProtect::new(&blocks, Writers::UserSpace);
    log.start().unwrap();
    let write = |page| word(&blocks[0], page).store(1, Ordering::Relaxed);
    [1020, 1030, 2000].iter().copied().for_each(write);
    assert_eq!(dirty(&mut log, 0), [1020, 1030, 2000]);
    log.rearm(0, 1000..1100).unwrap();
    [1020, 1030, 2000].iter().copied().for_each(write);
    assert_eq!(
        dirty(&mut log, 0),
        [1020, 1030],
        "2000 was not re-armed: its next bytes are still to be read"
    );
}

#[test]
fn host_writes_are_reported_whoever_makes_them() {
    let blocks = [shared()];
    let mut log = WriteProtect::new(&blocks, Writers::Anyone);
    match log.start() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return skip(&error.to_string()),
        started => started.unwrap(),
    }
    blocks[0].write(5 * PAGE_SIZE, &[1; 8]).unwrap();
    let zeroes = std::fs::File::open("/dev/zero").unwrap();
    let guard = blocks[0].slice(9 * PAGE_SIZE, 100).unwrap().ptr_guard_mut();
    // SAFETY: the kernel writes 100 bytes of the block.
    let read = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zeroes), guard.as_ptr().cast(), 100) };
    assert_eq!(read, 100);
    assert_eq!(dirty(&mut log, 0), [5, 9]);
}

#[test]
fn holes_of_shared_memory_stay_holes() {
    let blocks = [shared()];
    let mut log = WriteProtect::new(&blocks, Writers::UserSpace);
    log.start().unwrap();
    word(&blocks[0], 3).store(1, Ordering::Relaxed);
    let region = &blocks[0].pieces()[0].region;
    let file = region.file_offset().unwrap().file();
    let allocated = rustix::fs::fstat(file).unwrap().st_blocks * 512;
    assert_eq!(allocated as u64, PAGE_SIZE, "tracking itself populated the file");
}

#[test]
fn after_the_stop_writes_go_through_and_tracking_can_start_again() {
    let blocks = [private()];
    let mut log = WriteProtect::new(&blocks, Writers::UserSpace);
    assert!(log.sync(0, &mut DirtyBitmap::empty(PAGES)).is_err());
    for round in 0..3 {
        log.start().unwrap();
        word(&blocks[0], round).store(1, Ordering::Relaxed);
        log.stop();
        word(&blocks[0], 100 + round).store(1, Ordering::Relaxed);
        assert!(log.sync(0, &mut DirtyBitmap::empty(PAGES)).is_err());
    }
    log.start().unwrap();
    assert!(dirty(&mut log, 0).is_empty());
}

/// Writers count up; a reader keeps a copy by nothing but the log's order: sync, re-arm, read. At the end the copy must be
/// the memory. Without the lock around mark and lift, pages are lost here within a second on a quiet machine.
#[test]
fn no_write_is_lost_while_many_threads_write() {
    const WRITERS: u64 = 6;
    for block in [private(), shared()] {
        let blocks = [block];
        let mut log = WriteProtect::new(&blocks, Writers::UserSpace);
        let mut copy = vec![0; PAGES as usize];
        let done = AtomicBool::new(false);
        log.start().unwrap();
        let mut harvest = |log: &mut WriteProtect| {
            let mut dirty = DirtyBitmap::empty(PAGES);
            log.sync(0, &mut dirty).unwrap();
            let mut from = 0;
            while let Some(page) = dirty.next(from) {
                log.rearm(0, page - page % 64..(page - page % 64 + 64).min(PAGES)).unwrap();
                let chunk = page..page - page % 64 + 64;
                for page in chunk.clone().filter(|page| dirty.contains(*page)) {
                    copy[page as usize] = word(&blocks[0], page).load(Ordering::Relaxed);
                }
                from = chunk.end;
            }
            dirty.count()
        };
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (blocks, done) = (&blocks, &done);
                scope.spawn(move || {
                    let mut x = 88_172_645_463_325_252_u64 + writer;
                    while !done.load(Ordering::Relaxed) {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        // Few pages, so that they are often written, harvested and re-armed at the same time.
                        word(&blocks[0], x % 64 * 61).fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let (start, mut harvested) = (Instant::now(), 0);
            let enough = |harvested| harvested >= 4000 && start.elapsed() > Duration::from_secs(1);
            while !enough(harvested) && start.elapsed() < Duration::from_secs(30) {
                harvested += harvest(&mut log);
            }
            done.store(true, Ordering::Relaxed);
            assert!(harvested >= 4000, "too little happened: {harvested}");
        });
        harvest(&mut log);
        for page in 0..PAGES {
            assert_eq!(copy[page as usize], word(&blocks[0], page).load(Ordering::Relaxed), "page {page}");
        }
    }
}

/// Announces that the calling test is skipped.
fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
    assert!(std::env::var_os("WHIMBREL_NO_SKIP").is_none_or(|value| value != "1"), "{name}: {reason}");
    // Past the capture of the test runner, as all skips of this workspace are announced.
    let _ =
        std::io::Write::write_all(&mut std::io::stdout(), format!("\nSKIPPED {name}: {reason}\n").as_bytes());
}
