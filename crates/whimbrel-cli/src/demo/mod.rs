//! `whimbrel demo`: the main job, seen. Two processes, a guest at work, a move over TCP, and the proof that nothing was lost.

mod machine;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use beacon::heartbeat::{self, Summary};
use beacon::{CommandLine, check::Report};
use serde_json::{Value, json};

use self::machine::{Directory, Machine};
use self::table::Table;
use crate::progress::Screen;

/// How long a guest may take to be ready. It boots without firmware; ring 0 is slow on some hosts.
const BOOT: Duration = Duration::from_secs(60);
/// How long the guest works before and after the move.
const AT_WORK: Duration = Duration::from_secs(1);

/// Moves a working guest live between two processes and proves that nothing was lost.
///
/// Boots the test guest in one `whimbrel run`, starts a second that awaits it, migrates over TCP on loopback while the guest
/// dirties memory at a steady rate, kills the source, and recomputes every page at the destination. Exits with 1 if a single
/// page, register, interrupt or heartbeat is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Working set in MiB, dirtied over and over.
    #[arg(long, default_value_t = 512)]
    set: u64,

    /// Dirty rate in MiB/s; 0: as fast as the guest can.
    #[arg(long, default_value_t = 100)]
    rate: u64,

    /// Virtual CPUs at work.
    #[arg(long, default_value_t = 1)]
    cpus: u32,

    /// Downtime limit in ms.
    #[arg(long, default_value_t = 300)]
    downtime_limit: u64,

    /// A fault switch for the source (see it caught).
    #[arg(long, hide = true)]
    source_fault: Vec<String>,

    /// A fault switch for the destination.
    #[arg(long, hide = true)]
    destination_fault: Vec<String>,
}

pub(crate) fn demo(args: &Args) -> anyhow::Result<ExitCode> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        println!(
            "no usable /dev/kvm here ({error}): showing the machine without KVM instead; \
             for a real guest load kvm-intel or kvm-amd, and see that you may open /dev/kvm"
        );
        return Ok(crate::without_kvm::demo());
    }
    crate::beacon_guest::image()?;
    let line = CommandLine {
        set_mib: args.set,
        rate_mib_per_s: args.rate,
        cpus: args.cpus,
        ..CommandLine::default()
    };
    let directory = Directory::new()?;
    let clock = Instant::now();
    let memory = args.set + 64;

    say(&format!(
        "booting a guest: {} MiB, {} vCPU, {} MiB dirtied at {} MiB/s",
        memory, args.cpus, args.set, args.rate
    ));
    let mut source =
        Machine::start(&directory, "source", clock, memory, args.cpus, &args.source_fault, |command| {
            command.args(["--kernel", "@beacon", "--append", &line.to_string()]);
        })?;
    source.wait_for_ready(BOOT)?;
    let mut destination = Machine::start(
        &directory,
        "destination",
        clock,
        memory,
        args.cpus,
        &args.destination_fault,
        |command| {
            command.args(["--incoming", "tcp:127.0.0.1:0"]);
        },
    )?;
    let uri = destination.listening_at()?;
    std::thread::sleep(AT_WORK);

    say(&format!("moving it, live, to {uri}"));
    let moved = migrate(&mut source, &uri, args)?;
    source.kill();
    say("moved; the source is killed; letting the guest work on");
    std::thread::sleep(AT_WORK);

    say("stopping it, and recomputing every page");
    let report = destination.check_memory(&directory, memory)?;
    let summary = heartbeat::summarise([&source.beats(), &destination.beats()]);
    let faults = findings(&report, &summary, &source, &destination);
    print!("{}", table(&moved, &report, &summary, faults.len()));
    for fault in &faults {
        println!("  {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Migrates, shows how it goes, and returns the last `query-migrate`.
fn migrate(source: &mut Machine, uri: &str, args: &Args) -> anyhow::Result<Value> {
    let on = json!([{"capability": "return-path", "state": true}, {"capability": "events", "state": true}]);
    source.qmp("migrate-set-capabilities", json!({ "capabilities": on }))?;
    source
        .qmp("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": args.downtime_limit}))?;
    source.qmp("migrate", json!({ "uri": uri }))?;
    let mut screen = Screen::new(false);
    loop {
        let info = source.qmp("query-migrate", json!({}))?;
        match info["status"].as_str() {
            Some("completed") => return Ok(info),
            Some("failed" | "cancelled") => {
                bail!("the migration failed: {}", info["error-desc"].as_str().unwrap_or("no reason given"));
            }
            _ => screen.progress(&info),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn table(moved: &Value, report: &Report, summary: &Summary, faults: usize) -> Table {
    let ram = &moved["ram"];
    let ms = |value: &Value| value.as_f64().map_or("-".into(), |ms| format!("{ms} ms"));
    let us = |value: &Value| value.as_f64().map_or("-".into(), |us| format!("{:.1} ms", us / 1e3));
    let gap = summary
        .hand_overs
        .first()
        .map_or("-".into(), |gap| format!("{:.1} ms", gap.length.as_secs_f64() * 1e3));
    let mut table = Table::default();
    table.row("total time", ms(&moved["total-time"]));
    table.row("passes", ram["dirty-sync-count"].to_string());
    table.row("bytes sent", format!("{} MiB", mib(&ram["transferred"])));
    table.row("downtime, predicted", us(&moved["whimbrel"]["predicted-downtime-us"]));
    table.row("downtime, reported", ms(&moved["downtime"]));
    table.row("gap in the guest's heartbeat", gap);
    table.row("heartbeats, in order", summary.beats.to_string());
    table.row("pages verified", report.pages_verified.to_string());
    table.row("mismatches", faults.to_string());
    table
}

/// Everything that is not as it must be, in words.
fn findings(report: &Report, summary: &Summary, source: &Machine, destination: &Machine) -> Vec<String> {
    let mut findings = crate::beacon_guest::findings(report);
    findings.extend(summary.breaks.iter().map(|broken| format!("heartbeat: {broken:?}")));
    findings.extend(source.complaints());
    findings.extend(destination.complaints());
    if summary.hand_overs.is_empty() {
        findings.push("heartbeat: none came from the destination".into());
    }
    findings
}

fn mib(bytes: &Value) -> u64 {
    bytes.as_u64().unwrap_or(0) >> 20
}

fn say(text: &str) {
    println!("• {text}");
}

/// A context for errors that concern one of the two processes.
fn of<T, E>(result: Result<T, E>, name: &str, doing: &str) -> anyhow::Result<T>
where
    Result<T, E>: Context<T, E>,
{
    result.with_context(|| format!("{name}: {doing}"))
}
