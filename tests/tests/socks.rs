//! Tests of connections through a SOCKS5 proxy (RFC 1928, RFC 1929). The proxy is part of the test, and knows
//! a name that nobody else knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use xmsg_tests::within;
use xmsg_zmq::security::Password;
use xmsg_zmq::{Endpoint, ErrorKind, Pull, Push, Replier, Requester, SocketOptions, SocksProxy};

/// A name that only the SOCKS5 proxy can resolve.
const HIDDEN: &str = "behind-the-gateway.invalid";
const USER: (&str, &str) = ("ali", "open sesame");

/// A SOCKS5 proxy, and the number of connections that it has made.
struct Gateway {
    port: u16,
    made: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Starts a proxy that requires a user name if `asks` is true, and otherwise accepts everybody.
    async fn start(port: u16, asks: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let made = Arc::<AtomicUsize>::default();
        let count = made.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, asks, count.clone()));
            }
        });
        Self { port, made, task }
    }

    fn proxy(&self) -> SocksProxy {
        SocksProxy::new("127.0.0.1", self.port)
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection to the proxy. Any error ends it.
async fn serve(mut stream: TcpStream, asks: bool, made: Arc<AtomicUsize>) -> Option<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.ok()?;
    assert_eq!(head[0], 5, "the version");
    let mut methods = vec![0; head[1].into()];
    stream.read_exact(&mut methods).await.ok()?;
    let method = if asks { 2 } else { 0 };
    if !methods.contains(&method) {
        stream.write_all(&[5, 0xff]).await.ok()?;
        return None;
    }
    stream.write_all(&[5, method]).await.ok()?;
    if asks {
        assert_eq!(stream.read_u8().await.ok()?, 1, "the version of RFC 1929");
        let user = text(&mut stream).await?;
        let password = text(&mut stream).await?;
        let is_good = (user.as_str(), password.as_str()) == USER;
        stream.write_all(&[1, u8::from(!is_good)]).await.ok()?;
        is_good.then_some(())?;
    }
    let mut request = [0; 4];
    stream.read_exact(&mut request).await.ok()?;
    assert_eq!(request[..3], [5, 1, 0], "it is to connect");
    let host = match request[3] {
        1 => std::net::Ipv4Addr::from(stream.read_u32().await.ok()?).to_string(),
        3 => text(&mut stream).await?,
        kind => panic!("address of kind {kind}"),
    };
    let port = stream.read_u16().await.ok()?;
    let host = if host == HIDDEN { "127.0.0.1" } else { &host };
    let reply = |code: u8| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    let Ok(mut there) = TcpStream::connect((host, port)).await else {
        stream.write_all(&reply(5)).await.ok()?;
        return None;
    };
    stream.write_all(&reply(0)).await.ok()?;
    made.fetch_add(1, Ordering::Relaxed);
    tokio::io::copy_bidirectional(&mut stream, &mut there).await.ok()?;
    None
}

async fn text(stream: &mut TcpStream) -> Option<String> {
    let len = stream.read_u8().await.ok()?;
    let mut bytes = vec![0; len.into()];
    stream.read_exact(&mut bytes).await.ok()?;
    String::from_utf8(bytes).ok()
}

fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn options<S>(proxy: SocksProxy) -> SocketOptions<S> {
    SocketOptions::default().socks_proxy(proxy).reconnect_min(Duration::from_millis(10))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_connects_through_a_proxy_and_again_when_that_comes_back() {
    let gateway = Gateway::start(0, false).await;
    let pull = Pull::new(SocketOptions::default());
    let Endpoint::Tcp { port, .. } = pull.bind(&anywhere()).await.unwrap() else { panic!("it is TCP") };
    let push = Push::new(options(gateway.proxy()));
    push.connect(Endpoint::tcp(HIDDEN, port));
    within("room", push.send(["one"])).await.unwrap();
    assert_eq!(within("a message", pull.recv()).await.unwrap().frames(), ["one"]);
    assert_eq!(gateway.made(), 1);

    let place = gateway.port;
    drop(gateway);
    within("the end", async {
        while push.failure().is_none() || push.peers() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    push.send(["two"]).await.unwrap();
    let gateway = Gateway::start(place, false).await;
    assert_eq!(within("a message", pull.recv()).await.unwrap().frames(), ["two"]);
    assert_eq!(gateway.made(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_may_want_to_know_who_we_are() {
    let gateway = Gateway::start(0, true).await;
    let replier = Replier::new(SocketOptions::default());
    let endpoint = replier.bind(&anywhere()).await.unwrap();
    let ask = async |proxy: SocksProxy| {
        let requester = Requester::connecting_to(endpoint.clone(), options(proxy));
        requester.request(["hello"], Duration::from_secs(60)).await
    };
    let with = |password: &str| gateway.proxy().user(USER.0, Password::new(password).unwrap());
    let answering = async {
        let (path, request) = replier.recv().await.unwrap();
        replier.try_reply(&path, request).unwrap();
    };
    let (reply, ()) = futures::join!(ask(with(USER.1)), answering);
    assert_eq!(reply.unwrap().frames(), ["hello"]);
    for proxy in [with("wrong"), gateway.proxy()] {
        let error = ask(proxy).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error:?}");
        assert!(error.with_causes().to_string().contains("SOCKS5"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_said_which_of_the_two_is_not_there() {
    let gateway = Gateway::start(0, false).await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port())
    };
    let Endpoint::Tcp { port, .. } = nobody else { panic!("it is TCP") };
    for (proxy, endpoint, words) in [
        (gateway.proxy(), nobody.clone(), "nobody listens there"),
        (SocksProxy::new("127.0.0.1", port), Endpoint::tcp(HIDDEN, 1), "no way to the SOCKS5 proxy"),
    ] {
        let push = Push::new(options(proxy));
        push.connect(endpoint);
        let error = within("a failure", async {
            loop {
                match push.failure() {
                    Some(error) => return error,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(error.with_causes().to_string().contains(words), "{error:?}");
    }
}
