//! The leaves that QEMU gave on one host (an AMD EPYC under a KVM without XSAVE), read as it handed them to KVM_SET_CPUID2, and ours
//! for the same host. A table's name tells model, version, and which vCPU of how many; `intel` is `vendor=GenuineIntel`;
//! `all` are the leaves given where KVM claims every feature bit. Lines are leaf, index, EAX to EDX.

use super::*;

const SUPPORTED: &str = include_str!("tests/supported.txt");

fn table(text: &str) -> Vec<kvm_cpuid_entry2> {
    let entry = |line: &str| {
        let words: Vec<u32> = line.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        let [function, index, eax, ebx, ecx, edx] = words[..] else { panic!("{line}") };
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    };
    text.lines().map(entry).collect()
}

fn host(amd: bool) -> Host {
    let mut name = [0; 48];
    name[..8].copy_from_slice(b"AMD EPYC");
    Host::made_up(amd, 0x00b0_0f21, &name, 52)
}

fn profile(model: &str, level: Level, cpus: u32, amd: bool, supported: &[kvm_cpuid_entry2]) -> CpuProfile {
    let (model, host, supported): (CpuModel, _, _) =
        (model.parse().unwrap(), host(amd), CpuId::from_entries(supported).unwrap());
    let (bits, _) = resolve(&model, &offered(&supported, &host, level, true), level);
    CpuProfile { model, bits, host, supported, level, cpus, ucode: None, arch_capabilities: 0 }
}

/// What says something, in one order; leaf 0dh apart (`xsave_…` below).
fn lines(table: &[kvm_cpuid_entry2]) -> Vec<String> {
    let says = |entry: &&kvm_cpuid_entry2| {
        entry.function != 0xd && (entry.eax | entry.ebx | entry.ecx | entry.edx) != 0
    };
    let line = |entry: &kvm_cpuid_entry2| {
        let kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, .. } = entry;
        format!("{function:08x} {index:x} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")
    };
    let mut lines: Vec<String> = table.iter().filter(says).map(line).collect();
    lines.sort();
    lines
}

macro_rules! same_as_qemu {
    ($($test:ident: $file:literal, $model:literal, $level:expr, $index:literal of $cpus:literal, amd: $amd:literal;)*) => {$(
        #[test]
        fn $test() {
            let ours = profile($model, $level, $cpus, $amd, &table(SUPPORTED));
            let qemus = table(include_str!(concat!("tests/", $file, ".txt")));
            assert_eq!(lines(&ours.leaves($index, &ours.bits)), lines(&qemus));
        }
    )*};
}

same_as_qemu! {
    qemu64_of_7_2: "qemu64-7.2-1of1", "qemu64", Level::V7_2, 0 of 1, amd: true;
    qemu64_of_10_0: "qemu64-10.0-2of2", "qemu64", Level::V10_0, 1 of 2, amd: true;
    host_of_7_2: "host-7.2-2of2", "host,-arch-capabilities", Level::V7_2, 1 of 2, amd: true;
    host_of_10_0: "host-10.0-2of2", "host,-arch-capabilities", Level::V10_0, 1 of 2, amd: true;
    host_of_7_2_with_three: "host-7.2-3of3", "host,-arch-capabilities", Level::V7_2, 2 of 3, amd: true;
    qemu64_of_7_2_on_intel: "intel-qemu64-7.2-3of3", "qemu64", Level::V7_2, 2 of 3, amd: false;
    qemu64_of_10_0_on_intel: "intel-qemu64-10.0-3of3", "qemu64", Level::V10_0, 2 of 3, amd: false;
}

/// KVM's table with every feature bit set.
fn everything() -> Vec<kvm_cpuid_entry2> {
    let mut all = table(SUPPORTED);
    for word in &WORDS {
        let place = |entry: &kvm_cpuid_entry2| (entry.function, entry.index) == (word.leaf, word.index);
        if !all.iter().any(place) {
            all.push(kvm_cpuid_entry2 { function: word.leaf, index: word.index, ..Default::default() });
        }
        let entry = all.iter_mut().find(|entry| place(entry)).unwrap();
        match word.register {
            Register::Eax => entry.eax = !0,
            Register::Ebx => entry.ebx = !0,
            Register::Ecx => entry.ecx = !0,
            Register::Edx => entry.edx = !0,
        }
    }
    all
}

#[test]
fn of_all_features_the_guest_gets_qemus_less_those_not_carried() {
    let tables = [include_str!("tests/all-7.2.txt"), include_str!("tests/all-10.0.txt")];
    for (qemus, level) in tables.iter().zip([Level::V7_2, Level::V10_0]) {
        let ours = profile("host", level, 1, true, &everything());
        let (ours, qemus) = (ours.leaves(0, &ours.bits), table(qemus));
        for word in WORDS.iter().filter(|word| word.leaf != 0xd) {
            let of = |table: &[kvm_cpuid_entry2]| register(table, word.leaf, word.index, word.register);
            // With one vCPU HTT is not QEMU 10.0's to pass on, and MONITOR is none without MWAIT exits.
            let apart = if (word.leaf, word.register) == (1, Register::Ecx) { 1 << 3 } else { 0 };
            let expected = of(&qemus) & word.known(level) & !apart;
            assert_eq!(of(&ours), expected, "{:#x}.{} {:?} {level}", word.leaf, word.index, word.register);
        }
    }
}

#[test]
fn xsave_has_the_components_of_the_features_given() {
    let components = |model: &str, supported: &[kvm_cpuid_entry2]| {
        let profile = profile(model, Level::V10_0, 1, true, supported);
        let leaves = profile.leaves(0, &profile.bits);
        let of = |index, which| register(&leaves, 0xd, index, which);
        (of(0, Register::Eax), of(0, Register::Ecx), of(1, Register::Eax))
    };
    assert_eq!(components("host", &everything()), (0x2e7, 0x988, 0xf));
    assert_eq!(components("host,-avx512f,-pku", &everything()), (7, 0x340, 0xf));
    assert_eq!(components("qemu64", &everything()), (0, 0, 0), "a hidden feature has no state");
    assert_eq!(components("qemu64", &table(SUPPORTED)), (0x2e7, 0x988, 0), "this KVM cannot hide it");
}

#[test]
fn what_the_host_lacks_is_named() {
    let model: CpuModel = "qemu64,+avx512f".parse().unwrap();
    let supported = CpuId::from_entries(&table(SUPPORTED)).unwrap();
    let offered = offered(&supported, &host(true), Level::V10_0, true);
    assert_eq!(features::names(&resolve(&model, &offered, Level::V10_0).1), ["pni", "avx512f"]);
}

#[test]
fn without_performance_counters_nothing_tells_of_any() {
    let mut all = everything();
    all.retain(|entry| entry.function != 0xa);
    all.push(kvm_cpuid_entry2 { function: 0xa, eax: 0x0730_0402, ..Default::default() });
    let leaves = |model: &str| {
        let profile = profile(model, Level::V10_0, 1, true, &all);
        let leaves = profile.leaves(0, &profile.bits);
        let of = |leaf, which| register(&leaves, leaf, 0, which);
        [
            of(0xa, Register::Eax),
            of(1, Register::Ecx) & 1 << 15,
            of(0x8000_0001, Register::Ecx) & 0b11 << 23,
            of(0x8000_0022, Register::Eax),
        ]
    };
    assert_eq!(leaves("host"), [0x0730_0402, 1 << 15, 0b11 << 23, 1]);
    assert_eq!(leaves("host,pmu=off"), [0; 4]);
    assert_eq!(leaves("qemu64")[0], 0);
}
