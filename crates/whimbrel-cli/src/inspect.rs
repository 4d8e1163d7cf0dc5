//! `whimbrel inspect`: what a saved stream holds, and whether it is whole.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use whimbrel::channel::Address;
use whimbrel_inspect::compare::{self, Comparison};
use whimbrel_inspect::extract::Extract;
use whimbrel_inspect::its::inspect_with_tables;
use whimbrel_inspect::text::{self, Detail};
use whimbrel_inspect::visitor::PageVisitor;
use whimbrel_inspect::{
    FileStream, PipeStream, ReadAt, Recorded, Report, Stream, TimedStream, inspect, json, return_path,
};
use whimbrel_relay::{Direction, recording};

/// What `diff` answers when it can't compare.
const TROUBLE: u8 = 2;

/// Shows what a saved migration stream holds: of any machine, by QEMU or by whimbrel.
///
/// Every element with offset and size, device state by the names of its fields, RAM by block.
/// The stream's own description leads. A stream without one is walked to its end all the same,
/// but its fields have no names. Of an Arm ITS registers and, unless from a pipe, tables are told.
///
/// A file that `whimbrel relay --record` wrote is shown with times, in seconds since the recording
/// began: the stream of its first connection, or of another; with --back, what came back.
///
/// Exit status: 0, or 1 if something is wrong with the stream.
/// With --diff as diff's: 0 the same, 1 different, 2 trouble.
///
/// Examples:
///   whimbrel inspect guest.mig
///   zcat guest.mig.gz | whimbrel inspect --verify -
///   whimbrel inspect --json file:guest.mig,offset=0x200000
///   whimbrel inspect --extract pc.ram -o ram.bin guest.mig
///   whimbrel inspect --diff before.mig after.mig
///   whimbrel inspect --brief move.rec
///   whimbrel inspect --back --connection 1 move.rec
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The stream: the path of a stream or a recording, file:PATH[,offset=N], or - for standard input; two with --diff.
    #[arg(value_name = "STREAM", required = true, num_args = 1..=2)]
    streams: Vec<Source>,

    /// Only elements and RAM, no fields.
    #[arg(short, long, conflicts_with = "json")]
    brief: bool,

    /// One JSON object.
    #[arg(long)]
    json: bool,

    /// Only tell whether every byte is accounted for, every footer matches, and the description agrees with the bytes.
    #[arg(long, conflicts_with_all = ["brief", "json", "diff", "extract"])]
    verify: bool,

    /// Write the RAM block of this name to the file given with -o.
    #[arg(long, value_name = "BLOCK", requires = "output", conflicts_with_all = ["brief", "json", "diff"])]
    extract: Option<String>,

    /// Where to write the extracted block.
    #[arg(short, long, value_name = "FILE", requires = "extract")]
    output: Option<PathBuf>,

    /// Compare two streams: configuration, device state, and the content of RAM.
    #[arg(long, conflicts_with = "brief")]
    diff: bool,

    /// Of a recording, the connection with this number; 0 is the first that was opened, and meant if none is named.
    #[arg(long, value_name = "N", conflicts_with = "diff")]
    connection: Option<u16>,

    /// Of a recording, what the destination answered.
    #[arg(long, conflicts_with_all = ["diff", "extract"])]
    back: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match (args.diff, args.streams.as_slice()) {
        (true, [left, right]) => Ok(diff(args, left, right).unwrap_or_else(|error| {
            eprintln!("whimbrel: {error:#}");
            ExitCode::from(TROUBLE)
        })),
        (true, _) => {
            eprintln!("whimbrel: --diff compares two streams");
            Ok(ExitCode::from(TROUBLE))
        }
        (false, [stream]) => one(args, stream),
        (false, _) => anyhow::bail!("one stream at a time; two are for --diff"),
    }
}

fn one(args: &Args, source: &Source) -> anyhow::Result<ExitCode> {
    if let (Some(block), Some(output)) = (&args.extract, &args.output) {
        let mut extract = Extract::new(block, output);
        let report = walk(args, source, Some(&mut extract))?;
        if !extract.found() && report.stopped.is_none() {
            let names: Vec<&str> = report.blocks.iter().map(|block| block.name.as_str()).collect();
            anyhow::bail!("the stream has no RAM block '{block}', only: {}", names.join(", "));
        }
        return Ok(verdict(&report));
    }
    let report = match args.verify || args.brief {
        true => walk(args, source, Some(&mut ()))?,
        false => walk(args, source, None)?,
    };
    if args.verify {
        return verify(&report);
    }
    if args.json {
        print(&format!("{}\n", json::report(&report)))?;
    } else {
        let detail = if args.brief { Detail::Elements } else { Detail::Fields };
        print(&text::report(&report, detail))?;
        if report.unverifiable().is_some() {
            print(
                "no VM description: fields have no names, and where a device's section ends its footer tells\n",
            )?;
        }
    }
    Ok(verdict(&report))
}

fn verify(report: &Report) -> anyhow::Result<ExitCode> {
    if let Some(fault) = report.unverifiable().filter(|_| report.is_clean()) {
        eprintln!("whimbrel: {fault}");
        return Ok(ExitCode::FAILURE);
    }
    if report.is_clean() {
        let sections = report.sections().count();
        print(&format!(
            "verified up to {:#x}, the stream's end: {} elements, {sections} of them sections\n",
            report.end,
            report.entries.len()
        ))?;
    }
    Ok(verdict(report))
}

fn diff(args: &Args, left: &Source, right: &Source) -> anyhow::Result<ExitCode> {
    let open = |source: &Source| match source {
        Source::File { path, offset } => {
            let file = open(path)?;
            anyhow::ensure!(
                file.metadata()?.is_file(),
                "'{}' is no regular file: --diff reads pages a second time",
                path.display()
            );
            let display = path.display();
            anyhow::ensure!(
                !is_recording(&file)?,
                "'{display}' is a recording: --diff compares streams in files"
            );
            Ok((file, *offset))
        }
        Source::StandardInput => anyhow::bail!("--diff reads pages a second time: it needs files"),
    };
    let ((a, a_offset), (b, b_offset)) = (open(left)?, open(right)?);
    let comparison = compare::compare([(&a, a_offset), (&b, b_offset)])?;
    if args.json {
        print(&format!("{}\n", json::comparison(&comparison)))?;
    } else {
        print(&text::comparison(&comparison))?;
    }
    Ok(difference(&comparison, [left, right]))
}

/// Tells what is wrong with the streams, and gives the exit status.
fn difference(comparison: &Comparison, sources: [&Source; 2]) -> ExitCode {
    let mut status = if comparison.is_same() { 0 } else { 1 };
    for (report, source) in comparison.reports.iter().zip(sources) {
        for fault in report.faults() {
            eprintln!("whimbrel: {source}: {fault}");
            status = TROUBLE;
        }
    }
    ExitCode::from(status)
}

/// Tells what is wrong with the stream, and gives the exit status.
fn verdict(report: &Report) -> ExitCode {
    for fault in report.faults() {
        eprintln!("whimbrel: {fault}");
    }
    if report.stopped.is_some() {
        eprintln!("whimbrel: stopped at {:#x}; nothing is known of what follows", report.end);
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Walks the stream. Tables in RAM are read, where that can be done, unless somebody else is to see the pages.
fn walk(args: &Args, source: &Source, pages: Option<&mut dyn PageVisitor>) -> anyhow::Result<Report> {
    let file = match source {
        Source::StandardInput => None,
        Source::File { path, offset } => Some((path, open(path)?, *offset)),
    };
    if let Some((path, file, 0)) = &file
        && is_recording(file)?
    {
        let connection = args.connection.unwrap_or(0);
        let direction = if args.back { Direction::Back } else { Direction::Forward };
        let stream = TimedStream::new(OfRelay(recording::Stream::open(path, connection, direction)?));
        let again = OfRelayAgain { path, connection, places: OnceCell::new() };
        return Ok(match pages {
            _ if args.back => return_path(stream),
            Some(pages) => inspect(stream, 0, pages),
            None => inspect_with_tables(stream, 0, &again),
        });
    }
    if args.back || args.connection.is_some() {
        anyhow::bail!("{source} is no recording: it has one connection, and nothing that came back");
    }
    let (stream, start): (Box<dyn Stream>, u64) = match file {
        None => (Box::new(PipeStream::new(std::io::stdin().lock())), 0),
        Some((_, file, offset)) if file.metadata()?.is_file() => {
            let stream = FileStream::new(file.try_clone()?, offset)?;
            return Ok(match pages {
                Some(pages) => inspect(stream, offset, pages),
                None => inspect_with_tables(stream, offset, &file),
            });
        }
        Some((_, mut file, offset)) => {
            std::io::copy(&mut Read::take(&mut file, offset), &mut std::io::sink())?;
            (Box::new(PipeStream::new(file)), offset)
        }
    };
    Ok(inspect(stream, start, pages.unwrap_or(&mut ())))
}

/// What the relay recorded, for the walk.
struct OfRelay(recording::Stream);

impl Read for OfRelay {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(room)
    }
}

impl Recorded for OfRelay {
    fn arrived(&self) -> Duration {
        self.0.time()
    }
}

/// The same once more, for tables in RAM: only if there are any, since the whole recording is gone through for it.
struct OfRelayAgain<'a> {
    path: &'a Path,
    connection: u16,
    places: OnceCell<Result<recording::Places, String>>,
}

impl ReadAt for OfRelayAgain<'_> {
    fn read_exact_at(&self, room: &mut [u8], offset: u64) -> std::io::Result<()> {
        let places = self.places.get_or_init(|| {
            let places = recording::Places::open(self.path, self.connection, Direction::Forward);
            places.map_err(|error| error.to_string())
        });
        match places {
            Ok(places) => places.read_exact_at(room, offset),
            Err(error) => Err(std::io::Error::other(error.clone())),
        }
    }
}

/// Whether the file is one that a relay wrote; what can only be read once is none.
fn is_recording(file: &File) -> anyhow::Result<bool> {
    let mut begins = [0; recording::MAGIC.len()];
    let length = match file.metadata()?.is_file() {
        true => file.read_at(&mut begins, 0)?,
        false => 0,
    };
    Ok(begins.get(..length) == Some(recording::MAGIC))
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open '{}'", path.display()))
}

/// Writes to standard output; a reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the report"),
        _ => Ok(()),
    }
}

/// Where a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    StandardInput,
    File { path: PathBuf, offset: u64 },
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-" => Ok(Source::StandardInput),
            text if text.starts_with("file:") => match Address::parse(text) {
                Ok(Address::File { path, offset }) => Ok(Source::File { path, offset }),
                Ok(_) => Err("not a file".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            path => Ok(Source::File { path: path.into(), offset: 0 }),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::StandardInput => f.write_str("-"),
            Source::File { path, .. } => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_path_an_address_or_standard_input() {
        let file = |path: &str, offset| Ok(Source::File { path: path.into(), offset });
        assert_eq!("-".parse(), Ok(Source::StandardInput));
        assert_eq!("a/b".parse(), file("a/b", 0));
        assert_eq!("file:/x".parse(), file("/x", 0));
        assert_eq!("file:/x,offset=0x200000".parse(), file("/x", 0x20_0000));
        assert!("file:/x,offset=12q".parse::<Source>().unwrap_err().contains("bad offset 12q"));
    }
}
