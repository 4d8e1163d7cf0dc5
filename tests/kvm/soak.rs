//! Many moves in a row, each between fresh processes, under load.

use std::time::Duration;

use beacon::{CommandLine, heartbeat};
use serde_json::json;
use whimbrel_e2e::{moves, needs, rounds};

use super::{LIMIT, NEEDS, guest, machine};

#[test]
fn soak_moves() {
    if !needs(NEEDS) {
        return;
    }
    let rounds = rounds(20);
    let mut pages = 0;
    let mut worst = Duration::ZERO;
    for round in 0..rounds {
        // 1 and 2 vCPUs in turn; each other pair of rounds as fast as the guest can on a small set.
        let beacon = CommandLine {
            cpus: 1 + round % 2,
            set_mib: [64, 24][(round / 2 % 2) as usize],
            rate_mib_per_s: [200, 400][(round / 2 % 2) as usize],
            seed: u64::from(round) + 1,
            ..guest()
        };
        let launch = machine(beacon);
        let (mut source, mut destination) = (launch.start(), launch.incoming().start());
        source.wait_ready();
        source.set(json!({"max-bandwidth": 0}));
        source.let_run(Duration::from_millis(100));
        moves::migrate(&mut source, &mut destination, LIMIT);
        source.kill();
        destination.let_run(Duration::from_millis(200));
        let report = destination.assert_clean();
        let beats = heartbeat::summarise([&source.heartbeat.beats(), &destination.heartbeat.beats()]);
        assert!(beats.is_whole(), "round {round}: {:?}", beats.breaks);
        pages += report.pages_verified;
        worst = worst.max(beats.hand_overs.first().map_or(Duration::ZERO, |gap| gap.length));
    }
    println!(
        "{rounds} moves, {pages} pages verified, 0 mismatches, longest gap {:.1} ms",
        worst.as_secs_f64() * 1e3
    );
}
