//! The orders that the engine keeps for every machine: state-change callbacks around each stop and start, and devices in the
//! stream.

use std::sync::{Arc, Mutex};

use whimbrel::channel::Address;
use whimbrel::handlers::{Device, DeviceHandler, Priority, StateChange};
use whimbrel::machine::MachineError;
use whimbrel::proto::status::MigrationStatus;
use whimbrel::vmstate::{OpaqueState, VmState};

use crate::guest::{Build, Runners, Scratch, TCP};

/// What was called, in order.
type Journal = Arc<Mutex<Vec<String>>>;

struct Callback {
    name: &'static str,
    journal: Journal,
    /// How many stops to refuse.
    refuses: Mutex<u32>,
}

impl StateChange for Callback {
    fn prepare(&self, running: bool) -> Result<(), MachineError> {
        self.journal.lock().unwrap().push(format!("prepare {} {running}", self.name));
        Ok(())
    }

    fn changed(&self, running: bool) -> Result<(), MachineError> {
        self.journal.lock().unwrap().push(format!("{} {running}", self.name));
        let mut refuses = self.refuses.lock().unwrap();
        if !running && *refuses > 0 {
            *refuses -= 1;
            return Err(format!("{}: tables cannot be saved", self.name).into());
        }
        Ok(())
    }
}

/// A guest with three callbacks, registered out of order; `late` refuses some stops.
fn with_callbacks(build: Build, refuses: u32) -> (Build, Journal) {
    let journal = Journal::default();
    let kept = journal.clone();
    let build = build.handlers(move |registry| {
        for (priority, name) in [(5, "late"), (0, "first"), (0, "second")] {
            let refuses = Mutex::new(if name == "late" { refuses } else { 0 });
            registry.state_change(priority, Arc::new(Callback { name, journal: kept.clone(), refuses }));
        }
    });
    (build, journal)
}

#[test]
fn callbacks_run_up_on_a_start_and_down_on_a_stop_all_prepared_first() {
    let (build, journal) = with_callbacks(Build::new(&Runners::default()), 0);
    let guest = build.source();
    let up = std::mem::take(&mut *journal.lock().unwrap());
    assert_eq!(
        up,
        [
            "prepare first true",
            "prepare second true",
            "prepare late true",
            "first true",
            "second true",
            "late true"
        ]
    );
    guest.command(|engine| engine.stop()).unwrap();
    let down = std::mem::take(&mut *journal.lock().unwrap());
    assert_eq!(
        down,
        [
            "prepare late false",
            "prepare second false",
            "prepare first false",
            "late false",
            "second false",
            "first false"
        ]
    );
    guest.command(|engine| engine.stop()).unwrap();
    assert!(journal.lock().unwrap().is_empty(), "a guest that stands is not stopped again");
}

#[test]
fn a_callback_that_refuses_the_stop_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let (build, journal) = with_callbacks(Build::new(&runners), 1);
    let source = build.source();
    let (_destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    assert_eq!(source.failed(), "the guest could not be stopped: late: tables cannot be saved");
    assert_eq!(journal.lock().unwrap().last().unwrap(), "late true", "what was stopped is started again");
    source.moves_next_time(Build::new(&runners));
}

#[test]
fn a_stop_that_is_refused_is_an_error_of_the_command_and_the_guest_runs_on() {
    let (build, _) = with_callbacks(Build::new(&Runners::default()), 1);
    let guest = build.source();
    let refused = guest.command(|engine| engine.stop()).unwrap_err();
    assert_eq!(refused, "late: tables cannot be saved");
    guest.runs();
    guest.command(|engine| engine.stop()).unwrap();
    guest.stands();
}

/// A device in a format of its own, which keeps what it was given.
pub(crate) struct Opaque(Mutex<Vec<u8>>);

impl Device for Opaque {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(OpaqueState { version: 3, data: self.0.lock().unwrap().clone() }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(OpaqueState { version: 3, data: Vec::new() })
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = whimbrel::downcast::<OpaqueState>(state)?;
        if state.data == b"bad" {
            return Err("a value that cannot be held here".into());
        }
        *self.0.lock().unwrap() = state.data;
        Ok(())
    }
}

/// The same with one more device, and that device.
pub(crate) fn with_device(
    build: Build,
    idstr: &'static str,
    priority: Priority,
    early: bool,
    data: &[u8],
) -> (Build, Arc<Opaque>) {
    let device = Arc::new(Opaque(Mutex::new(data.to_vec())));
    let before = build.handlers.clone();
    let kept = device.clone();
    let build = build.handlers(move |registry| {
        if let Some(before) = &before {
            before(registry);
        }
        let (idstr, device) = (idstr.to_owned(), kept.clone());
        registry.device(DeviceHandler { idstr, instance_id: 0, priority, early, device });
    });
    (build, device)
}

#[test]
fn devices_stand_in_the_stream_by_priority_and_early_ones_before_ram() {
    let scratch = Scratch::new();
    let path = scratch.path("stream");
    let (build, _) =
        with_device(Build::new(&Runners::default()).ram(1, 8), "plain", Priority::Default, false, b"1");
    let (build, _) = with_device(build, "gic", Priority::GicV3, false, b"2");
    let (build, _) = with_device(build, "iommu", Priority::Iommu, false, b"3");
    let (build, _) = with_device(build, "early", Priority::Default, true, b"4");
    let source = build.source();
    source.migrate(&Address::File { path: path.clone(), offset: 0 });
    source.wait_for(MigrationStatus::Completed);
    let stream = std::fs::read(path).unwrap();
    let at = |idstr: &[u8]| {
        let name = [&[idstr.len() as u8], idstr].concat();
        stream.windows(name.len()).position(|window| window == name).unwrap()
    };
    let order = [&b"early"[..], b"ram", b"gic", b"iommu", b"worker", b"plain", b"globalstate"].map(at);
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn a_device_of_its_own_format_arrives_early_or_late() {
    let runners = Runners::default();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    for early in [true, false] {
        let (build, _) = with_device(Build::new(&runners), "opaque", Priority::Default, early, &large);
        let source = build.source();
        let (build, arrived) = with_device(Build::new(&runners), "opaque", Priority::Default, early, b"");
        let (destination, address) = build.destination(TCP);
        source.migrate(&address);
        source.moved_to(&destination);
        assert!(*arrived.0.lock().unwrap() == large);
    }
}

#[test]
fn a_value_that_the_device_refuses_is_told_with_its_section() {
    let runners = Runners::default();
    let (build, _) = with_device(Build::new(&runners), "opaque", Priority::Default, false, b"bad");
    let source = build.source();
    let (build, _) = with_device(Build::new(&runners), "opaque", Priority::Default, false, b"");
    let (destination, address) = build.destination(TCP);
    source.migrate(&address);
    source.failed();
    assert_eq!(destination.refusal(), "load: device 'opaque': a value that cannot be held here");
}
