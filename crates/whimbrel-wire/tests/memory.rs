//! Memory follows what has arrived, never what was announced; and page records cost no allocation at all.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use whimbrel_wire::ram::{LastBlock, decode_block_list};
use whimbrel_wire::vmdescription::decode_trailer;
use whimbrel_wire::{
    BlockRef, Configuration, Element, Input, Output, RamRecord, ReturnPathMessage, SetupLayout, WireError,
};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's obligations are those of the call forwarded to.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes allocated and number of allocations during `run`.
fn allocated<T>(run: impl FnOnce() -> T) -> (T, usize, usize) {
    let (bytes, count) = (ALLOCATED.get(), ALLOCATIONS.get());
    let result = run();
    (result, ALLOCATED.get() - bytes, ALLOCATIONS.get() - count)
}

#[test]
fn no_announced_length_is_believed_before_its_bytes_arrive() {
    type Decode = fn(&mut Input<&[u8]>) -> Result<(), WireError>;
    let decoders: [(&str, &[u8], Decode); 7] = [
        ("bytes", b"abc", |input| input.bytes(1 << 40, u64::MAX).map(drop)),
        ("machine name", b"\x07\xff\xff\xff\xff", |input| Configuration::decode(input).map(drop)),
        ("description", b"\x06\x01\x00\x00\x00{", |input| decode_trailer(input).map(drop)),
        ("package", b"\x08\x00\x07\x00\x04\xff\xff\xff\xff", |input| Element::decode(input).map(drop)),
        ("discard", b"\x08\x00\x06\xff\xff\x00\x01", |input| Element::decode(input).map(drop)),
        ("bitmap", b"\x00\x05\x00\x02\x01a\x00\x00\x01\x00\x00\x00\x00\x00\xff", |input| {
            ReturnPathMessage::decode(input, u64::MAX).map(drop)
        }),
        ("block list", b"\x01a\x00\x00\x00\x00\x00\x00\x10\x00", |input| {
            decode_block_list(input, !0xfff, &SetupLayout::default()).map(drop)
        }),
    ];
    for (name, stream, decode) in decoders {
        let mut input = Input::with_capacity(stream, 0);
        let (result, bytes, _) = allocated(|| decode(&mut input));
        assert!(result.is_err(), "{name}");
        assert!(bytes < 4096, "{name} took {bytes} bytes for the {} that arrived", stream.len());
    }
}

#[test]
fn page_records_cost_no_allocation() {
    let mut out = Output::with_capacity(1 << 20);
    let names = ["microvm.ram", "pc.bios"];
    let (result, _, count) = allocated(|| {
        for page in 0..10_000u64 {
            let block = match page % 3 {
                0 => BlockRef::Named(names[page as usize % 2]),
                _ => BlockRef::Same,
            };
            RamRecord::Zero { block, offset: page << 12, fill: 0 }.encode(&mut out)?;
        }
        RamRecord::Eos.encode(&mut out)
    });
    assert_eq!((result, count), (Ok(()), 0));

    let mut input = Input::new(out.as_slice());
    let (pages, _, count) = allocated(|| {
        let (mut last, mut pages) = (LastBlock::new(), 0);
        loop {
            let at = input.offset();
            match RamRecord::decode(&mut input)? {
                RamRecord::Zero { block, offset, .. } => {
                    assert_eq!(offset, pages << 12);
                    last.resolve(block, at, |name| names.iter().position(|known| *known == name))?;
                    pages += 1;
                }
                _ => return Ok::<_, WireError>(pages),
            }
        }
    });
    assert_eq!((pages, count), (Ok(10_000), 0));
}
