//! Tests of the harness for RabbitMQ brokers: its methods do what their names say.

use std::process::Stdio;
use std::time::Instant;

use futures::StreamExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Event, ExchangeKind};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use xmsg_tests::rabbitmq::{Broker, Cluster};
use xmsg_tests::within;

/// Returns a channel with confirms.
async fn confirming(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

/// Publishes a persistent message to a queue, and waits for its confirmation.
async fn publish(channel: &Channel, queue: &str, body: &[u8]) {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let published = async {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await
    };
    assert_eq!(within("a confirm", published).await.unwrap(), Confirmation::Ack(None));
}

fn bodies(messages: Vec<lapin::message::BasicGetMessage>) -> Vec<String> {
    messages.into_iter().map(|message| String::from_utf8(message.delivery.data).unwrap()).collect()
}

#[tokio::test]
async fn what_was_confirmed_outlives_a_stop_and_a_kill() {
    let started = Instant::now();
    let mut broker = Broker::start().await;
    eprintln!("start: {:?}", started.elapsed());
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", broker.pid())).unwrap();
    assert_eq!(comm, "beam.smp\n");
    broker.declare_exchange("orders", ExchangeKind::Topic).await;
    broker.declare_queue("durable").await;
    broker.bind("durable", "orders", "#").await;
    let connection = broker.connect().await;
    let channel = confirming(&connection).await;
    for number in 0..3 {
        publish(&channel, "durable", format!("{number}").as_bytes()).await;
    }
    let asked = Instant::now();
    assert_eq!(broker.queue_len("durable").await, 3);
    eprintln!("queue_len: {:?}", asked.elapsed());

    let (port, pid) = (broker.port(), broker.pid());
    let stopped = Instant::now();
    broker.stop().await;
    eprintln!("stop: {:?}", stopped.elapsed());
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err());
    let started = Instant::now();
    broker.start_again().await;
    eprintln!("start again: {:?}", started.elapsed());
    assert_eq!(broker.port(), port);
    assert_ne!(broker.pid(), pid);
    assert_eq!(broker.queue_len("durable").await, 3);

    let connection = broker.connect().await;
    publish(&confirming(&connection).await, "durable", b"3").await;
    broker.kill().await;
    let started = Instant::now();
    broker.start_again().await;
    eprintln!("start after a kill: {:?}", started.elapsed());
    assert_eq!(bodies(broker.drain("durable").await), ["0", "1", "2", "3"]);
    broker.delete_queue("durable").await;
    broker.logged(&["accepting AMQP connection"]).await;
}

#[tokio::test]
async fn an_alarm_blocks_and_a_pause_is_silent() {
    let mut broker = Broker::start().await;
    broker.declare_queue("blocked").await;
    let connection = broker.connect().await;
    let mut events = Box::pin(connection.events_listener());
    let channel = confirming(&connection).await;
    let asked = Instant::now();
    broker.alarm(true).await;
    eprintln!("alarm: {:?}", asked.elapsed());
    // The broker informs publishers when they publish.
    let publishing = tokio::spawn(async move { publish(&channel, "blocked", b"late").await });
    loop {
        if let Event::ConnectionBlocked(reason) = within("a block", events.next()).await.unwrap() {
            assert!(reason.contains("memory"), "{reason}");
            break;
        }
    }
    assert_eq!(broker.queue_len("blocked").await, 0);
    broker.alarm(false).await;
    within("the publisher", publishing).await.unwrap();
    broker.queue_reaches("blocked", 1).await;

    // The system still accepts connections for a paused broker, which answers nothing.
    broker.pause().await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", broker.port())).await.unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
    let mut frame_type = [0];
    let early =
        tokio::time::timeout(std::time::Duration::from_millis(300), stream.read_exact(&mut frame_type));
    assert!(early.await.is_err());
    broker.resume();
    within("an answer", stream.read_exact(&mut frame_type)).await.unwrap();
    drop(stream);
    assert_eq!(bodies(broker.drain("blocked").await), ["late"]);

    let connection = broker.connect().await;
    let mut events = Box::pin(connection.events_listener());
    broker.close_connections(2, "it is \"late\"").await;
    let closed = within("an end", async {
        loop {
            if let Event::Error(error) = events.next().await.unwrap() {
                break error.to_string();
            }
        }
    });
    let closed = closed.await;
    assert!(closed.contains("CONNECTION-FORCED") || closed.contains("CONNECTION_FORCED"), "{closed}");
}

#[tokio::test]
async fn a_shared_broker_has_users_and_virtual_hosts() {
    let broker = Broker::shared().await;
    broker.add_user("mere", "secret").await;
    broker.add_virtual_host("/side").await;
    broker.set_permissions("mere", "/side", ["^$", "^out$", ".*"]).await;
    let started = Instant::now();
    assert!(broker.ctl(&["list_users"]).await.contains("mere"));
    eprintln!("ctl: {:?}", started.elapsed());
    let uri = broker.uri_of("mere", "secret", "/side");
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let refused = channel.queue_declare(
        "mine".into(),
        lapin::options::QueueDeclareOptions::durable(),
        lapin::types::FieldTable::default(),
    );
    let refused = within("an answer", refused).await.unwrap_err().to_string();
    assert!(refused.contains("ACCESS_REFUSED") || refused.contains("ACCESS-REFUSED"), "{refused}");
    assert_eq!(broker.eval("[1, \"a\\\"b\\\\\", <<\"x\">>]").await, "[1,\"a\\\"b\\\\\",<<\"x\">>]");
}

#[tokio::test]
async fn a_broker_has_the_plugins_that_were_asked_for() {
    let started = Instant::now();
    let broker =
        Broker::with_plugins(&["rabbitmq_shovel", "rabbitmq_management", "rabbitmq_prometheus"]).await;
    eprintln!("start with plugins: {:?}", started.elapsed());
    for port in [broker.management_port(), broker.prometheus_port()] {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    }
    broker.declare_queue("from").await;
    let definition = r#"{
        "src-protocol": "amqp091", "src-uri": "URI", "src-queue": "from",
        "dest-protocol": "amqp091", "dest-uri": "URI", "dest-queue": "to"
    }"#;
    broker.ctl(&["set_parameter", "shovel", "one", &definition.replace("URI", &broker.uri())]).await;
    let connection = broker.connect().await;
    publish(&confirming(&connection).await, "from", b"moved").await;
    within("the queue of the shovel", async {
        while broker.eval("length(rabbit_amqqueue:list())").await != "2" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    broker.queue_reaches("to", 1).await;
}

#[tokio::test]
async fn a_cluster_confirms_after_a_node_was_killed() {
    let started = Instant::now();
    let mut cluster = Cluster::of_three().await;
    eprintln!("cluster: {:?}", started.elapsed());
    cluster[0].declare_quorum_queue("safe").await;
    let connection = cluster[0].connect().await;
    let channel = confirming(&connection).await;
    publish(&channel, "safe", b"0").await;
    cluster[1].kill().await;
    publish(&channel, "safe", b"1").await;
    let started = Instant::now();
    cluster[1].start_again().await;
    eprintln!("node again: {:?}", started.elapsed());
    cluster.sees(0, 3).await;
    cluster[0].kill().await;
    // The other nodes elect a leader before they answer.
    cluster[2].queue_reaches("safe", 2).await;
    let connection = cluster[2].connect().await;
    publish(&confirming(&connection).await, "safe", b"2").await;
    assert_eq!(bodies(cluster[1].drain("safe").await), ["0", "1", "2"]);
}

#[test]
fn a_shared_broker_outlives_the_thread_and_the_runtime_that_started_it() {
    let used = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = Broker::shared().await;
            broker.declare_queue("of all").await;
            broker.pid()
        })
    };
    let first = std::thread::spawn(used).join().unwrap();
    assert_eq!(std::thread::spawn(used).join().unwrap(), first);
}

#[tokio::test]
#[ignore = "it is what the next test starts, and kills"]
async fn child_with_a_shared_broker() {
    let broker = Broker::shared().await;
    println!("READY {} {}", broker.pid(), broker.eval("os:getenv(\"HOME\")").await);
    std::future::pending::<()>().await;
}

/// Returns the processes that contain the name of this folder in their environment or arguments.
fn processes_of(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let all = [read("environ"), read("cmdline")].concat();
        if all.windows(folder.len()).any(|window| window == folder.as_bytes()) {
            found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
        }
    }
    found
}

#[tokio::test]
async fn nothing_is_left_of_a_shared_broker_when_the_test_process_is_killed() {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_a_shared_broker", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = within("a broker of another process", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it runs");
            if let Some((_, rest)) = line.split_once("READY ") {
                break rest.to_owned();
            }
        }
    });
    let ready = ready.await;
    let (_, folder) = ready.split_once(' ').unwrap();
    let folder = folder.trim_matches('"');
    let before = processes_of(folder);
    // These are the broker, its child processes and the process that removes its folder. The port mapper does
    // not contain the name of the folder.
    assert!(before.len() >= 3, "{before:?}");
    let epmd_port = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let environ = String::from_utf8_lossy(&environ).into_owned();
        let port = environ.split('\0').find_map(|variable| variable.strip_prefix("ERL_EPMD_PORT="))?;
        environ.contains(folder).then(|| port.parse::<u16>().unwrap())
    });
    let epmd_port = epmd_port.unwrap();
    tokio::net::TcpStream::connect(("127.0.0.1", epmd_port)).await.unwrap();

    within("the kill", child.kill()).await.unwrap();
    within("the end of all processes and of the folder", async {
        while !processes_of(folder).is_empty() || std::path::Path::new(folder).exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", epmd_port)).await.is_err());
}
