//! The order of device sections in the stream: by priority, the early ones before RAM; and devices in a format of their own.

use std::sync::{Arc, Mutex};

use whimbrel::channel::Address;
use whimbrel::handlers::{Device, DeviceHandler, Priority};
use whimbrel::machine::MachineError;
use whimbrel::proto::status::MigrationStatus;
use whimbrel::vmstate::{OpaqueState, VmState};

use crate::guest::{Build, Runners, Scratch, TCP};

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
