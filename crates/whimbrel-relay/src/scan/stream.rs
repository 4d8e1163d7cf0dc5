//! The stream's pieces.
//!
//! ```text
//! Begin ─▶ Element ─▶ Ram ──▶ Footer ─┐
//!             ▲  │  └▶ Device ────────┤
//!             │  └▶ AfterEof ─▶ Text  │
//!             └───────────────────────┘      anything else ─▶ lost
//! ```

use std::collections::HashMap;

use whimbrel::wire::element::{self, Element, SectionHeader};
use whimbrel::wire::footer::{self, BodyEnd, LENGTH as FOOTER};
use whimbrel::wire::ram::{self, RamRecord, SetupLayout, TARGET_PAGE_SIZE, decode_block_list};
use whimbrel::wire::{Command, Configuration, Input, WireError, header};

use super::{Edge, Kind, LONGEST_HEADER, Mark, Piece};

/// Finds the pieces of one connection's stream.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// Received, not yet understood.
    carry: Vec<u8>,
    /// The offset of its first byte.
    at: u64,
    /// Of what follows, so many bytes are payload, whatever they are.
    skip: u64,
    /// Live sections by the sender's number.
    live: HashMap<u32, Section>,
    layout: SetupLayout,
    /// The piece that has begun.
    open: Option<Piece>,
    lost: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    id: u32,
    idstr: String,
    instance: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Begin,
    Element,
    /// The body of RAM's section of that number.
    Ram(u32),
    Footer(u32),
    /// A body whose length nobody tells.
    Device(u32),
    AfterEof,
    /// Within the vmdesc; behind it nothing comes.
    Text,
}

/// What came of a look at what is there.
enum Step {
    /// So many bytes are understood.
    Took(u64),
    /// More must come first.
    Wait,
    /// It is no stream as this follows them.
    Lost(String),
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Begin,
            carry: Vec::new(),
            at: 0,
            skip: 0,
            live: HashMap::new(),
            layout: SetupLayout::default(),
            open: None,
            lost: None,
        }
    }
}

impl Scanner {
    /// Takes the next bytes, and tells `mark` each boundary that they make certain.
    pub fn push(&mut self, mut bytes: &[u8], mark: &mut dyn FnMut(Mark)) {
        while self.lost.is_none() {
            if self.skip > 0 {
                if bytes.is_empty() {
                    return;
                }
                // Payload is skipped only where nothing is carried.
                let length = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                bytes = bytes.get(length..).unwrap_or_default();
                self.skip = self.skip.saturating_sub(length as u64);
                self.at = self.at.saturating_add(length as u64);
                self.end_text(mark);
                continue;
            }
            self.carry.extend_from_slice(std::mem::take(&mut bytes));
            match self.step(mark) {
                Step::Took(length) => {
                    let here = usize::try_from(length).unwrap_or(usize::MAX).min(self.carry.len());
                    self.carry.drain(..here);
                    self.at = self.at.saturating_add(here as u64);
                    self.skip = length.saturating_sub(here as u64);
                    self.end_text(mark);
                }
                Step::Wait if self.carry.len() <= LONGEST_HEADER => return,
                Step::Wait => self.lose("a header that does not end".to_owned()),
                Step::Lost(why) => self.lose(why),
            }
        }
    }

    /// Nothing more has come for a while: an EOF byte behind a device's section is believed without a vmdesc.
    pub fn idle(&mut self, mark: &mut dyn FnMut(Mark)) {
        if let State::Device(id) = self.state
            && self.carry.strip_prefix(&footer::bytes(id)) == Some(&[element::EOF])
        {
            self.carry.drain(..FOOTER);
            self.at = self.at.saturating_add(FOOTER as u64);
            self.close(self.at, mark);
            self.state = State::Element;
            self.push(&[], mark);
        }
    }

    /// How many bytes may pass on before it is known what comes behind them.
    pub fn settled(&self) -> u64 {
        if self.lost.is_some() {
            return u64::MAX;
        }
        match self.state {
            // Of a body every byte may pass, but for what follows a footer that is not certain yet.
            State::Device(id) if !self.carry.starts_with(&footer::bytes(id)) => {
                self.at.saturating_add(self.carry.len() as u64)
            }
            State::Ram(_) | State::Text => u64::MAX,
            State::Device(_) | State::Footer(_) => self.at.saturating_add(FOOTER as u64),
            State::Begin | State::Element | State::AfterEof => self.at,
        }
    }

    /// Why it follows the stream no more.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn lose(&mut self, why: String) {
        self.carry = Vec::new();
        self.lost = Some(why);
    }

    fn begin(&mut self, piece: Piece, mark: &mut dyn FnMut(Mark)) {
        mark(Mark { edge: Edge::Begin, piece: piece.clone(), at: self.at });
        self.open = Some(piece);
    }

    fn close(&mut self, at: u64, mark: &mut dyn FnMut(Mark)) {
        if let Some(piece) = self.open.take() {
            mark(Mark { edge: Edge::End, piece, at });
        }
    }

    fn end_text(&mut self, mark: &mut dyn FnMut(Mark)) {
        if self.skip == 0 && self.state == State::Text {
            self.close(self.at, mark);
        }
    }

    fn step(&mut self, mark: &mut dyn FnMut(Mark)) -> Step {
        if self.carry.is_empty() {
            return Step::Wait;
        }
        let stepped = match self.state {
            State::Begin => self.header(mark),
            State::Element => self.element(mark),
            State::Ram(id) => self.ram(id),
            State::Footer(id) => self.ram_footer(id, mark),
            State::Device(id) => return self.device(id, mark),
            State::AfterEof => self.after_eof(mark),
            State::Text => return Step::Lost("bytes behind the vmdesc".to_owned()),
        };
        stepped.unwrap_or_else(|error| match error {
            WireError::Truncated { .. } => Step::Wait,
            error => Step::Lost(error.to_string()),
        })
    }

    fn input(&self) -> Input<&[u8]> {
        Input::with_capacity(&self.carry[..], 0).starting_at(self.at)
    }

    fn header(&mut self, mark: &mut dyn FnMut(Mark)) -> Result<Step, WireError> {
        let mut input = self.input();
        header::decode(&mut input)?;
        let configuration = match input.peek_u8()? {
            Some(element::CONFIGURATION) => Configuration::decode(&mut input)?,
            _ => Configuration::default(),
        };
        // A subsection may follow, or not: the next byte says it.
        if input.at_end()? {
            return Ok(Step::Wait);
        }
        let end = input.offset();
        self.layout.guest_addresses = configuration.capabilities.iter().any(|name| name == "x-ignore-shared");
        self.begin(Piece::only(Kind::Header), mark);
        self.close(end, mark);
        self.state = State::Element;
        Ok(Step::Took(end.saturating_sub(self.at)))
    }

    fn element(&mut self, mark: &mut dyn FnMut(Mark)) -> Result<Step, WireError> {
        let mut input = self.input();
        let element = Element::decode(&mut input)?;
        let end = input.offset();
        match element {
            Element::Eof => {
                self.begin(Piece::only(Kind::Eof), mark);
                self.close(end, mark);
                self.state = State::AfterEof;
            }
            Element::SectionStart(header) => self.section(Kind::Start, header.into(), mark),
            Element::SectionFull(header) => self.section(Kind::Full, header.into(), mark),
            Element::SectionPart { section_id } | Element::SectionEnd { section_id } => {
                let kind = match element {
                    Element::SectionEnd { .. } => Kind::End,
                    _ => Kind::Part,
                };
                let Some(section) = self.live.get(&section_id).cloned() else {
                    let why = format!("section {section_id} goes on and never began");
                    return Ok(Step::Lost(format!("{why} (stream offset {:#x})", self.at)));
                };
                self.section(kind, section, mark);
            }
            Element::Command(command) => {
                let value = if let Command::Ping(value) = command { value } else { 0 };
                self.begin(Piece::named(Kind::Command, command.name(), value), mark);
                self.close(end, mark);
            }
            Element::VmDescription { .. } => {
                let why = "a vmdesc that follows no EOF";
                return Ok(Step::Lost(format!("{why} (stream offset {:#x})", self.at)));
            }
        }
        Ok(Step::Took(end.saturating_sub(self.at)))
    }

    fn section(&mut self, kind: Kind, section: Section, mark: &mut dyn FnMut(Mark)) {
        let id = section.id;
        self.begin(Piece::named(kind, section.idstr.clone(), section.instance), mark);
        self.state = if section.idstr == ram::IDSTR { State::Ram(id) } else { State::Device(id) };
        if kind == Kind::Start {
            self.live.insert(id, section);
        }
    }

    /// Steps over whole records, and into the last one's payload.
    fn ram(&mut self, id: u32) -> Result<Step, WireError> {
        let mut input = self.input();
        let end = self.at.saturating_add(self.carry.len() as u64);
        let mut whole = self.at;
        let took = |whole: u64, at: u64| match whole.saturating_sub(at) {
            0 => Step::Wait,
            length => Step::Took(length),
        };
        loop {
            let payload = match RamRecord::decode(&mut input) {
                Ok(RamRecord::Page { .. }) => TARGET_PAGE_SIZE,
                Ok(RamRecord::Xbzrle { length, .. }) => length.into(),
                Ok(RamRecord::Zero { .. } | RamRecord::MultifdFlush) => 0,
                Ok(RamRecord::MemSize { total }) => {
                    match decode_block_list(&mut input, total, &self.layout) {
                        Ok(_) => 0,
                        Err(WireError::Truncated { .. }) => return Ok(took(whole, self.at)),
                        Err(error) => return Err(error),
                    }
                }
                Ok(RamRecord::Eos) => {
                    let length = input.offset().saturating_sub(self.at);
                    self.state = State::Footer(id);
                    return Ok(Step::Took(length));
                }
                Err(WireError::Truncated { .. }) => return Ok(took(whole, self.at)),
                Err(error) => return Err(error),
            };
            whole = input.offset().saturating_add(payload);
            if whole >= end {
                return Ok(took(whole, self.at));
            }
            input.skip(payload)?;
        }
    }

    fn ram_footer(&mut self, id: u32, mark: &mut dyn FnMut(Mark)) -> Result<Step, WireError> {
        let mut input = self.input();
        element::decode_footer(&mut input, ram::IDSTR, id)?;
        let end = input.offset();
        self.state = State::Element;
        self.close(end, mark);
        Ok(Step::Took(FOOTER as u64))
    }

    /// Looks for the body's end. A footer that may be one is left at the front of what is carried, until it is certain.
    fn device(&mut self, id: u32, mark: &mut dyn FnMut(Mark)) -> Step {
        match footer::find(&self.carry, id, false, |id| self.live.contains_key(&id)) {
            BodyEnd::At(length) => {
                let end = length.saturating_add(FOOTER) as u64;
                self.state = State::Element;
                self.close(self.at.saturating_add(end), mark);
                Step::Took(end)
            }
            BodyEnd::Beyond(0) => Step::Wait,
            BodyEnd::Beyond(length) => Step::Took(length as u64),
        }
    }

    fn after_eof(&mut self, mark: &mut dyn FnMut(Mark)) -> Result<Step, WireError> {
        let mut input = self.input();
        let Element::VmDescription { length } = Element::decode(&mut input)? else {
            return Ok(Step::Lost(format!("no vmdesc follows EOF (stream offset {:#x})", self.at)));
        };
        let header = input.offset().saturating_sub(self.at);
        self.begin(Piece::only(Kind::Vmdesc), mark);
        self.state = State::Text;
        Ok(Step::Took(header.saturating_add(length.into())))
    }
}

impl From<SectionHeader> for Section {
    fn from(header: SectionHeader) -> Self {
        Self { id: header.section_id, idstr: header.idstr, instance: header.instance_id }
    }
}
