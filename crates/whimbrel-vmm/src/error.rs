//! What can go wrong while a machine is built.

use std::io;
use std::path::PathBuf;

/// Why a machine could not be built. Failures of a running machine are [`MachineError`](whimbrel::machine::MachineError)s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {0}")]
    NoKvm(#[source] io::Error),
    /// KVM refused something.
    #[error("KVM: {what}: {source}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Guest memory cannot be had.
    #[error("guest memory: {what}: {source}")]
    Memory {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// An image cannot be read.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel cannot be booted.
    #[error("kernel: {0}")]
    Kernel(String),
    /// A character device cannot be opened.
    #[error("character device {what}: {source}")]
    Chardev {
        /// Which.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A vCPU's power-on state cannot be read or set.
    #[error("vCPU {vcpu}: {text}")]
    Vcpu {
        /// Its index.
        vcpu: u32,
        /// What failed.
        text: String,
    },
}

impl Error {
    /// For `map_err` on KVM calls.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { what, source: error.into() }
    }
}
