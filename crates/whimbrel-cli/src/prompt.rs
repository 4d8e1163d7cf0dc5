//! `whimbrel qmp`: a prompt for any command of a machine, and its events as they come.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::anyhow;
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
        let answer = request.send(&mut client);
        let ends = matches!(&answer, Err(QmpError::Closed { .. })) && request.command == "quit";
        // Events come before the answer they led to; a machine that has gone has told them already.
        match show_events(&mut client, &mut console) {
            Err(_) if ends || (request.command == "quit" && answer.is_ok()) => {}
            shown => shown?,
        }
        refused |= answer.as_ref().is_err_and(|error| error.refusal().is_some());
        if ends {
            break;
        }
        console.line(&request.answer(answer)?.to_string())?;
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
    arguments: Value,
    out_of_band: bool,
    id: Option<Value>,
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
            return Self::from_object(serde_json::from_str(line).map_err(bad)?).map(Some);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let arguments = match rest.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).map_err(bad)?,
        };
        Ok(Some(Self { command: command.to_owned(), arguments, out_of_band: false, id: None }))
    }

    fn from_object(mut object: Map<String, Value>) -> Result<Self, String> {
        let out_of_band = object.contains_key("exec-oob");
        let member = if out_of_band { "exec-oob" } else { "execute" };
        let Some(Value::String(command)) = object.remove(member) else {
            return Err("an object needs a member \"execute\" or \"exec-oob\" that names a command".into());
        };
        let arguments = object.remove("arguments").unwrap_or(Value::Null);
        let id = object.remove("id");
        match object.keys().next() {
            Some(other) => Err(format!("QMP knows no member \"{other}\" of a command")),
            None => Ok(Self { command, arguments, out_of_band, id }),
        }
    }

    fn send(&self, client: &mut Client) -> Result<Value, QmpError> {
        match self.out_of_band {
            true => client.execute_out_of_band(&self.command, self.arguments.clone()),
            false => client.execute(&self.command, self.arguments.clone()),
        }
    }

    /// The answer as the machine gave it, under the id that was typed. Trouble with the connection is an error.
    fn answer(&self, answer: Result<Value, QmpError>) -> anyhow::Result<Value> {
        let mut object = match answer {
            Ok(value) => json!({ "return": value }),
            Err(QmpError::Refused { class, desc, .. }) => json!({"error": {"class": class, "desc": desc}}),
            Err(error) => return Err(anyhow!(error)),
        };
        if let Some(id) = &self.id {
            object["id"] = id.clone();
        }
        Ok(object)
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
        assert_eq!(parsed(" query-status ").command, "query-status");
        let set = parsed("migrate-set-parameters {\"max-bandwidth\": 0}");
        assert_eq!(
            (set.command.as_str(), &set.arguments),
            ("migrate-set-parameters", &json!({"max-bandwidth": 0}))
        );
        let object = parsed("{\"execute\": \"stop\", \"id\": [1]}");
        assert_eq!(
            (object.command.as_str(), object.out_of_band, object.id),
            ("stop", false, Some(json!([1])))
        );
        assert!(parsed("{\"exec-oob\": \"migrate-pause\"}").out_of_band);
    }

    #[test]
    fn what_is_no_command_is_never_sent() {
        assert_eq!(Request::parse("  "), Ok(None));
        assert_eq!(Request::parse("# a comment"), Ok(None));
        assert!(Request::parse("stop {").is_err());
        assert!(Request::parse("{\"id\": 1}").is_err());
        assert!(Request::parse("{\"execute\": \"stop\", \"bogus\": 1}").unwrap_err().contains("bogus"));
    }

    #[test]
    fn an_answer_carries_the_id_that_was_typed() {
        let request = parsed("{\"execute\": \"stop\", \"id\": \"x\"}");
        assert_eq!(request.answer(Ok(json!({}))).unwrap(), json!({"return": {}, "id": "x"}));
        let refusal =
            QmpError::Refused { command: "stop".into(), class: "GenericError".into(), desc: "no".into() };
        let answer = parsed("stop").answer(Err(refusal)).unwrap();
        assert_eq!(answer, json!({"error": {"class": "GenericError", "desc": "no"}}));
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
