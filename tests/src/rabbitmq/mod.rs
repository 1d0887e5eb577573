//! Real RabbitMQ brokers for tests, on free ports of the loopback interface, with folders that are removed
//! with them.
//!
//! This needs Debian's `rabbitmq-server` (RabbitMQ 3.10). Any user can run it. Nothing of a broker outlives
//! the test process, even if that is killed: the kernel kills the broker, and a shell removes its folder.
//!
//! | file | answers |
//! |---|---|
//! | `site.rs` | What do the nodes of one cluster share? |
//! | `cluster.rs` | How are three brokers made a cluster? |
//! | `kept.rs` | How does a process end together with the test? |
//! | `objects.rs` | Which users, exchanges, queues and messages has a broker? |
//! | `tls.rs` | How is a broker reached with TLS? |

mod cluster;
mod kept;
mod objects;
mod site;
mod tls;

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

pub use cluster::Cluster;
pub use tls::make_stranger;

use crate::{PATIENCE, within};
use kept::Kept;
use site::{Site, free_ports};

/// The time limit for the start of a node. It takes seconds of processor time, which is scarce on a loaded
/// machine.
const START: Duration = Duration::from_secs(180);

/// A RabbitMQ node. It is killed when this is dropped.
///
/// Methods that disturb other users of the broker take `&mut self`, so the [`shared`](Self::shared) broker
/// can be neither stopped nor paused.
#[derive(Debug)]
pub struct Broker {
    process: Option<Kept>,
    name: String,
    ports: Ports,
    site: Arc<Site>,
}

/// The ports of a node, which stay the same when it is started again.
#[derive(Clone, Copy, Debug)]
struct Ports {
    amqp: u16,
    distribution: u16,
    management: u16,
    prometheus: u16,
    /// 0 without TLS.
    tls: u16,
}

impl Broker {
    /// Starts a broker, and waits until it accepts clients.
    pub async fn start() -> Self {
        Self::with_plugins(&[]).await
    }

    /// Starts a broker with plugins, such as `rabbitmq_shovel`. `rabbitmq_management` and
    /// `rabbitmq_prometheus` listen on ports of their own. Any other plugin that listens uses its default
    /// port.
    pub async fn with_plugins(plugins: &[&str]) -> Self {
        let site = Arc::new(Site::new(plugins).await);
        let mut broker = Self::new(site, "n1", &["n1"]);
        broker.start_again().await;
        broker
    }

    /// Returns a broker for all tests of this process, which ends with the process. Tests must use different
    /// names for what they declare.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Returns the URI for clients, with the user `guest` and the virtual host `/`.
    #[must_use]
    pub fn uri(&self) -> String {
        self.uri_of("guest", "guest", "/")
    }

    /// Returns the URI for another user and virtual host. They are not escaped, except for slashes in the
    /// virtual host.
    #[must_use]
    pub fn uri_of(&self, user: &str, password: &str, virtual_host: &str) -> String {
        let virtual_host = virtual_host.replace('/', "%2f");
        format!("amqp://{user}:{password}@127.0.0.1:{}/{virtual_host}", self.ports.amqp)
    }

    /// Returns the AMQP port on the loopback interface.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// Returns the port of `rabbitmq_management`, if that plugin was asked for.
    #[must_use]
    pub fn management_port(&self) -> u16 {
        self.ports.management
    }

    /// Returns the port of `rabbitmq_prometheus`, if that plugin was asked for.
    #[must_use]
    pub fn prometheus_port(&self) -> u16 {
        self.ports.prometheus
    }

    /// Returns the name of the node, such as `n1@localhost`.
    #[must_use]
    pub fn node(&self) -> String {
        format!("{}@localhost", self.name)
    }

    /// Returns the id of the process that listens.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Stops the broker gracefully, and waits for its end.
    pub async fn stop(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        let status = process.ended().await;
        assert!(status.success(), "{} was to stop gracefully: {}", self.name, process.tail());
    }

    /// Kills the broker, as a power failure would, and waits for its end.
    pub async fn kill(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal(Signal::KILL);
        process.ended().await;
    }

    /// Starts the broker after [`stop`](Self::stop) or [`kill`](Self::kill), with the same data and on the
    /// same ports. Waits until it accepts clients.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let process = Kept::start(format!("the broker {}", self.name), self.command());
        process.line(&["Server startup complete"], START).await;
        self.process = Some(process);
        within("a handshake with the broker", self.lets_clients_in()).await;
    }

    /// Pauses the process of the broker: it keeps its connections, and answers nothing. It is paused when
    /// this returns.
    pub async fn pause(&mut self) {
        self.process().pause().await;
    }

    /// Ends the pause.
    pub fn resume(&mut self) {
        self.process().signal(Signal::CONT);
    }

    /// Raises or clears the memory alarm, under which the broker blocks publishers. The alarm is in this
    /// state when the call returns.
    pub async fn alarm(&mut self, on: bool) {
        let watermark = if on { "0.000000001" } else { "0.4" };
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({watermark})")).await;
        let alarms = if on { "true" } else { "false" };
        self.becomes(
            "lists:keymember({resource_limit, memory, node()}, 1, rabbit_alarm:get_alarms())",
            alarms,
        )
        .await;
    }

    /// Runs `rabbitmqctl` with these arguments, and returns its output. It starts a new Erlang runtime each
    /// time, which takes a second or two, while [`eval`](Self::eval) takes some milliseconds.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.site.tool("rabbitmqctl");
        command.env("RABBITMQ_NODENAME", self.node()).args(["--quiet"]).args(arguments);
        let output = finish("rabbitmqctl", command, "").await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {}: {text}{errors}", arguments.join(" "));
        text
    }

    /// Evaluates an Erlang expression in the broker, and returns the value in Erlang's syntax. `rabbitmqctl
    /// eval` does the same, but starts a new Erlang runtime.
    pub async fn eval(&self, expression: &str) -> String {
        // The value is formatted as text in the broker, because `erl_call` abbreviates many values that it
        // does not know.
        let form = format!("lists:flatten(io_lib:format(\"~0p\", [begin {expression} end])).\n");
        let mut last = String::new();
        // On a loaded machine, the program gives up before the node has answered it. Then it writes nothing
        // to standard output.
        for _ in 0..20 {
            let mut command = self.site.tool("erl_call");
            command.args(["-c", &self.site.cookie, "-n", &self.node(), "-e"]);
            let output = finish("erl_call", command, &form).await;
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            // The program escapes nothing.
            let value = answer.strip_prefix("{ok, \"").and_then(|rest| rest.trim_end().strip_suffix("\"}"));
            if let Some(value) = value {
                return value.to_owned();
            }
            last = format!("{answer}{}", String::from_utf8_lossy(&output.stderr));
            if !answer.trim().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{expression}: {last}");
    }

    /// Waits until an expression has this value. There is no notification for it, so this polls.
    pub async fn becomes(&self, expression: &str, value: &str) {
        let mut last = String::new();
        let polled = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.eval(expression).await;
                if last == value {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let is_so = polled.await.is_ok();
        assert!(is_so, "{expression} is still {last}, and not {value}, after {PATIENCE:?}");
    }

    /// Waits for a log line since the last start that contains all of these words, and returns the first one.
    pub async fn logged(&self, words: &[&str]) -> String {
        self.process().line(words, PATIENCE).await
    }

    /// Creates a node that does not run yet. `peers` are the nodes of its cluster, including this one.
    fn new(site: Arc<Site>, name: &str, peers: &[&str]) -> Self {
        Self::new_with(site, name, peers, "")
    }

    /// Creates a node that does not run yet. `more` are further settings of the application `rabbit`, each
    /// after a comma.
    fn new_with(site: Arc<Site>, name: &str, peers: &[&str], more: &str) -> Self {
        let [amqp, distribution, management, prometheus] = free_ports();
        let ports = Ports { amqp, distribution, management, prometheus, tls: 0 };
        let peers: Vec<String> = peers.iter().map(|peer| format!("'{peer}@localhost'")).collect();
        let settings = format!(
            "[{{rabbit, [{{cluster_nodes, {{[{}], disc}}}}{more}]}},
              {{rabbitmq_management, [{{tcp_config, [{{ip, \"127.0.0.1\"}}, {{port, {management}}}]}}]}},
              {{rabbitmq_prometheus, [{{tcp_config, [{{ip, \"127.0.0.1\"}}, {{port, {prometheus}}}]}}]}}].\n",
            peers.join(", ")
        );
        site::write(&site.path(&format!("{name}.config")), &settings);
        Self { process: None, name: name.to_owned(), ports, site }
    }

    fn command(&self) -> Command {
        let mut command = self.site.server();
        command
            // With this variable, the script becomes the broker process instead of waiting for it.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.site.path(&format!("{}.config", self.name)))
            .env("RABBITMQ_LOGS", "-")
            // One scheduler starts faster than several that share one processor.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}");
        command
    }

    /// Waits until the broker answers a client's greeting with the first method of the handshake.
    async fn lets_clients_in(&self) {
        loop {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.ports.amqp)).await {
                let mut frame_type = [0];
                let greeted = stream.write_all(b"AMQP\0\0\x09\x01").await;
                if greeted.is_ok() && stream.read_exact(&mut frame_type).await.is_ok() && frame_type == [1] {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn process(&self) -> &Kept {
        self.process.as_ref().expect("it runs")
    }
}

/// Runs a program to its end with this input.
async fn finish(name: &str, command: Command, input: &str) -> Output {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that does not read its input reports the reason itself.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    within(name, child.wait_with_output()).await.expect("it can be waited for")
}
