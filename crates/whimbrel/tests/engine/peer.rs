//! Destinations that are no whimbrel: scripted peers which never read, never answer, or end at a chosen moment.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use whimbrel::channel::Address;
use whimbrel::proto::source::FENCE;
use whimbrel::wire::{Command, Element, Output, ReturnPathMessage};

/// What a peer does with the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Accepts, and takes nothing.
    NeverReads,
    /// Takes everything, says nothing.
    NeverAnswers,
    /// Confirms that it has applied everything, takes EOF, and never says that the guest runs.
    Confirms,
    /// Says this at once on the return path; then takes everything.
    Says(Vec<u8>),
}

/// A message as it stands on the return path.
pub(crate) fn bytes_of(message: &ReturnPathMessage) -> Vec<u8> {
    let mut out = Output::new();
    message.encode(&mut out).unwrap();
    out.into_vec()
}

/// A listening peer; it hangs up when it is dropped.
pub(crate) struct Peer {
    pub(crate) address: Address,
    connection: Arc<Mutex<Option<TcpStream>>>,
}

impl Peer {
    pub(crate) fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::parse(&format!("tcp:{}", listener.local_addr().unwrap())).unwrap();
        let this = Self { address, connection: Arc::default() };
        let connection = this.connection.clone();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            *connection.lock().unwrap() = Some(stream.try_clone().unwrap());
            match manner {
                Manner::NeverReads => {}
                Manner::Says(bytes) => {
                    (&stream).write_all(&bytes).unwrap();
                    converse(stream, false);
                }
                manner => converse(stream, manner == Manner::Confirms),
            }
        });
        this
    }

    /// Ends the connection.
    pub(crate) fn hang_up(&self) {
        if let Some(stream) = self.connection.lock().unwrap().take() {
            let _gone_already = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn converse(mut stream: TcpStream, confirms: bool) {
    let mut fence = Output::new();
    Element::Command(Command::Ping(FENCE)).encode(&mut fence).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut kept = 0;
    while let Ok(read) = stream.read(&mut buffer[kept..]) {
        if read == 0 {
            return;
        }
        let end = kept + read;
        if confirms && buffer[..end].windows(fence.len()).any(|window| window == fence.as_slice()) {
            let _gone = stream.write_all(&bytes_of(&ReturnPathMessage::Pong(FENCE)));
        }
        // The fence may begin at the end of this read.
        kept = (fence.len() - 1).min(end);
        buffer.copy_within(end - kept..end, 0);
    }
}

/// A link to a destination that takes nothing for some time after it was connected, and then everything: a UNIX socket at `path`, for
/// which the kernel takes little.
pub(crate) fn held_link(path: &Path, to: &Address, hold: Duration) -> Address {
    let Address::Tcp { host, port, .. } = to.clone() else { panic!("tcp only: {to}") };
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (source, _) = listener.accept().unwrap();
        let destination = TcpStream::connect(format!("{host}:{port}")).unwrap();
        let (mut answers, mut back) = (destination.try_clone().unwrap(), source.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ends_with_the_links = std::io::copy(&mut answers, &mut back);
            let _gone_already = back.shutdown(Shutdown::Write);
        });
        std::thread::sleep(hold);
        let _ends_with_the_links = std::io::copy(&mut &source, &mut &destination);
        let _gone_already = destination.shutdown(Shutdown::Write);
    });
    Address::Unix(path.to_owned())
}

/// A listener whose queue is full: whoever connects waits, as for a host that does not answer.
pub(crate) struct FullQueue {
    pub(crate) address: Address,
    _listener: OwnedFd,
    _queued: Vec<OwnedFd>,
}

impl FullQueue {
    pub(crate) fn tcp() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream.into());
        }
        let address = Address::parse(&format!("tcp:{address}")).unwrap();
        Self { address, _listener: socket, _queued: queued }
    }

    pub(crate) fn unix(path: &Path) -> Self {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let queued = vec![UnixStream::connect(path).unwrap().into()];
        Self { address: Address::Unix(path.to_owned()), _listener: socket, _queued: queued }
    }
}
