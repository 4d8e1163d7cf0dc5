//! The `whimbrel` command as a script runs it: its words in, what it says and its exit code out.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::{Peer, Vm, wait_for};

/// How long a command may take that only asks a machine something.
const ANSWER: Duration = Duration::from_secs(240);

/// A running `whimbrel` subcommand. What it says goes into a pipe, never to a terminal. Dropping it kills it.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    whole: bool,
}

impl Operator {
    /// Starts it, with nothing to read.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(words: &[&str]) -> Self {
        Self::typing(words, "")
    }

    /// Starts it, and gives it `text` to read, to the end.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn typing(words: &[&str], text: &str) -> Self {
        let program = Peer::Whimbrel.program().expect("whimbrel builds");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped());
        command.stdout(writer.try_clone().expect("a second end of the pipe")).stderr(writer);
        let mut child = command.spawn().expect("whimbrel starts");
        // The command keeps ends of the pipe open as long as it lives.
        drop(command);
        if let Some(mut stdin) = child.stdin.take() {
            // A command that ends early does not read all of it.
            let _ = stdin.write_all(text.as_bytes());
        }
        let said = Arc::<Mutex<Said>>::default();
        let sink = said.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                locked(&sink).bytes.extend_from_slice(&buffer[..count]);
            }
            locked(&sink).whole = true;
        });
        Self { child, said }
    }

    /// What it said so far, on standard output and error.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&locked(&self.said).bytes).into_owned()
    }

    /// Presses Ctrl-C.
    ///
    /// # Panics
    /// If there is no shell to send the signal.
    pub fn interrupt(&self) {
        let kill = format!("kill -INT {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    }

    /// Its exit code, once it has ended by itself and all it said has been read.
    ///
    /// # Panics
    /// If it does not within `limit`, or ends by a signal.
    #[track_caller]
    pub fn exit_code(&mut self, limit: Duration) -> i32 {
        let said = self.said.clone();
        let status = wait_for("the command's end", limit, || self.child.try_wait().expect("our child"));
        wait_for("the end of what it says", limit, || locked(&said).whole.then_some(()));
        status.code().unwrap_or_else(|| panic!("ended by {status}: {}", self.said()))
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself already; both calls are then harmless.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end: exit code, and what it said.
#[track_caller]
pub fn whimbrel(words: &[&str]) -> (i32, String) {
    let mut operator = Operator::start(words);
    (operator.exit_code(ANSWER), operator.said())
}

/// The machine's monitor, as the command line names it.
pub fn endpoint(vm: &Vm) -> String {
    format!("unix:{}", vm.scratch.join("qmp").display())
}

fn locked(said: &Mutex<Said>) -> std::sync::MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
