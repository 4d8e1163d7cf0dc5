//! Moves the machine from one process to another over TCP while it works, kills the source, and verifies what arrived.
//!
//! ```text
//! demo ──starts──▶ destination   listens, says where; on "verify" pauses, checks all memory, goes on, says what it found
//!      ──starts──▶ source ADDR   runs the machine, moves it to ADDR, says how it went; is killed
//! ```
//! Each says lines of `label<TAB>value`, the last of which is `end`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use whimbrel::Engine;
use whimbrel::channel::Address;
use whimbrel::engine::{Config, Incoming, MigrationInfo};
use whimbrel::memory::PAGE_SIZE;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::source::Info;
use whimbrel::proto::status::MigrationStatus;

use super::Machine;

const WORKERS: usize = 2;
/// 64 MiB a worker.
const PAGES: u64 = 16 << 10;
/// 40 MiB/s a worker.
const PAGES_PER_SECOND: u32 = 10 << 10;
/// So much work before the move; every page is written in it.
const WORK: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

type Rows = Vec<(String, String)>;

pub(super) fn run(prefix: &[&str], args: &[String]) -> ExitCode {
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demo(prefix),
        ["destination"] => destination(),
        ["source", address] => source(address),
        _ => Err("usage: minimal [destination | source ADDRESS]".into()),
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("minimal: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs both processes; how many pages differ.
fn demo(prefix: &[&str]) -> Result<u64, String> {
    let mut destination = Process::start(prefix, &["destination"])?;
    let address = destination.value_of("listening")?;
    let mut source = Process::start(prefix, &["source", &address])?;
    let mib = (PAGES * PAGE_SIZE) >> 20;
    println!(
        "a machine without KVM, {WORKERS} workers of {mib} MiB each, moves to {address} while they work"
    );
    let moved = source.rows()?;
    drop(source);
    println!("the source is dead; verifying what arrived");
    let arrived = destination.ask("verify")?;
    let mismatches =
        arrived.iter().find(|(label, _)| label == "mismatches").and_then(|(_, n)| n.parse().ok());
    for (label, value) in moved.iter().chain(&arrived) {
        println!("{label:>20}  {value}");
    }
    mismatches.ok_or_else(|| "the destination did not verify".into())
}

fn source(address: &str) -> Result<u64, String> {
    let address = Address::parse(address).map_err(|error| error.desc)?;
    let machine = Machine::new(WORKERS, PAGES, PAGES_PER_SECOND).map_err(text)?;
    let config = Config { machine_name: "minimal".into(), autostart: true, ..Config::default() };
    let engine = Engine::new(machine.clone(), machine.registry(), config);
    run_main_loop(&engine);
    std::thread::sleep(WORK);
    let started = engine.on_main(|engine| {
        // With the return path the hand-over is fenced: this side commits only when the other says that it can run.
        engine.set_capabilities(&[(Capability::ReturnPath, true)])?;
        engine.set_parameters(ParametersPatch { max_bandwidth: Some(0), ..ParametersPatch::default() })?;
        engine.migrate(address, false)
    });
    started.ok_or("the main loop ended")?.map_err(|error| error.desc)?;
    let info = loop {
        std::thread::sleep(POLL);
        let MigrationInfo::Outgoing(info) = engine.migration_info() else { continue };
        match info.status {
            MigrationStatus::Completed => break info,
            MigrationStatus::Failed => return Err(info.error.unwrap_or_default()),
            _ => {}
        }
    };
    say(&rows_of(&info));
    loop {
        std::thread::park(); // Until killed: nothing here is needed any more.
    }
}

fn rows_of(info: &Info) -> Rows {
    let ms = |time: Option<Duration>| format!("{:.1} ms", time.unwrap_or_default().as_secs_f64() * 1e3);
    let ram = info.ram.unwrap_or_default();
    [
        ("total time", ms(info.total_time)),
        ("passes", ram.dirty_sync_count.to_string()),
        ("bytes", format!("{} ({} pages, {} zero)", ram.transferred, ram.normal, ram.duplicate)),
        ("predicted downtime", ms(info.predicted_downtime)),
        ("reported downtime", ms(info.downtime)),
    ]
    .map(|(label, value)| (label.to_owned(), value))
    .into()
}

fn destination() -> Result<u64, String> {
    let machine = Machine::new(WORKERS, PAGES, PAGES_PER_SECOND).map_err(text)?;
    let incoming = Some(Incoming::Defer);
    let config = Config { machine_name: "minimal".into(), autostart: true, incoming, ..Config::default() };
    let engine = Engine::new(machine.clone(), machine.registry(), config);
    run_main_loop(&engine);
    let anywhere = Address::parse("tcp:127.0.0.1:0").map_err(|error| error.desc)?;
    let listening = engine.on_main(|engine| engine.migrate_incoming(anywhere, true));
    listening.ok_or("the main loop ended")?.map_err(|error| error.desc)?;
    let MigrationInfo::Incoming(info) = engine.migration_info() else { return Err("not listening".into()) };
    say(&[("listening".into(), info.socket_address.map(|address| address.to_string()).unwrap_or_default())]);
    io::stdin().read_line(&mut String::new()).map_err(text)?;
    while engine.run_state() == RunState::Inmigrate {
        std::thread::sleep(POLL);
    }
    let gap = machine.longest_gap();
    let (pages, mismatches) = verify(&engine, &machine)?;
    let stamps = machine.stamps();
    std::thread::sleep(WORK / 4);
    let (_, mismatches_after) = verify(&engine, &machine)?;
    let went_on = machine.stamps() - stamps;
    let stuck = u64::from(went_on == 0);
    say(&[
        ("gap seen by workers".into(), format!("{:.1} ms", gap.as_secs_f64() * 1e3)),
        ("stamped after it".into(), format!("{went_on} pages")),
        ("pages verified".into(), pages.to_string()),
        ("mismatches".into(), (mismatches + mismatches_after + stuck).to_string()),
    ]);
    Ok(mismatches + mismatches_after + stuck)
}

/// Stops the guest, checks all of its memory, lets it go on.
fn verify(engine: &Arc<Engine>, machine: &Arc<Machine>) -> Result<(u64, u64), String> {
    let machine = machine.clone();
    let verified = engine.on_main(move |engine| {
        engine.stop()?;
        let verified = machine.verify();
        engine.cont().map(|()| verified)
    });
    verified.ok_or("the main loop ended")?.map_err(|error| error.desc)
}

fn run_main_loop(engine: &Arc<Engine>) {
    let engine = engine.clone();
    std::thread::spawn(move || {
        let exit = engine.run();
        eprintln!("minimal: {exit:?}");
        std::process::exit(1);
    });
}

fn say(rows: &[(String, String)]) {
    for (label, value) in rows {
        println!("{label}\t{value}");
    }
    println!("end");
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A child of the demo; killed when it is dropped.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(prefix: &[&str], args: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(std::env::current_exe().map_err(text)?);
        command.args(prefix).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(text)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("no pipes".into()) };
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// What it says, up to `end`.
    fn rows(&mut self) -> Result<Rows, String> {
        let mut rows = Vec::new();
        for line in self.output.by_ref().lines() {
            let line = line.map_err(text)?;
            match line.split_once('\t') {
                Some((label, value)) => rows.push((label.to_owned(), value.to_owned())),
                None => return Ok(rows),
            }
        }
        Err("a process ended before it said everything".into())
    }

    fn value_of(&mut self, label: &str) -> Result<String, String> {
        let found = self.rows()?.into_iter().find(|(found, _)| found == label);
        found.map(|(_, value)| value).ok_or_else(|| format!("a process did not say '{label}'"))
    }

    fn ask(&mut self, question: &str) -> Result<Rows, String> {
        writeln!(self.input, "{question}").map_err(text)?;
        self.rows()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
