//! What else the proxy does: outgoing connections and a channel, the web page, and recordings.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use xmsg_core::{Connection, Message, Subscription};
use xmsg_tests::http::{Events, get_with};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{PATIENCE, topic, within};
use xmsg_zmq::{Pull, SocketOptions};

use crate::{Counts, World};

/// The file name of the token of the HTTP server, and the token.
const ADMIN_TOKEN_FILE: &str = "token";
const ADMIN_TOKEN: &str = "token-of-the-soak-0123456789";
/// Messages that are published before it is waited for all of them.
const BATCH: i64 = 10;
/// What an open page asks for, beside the events.
const LISTS: [&str; 4] = ["/api/v1/connections", "/api/v1/topics", "/api/v1/registrations", "/metrics"];
/// The number of events that a page follows before it is closed.
const EVENTS: usize = 10;

/// Writes the settings of the proxy and its token. Returns the path of the settings.
pub(crate) fn write_settings(folder: &Path) -> String {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("the folder can be written");
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).expect("it is ours");
        path.to_str().expect("UTF-8").to_owned()
    };
    write(ADMIN_TOKEN_FILE, ADMIN_TOKEN);
    write("proxy.toml", "[admin]\ntoken_file = \"token\"\n[connect]\nenabled = true\nstate_dir = \"state\"\n")
}

/// A publisher whose messages go to a queue of RabbitMQ, from where they are published again, and to a ZeroMQ
/// socket.
#[derive(Debug)]
pub(crate) struct Relay {
    publisher: Connection,
    returned: Subscription,
    arrived: Pull,
}

impl Relay {
    /// Adds the outgoing connections and the channel to the proxy.
    pub(crate) async fn new(world: &World, broker: &Broker, folder: &Path, xmsg: &Path) -> Self {
        let arrived = Pull::new(SocketOptions::default());
        let address = arrived.bind(&"tcp://127.0.0.1:0".parse().expect("an endpoint")).await;
        let address = address.expect("a free port");
        let definitions = format!(
            "[[connection]]\nname = \"rabbit\"\nuris = [\"amqp://127.0.0.1:{}\"]\n\
             [[outgoing]]\nname = \"queue\"\nconnection = \"rabbit\"\nexchange = \"\"\nrouting_key = \"soak\"\nsubscribe = [\"relay\"]\n\
             [[outgoing]]\nname = \"socket\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\naddress = \"{address}\"\nsubscribe = [\"relay\"]\n\
             [[channel]]\nname = \"back\"\nconnection = \"rabbit\"\nqueue = \"soak\"\nqueue_declare = \"active\"\ntarget = \"topic:returned\"\n",
            broker.port()
        );
        let file = folder.join("soak.toml");
        std::fs::write(&file, definitions).expect("the folder can be written");
        let mut add = Command::new(xmsg);
        add.args(["connect", "add"]).arg(&file).args(["--admin", &world.admin]);
        let added = add.env("XMSG_ADMIN_TOKEN_FILE", folder.join(ADMIN_TOKEN_FILE)).status().await;
        assert!(added.expect("xmsg runs").success(), "the definitions are good");
        let returned = world.connection().subscribe([topic("returned")]).await.expect("a subscription");
        Self { publisher: world.connection(), returned, arrived }
    }

    /// Publishes until it is stopped, and returns how many messages came back and arrived. A message may come
    /// more than once, but none may be missing.
    pub(crate) async fn run(mut self, world: World, stop: CancellationToken) -> Result<u64, String> {
        self.begin().await?;
        let mut number = 0;
        while !stop.is_cancelled() {
            let batch: BTreeSet<i64> = (number..number + BATCH).collect();
            for number in &batch {
                self.publish(*number).await?;
            }
            number += BATCH;
            let (mut to_return, mut to_arrive) = (batch.clone(), batch);
            while !to_return.is_empty() {
                let waiting = to_return.len();
                let next = tokio::time::timeout(PATIENCE, self.next_returned()).await;
                let next = next.map_err(|_| format!("{waiting} of {BATCH} messages did not come back"))?;
                to_return.remove(&next?);
            }
            while !to_arrive.is_empty() {
                let waiting = to_arrive.len();
                let next = tokio::time::timeout(PATIENCE, self.next_arrived()).await;
                let next = next.map_err(|_| format!("{waiting} of {BATCH} messages did not arrive"))?;
                to_arrive.remove(&next?);
            }
            Counts::add(&world.counts.relayed, BATCH.unsigned_abs());
        }
        Ok(number.unsigned_abs())
    }

    /// Publishes until both ways are open.
    async fn begin(&mut self) -> Result<(), String> {
        let (mut has_returned, mut has_arrived) = (false, false);
        let begun = async {
            while !(has_returned && has_arrived) {
                self.publish(-1).await?;
                let soon = Duration::from_millis(100);
                has_returned |= tokio::time::timeout(soon, self.next_returned()).await.is_ok();
                has_arrived |= tokio::time::timeout(soon, self.next_arrived()).await.is_ok();
            }
            Ok(())
        };
        within("both ways are open", begun).await
    }

    async fn publish(&mut self, number: i64) -> Result<(), String> {
        let message = Message::of("relay", number).map_err(|error| error.to_string())?;
        self.publisher.publish(&message).await.map_err(|error| error.to_string())
    }

    async fn next_returned(&mut self) -> Result<i64, String> {
        let message = self.returned.next().await.ok_or("the subscription ended")?;
        message.and_then(|message| message.value()).map_err(|error| error.to_string())
    }

    async fn next_arrived(&mut self) -> Result<i64, String> {
        let frames = self.arrived.recv().await.ok_or("the socket is closed")?.frames().to_vec();
        let [topic, meta, data] =
            <[_; 3]>::try_from(frames).map_err(|frames| format!("{} frames came", frames.len()))?;
        Message::from_frames(topic, meta, data).value().map_err(|error| error.to_string())
    }
}

/// Opens the page, follows it for some seconds, asks for its lists, and closes it, again and again.
pub(crate) async fn pages(world: World) {
    // A proxy with a token in its settings asks for it also where its pages are only looked at.
    let token = format!("Authorization: Bearer {ADMIN_TOKEN}\r\n");
    world
        .again(
            |counts| &counts.pages,
            || async {
                let opened = Events::open(&world.admin, "/api/v1/events", &token).await;
                let mut events = opened.expect("the token is the right one");
                for number in 0..EVENTS {
                    if world.stop.is_cancelled() || within("an event", events.next()).await.is_none() {
                        break;
                    }
                    let list = LISTS[number % LISTS.len()];
                    assert_eq!(get_with(&world.admin, list, &token).await.status, 200, "{list}");
                }
                Ok(1)
            },
        )
        .await;
}

/// Records the innocent messages for some seconds, and checks the file, again and again.
pub(crate) async fn recordings(world: World, xmsg: PathBuf, file: PathBuf) {
    let proxy = world.proxy.to_string();
    let run = async |arguments: &[&str]| {
        let command = Command::new(&xmsg).arg("record").arg(&file).args(arguments).output().await;
        let output = command.expect("xmsg runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    world
        .again(
            |counts| &counts.recordings,
            || async {
                run(&["--proxy", &proxy, "--force", "--quiet", "--zstd", "--count", "1000", "innocent"])
                    .await;
                run(&["--info", "--check"]).await;
                Ok(1)
            },
        )
        .await;
}
