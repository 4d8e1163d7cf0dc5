//! The harness of the end-to-end tests: real processes, driven from outside, as an operator would.
//!
//! | module | gives |
//! |---|---|
//! | [`need`] | what a test needs of the host, and the announced skip where it is missing |
//! | [`peer`] | whimbrel, QEMU 7.2 and QEMU 10.0: where they are, what their command lines look like |
//! | [`vm`] | one running machine: its process, its monitor, its ports; the host's check of its memory |
//! | `booted` | [`Launch::start_at_work`]: machines whose guest has booted already
//! | [`moves`] | one migration between two machines, and waiting for what it becomes |
//! | [`journey`] | one guest, never restarted, through machine after machine |
//! | [`operator`] | the `whimbrel` command as a script runs it |
//! | [`qmp`] | a QMP client of its own: it shares no code with the server under test |
//! | [`description`] | what a saved stream says of its sections |
//! | [`port`] | what a guest writes to a port, with the time of each byte; and bytes for the guest |
//! | [`link`] | a link between two machines that can be cut, held, or cut after a number of bytes |
//! | [`l1`], [`initramfs`] | a Linux with a KVM of its own, in which a test runs that this machine's KVM cannot |
//! | [`process`], [`scratch`] | a child that dies with its owner; a directory that goes with its owner |
//!
//! It is test code: what goes wrong panics, with the peer's own words. It never knows how whimbrel works inside.
//!
//! ```no_run
//! use std::time::Duration;
//! use whimbrel_e2e::{Launch, Need, Peer, moves, needs};
//!
//! if !needs(&[Need::Kvm, Need::Beacon]) {
//!     return;
//! }
//! let launch = Launch { beacon: beacon::CommandLine { set_mib: 64, ..Default::default() }, ..Launch::new(Peer::Whimbrel) };
//! let (mut source, mut destination) = (launch.start(), launch.incoming().start());
//! source.wait_ready();
//! moves::migrate(&mut source, &mut destination, Duration::from_secs(30));
//! source.kill();
//! destination.let_run(Duration::from_millis(500));
//! destination.assert_clean();
//! ```

mod booted;
pub mod description;
pub mod initramfs;
pub mod journey;
pub mod l1;
pub mod link;
pub mod moves;
pub mod need;
pub mod operator;
pub mod peer;
pub mod port;
pub mod process;
pub mod qmp;
pub mod scratch;
pub mod vm;

pub use need::{Need, needs};
pub use peer::Peer;
pub use vm::{Launch, Linux, Machine, Vm};

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The one clock of a test process: every byte a guest writes, on whichever machine, is timed by it.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// How many rounds a soak makes: `WHIMBREL_ROUNDS`, or `default`, what CI has time for.
pub fn rounds(default: u32) -> u32 {
    std::env::var("WHIMBREL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// Asks `ready` every few milliseconds until it answers.
///
/// # Panics
/// After `limit`, with `what` was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(now() - start < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
