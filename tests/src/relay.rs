//! A relay between clients and a proxy. It can lose data that it has received, as a half-open connection
//! does.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use xmsg_core::ProxyAddress;

/// What the relay does with data from publishers. Data of the other ports is always forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// The relay forwards nothing.
    Hold,
    /// The relay reads the data and discards it.
    Swallow,
    /// The relay forwards the data until a message with this topic comes.
    SwallowTopic(&'static str),
}

/// The current mode, and whether anything was discarded so far.
type Modes = (Arc<watch::Sender<Mode>>, Arc<watch::Sender<bool>>);

/// Three consecutive ports that forward to those of a proxy.
#[derive(Debug)]
pub struct Relay {
    address: ProxyAddress,
    mode: Arc<watch::Sender<Mode>>,
    swallowed: Arc<watch::Sender<bool>>,
    cut: Arc<watch::Sender<u32>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Starts a relay to this proxy.
    ///
    /// # Panics
    ///
    /// If no three ports in a row are free.
    pub async fn start(proxy: &ProxyAddress) -> Self {
        let (port, listeners) = three_ports().await;
        let address = ProxyAddress::new("127.0.0.1", port).expect("a port in the middle of the range");
        let targets = [proxy.publish_port(), proxy.subscribe_port(), proxy.control_port()];
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let swallowed = Arc::new(watch::Sender::new(false));
        let cut = Arc::new(watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        for (index, (listener, target)) in listeners.into_iter().zip(targets).enumerate() {
            let mode = (index == 0).then(|| (mode.clone(), swallowed.clone()));
            tasks.spawn(accept(listener, target, mode, cut.clone()));
        }
        Self { address, mode, swallowed, cut, _tasks: tasks }
    }

    /// Returns the address on which the relay listens.
    #[must_use]
    pub fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// Makes the relay keep what publishers send from now on, as a proxy does that is slow, until it is
    /// [released](Self::release).
    pub fn hold(&self) {
        self.mode.send_replace(Mode::Hold);
    }

    /// Forwards what publishers have sent, and send from now on.
    pub fn release(&self) {
        self.mode.send_replace(Mode::Pass);
    }

    /// Makes the relay discard what publishers send from now on, until the connections are [cut](Self::cut).
    pub fn swallow(&self) {
        self.mode.send_replace(Mode::Swallow);
    }

    /// Makes the relay discard what publishers send, starting with the next read that contains a message with
    /// this topic. The topic must have less than 256 bytes.
    pub fn swallow_from(&self, topic: &'static str) {
        self.mode.send_replace(Mode::SwallowTopic(topic));
    }

    /// Waits until something was discarded. Nothing more of that connection is forwarded.
    ///
    /// # Panics
    ///
    /// Never, because `self` holds the sender of the notification.
    pub async fn has_swallowed(&self) {
        self.swallowed.subscribe().wait_for(|swallowed| *swallowed).await.expect("the sender is here");
    }

    /// Ends all current connections. Data of later connections is forwarded again.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Pass);
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

async fn three_ports() -> (u16, [TcpListener; 3]) {
    for _ in 0..1000 {
        let first = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = first.local_addr().expect("it is bound").port();
        let Some(last) = port.checked_add(2) else { continue };
        let (second, third) =
            (TcpListener::bind(("127.0.0.1", port + 1)), TcpListener::bind(("127.0.0.1", last)));
        if let (Ok(second), Ok(third)) = tokio::join!(second, third) {
            return (port, [first, second, third]);
        }
    }
    panic!("no three ports in a row are free");
}

async fn accept(listener: TcpListener, target: u16, mode: Option<Modes>, cut: Arc<watch::Sender<u32>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (mode, mut cut) = (mode.clone(), cut.subscribe());
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
            tokio::select! {
                _ = cut.changed() => {}
                () = pass(client, server, mode) => {}
            }
        });
    }
}

async fn pass(client: TcpStream, server: TcpStream, mode: Option<Modes>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        let mut swallows = false;
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(len) => {
                    if let Some((mode, _)) = &mode {
                        let mut mode = mode.subscribe();
                        let _ = mode.wait_for(|mode| *mode != Mode::Hold).await;
                    }
                    // What follows lost data is lost, too.
                    swallows |= match mode.as_ref().map(|(mode, _)| *mode.borrow()) {
                        None | Some(Mode::Pass | Mode::Hold) => false,
                        Some(Mode::Swallow) => true,
                        Some(Mode::SwallowTopic(topic)) => {
                            // The beginning of a first frame: the flag for more frames, the length, and the
                            // topic.
                            let first = [&[1, topic.len() as u8], topic.as_bytes()].concat();
                            buffer[..len].windows(first.len()).any(|part| part == first)
                        }
                    };
                    if let Some((_, swallowed)) = mode.as_ref().filter(|_| swallows) {
                        swallowed.send_replace(true);
                    }
                    if !swallows && to_server.write_all(&buffer[..len]).await.is_err() {
                        break;
                    }
                }
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}
