//! A proxy with its HTTP server, and those who publish and subscribe there.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::{Connection, Message};
use xmsg_proxy::admin::{Admin, Connect, OwnProxy, Pending, PendingChanges, Sources, Token, Tokens};
use xmsg_proxy::log::LogQueue;
use xmsg_proxy::registrar::Registrar;
use xmsg_proxy::settings::SettingsError;
use xmsg_proxy::{Policy, Proxy};
use xmsg_tests::http::send;
use xmsg_tests::raw::{Raw, command};
use xmsg_tests::{connect, topic, within};
use xmsg_zmq::HighWaterMark;
use xmsg_zmtp::Command;

/// What one has to know to change something.
pub(crate) const TOKEN: &str = "operator-0123456789abcdef";

/// A proxy that others can look at.
pub(crate) struct Site {
    pub(crate) proxy: Proxy,
    pub(crate) log: LogQueue,
    registry: Registry,
    registrar: Option<Registrar>,
    /// Whether those who look may read the log.
    has_log: bool,
    /// What a reload would change.
    pub(crate) pending: Arc<Mutex<Result<PendingChanges, SettingsError>>>,
    _state: TempDir,
    admin: Option<Admin>,
    address: SocketAddr,
}

/// Somebody who goes on until it is dropped.
pub(crate) struct Flow {
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A subscriber that reads nothing.
pub(crate) struct Stalled {
    raw: Raw,
    peer: String,
}

impl Stalled {
    /// Its address.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Waits until its connection was ended.
    pub(crate) async fn ended(mut self) {
        self.raw.closed().await;
    }
}

impl Site {
    /// Starts it: everybody may look, and whoever has the token may change something.
    pub(crate) async fn start() -> Self {
        Self::start_beside(None).await
    }

    /// Starts it with a registrar, in which registrations last for an hour.
    pub(crate) async fn with_registrar() -> Self {
        let registrar = Registrar::bind("127.0.0.1:0").ttl(std::time::Duration::from_secs(3600));
        Self::start_beside(Some(registrar.start().await.expect("a registrar starts"))).await
    }

    /// Starts it as programs do that keep no log of their own.
    pub(crate) async fn without_log() -> Self {
        let mut site = Self::start().await;
        site.stop_http().await;
        site.has_log = false;
        site.start_http();
        site
    }

    /// A client of its registrar.
    pub(crate) fn registrar(&self) -> xmsg_core::Registrar {
        let registrar = self.registrar.as_ref().expect("it was started with a registrar");
        xmsg_core::Registrar::new(registrar.address().clone())
    }

    async fn start_beside(registrar: Option<Registrar>) -> Self {
        let proxy = Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::DropNewest);
        let proxy =
            proxy.high_water_mark(HighWaterMark::bytes(1 << 20)).start().await.expect("a proxy starts");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = tempfile::tempdir().expect("a folder");
        let options = RegistryOptions::new(state.path().join("state"), proxy.address().clone());
        let registry = Registry::open(options).await.expect("a registry opens");
        let log = LogQueue::start(std::io::sink()).expect("a log starts");
        let mut site = Self {
            proxy,
            log,
            registry,
            registrar,
            has_log: true,
            pending: Arc::new(Mutex::new(Ok(PendingChanges::default()))),
            _state: state,
            admin: None,
            address,
        };
        site.serve(listener);
        site
    }

    fn serve(&mut self, listener: TcpListener) {
        let pending = self.pending.clone();
        let sources = Sources {
            pending: Some(Pending::new(move || pending.lock().expect("nobody panics with it").clone())),
            proxy: Some(self.proxy.monitor()),
            registrar: self.registrar.as_ref().map(Registrar::monitor),
            connect: Some(Connect::new(self.registry.clone(), Handle::current())),
            log: self.has_log.then(|| self.log.clone()),
            own_proxy: Some(OwnProxy::new(self.proxy.address().clone())),
            ..Sources::default()
        };
        let token = Token::new(TOKEN).expect("it is long enough");
        let tokens = Tokens { operator: Some(token), open_to_look: true, ..Tokens::default() };
        let admin = Admin::start(
            listener,
            "xmsg-proxy",
            sources,
            tokens,
            serde_json::json!({ "port": 7771, "tcp": { "keepalive_s": 60 } }),
        );
        self.admin = Some(admin.expect("HTTP starts"));
    }

    /// The numbers of the dead letters of an outgoing connection.
    pub(crate) async fn dead(&self, outgoing: &str) -> Vec<u64> {
        let letters = self.registry.dead(outgoing, 0, 100).await.expect("there is such a connection");
        letters.into_iter().map(|letter| letter.sequence).collect()
    }

    /// Makes an outgoing connection, a channel or a connection to a broker, as programs do.
    pub(crate) async fn declare(&self, sort: &str, definition: &Value) {
        let (address, path) = (self.address.to_string(), format!("/connect/{sort}"));
        let token = format!("Authorization: Bearer {TOKEN}\r\n");
        let made = send(&address, "POST", &path, &token, &definition.to_string()).await;
        assert_eq!(made.status, 201, "{}", made.body);
    }

    /// Stops HTTP, and nothing else.
    pub(crate) async fn stop_http(&mut self) {
        if let Some(admin) = self.admin.take() {
            within("the end of HTTP", admin.stop()).await;
        }
    }

    /// Starts HTTP again, where it was.
    pub(crate) fn start_http(&mut self) {
        self.serve(TcpListener::bind(self.address).expect("its port is free"));
    }

    /// The address of the page, with this behind it.
    pub(crate) fn url(&self, rest: &str) -> String {
        format!("http://{}/{rest}", self.address)
    }

    /// The link by which an operator's session begins, once.
    pub(crate) fn link(&self) -> String {
        self.admin.as_ref().and_then(Admin::link).expect("HTTP is on, and there is a token")
    }

    /// A subscriber that the proxy knows, and that reads nothing.
    pub(crate) async fn stalled_subscriber(&self, prefix: &'static str) -> Stalled {
        let mut raw = Raw::handshake(self.proxy.address().subscribe_port(), "SUB").await;
        raw.send(&command(&Command::Subscribe(prefix.into()))).await;
        xmsg_tests::subscribed(&self.proxy, &raw).await;
        let peer = raw.stream.local_addr().expect("it is connected").to_string();
        Stalled { raw, peer }
    }

    async fn publisher(&self) -> Connection {
        let connection = connect(&self.proxy);
        within("a connection", connection.connect()).await.expect("the proxy answers");
        connection
    }

    /// Publishes more than a subscriber that does not read has room for, again and again.
    pub(crate) async fn flood(&self, name: &str) -> Flow {
        let (connection, message) =
            (self.publisher().await, Message::with_mime(topic(name), "binary/bytes", vec![0; 64 << 10]));
        Flow::of(async move {
            for _ in 0.. {
                if connection.publish(&message).await.is_err() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
    }

    /// Publishes to a topic, and reads it.
    pub(crate) async fn flow(&self, name: &str, prefix: &str) -> Flow {
        self.flow_with(name, prefix, |_| std::time::Duration::from_millis(2)).await
    }

    /// Publishes like [`flow`](Self::flow), but at a rate that rises and falls with this period in seconds.
    pub(crate) async fn swinging_flow(&self, name: &str, prefix: &str, period_s: f64) -> Flow {
        let pause = move |elapsed: std::time::Duration| {
            let swing = (std::f64::consts::TAU * elapsed.as_secs_f64() / period_s).sin();
            std::time::Duration::from_secs_f64(0.004 - 0.0025 * swing)
        };
        self.flow_with(name, prefix, pause).await
    }

    /// Publishes to a topic with these pauses, which depend on the time since the start, and reads it.
    async fn flow_with(
        &self,
        name: &str,
        prefix: &str,
        pause: impl Fn(std::time::Duration) -> std::time::Duration + Send + 'static,
    ) -> Flow {
        let (connection, reader) = (self.publisher().await, self.publisher().await);
        let mut subscription =
            within("a subscription", reader.subscribe([topic(prefix)])).await.expect("it is made");
        let name = topic(name);
        let mut flow = Flow::of(async move {
            let _reader = reader;
            while let Some(Ok(_)) = subscription.next().await {}
        });
        let mut publishing = Flow::of(async move {
            let started = std::time::Instant::now();
            for number in 0_i32.. {
                let message = Message::of(name.clone(), number).expect("a number");
                if connection.publish(&message).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause(started.elapsed())).await;
            }
        });
        flow.tasks.append(&mut publishing.tasks);
        flow
    }

    /// Publishes to these topics, which no library would let through, in turn: 50 rounds a second at most.
    pub(crate) async fn publish_again_and_again(&self, topics: &[&'static [u8]]) -> Flow {
        self.publish_each(topics, std::time::Duration::from_millis(20)).await
    }

    /// Publishes to these topics in turn, with this pause after each round.
    pub(crate) async fn publish_each(&self, topics: &[&'static [u8]], pause: std::time::Duration) -> Flow {
        let mut raw = Raw::handshake(self.proxy.address().publish_port(), "PUB").await;
        let topics = topics.to_vec();
        Flow::of(async move {
            loop {
                for topic in &topics {
                    raw.send_message(&[topic, b"".as_slice(), b"data".as_slice()]).await;
                }
                tokio::time::sleep(pause).await;
            }
        })
    }
}

impl Flow {
    fn of(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { tasks: vec![tokio::spawn(work)] }
    }
}
