//! `whimbrel inspect` reads what real QEMUs save, of machines that whimbrel doesn't know, to the last byte; it tells what is
//! wrong with a stream, and its reading of whimbrel's own streams is that of the machine that wrote them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_e2e::moves::{self, LIMIT};
use whimbrel_e2e::process::Process;
use whimbrel_e2e::qmp::Qmp;
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Need, Peer, Vm, description, need, operator, wait_for};

use super::{machine, needs};

/// What QEMU 10.0 says of those sections of `virt` that whimbrel has.
const VIRT: &str = include_str!("../../crates/whimbrel-vmm/tests/fixtures/vmdesc/virt-10.0.json");

/// Runs `whimbrel inspect`; its exit code and what it said.
fn inspect(words: &[&str]) -> (i32, String) {
    operator::whimbrel(&[&["inspect"], words].concat())
}

#[track_caller]
fn assert_verified(stream: &str) {
    let (code, said) = inspect(&["--verify", stream]);
    assert!(code == 0 && said.starts_with("verified"), "{stream}: exit {code}: {said}");
}

/// The report of a stream without fault.
#[track_caller]
fn report(stream: &str) -> Value {
    let (code, said) = inspect(&["--json", stream]);
    assert_eq!(code, 0, "{stream}: {said}");
    serde_json::from_str(&said).expect("JSON")
}

/// A number of the report of the RAM block `name`.
fn pages(report: &Value, name: &str, count: &str) -> u64 {
    let blocks = report["ram"].as_array().expect("blocks");
    let block =
        blocks.iter().find(|block| block["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
    block[count].as_u64().expect("a count")
}

/// Starts a machine that QEMU makes by itself; it, and its monitor.
fn start(program: &Path, arguments: &[&str], folder: &Scratch) -> (Process, Qmp) {
    let monitor = folder.join("qmp");
    let mut command = Command::new(program);
    command.args(arguments).args(["-m", "64", "-display", "none"]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
    let mut process = Process::start("QEMU", &mut command, &folder.join("log"));
    let qmp = wait_for("the monitor", LIMIT, || {
        assert!(process.ended().is_none(), "{command:?}: {}", process.log());
        Qmp::connect(&monitor)
    });
    (process, qmp)
}

fn save_by(qmp: &mut Qmp, uri: &str) {
    qmp.ok("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 33}));
    qmp.ok("migrate", json!({ "uri": uri }));
    wait_for("the stream to be saved", LIMIT, || {
        let info = qmp.ok("query-migrate", json!({}));
        assert_ne!(info["status"], "failed", "{info}");
        (info["status"] == "completed").then_some(())
    });
}

/// Saves the reset state of a machine that QEMU makes by itself, with its default devices.
fn save(program: &Path, arguments: &[&str], capabilities: &[&str], uri: &str) {
    let folder = Scratch::new("inspected");
    let (_process, mut qmp) = start(program, &[arguments, &["-S", "-serial", "none"]].concat(), &folder);
    for name in capabilities {
        let on = json!({"capabilities": [{"capability": name, "state": true}]});
        qmp.ok("migrate-set-capabilities", on);
    }
    save_by(&mut qmp, uri);
}

/// 7.2 knows no `file:`.
fn uri(peer: Peer, stream: &Path) -> String {
    match peer {
        Peer::Qemu72 => format!("exec:cat > {}", stream.display()),
        _ => format!("file:{}", stream.display()),
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("the scratch directory has a plain name").to_owned()
}

fn assert_default_machines_verify(peer: Peer, accelerator: &str) {
    let kvm = if accelerator == "kvm" { &[Need::Kvm][..] } else { &[] };
    if !whimbrel_e2e::needs(&[&[peer.need()][..], kvm].concat()) {
        return;
    }
    let program = peer.program().expect("it was needed");
    let folder = Scratch::new("inspect");
    for machine in ["microvm", "pc", "q35"] {
        let stream = folder.join(machine);
        save(&program, &["-M", machine, "-accel", accelerator, "-cpu", "qemu64"], &[], &uri(peer, &stream));
        let stream = text(&stream);
        assert_verified(&stream);
        let devices = report(&stream)["elements"]
            .as_array()
            .expect("elements")
            .iter()
            .filter(|element| element["element"] == "section-full" && element["fields"].is_object())
            .count();
        let least = if machine == "microvm" { 12 } else { 30 };
        assert!(devices >= least, "{machine}: {devices}");
    }
}

#[test]
fn what_qemu_7_2_saves_of_its_machines_under_tcg_is_verified_to_the_last_byte() {
    assert_default_machines_verify(Peer::Qemu72, "tcg");
}

#[test]
fn what_qemu_7_2_saves_of_its_machines_under_kvm_is_verified_to_the_last_byte() {
    assert_default_machines_verify(Peer::Qemu72, "kvm");
}

#[test]
fn what_qemu_10_0_saves_of_its_machines_under_tcg_is_verified_to_the_last_byte() {
    assert_default_machines_verify(Peer::Qemu10, "tcg");
}

#[test]
fn what_qemu_10_0_saves_of_its_machines_under_kvm_is_verified_to_the_last_byte() {
    assert_default_machines_verify(Peer::Qemu10, "kvm");
}

/// QEMU 10.0 for Arm, which is fetched together with the other.
fn arm() -> Option<PathBuf> {
    if !whimbrel_e2e::needs(&[Need::Qemu10]) {
        return None;
    }
    let program = Peer::Qemu10.program().expect("it was needed").with_file_name("qemu-system-aarch64");
    if !program.exists() {
        need::skip(&format!("no {}; get it: cargo xtask fetch qemu10", program.display()));
        return None;
    }
    Some(program)
}

#[test]
fn an_arm_machine_with_gic_and_its_is_verified_to_the_last_byte() {
    let Some(program) = arm() else { return };
    let folder = Scratch::new("inspect");
    let stream = text(&folder.join("virt"));
    let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "2"];
    save(&program, &machine, &[], &format!("file:{stream}"));
    assert_verified(&stream);
    let report = report(&stream);
    let section = |name: &str| {
        let elements = report["elements"].as_array().expect("elements");
        elements.iter().find(|element| element["idstr"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    assert_eq!(section("arm_gicv3")["fields"]["cpu"].as_array().map(Vec::len), Some(2));
    assert_eq!(section("arm_gicv3_its")["fields"]["baser"].as_array().map(Vec::len), Some(8));
    assert_eq!(report["configuration"]["target-page-bits"], 12);
    // At reset no table is there yet, but what each register is for.
    let registers = &section("arm_gicv3_its")["registers"];
    let kinds = [0, 1].map(|place| registers[format!("baser[{place}]")]["type"].clone());
    assert_eq!(kinds, [json!(1), json!(4)], "devices and collections: {registers}");
    assert_eq!((&registers["ctlr"]["enabled"], &registers["cbaser"]["valid"]), (&json!(0), &json!(0)));
    assert_eq!(report["its"][0]["unread"], "the guest has set up no tables");

    // What our saved-state types are held to, and in L1 a stream of our `virt`, is what this QEMU says.
    let fixture: Value = serde_json::from_str(VIRT).expect("JSON");
    let known = fixture["devices"].as_array().expect("devices");
    let described = description::read(Path::new(&stream));
    let described = described["devices"].as_array().expect("devices").iter();
    let described = described.filter(|device| known.iter().any(|known| known["name"] == device["name"]));
    let differing = described.clone().zip(known).find(|(described, known)| described != known);
    assert!(differing.is_none(), "{differing:?}");
    assert_eq!((described.count(), known.len()), (9, 9));
}

#[test]
fn tables_of_an_its_that_qemu_emulates_are_not_taken_for_kvms() {
    let Some(program) = arm() else { return };
    let image = match msi::IMAGE {
        Ok(image) => image,
        Err(reason) => return need::skip(reason),
    };
    let folder = Scratch::new("inspect");
    let [kernel, serial, stream] = ["kernel", "serial", "stream"].map(|name| text(&folder.join(name)));
    std::fs::write(&kernel, image).expect("scratch is writable");
    let port = format!("file:{serial}");
    let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "2", "-serial", &port];
    let guest = ["-kernel", &kernel, "-append", "pages=16 two_level=0"];
    let (_process, mut qmp) = start(&program, &[&machine[..], &guest].concat(), &folder);
    wait_for("the guest to map its events", LIMIT, || {
        std::fs::read_to_string(&serial).is_ok_and(|said| said.contains("msi: ready")).then_some(())
    });
    qmp.ok("stop", json!({}));
    save_by(&mut qmp, &format!("file:{stream}"));
    assert_verified(&stream);
    let (code, said) = inspect(&[&stream]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("baser[0]: valid 1, type 1"), "{said}");
    let (_, tables) = said.split_once("ITS tables of arm_gicv3_its: ").expect("a line for the tables");
    assert!(tables.starts_with("not read: GITS_IIDR 0x0: how implementer 0x0"), "{tables}");
    assert_eq!(tables.lines().count(), 1, "{tables}");
}

#[test]
fn a_mapped_ram_file_is_verified_and_holds_the_ram_of_the_plain_stream() {
    if !whimbrel_e2e::needs(&[Need::Qemu10]) {
        return;
    }
    let program = Peer::Qemu10.program().expect("it was needed");
    let folder = Scratch::new("inspect");
    let machine = ["-M", "q35", "-accel", "tcg"];
    let (plain, mapped) = (text(&folder.join("plain")), text(&folder.join("mapped")));
    let at = format!("file:{mapped},offset=0x200000");
    save(&program, &machine, &[], &format!("file:{plain}"));
    save(&program, &machine, &["mapped-ram"], &at);
    assert_verified(&at);
    let (plain_report, mapped_report) = (report(&plain), report(&at));
    assert_eq!(mapped_report["configuration"]["capabilities"], json!(["mapped-ram"]));
    for block in ["pc.ram", "pc.rom", "pc.bios"] {
        assert_eq!(pages(&plain_report, block, "normal"), pages(&mapped_report, block, "normal"), "{block}");
        let files = ["a", "b"].map(|name| text(&folder.join(name)));
        for (stream, file) in [&plain, &at].into_iter().zip(&files) {
            let (code, said) = inspect(&["--extract", block, "-o", file, stream]);
            assert_eq!(code, 0, "{said}");
        }
        let [a, b] = files.map(|file| std::fs::read(file).expect("it was extracted"));
        assert!(a == b && !a.is_empty(), "{block}");
    }
    // The clock ticks even in a machine that doesn't run; RAM is the same.
    let (code, said) = inspect(&["--diff", &plain, &at]);
    assert_eq!(code, 1, "{said}");
    let odd =
        said.lines().find(|line| !line.starts_with("mc146818rtc.") && !line.starts_with("configuration:"));
    assert_eq!(odd, None);
    assert_eq!(inspect(&["--diff", &plain, &plain]), (0, String::new()));
}

/// A working guest with a capability on; `None` if this host can't.
fn working(peer: Peer, capability: &str) -> Option<Vm> {
    if !needs(peer) {
        return None;
    }
    let mut source = machine(peer, peer, 1).start_at_work();
    let on = json!({"capabilities": [{"capability": capability, "state": true}]});
    if let Err(refused) = source.qmp.execute("migrate-set-capabilities", on) {
        need::skip(&format!("{capability}: {refused:?}; run as root"));
        return None;
    }
    source.let_run(Duration::from_millis(300));
    Some(source)
}

fn assert_xbzrle_verifies(peer: Peer) {
    let Some(mut source) = working(peer, "xbzrle") else { return };
    let folder = Scratch::new("inspect");
    let stream = folder.join("stream");
    // Too slow to end: in the first round no difference can be sent.
    source.set(json!({"max-bandwidth": 40 << 20, "downtime-limit": 1, "xbzrle-cache-size": 64 << 20}));
    source.qmp.ok("migrate", json!({ "uri": uri(peer, &stream) }));
    wait_for("differences of pages", LIMIT, || {
        let info = source.migration();
        assert_ne!(info["status"], "failed", "{info}");
        (info["xbzrle-cache"]["pages"].as_u64() > Some(100)).then_some(())
    });
    source.qmp.ok("stop", json!({}));
    source.set(json!({"max-bandwidth": 1_u64 << 33, "downtime-limit": 2000}));
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "completed");
    // A stopped guest's RAM is what the stream must have made of all differences.
    let memory = folder.join("memory");
    let size = source.launch.memory_mib << 20;
    source.qmp.ok("pmemsave", json!({"val": 0, "size": size, "filename": memory}));
    source.kill();

    let stream = text(&stream);
    assert_verified(&stream);
    let report = report(&stream);
    let [xbzrle, duplicates] = ["xbzrle", "duplicates"].map(|count| pages(&report, "microvm.ram", count));
    assert!(xbzrle > 0 && duplicates >= xbzrle, "{xbzrle} differences, {duplicates} duplicates");
    let file = text(&folder.join("ram"));
    let (code, said) = inspect(&["--extract", "microvm.ram", "-o", &file, &stream]);
    assert_eq!(code, 0, "{said}");
    let [extracted, memory] = [Path::new(&file), &memory].map(|path| std::fs::read(path).expect("a dump"));
    assert_eq!(extracted.len(), memory.len());
    let differing = extracted.chunks(4096).zip(memory.chunks(4096)).enumerate().filter(|(_, (a, b))| a != b);
    // What firmware reads below 1 MiB is no RAM.
    let differing: Vec<usize> =
        differing.map(|(page, _)| page).filter(|page| !(0xa0..0x100).contains(page)).collect();
    assert!(differing.is_empty(), "pages {differing:x?} are not what the guest had");
}

#[test]
fn differences_of_pages_that_qemu_7_2_sends_are_verified_and_applied() {
    assert_xbzrle_verifies(Peer::Qemu72);
}

#[test]
fn differences_of_pages_that_qemu_10_0_sends_are_verified_and_applied() {
    assert_xbzrle_verifies(Peer::Qemu10);
}

fn assert_background_snapshot_verifies(peer: Peer) {
    let Some(mut source) = working(peer, "background-snapshot") else { return };
    let folder = Scratch::new("inspect");
    let stream = folder.join("stream");
    moves::save(&mut source, &uri(peer, &stream), LIMIT);
    assert_eq!(source.run_state(), "running");
    let stream = text(&stream);
    assert_verified(&stream);
    let report = report(&stream);
    let elements = report["elements"].as_array().expect("elements");
    assert!(elements.iter().all(|element| element["element"] != "section-end"), "RAM ends without an end");
    assert_eq!(pages(&report, "microvm.ram", "unsent"), 0);
    assert_eq!(pages(&report, "microvm.ram", "duplicates"), 0);
}

#[test]
fn a_background_snapshot_of_qemu_7_2_is_verified_to_the_last_byte() {
    assert_background_snapshot_verifies(Peer::Qemu72);
}

#[test]
fn a_background_snapshot_of_qemu_10_0_is_verified_to_the_last_byte() {
    assert_background_snapshot_verifies(Peer::Qemu10);
}

#[test]
fn a_damaged_stream_is_reported_with_its_offset_and_a_whole_one_of_whimbrel_is_not() {
    if !whimbrel_e2e::needs(&[Need::Kvm, Need::Beacon]) {
        return;
    }
    let folder = Scratch::new("inspect");
    let stream = text(&folder.join("stream"));
    let mut source = machine(Peer::Whimbrel, Peer::Whimbrel, 2).boot();
    source.qmp.ok("stop", json!({}));
    moves::save(&mut source, &format!("file:{stream}"), LIMIT);
    source.kill();
    assert_verified(&stream);

    let bytes = std::fs::read(&stream).expect("the stream");
    let elements = report(&stream)["elements"].clone();
    let cpu =
        elements.as_array().and_then(|elements| elements.iter().find(|element| element["idstr"] == "cpu"));
    let [offset, size] = ["offset", "size"].map(|name| cpu.expect("a cpu")[name].as_u64().expect("a number"));
    let footer = offset + size - 5;
    let damaged = text(&folder.join("damaged"));
    let mut flipped = bytes.clone();
    flipped[footer as usize + 4] ^= 0x40;
    for (bytes, at) in [(&flipped[..], footer), (&bytes[..bytes.len() - 3], bytes.len() as u64 - 3)] {
        std::fs::write(&damaged, bytes).expect("a copy");
        let (code, said) = inspect(&["--verify", &damaged]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("stream offset {at:#x}")), "{at:#x}: {said}");
    }
}
