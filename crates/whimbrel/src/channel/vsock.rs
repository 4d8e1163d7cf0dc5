//! vsock addresses, for the system calls that take one.
//!
//! One of the named modules with `unsafe`: the kernel is handed a C structure.

use std::io;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use whimbrel_wire::qemu_texts;

/// A CID and a port.
#[derive(Debug)]
pub(super) struct VsockAddress(libc::sockaddr_vm);

impl VsockAddress {
    /// # Errors
    /// QEMU's text for what is no number.
    pub(super) fn new(cid: &str, port: &str) -> io::Result<Self> {
        let number = |part: &str, text: &str| {
            let bad =
                || io::Error::new(io::ErrorKind::InvalidInput, qemu_texts::vsock_parse_failed(part, text));
            text.parse::<u32>().map_err(|_| bad())
        };
        let (svm_cid, svm_port) = (number("cid", cid)?, number("port", port)?);
        let svm_family = libc::AF_VSOCK as libc::sa_family_t;
        Ok(Self(libc::sockaddr_vm { svm_family, svm_reserved1: 0, svm_port, svm_cid, svm_zero: [0; 4] }))
    }
}

// SAFETY: the pointer is to a whole `sockaddr_vm` that lives through the call, and the length is its size.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_gets_qemus_text() {
        let text = |cid, port| VsockAddress::new(cid, port).unwrap_err().to_string();
        assert_eq!(text("a", "5"), "Failed to parse cid 'a'");
        assert_eq!(text("3", "b"), "Failed to parse port 'b'");
        assert!(VsockAddress::new("3", "4294967295").is_ok());
    }
}
