//! Guests of a few instructions on real KVM: boot, console, pause, reset.

#![cfg(target_arch = "x86_64")]

mod common;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Console, Event, config, events, eventually, kernel, kvm};
use vm_memory::bitmap::Bitmap;
use whimbrel::machine::Machine;
use whimbrel_vmm::cpuid::{CpuModel, CpuProfile};
use whimbrel_vmm::{Error, GuestEvents, Image, MemoryBackend, Vm};
use whimbrel_vmstate::Level;

/// `mov edx, 0xe9; mov al, c; out dx, al` for each, then `then`.
fn say(text: &str, then: &[u8]) -> Vec<u8> {
    let mut code = vec![0xba, 0xe9, 0, 0, 0];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(then);
    code
}

/// `cli; hlt; jmp -3`
const STOP: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// `lidt [zero]; ud2`: a triple fault. The 6 bytes at 0x1000 are zero.
const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x0b];
/// `inc byte [0x200000]; mov al, [0x200000]; out dx, al; jmp -16`: counts on the console.
const COUNT: [u8; 14] = [0xfe, 0x05, 0, 0, 0x20, 0, 0xa0, 0, 0, 0x20, 0, 0xee, 0xeb, 0xf2];

#[test]
fn a_pvh_kernel_boots_and_speaks() {
    if !kvm("a_pvh_kernel_boots_and_speaks") {
        return;
    }
    let console = Console::new("boot");
    let (vm, _) = Vm::new(config(kernel(&say("hello", &STOP)), &console)).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says hello", |bytes| bytes == b"hello");
    vm.pause_vcpus().unwrap();
}

#[test]
fn the_kernel_gets_its_command_line_and_start_info() {
    if !kvm("the_kernel_gets_its_command_line_and_start_info") {
        return;
    }
    let console = Console::new("cmdline");
    // `mov esi, [ebx+24]; mov edx, 0xe9`, then until NUL: `lodsb; test al, al; jz +3; out dx, al; jmp -8`
    let code = [0x8b, 0x73, 24, 0xba, 0xe9, 0, 0, 0, 0xac, 0x84, 0xc0, 0x74, 3, 0xee, 0xeb, 0xf8, 0xfa, 0xf4];
    let mut config = config(kernel(&code), &console);
    config.command_line = "one two".into();
    let (vm, _) = Vm::new(config).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says its command line", |bytes| bytes == b"one two");
}

/// A bzImage of `code`, as Linux's boot protocol lays it out: two sectors of setup, the header in the first.
fn bzimage(code: &[u8], version: u16) -> Image {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup sectors behind the first
    put(0x202, b"HdrS");
    put(0x206, &version.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x214, &0x10_0000u32.to_le_bytes()); // where
    put(0x22c, &0x1ff_ffffu32.to_le_bytes()); // the initrd's last byte, at most
    put(0x238, &15u32.to_le_bytes()); // longest command line
    image.extend(code);
    Image::Bytes(image.into())
}

#[test]
fn a_bzimage_gets_its_command_line_initrd_and_tables_by_the_zero_page() {
    if !kvm("a_bzimage_gets_its_command_line_initrd_and_tables_by_the_zero_page") {
        return;
    }
    let console = Console::new("bzimage");
    // ESI is the zero page. `mov edx, 0xe9`; the RSDP's first byte: `mov ebx, [esi+0x70]; mov al, [ebx]; out dx, al`; the
    // initrd's: `mov ebx, [esi+0x218]; mov al, [ebx]; out dx, al`; `mov esi, [esi+0x228]`, then until NUL as above.
    let code = [
        0xba, 0xe9, 0, 0, 0, 0x8b, 0x5e, 0x70, 0x8a, 0x03, 0xee, 0x8b, 0x9e, 0x18, 2, 0, 0, 0x8a, 0x03, 0xee,
        0x8b, 0xb6, 0x28, 2, 0, 0, 0xac, 0x84, 0xc0, 0x74, 3, 0xee, 0xeb, 0xf8, 0xfa, 0xf4,
    ];
    let mut config = config(Image::Bytes([].into()), &console);
    config.kernel = Some(bzimage(&code, 0x20f));
    config.command_line = "one two".into();
    config.initrd = Some(Image::Bytes([b'i'; 5000].into()));
    let (vm, _) = Vm::new(config).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says what it was given", |bytes| bytes == b"Rione two");
    let mut byte = [0];
    vm.read_physical(0x1ff_e000, &mut byte).unwrap();
    assert_eq!(&byte, b"i", "the initrd ends where the kernel wants it to, in whole pages");
}

#[test]
fn a_bzimage_that_cannot_be_told_what_it_needs_is_refused() {
    let console = Console::new("refused");
    let refusal = |kernel: Image, command_line: &str| {
        let mut config = config(kernel, &console);
        config.command_line = command_line.into();
        Vm::new(config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    if !kvm("a_bzimage_that_cannot_be_told_what_it_needs_is_refused") {
        return;
    }
    assert!(refusal(bzimage(&STOP, 0x20d), "").contains("before 2.14"));
    assert!(refusal(bzimage(&STOP, 0x20f), "0123456789abcdef").contains("at most 15 bytes"));
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    if !kvm("a_paused_guest_stands_still_and_goes_on_where_it_was") {
        return;
    }
    let console = Console::new("pause");
    let (vm, _) = Vm::new(config(kernel(&say("", &COUNT)), &console)).unwrap();
    let mut seen = 0;
    for _ in 0..20 {
        vm.resume_vcpus().unwrap();
        eventually("the count goes on", || console.bytes().len() > seen + 100).unwrap();
        vm.pause_vcpus().unwrap();
        vm.pause_vcpus().unwrap();
        seen = console.bytes().len();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(console.bytes().len(), seen, "a paused guest wrote");
    }
    let counted = console.bytes();
    let lost = counted.windows(2).position(|pair| pair[1] != pair[0].wrapping_add(1));
    assert_eq!(lost, None, "a byte was lost or written twice");
}

#[test]
fn a_triple_fault_asks_for_a_reset_and_the_reset_boots_again() {
    if !kvm("a_triple_fault_asks_for_a_reset_and_the_reset_boots_again") {
        return;
    }
    let console = Console::new("triple");
    let (vm, _) = Vm::new(config(kernel(&say("x", &TRIPLE_FAULT)), &console)).unwrap();
    let (listener, heard) = events();
    vm.attach(listener);
    for boots in 1..=3 {
        vm.resume_vcpus().unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(Event::Reset));
        vm.pause_vcpus().unwrap();
        assert_eq!(console.bytes().len(), boots);
        vm.reset().unwrap();
    }
}

#[test]
fn a_reset_writes_the_kernel_anew_where_the_dirty_log_sees_it() {
    if !kvm("a_reset_writes_the_kernel_anew_where_the_dirty_log_sees_it") {
        return;
    }
    let console = Console::new("anew");
    let mut config = config(kernel(&say("ok", &STOP)), &console);
    config.initrd = Some(Image::Bytes([7; 5000].into()));
    let (vm, _) = Vm::new(config).unwrap();
    vm.write_physical(0x10_0000, &[0xf4; 64]).unwrap();
    vm.ram()[0].forget_host_writes();
    let memory = vm.ram()[0].pieces()[0].region.get_mmap();
    vm.reset().unwrap();
    // Kernel, start info, memory map, command line, ACPI tables, initrd.
    for page in [0x10_0000, 0x5000, 0x7000, 0x2_0000, 0x9_e000, (64 << 20) - 8192] {
        assert!(memory.bitmap().dirty_at(page), "the write at {page:#x} is not logged");
    }
    vm.resume_vcpus().unwrap();
    console.wait("the guest speaks", |bytes| bytes == b"ok");
}

#[test]
fn what_an_elf_has_only_in_memory_is_zero_after_a_reset_too() {
    if !kvm("what_an_elf_has_only_in_memory_is_zero_after_a_reset_too") {
        return;
    }
    let console = Console::new("bss");
    // `mov edx, 0xe9; inc byte [0x101000]; mov al, [0x101000]; add al, '@'; out dx, al; cli; hlt`
    let code = [
        0xba, 0xe9, 0, 0, 0, 0xfe, 0x05, 0, 0x10, 0x10, 0, 0xa0, 0, 0x10, 0x10, 0, 0x04, b'@', 0xee, 0xfa,
        0xf4,
    ];
    let Image::Bytes(elf) = kernel(&code) else { unreachable!("it is in memory") };
    let mut elf = elf.to_vec();
    elf[64 + 40..64 + 48].copy_from_slice(&0x2000u64.to_le_bytes());
    let (vm, _) = Vm::new(config(Image::Bytes(elf.into()), &console)).unwrap();
    for boots in 1..=3 {
        vm.resume_vcpus().unwrap();
        console.wait("the guest speaks", |bytes| bytes == "A".repeat(boots).as_bytes());
        vm.pause_vcpus().unwrap();
        vm.reset().unwrap();
    }
}

#[test]
fn the_initrd_lies_where_the_module_list_says() {
    if !kvm("the_initrd_lies_where_the_module_list_says") {
        return;
    }
    let console = Console::new("initrd");
    // `mov esi, [ebx+16]; mov ecx, [esi+8]; mov esi, [esi]; mov edx, 0xe9`, then ECX times: `lodsb; out dx, al; dec ecx; jnz -5`
    let code = [
        0x8b, 0x73, 16, 0x8b, 0x4e, 8, 0x8b, 0x36, 0xba, 0xe9, 0, 0, 0, 0xac, 0xee, 0x49, 0x75, 0xfb, 0xfa,
        0xf4,
    ];
    let mut config = config(kernel(&code), &console);
    config.initrd = Some(Image::Bytes(b"the initrd"[..].into()));
    let (vm, _) = Vm::new(config).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says its initrd", |bytes| bytes == b"the initrd");
}

#[test]
fn firmware_runs_from_the_reset_vector() {
    if !kvm("firmware_runs_from_the_reset_vector") {
        return;
    }
    let console = Console::new("firmware");
    // 64 KiB; 16-bit code at the reset vector: `mov dx, 0xe9; mov al, 'F'; out dx, al; cli; hlt`
    let mut image = vec![0; 64 << 10];
    let code = [0xba, 0xe9, 0, 0xb0, b'F', 0xee, 0xfa, 0xf4];
    image[0xfff0..0xfff8].copy_from_slice(&code);
    let path = console.path.with_extension("bin");
    std::fs::write(&path, image).unwrap();
    let mut config = config(kernel(&[]), &console);
    (config.kernel, config.bios) = (None, Some(path.clone()));
    let built = Vm::new(config);
    std::fs::remove_file(path).unwrap();
    let (vm, _) = built.unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the firmware speaks", |bytes| bytes == b"F");
}

#[test]
fn an_image_that_is_no_pvh_kernel_is_refused() {
    if !kvm("an_image_that_is_no_pvh_kernel_is_refused") {
        return;
    }
    let console = Console::new("no-kernel");
    let config = config(Image::Bytes([0; 4096].into()), &console);
    assert!(matches!(Vm::new(config), Err(Error::Kernel(_))));
}

#[test]
fn an_instruction_kvm_cannot_run_is_told_with_its_address() {
    if !kvm("an_instruction_kvm_cannot_run_is_told_with_its_address") {
        return;
    }
    let console = Console::new("internal");
    // Jumps into the hole, where there is nothing to fetch: `mov eax, 0xd0000000; jmp eax`
    let (vm, _) = Vm::new(config(kernel(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]), &console)).unwrap();
    let (listener, heard) = events();
    vm.attach(listener);
    vm.resume_vcpus().unwrap();
    match heard.recv_timeout(Duration::from_secs(10)).unwrap() {
        Event::Failed(text) => assert!(text.starts_with("vCPU 0: ") && text.contains("0xd0000000"), "{text}"),
        other => panic!("{other:?}"),
    }
    vm.pause_vcpus().unwrap();
}

#[test]
fn ram_above_four_gib_is_the_guests_and_the_streams() {
    if !kvm("ram_above_four_gib_is_the_guests_and_the_streams") {
        return;
    }
    let console = Console::new("high");
    // Says the type, low address byte 4 (GiB) and size (GiB) of the fourth range of the memory map:
    // `mov esi, [ebx+40]; add esi, 72; mov edx, 0xe9; mov al, [esi+4]; add al, '0'; out dx, al; mov eax, [esi+8]; shr eax, 30;
    //  add al, '0'; out dx, al; cli; hlt`
    let code = [
        0x8b, 0x73, 40, 0x83, 0xc6, 72, 0xba, 0xe9, 0, 0, 0, 0x8a, 0x46, 4, 0x2c, 0xd0, 0xee, 0x4e, 0x8b,
        0x46, 9, 0xc1, 0xe8, 30, 0x2c, 0xd0, 0xee, 0xfa, 0xf4,
    ];
    let mut config = config(kernel(&code), &console);
    config.memory = 5 << 30;
    let (vm, _) = Vm::new(config).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says where it goes on", |bytes| bytes == b"12");
    vm.pause_vcpus().unwrap();
    vm.write_physical((4 << 30) + 7, b"x").unwrap();
    let mut byte = [0];
    vm.ram()[0].read((3 << 30) + 7, &mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn two_machines_on_one_shared_file_see_the_same_memory() {
    if !kvm("two_machines_on_one_shared_file_see_the_same_memory") {
        return;
    }
    let console = Console::new("shared");
    let file = console.path.with_extension("ram");
    let machine = |incoming| {
        let mut config = config(kernel(&say("", &STOP)), &console);
        (config.backend, config.incoming) = (MemoryBackend::SharedFile(file.clone()), incoming);
        Vm::new(config).unwrap().0
    };
    let (first, second) = (machine(false), machine(true));
    assert!(first.ram()[0].is_fresh() && !second.ram()[0].is_fresh(), "the second finds the first's bytes");
    first.write_physical(0x20_0000, b"seen").unwrap();
    let mut bytes = [0; 4];
    second.read_physical(0x20_0000, &mut bytes).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(&bytes, b"seen");
}

#[test]
fn the_cpu_is_a_function_of_the_host_and_the_vcpu() {
    if !kvm("the_cpu_is_a_function_of_the_host_and_the_vcpu") {
        return;
    }
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let cpuid = |index: u32| {
        let vcpu = kvm.create_vm().unwrap().create_vcpu(index.into()).unwrap();
        let profile = CpuProfile::new(&kvm, &CpuModel::default(), Level::default(), 4).unwrap();
        profile.give(&vcpu, index).unwrap()
    };
    assert_eq!(cpuid(0).as_slice(), cpuid(0).as_slice());
    let leaf1 = |index| cpuid(index).as_slice().iter().find(|leaf| leaf.function == 1).unwrap().ebx;
    assert_eq!((leaf1(0) >> 24, leaf1(3) >> 24), (0, 3));
}

#[test]
fn a_machine_may_be_dropped_by_its_own_vcpu() {
    if !kvm("a_machine_may_be_dropped_by_its_own_vcpu") {
        return;
    }
    struct Owner(Arc<Mutex<Option<Arc<Vm>>>>, Sender<()>);
    impl GuestEvents for Owner {
        fn guest_reset(&self) {
            let (owned, done) = (Arc::clone(&self.0), self.1.clone());
            drop(owned.lock().unwrap().take());
            done.send(()).unwrap();
        }
        fn guest_shutdown(&self) {}
        fn guest_failed(&self, _: String) {}
    }
    let console = Console::new("dropped");
    let (vm, registry) = Vm::new(config(kernel(&say("", &TRIPLE_FAULT)), &console)).unwrap();
    drop(registry);
    let (sender, done) = channel();
    let owned = Arc::new(Mutex::new(None));
    vm.attach(Owner(Arc::clone(&owned), sender));
    let mut slot = owned.lock().unwrap();
    vm.resume_vcpus().unwrap();
    *slot = Some(vm);
    drop(slot);
    done.recv_timeout(Duration::from_secs(30)).expect("the drop does not wait for itself");
}
