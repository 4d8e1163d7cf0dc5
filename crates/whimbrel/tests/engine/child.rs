//! Destinations in processes of their own, so that they can be killed: this test program again, at [`child`].

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use whimbrel::channel::Address;

use crate::guest::{Build, Runners, TCP, wait_until};

const FAULT: &str = "WHIMBREL_TEST_CHILD_FAULT";

/// A destination; killed when it is dropped.
pub(crate) struct Child {
    pub(crate) address: Address,
    process: std::process::Child,
}

impl Child {
    /// Starts one with a fault switch.
    pub(crate) fn destination(fault: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::child", "--ignored", "--nocapture"])
            .env(FAULT, fault)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let uri =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
        Self { address: Address::parse(&uri.expect("the child says where it listens")).unwrap(), process }
    }

    /// It was killed by its fault.
    pub(crate) fn died(mut self) {
        let mut status = None;
        wait_until("the child's death", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().signal(), Some(libc::SIGKILL));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
#[ignore = "no test: what a child process of the tests runs"]
fn child() {
    let Ok(fault) = std::env::var(FAULT) else { return };
    let (destination, address) = Build::new(&Runners::default()).fault(&fault).destination(TCP);
    println!("\nlistening {address}");
    destination.exit();
}
