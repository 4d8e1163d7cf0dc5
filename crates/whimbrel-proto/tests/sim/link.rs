//! A simulated connection: two queues with bandwidth, latency, a socket buffer, and every way to lose it.

use std::collections::VecDeque;
use std::time::Duration;

use whimbrel_proto::event::ElementHeader;
use whimbrel_proto::run_state::RunState;
use whimbrel_wire::return_path::ReturnPathMessage;

/// What the stream carries.
#[derive(Debug, Clone)]
pub enum Message {
    /// File header and configuration.
    Header,
    /// A live section with pages (index, content).
    Live { end: bool, pages: Vec<(usize, u64)> },
    /// A device: the guest's registers, here one number.
    Registers(u64),
    /// The source's run state before the switchover.
    GlobalState(RunState),
    /// A command, or EOF.
    Plain(ElementHeader),
}

impl Message {
    pub fn header(&self) -> ElementHeader {
        match self {
            Self::Header => panic!("the header is no element"),
            Self::Live { end, .. } => ElementHeader::Live { idstr: "ram".into(), end: *end },
            Self::Registers(_) => ElementHeader::Device { idstr: "cpu".into() },
            Self::GlobalState(_) => ElementHeader::Device { idstr: "globalstate".into() },
            Self::Plain(header) => header.clone(),
        }
    }
}

/// The connection.
#[derive(Debug, Clone)]
pub struct Link {
    /// Bytes a second towards the destination.
    pub bandwidth: u64,
    pub latency: Duration,
    /// Bytes that a write leaves behind without waiting.
    pub buffer: u64,
    free_at: Duration,
    pub forward: VecDeque<(Duration, Message)>,
    pub reverse: VecDeque<(Duration, ReturnPathMessage)>,
    /// Neither end can write any more; what is queued still arrives.
    pub closed: bool,
    /// Messages vanish without anybody being told.
    pub forward_vanishes: bool,
    pub reverse_vanishes: bool,
    /// Bytes ever accepted.
    pub total: u64,
}

impl Link {
    pub fn new(bandwidth: u64, latency: Duration, buffer: u64) -> Self {
        Self {
            bandwidth,
            latency,
            buffer,
            free_at: Duration::ZERO,
            forward: VecDeque::new(),
            reverse: VecDeque::new(),
            closed: false,
            forward_vanishes: false,
            reverse_vanishes: false,
            total: 0,
        }
    }

    /// Occupies the wire for `bytes`; returns when the writer may go on.
    pub fn occupy(&mut self, now: Duration, bytes: u64) -> Duration {
        let span = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.bandwidth as f64);
        self.free_at = self.free_at.max(now) + span(bytes);
        self.total += bytes;
        self.free_at.saturating_sub(span(self.buffer)).max(now)
    }

    /// Puts a message behind what was occupied.
    pub fn send(&mut self, message: Message) {
        if !self.forward_vanishes {
            self.forward.push_back((self.free_at + self.latency, message));
        }
    }

    pub fn answer(&mut self, now: Duration, message: ReturnPathMessage) {
        if !self.closed && !self.reverse_vanishes {
            let arrival = now + self.latency;
            let place = self.reverse.iter().take_while(|(time, _)| *time <= arrival).count();
            self.reverse.insert(place, (arrival, message));
        }
    }

    /// Nobody can write any more. `lossy`: what is under way is lost as well.
    pub fn cut(&mut self, lossy: bool) {
        self.closed = true;
        if lossy {
            self.forward.clear();
            self.reverse.clear();
        }
    }
}
