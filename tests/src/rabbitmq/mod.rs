//! RabbitMQ brokers of one's own: real ones, on free ports of the loopback, with folders that go with them.
//!
//! Needs Debian's `rabbitmq-server` (RabbitMQ 3.10); any user will do. Nothing of a broker outlives the test process,
//! even when that is killed: the kernel kills the broker, and a shell removes its folder.

mod cluster;
mod kept;
mod objects;
mod site;

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

pub use cluster::Cluster;

use crate::{PATIENCE, within};
use kept::Kept;
use site::{Site, free_ports};

/// How long a node may take to start: seconds of processor time, of which a loaded machine has few to give.
const START: Duration = Duration::from_secs(180);

/// A RabbitMQ node. It is killed when dropped.
///
/// What takes it from its other users takes it exclusively: [`shared`](Self::shared) can be neither stopped nor paused.
#[derive(Debug)]
pub struct Broker {
    process: Option<Kept>,
    name: String,
    ports: Ports,
    site: Arc<Site>,
}

/// Where a node listens, at all times of its life.
#[derive(Clone, Copy, Debug)]
struct Ports {
    amqp: u16,
    distribution: u16,
    management: u16,
    prometheus: u16,
}

impl Broker {
    /// Starts one, and waits until it lets clients in.
    pub async fn start() -> Self {
        Self::with_plugins(&[]).await
    }

    /// The same with plugins, such as `rabbitmq_shovel`. Of those that listen, `rabbitmq_management` and
    /// `rabbitmq_prometheus` have ports of their own; any other takes its default.
    pub async fn with_plugins(plugins: &[&str]) -> Self {
        let site = Arc::new(Site::new(plugins).await);
        let mut broker = Self::new(site, "n1", &["n1"]);
        broker.start_again().await;
        broker
    }

    /// One for all tests of this process, which ends with the process. Tests use names of their own for what they
    /// declare there.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Where clients connect, as the user `guest`, to the virtual host `/`.
    #[must_use]
    pub fn uri(&self) -> String {
        self.uri_of("guest", "guest", "/")
    }

    /// The same for another user and virtual host. They are taken as they are, but for slashes in the virtual host.
    #[must_use]
    pub fn uri_of(&self, user: &str, password: &str, virtual_host: &str) -> String {
        let virtual_host = virtual_host.replace('/', "%2f");
        format!("amqp://{user}:{password}@127.0.0.1:{}/{virtual_host}", self.ports.amqp)
    }

    /// The port of the loopback that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The port of `rabbitmq_management`, if that was asked for.
    #[must_use]
    pub fn management_port(&self) -> u16 {
        self.ports.management
    }

    /// The port of `rabbitmq_prometheus`, if that was asked for.
    #[must_use]
    pub fn prometheus_port(&self) -> u16 {
        self.ports.prometheus
    }

    /// The name of its node, such as `n1@localhost`.
    #[must_use]
    pub fn node(&self) -> String {
        format!("{}@localhost", self.name)
    }

    /// The number of the process that listens.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Stops it gracefully, and waits for its end.
    pub async fn stop(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        let status = process.ended().await;
        assert!(status.success(), "{} was to stop gracefully: {}", self.name, process.tail());
    }

    /// Kills it as a power cut does, and waits for its end.
    pub async fn kill(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal(Signal::KILL);
        process.ended().await;
    }

    /// Starts it after [`stop`](Self::stop) or [`kill`](Self::kill), with the same data and on the same ports, and
    /// waits until it lets clients in.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let process = Kept::start(format!("the broker {}", self.name), self.command());
        process.line(&["Server startup complete"], START).await;
        self.process = Some(process);
        within("a handshake with the broker", self.lets_clients_in()).await;
    }

    /// Makes it stand still: it keeps its connections, and answers nothing. It does when this returns.
    pub async fn pause(&mut self) {
        self.process().pause().await;
    }

    /// Ends the pause.
    pub fn resume(&mut self) {
        self.process().signal(Signal::CONT);
    }

    /// Sets off or clears its memory alarm, under which it blocks those who publish. It has when this returns.
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

    /// What `rabbitmqctl` writes with these arguments. It takes an Erlang of its own each time, a second or two:
    /// [`eval`](Self::eval) takes some milliseconds.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.site.tool("rabbitmqctl");
        command.env("RABBITMQ_NODENAME", self.node()).args(["--quiet"]).args(arguments);
        let output = finish("rabbitmqctl", command, "").await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {}: {text}{errors}", arguments.join(" "));
        text
    }

    /// The value of an Erlang expression, evaluated in the broker, as Erlang writes it. This is what `rabbitmqctl eval`
    /// does, without an Erlang of its own.
    pub async fn eval(&self, expression: &str) -> String {
        // As text, since the program abbreviates much of what it does not know.
        let form = format!("lists:flatten(io_lib:format(\"~0p\", [begin {expression} end])).\n");
        let mut last = String::new();
        // On a loaded machine the program gives up before the node has answered it: then it says nothing on standard output.
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

    /// Waits until an expression has this value. Nothing tells of it, so it is asked again and again.
    pub async fn becomes(&self, expression: &str, value: &str) {
        within(&format!("{value} from {expression}"), async {
            while self.eval(expression).await != value {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// The first line of its log, since it started last, that contains all of these words; waits for it.
    pub async fn logged(&self, words: &[&str]) -> String {
        self.process().line(words, PATIENCE).await
    }

    /// A node that does not run yet; `peers` are the nodes of its cluster, this one among them.
    fn new(site: Arc<Site>, name: &str, peers: &[&str]) -> Self {
        let [amqp, distribution, management, prometheus] = free_ports();
        let ports = Ports { amqp, distribution, management, prometheus };
        let peers: Vec<String> = peers.iter().map(|peer| format!("'{peer}@localhost'")).collect();
        let settings = format!(
            "[{{rabbit, [{{cluster_nodes, {{[{}], disc}}}}]}},
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
            // The script then becomes the broker, instead of waiting for it.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.site.path(&format!("{}.config", self.name)))
            .env("RABBITMQ_LOGS", "-")
            // One scheduler starts faster than several that have one processor to share.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}");
        command
    }

    /// Waits until it answers a client's greeting with the first method of the handshake.
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

/// Runs a program to its end, with this for its input.
async fn finish(name: &str, command: Command, input: &str) -> Output {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that does not read says itself what is wrong.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    within(name, child.wait_with_output()).await.expect("it can be waited for")
}
