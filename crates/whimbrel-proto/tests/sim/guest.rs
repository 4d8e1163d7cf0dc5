//! A simulated guest: pages with a generation each, a register, a dirty log, and a rate of writing.

use std::time::Duration;

/// Bytes of a page: large, so that a simulation of many MiB stays quick.
pub const PAGE: u64 = 64 << 10;

/// RAM and registers of a guest on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    pub pages: Vec<u64>,
    /// Number of writes so far: the state of a vCPU.
    pub register: u64,
}

/// How the guest writes.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes a second that it dirties.
    pub rate: u64,
    /// Pages it goes round.
    pub working_set: usize,
}

/// The guest's memory on a host, with the kernel's dirty log.
#[derive(Debug, Clone)]
pub struct Guest {
    pub memory: Memory,
    pub log: Vec<bool>,
    pub load: Load,
    debt: f64,
}

impl Guest {
    pub fn new(pages: usize, load: Load) -> Self {
        Self {
            memory: Memory { pages: (0..pages as u64).collect(), register: 0 },
            log: vec![false; pages],
            load,
            debt: 0.0,
        }
    }

    /// A machine that waits for a guest.
    pub fn empty(pages: usize, load: Load) -> Self {
        Self { memory: Memory { pages: vec![u64::MAX; pages], register: u64::MAX }, ..Self::new(pages, load) }
    }

    /// Lets it run for so long.
    pub fn run(&mut self, span: Duration) {
        self.debt += self.load.rate as f64 * span.as_secs_f64() / PAGE as f64;
        while self.debt >= 1.0 {
            self.debt -= 1.0;
            self.memory.register += 1;
            let page = self.memory.register as usize % self.load.working_set;
            self.memory.pages[page] += 1_000_000;
            self.log[page] = true;
        }
    }
}
