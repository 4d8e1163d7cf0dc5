//! `whimbrel status`: what a machine is, and how its migration goes.

use std::process::ExitCode;

use serde_json::{Value, json};
use whimbrel_qmp::Endpoint;

use crate::monitor::{Listening, Monitor, PATIENCE, text};
use crate::progress::Figures;

/// Shows a machine's run state and its migration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The machine's monitor: unix:PATH, a path, or tcp:HOST:PORT.
    qmp: Endpoint,

    /// One JSON object, with `query-status`, `query-name` and `query-migrate` as the machine gives them.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut monitor = Monitor::connect(&args.qmp, PATIENCE)?;
    let all = json!({
        "version": monitor.version(),
        "status": monitor.execute("query-status", Value::Null)?,
        "name": monitor.execute("query-name", Value::Null)?,
        "migration": monitor.migration()?,
    });
    if args.json {
        println!("{all}");
    } else {
        print!("{}", describe(&all));
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each thing there is to say.
fn describe(all: &Value) -> String {
    let mut lines = vec![("machine", text(&all["version"]))];
    lines.push(("name", text(&all["name"]["name"])));
    lines.push(("guest", text(&all["status"]["status"])));
    let info = &all["migration"];
    lines.push((
        "migration",
        Figures::of(info)
            .filter(|_| info["status"] != "completed")
            .map(|figures| figures.line())
            .or_else(|| text(&info["status"])),
    ));
    lines.push(("downtime", info["downtime"].as_u64().map(|ms| format!("{ms} ms"))));
    lines.push(("total time", info["total-time"].as_u64().map(|ms| format!("{ms} ms"))));
    lines.push(("listens at", Listening::of(info).map(|at| at.to_string())));
    lines.push(("error", text(&info["error-desc"])));
    let blocked = info["blocked-reasons"].as_array().into_iter().flatten();
    lines.extend(blocked.map(|reason| ("blocked", text(reason))));
    lines.into_iter().filter_map(|(name, value)| Some(format!("{name:<11} {}\n", value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_tells_is_shown() {
        let idle =
            json!({"version": "QEMU 7.2.22", "status": {"status": "running"}, "name": {}, "migration": {}});
        assert_eq!(describe(&idle), "machine     QEMU 7.2.22\nguest       running\n");
        let failed = json!({"version": "whimbrel 0.1.0", "status": {"status": "running"}, "name": {"name": "web"},
            "migration": {"status": "failed", "error-desc": "no route", "blocked-reasons": ["a disk"]}});
        assert_eq!(
            describe(&failed),
            "machine     whimbrel 0.1.0\nname        web\nguest       running\nmigration   failed\n\
             error       no route\nblocked     a disk\n"
        );
    }
}
