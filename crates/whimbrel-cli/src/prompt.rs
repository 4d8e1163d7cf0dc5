//! `whimbrel qmp`: a prompt for any command of a machine, and its events as they come.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use whimbrel_qmp::{Client, Endpoint, Event, QmpError};

use crate::monitor::{PATIENCE, not_connected};

/// How long an event may wait to be shown while nothing is typed.
const LOOK: Duration = Duration::from_millis(50);
const PROMPT: &str = "(qmp) ";

/// Sends a machine any QMP command, and shows its events as they come.
///
/// Each line is a command with its arguments, or a whole QMP object. Answers and events are
/// printed one a line, as JSON. Works in a pipe as well: it ends with the input, and exits with 1
/// if a command was refused.
///
/// Examples:
///   query-status
///   migrate-set-parameters {"max-bandwidth": 0}
///   {"exec-oob": "migrate-pause", "id": 7}
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The machine's monitor: unix:PATH, a path, or tcp:HOST:PORT.
    qmp: Endpoint,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut client = connect(&args.qmp).map_err(not_connected)?;
    let mut console = Console::new();
    if console.terminal {
        console.line(&client.greeting().to_string())?;
        console.line("a line: COMMAND {arguments}, or {\"execute\": COMMAND, …}; query-commands lists them; Ctrl-D leaves")?;
    }
    let lines = read_lines();
    let mut refused = false;
    loop {
        console.prompt()?;
        let line = match lines.recv_timeout(LOOK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                show_events(&mut client, &mut console)?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        console.prompted = false;
        let request = match Request::parse(&line) {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            Err(text) => {
                refused = true;
                eprintln!("{text}");
                continue;
            }
        };
        let answer = client.ask(&request.line);
        let ends = matches!(&answer, Err(QmpError::Closed { .. })) && request.command == "quit";
        // Events come before the answer they led to; a machine that has gone has told them already.
        match show_events(&mut client, &mut console) {
            Err(_) if ends || (request.command == "quit" && answer.is_ok()) => {}
            shown => shown?,
        }
        if ends {
            break;
        }
        let answer = answer?;
        refused |= answer.get("error").is_some();
        console.line(&answer.to_string())?;
    }
    if console.terminal {
        console.line("")?;
    }
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Out-of-band commands are offered where the machine can; a monitor without them serves as well.
fn connect(endpoint: &Endpoint) -> Result<Client, QmpError> {
    match Client::connect_with(endpoint, PATIENCE, &["oob"]) {
        Err(QmpError::Refused { .. }) => Client::connect(endpoint, PATIENCE),
        answer => answer,
    }
}

fn show_events(client: &mut Client, console: &mut Console) -> anyhow::Result<()> {
    for event in client.drain_events()? {
        console.line(&event_json(&event).to_string())?;
    }
    Ok(())
}

fn event_json(event: &Event) -> Value {
    let stamp = json!({"seconds": event.at.as_secs(), "microseconds": event.at.subsec_micros()});
    let mut object = json!({"timestamp": stamp, "event": event.name});
    if !event.data.is_null() {
        object["data"] = event.data.clone();
    }
    object
}

/// Reads standard input on a thread of its own, so that events are shown meanwhile.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// One line, understood.
#[derive(Debug, PartialEq)]
struct Request {
    command: String,
    /// What the machine is sent: what was typed, to the byte; a bare command in its envelope.
    line: String,
}

impl Request {
    /// `None`: there is nothing on the line.
    fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let bad = |error: serde_json::Error| format!("not JSON: {error}");
        if line.starts_with('{') {
            let object: Map<String, Value> = serde_json::from_str(line).map_err(bad)?;
            let name = ["execute", "exec-oob"].iter().find_map(|member| object.get(*member)?.as_str());
            let Some(command) = name else {
                let text = "an object needs a member \"execute\" or \"exec-oob\" that names a command";
                return Err(text.into());
            };
            return Ok(Some(Self { command: command.to_owned(), line: line.to_owned() }));
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = Value::from(command);
        let line = match rest.trim() {
            "" => format!("{{\"execute\": {name}}}"),
            arguments => {
                serde_json::from_str::<Value>(arguments).map_err(bad)?;
                format!("{{\"execute\": {name}, \"arguments\": {arguments}}}")
            }
        };
        Ok(Some(Self { command: command.to_owned(), line }))
    }
}

/// Standard output, with a prompt where somebody types.
struct Console {
    terminal: bool,
    prompted: bool,
}

impl Console {
    fn new() -> Self {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        Self { terminal, prompted: false }
    }

    fn prompt(&mut self) -> std::io::Result<()> {
        if self.terminal && !self.prompted {
            self.prompted = true;
            put(PROMPT)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> std::io::Result<()> {
        let over = if std::mem::take(&mut self.prompted) { "\r\x1b[K" } else { "" };
        put(&format!("{over}{text}\n"))
    }
}

fn put(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Request {
        Request::parse(line).unwrap().unwrap()
    }

    #[test]
    fn a_line_is_a_command_with_arguments_or_a_whole_object() {
        assert_eq!(parsed(" query-status ").line, r#"{"execute": "query-status"}"#);
        let set = parsed("migrate-set-parameters {\"max-bandwidth\": 0}");
        assert_eq!(set.command, "migrate-set-parameters");
        assert_eq!(parsed("{\"exec-oob\": \"migrate-pause\"}").command, "migrate-pause");
    }

    /// Neither the order of members nor the spelling of a number is ours to change.
    #[test]
    fn what_was_typed_is_sent_to_the_byte() {
        let object = r#"{"id":[1],  "arguments":{"z":1.50,"a":1E2,"z":"\u0041"},"execute":"stop"}"#;
        assert_eq!(parsed(object), Request { command: "stop".into(), line: object.into() });
        let arguments = r#"{"z": 10000000000000000000001,"b":{ "y":0,"a":-0 }}"#;
        let line = format!(r#"{{"execute": "x", "arguments": {arguments}}}"#);
        assert_eq!(parsed(&format!("x   {arguments}")).line, line);
    }

    #[test]
    fn what_is_no_command_is_never_sent() {
        assert_eq!(Request::parse("  "), Ok(None));
        assert_eq!(Request::parse("# a comment"), Ok(None));
        for line in ["stop {", "stop {} {}", "{\"id\": 1}", "{\"execute\": 5}", "{\"execute\": \"stop\""] {
            assert!(Request::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_event_is_shown_as_the_machine_sent_it() {
        let event = Event { name: "STOP".into(), data: Value::Null, at: Duration::from_micros(1_000_002) };
        assert_eq!(
            event_json(&event),
            json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})
        );
    }
}
