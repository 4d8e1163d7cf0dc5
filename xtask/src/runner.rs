//! Runs one command, passes its output on line by line, and reads from it what its tests did.

use std::io::{BufRead, BufReader, pipe};
use std::process::Command;

/// What the tests of one command, or of several, did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// Test and reason. The test runner has counted them as passed.
    pub(crate) skipped: Vec<(String, String)>,
    /// The same for what no fresh machine must have: announced and counted, and allowed where other skips are not.
    pub(crate) optional: Vec<(String, String)>,
    /// Failed tests, and commands that failed without a failed test, by name.
    pub(crate) failures: Vec<String>,
}

/// Reads a tally from output.
#[derive(Default)]
struct Reader {
    tally: Tally,
    /// Within the list of failed tests that stands at the end of a test binary's output.
    in_failures: bool,
}

impl Tally {
    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped);
        self.optional.extend(other.optional);
        self.failures.extend(other.failures);
    }
}

impl Reader {
    /// Takes what one line of output says.
    fn line(&mut self, line: &str) {
        // A test's own line may follow `test name ... ` where tests run one at a time.
        if let Some((_, announced)) = line.split_once("SKIPPED") {
            let (into, announced) = match announced.strip_prefix("-OPTIONAL") {
                Some(announced) => (&mut self.tally.optional, announced),
                None => (&mut self.tally.skipped, announced),
            };
            let announced = announced.trim_start_matches(':').trim();
            if let Some((name, reason)) = announced.split_once(": ") {
                into.push((name.to_owned(), reason.to_owned()));
            }
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            for count in counts.split([';', '.']) {
                let Some((number, what)) = count.trim().split_once(' ') else { continue };
                let Ok(number) = number.parse::<u64>() else { continue };
                match what {
                    "passed" => self.tally.passed += number,
                    "failed" => self.tally.failed += number,
                    "ignored" => self.tally.ignored += number,
                    _ => {}
                }
            }
        } else if self.in_failures
            && let Some(name) = line.strip_prefix("    ")
        {
            self.tally.failures.push(name.to_owned());
        } else {
            // Comes twice: before what the tests printed, where an empty line follows, and before their names.
            self.in_failures = line == "failures:";
        }
    }
}

/// Runs it to its end. A command that cannot be started, or that fails without a failed test, is a failure itself.
pub(crate) fn run(command: &mut Command) -> Tally {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let name = format!("cargo {}", words.join(" "));
    println!("\n$ {name}");
    let mut reader = Reader::default();
    let succeeded = output_lines(command, |line| {
        println!("{line}");
        reader.line(line);
    });
    let mut tally = reader.tally;
    match succeeded {
        Ok(true) => {}
        Ok(false) if tally.failed > 0 => {}
        Ok(false) => tally.failures.push(name),
        Err(error) => tally.failures.push(format!("{name}: {error}")),
    }
    tally
}

/// Gives each line of standard output and error as it comes; whether the command succeeded.
fn output_lines(command: &mut Command, mut each: impl FnMut(&str)) -> std::io::Result<bool> {
    let (reader, writer) = pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // The command holds the pipe's other end: without this the reader would never see its end.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.tally
    }

    #[test]
    fn closing_lines_of_several_test_binaries_add_up() {
        let tally = tally(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 52.64s\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s",
        );
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 1, 1));
    }

    #[test]
    fn a_skip_is_counted_with_its_reason_wherever_it_stands_in_the_line() {
        let tally = tally("SKIPPED: one: no x: get y\ntest two ... SKIPPED two: no z\n");
        let expected =
            [("one", "no x: get y"), ("two", "no z")].map(|(name, why)| (name.to_owned(), why.to_owned()));
        assert_eq!(tally.skipped, expected);
    }

    #[test]
    fn a_skip_of_what_no_machine_must_have_is_counted_apart() {
        let tally = tally("SKIPPED-OPTIONAL one: no vsock\nSKIPPED two: no z\n");
        assert_eq!(tally.optional, [("one".to_owned(), "no vsock".to_owned())]);
        assert_eq!(tally.skipped, [("two".to_owned(), "no z".to_owned())]);
    }

    #[test]
    fn failed_tests_are_named_by_the_list_at_the_end() {
        let tally = tally(
            "test a::b ... error: noise\nFAILED\n\nfailures:\n\n---- a::b stdout ----\n    no name\n\n\
             failures:\n    a::b\n    c\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored",
        );
        assert_eq!(tally.failures, ["a::b", "c"]);
        assert_eq!(tally.failed, 2);
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_is_a_failure() {
        let tally = run(Command::new("sh").args(["-c", "echo error: no; exit 1"]));
        assert_eq!(tally.failures.len(), 1);
        assert!(run(Command::new("sh").args(["-c", "echo fine"])).failures.is_empty());
    }
}
