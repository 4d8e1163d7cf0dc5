//! A small disk as live state of a VMM's own: what its author writes to have it moved while the guest writes to it.
//!
//! ```text
//! START   be64 bytes of the disk
//! PART    { be32 chunk, 4096 bytes }, be32 ffffffff
//! END     be32 ffffffff
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use whimbrel::error::StreamError;
use whimbrel::handlers::{
    Incoming, LiveDestination, LiveHandler, LivePart, LiveSource, LiveState, Outgoing, Priority, Quota,
    StateChange,
};
use whimbrel::machine::MachineError;
use whimbrel::proto::event::Pages;

use crate::guest::Build;

pub(crate) const CHUNK: usize = 4096;
/// Instead of a chunk's number: the body ends.
pub(crate) const NO_MORE: u32 = u32::MAX;

/// The disk, and the guest's thread that writes to it, chunk after chunk.
pub(crate) struct Disk {
    inner: Mutex<Inner>,
    /// The content when an incoming guest was about to run for the first time.
    arrived: OnceLock<Vec<u8>>,
}

struct Inner {
    content: Vec<u8>,
    running: bool,
    writes: u64,
    /// Chunks written since last asked, while somebody asks.
    written: Option<BTreeSet<usize>>,
    /// What the next migration of it fails at.
    fails: Option<&'static str>,
}

impl Disk {
    /// A disk of so many chunks, of which the guest writes one every so often.
    pub(crate) fn new(chunks: usize, every: Duration) -> Arc<Self> {
        let inner =
            Inner { content: vec![0; chunks * CHUNK], running: false, writes: 0, written: None, fails: None };
        let disk = Arc::new(Self { inner: Mutex::new(inner), arrived: OnceLock::new() });
        let weak = Arc::downgrade(&disk);
        std::thread::spawn(move || {
            while let Some(disk) = weak.upgrade() {
                disk.write();
                drop(disk);
                std::thread::sleep(every);
            }
        });
        disk
    }

    fn write(&self) {
        let mut inner = self.inner.lock().unwrap();
        if !inner.running {
            return;
        }
        inner.writes += 1;
        let (writes, chunks) = (inner.writes, inner.content.len() / CHUNK);
        let chunk = writes as usize % chunks;
        inner.content[chunk * CHUNK..][..CHUNK].as_chunks_mut().0.fill(writes.to_le_bytes());
        if let Some(written) = &mut inner.written {
            written.insert(chunk);
        }
    }

    pub(crate) fn writes(&self) -> u64 {
        self.inner.lock().unwrap().writes
    }

    /// Somebody wants to know what is written.
    pub(crate) fn is_tracked(&self) -> bool {
        self.inner.lock().unwrap().written.is_some()
    }

    pub(crate) fn fail(&self, at: &'static str) {
        self.inner.lock().unwrap().fails = Some(at);
    }

    /// That is what stood here when the guest left, and there when it was about to run.
    pub(crate) fn arrived_at(&self, destination: &Disk) -> bool {
        destination.arrived.get() == Some(&self.inner.lock().unwrap().content)
    }

    /// The same guest with this disk.
    pub(crate) fn in_guest(self: &Arc<Self>, build: Build, priority: Priority) -> Build {
        let disk = self.clone();
        build.handlers(move |registry| {
            let state = Arc::new(Movable(disk.clone()));
            registry.live(LiveHandler {
                idstr: "disk".into(),
                instance_id: 0,
                version_id: 1,
                priority,
                state,
            });
            registry.state_change(1, disk.clone());
        })
    }

    fn fails_at(&self, at: &'static str) -> Result<(), StreamError> {
        match self.inner.lock().unwrap().fails.take_if(|fails| *fails == at) {
            Some(at) => Err(MachineError::from(format!("EIO in {at}")).into()),
            None => Ok(()),
        }
    }
}

impl StateChange for Disk {
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        let mut inner = self.inner.lock().unwrap();
        inner.running = running;
        if running {
            self.arrived.get_or_init(|| inner.content.clone());
        }
        Ok(())
    }
}

/// The disk as it is registered.
struct Movable(Arc<Disk>);

impl LiveState for Movable {
    fn source(&self) -> Result<Box<dyn LiveSource>, StreamError> {
        let disk = self.0.clone();
        disk.fails_at("source")?;
        Ok(Box::new(Source { disk, left: BTreeSet::new() }))
    }

    fn destination(&self) -> Result<Box<dyn LiveDestination + '_>, StreamError> {
        Ok(Box::new(Destination(&self.0)))
    }
}

struct Source {
    disk: Arc<Disk>,
    left: BTreeSet<usize>,
}

impl LiveSource for Source {
    fn setup(&mut self, out: &mut Outgoing) -> Result<(), StreamError> {
        self.disk.fails_at("setup")?;
        let mut inner = self.disk.inner.lock().unwrap();
        let size = inner.content.len();
        inner.written = Some(BTreeSet::new());
        self.left = (0..size / CHUNK).collect();
        out.data(&(size as u64).to_be_bytes())
    }

    fn pending(&self) -> u64 {
        (self.left.len() * CHUNK) as u64
    }

    fn sync(&mut self, last: bool) -> Result<u64, StreamError> {
        self.disk.fails_at(if last { "last sync" } else { "sync" })?;
        let written = self.disk.inner.lock().unwrap().written.replace(BTreeSet::new()).unwrap_or_default();
        let known = self.left.len();
        self.left.extend(written);
        Ok(((self.left.len() - known) * CHUNK) as u64)
    }

    fn iterate(&mut self, out: &mut Outgoing, quota: &Quota) -> Result<Pages, StreamError> {
        self.disk.fails_at("iterate")?;
        let mut pages = Pages::default();
        while let Some(chunk) = self.left.pop_first() {
            let content = self.disk.inner.lock().unwrap().content[chunk * CHUNK..][..CHUNK].to_vec();
            out.data(&(chunk as u32).to_be_bytes())?;
            out.data(&content)?;
            pages.normal += 1;
            if quota.is_used_up(out) || quota.is_over() {
                break;
            }
        }
        out.data(&NO_MORE.to_be_bytes())?;
        Ok(pages)
    }

    fn complete(&mut self, out: &mut Outgoing) -> Result<(), StreamError> {
        self.disk.fails_at("complete")?;
        out.data(&NO_MORE.to_be_bytes())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.disk.inner.lock().unwrap().written = None;
    }
}

struct Destination<'a>(&'a Disk);

impl LiveDestination for Destination<'_> {
    fn load(&mut self, part: LivePart, input: &mut Incoming) -> Result<(), StreamError> {
        let mut inner = self.0.inner.lock().unwrap();
        let size = inner.content.len();
        let refuse =
            |text: String, at: u64| Err(MachineError(format!("{text} (stream offset {at:#x})")).into());
        let at = input.offset();
        if part == LivePart::Start {
            let theirs = input.reading("the disk's size").be64()?;
            return if theirs == size as u64 {
                Ok(())
            } else {
                refuse(format!("{theirs} bytes, here {size}"), at)
            };
        }
        loop {
            let at = input.offset();
            let chunk = input.reading("a chunk of the disk").be32()?;
            if chunk == NO_MORE {
                return Ok(());
            }
            let Some(place) = inner.content.chunks_exact_mut(CHUNK).nth(chunk as usize) else {
                return refuse(format!("no chunk {chunk}"), at);
            };
            place.copy_from_slice(input.view(CHUNK)?);
        }
    }
}
