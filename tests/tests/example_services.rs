//! Tests of the examples that are services, as processes: a web service with many browsers, and a service
//! that is replaced while it works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use xmsg_core::{Actor, ErrorKind, Message};
use xmsg_proxy::Proxy;
use xmsg_tests::process::{Daemon, built};
use xmsg_tests::{PATIENCE, patient, proxy, until, within};

fn start(example: &str, proxy: &Proxy, argument: &str) -> Daemon {
    let mut command = Command::new(built("examples").join(example));
    command.arg(argument).env("XMSG_PROXY", proxy.address().to_string());
    for variable in ["XMSG_CONNECTION_TIMEOUT", "XMSG_SUBSCRIPTION_TIMEOUT"] {
        command.env(variable, "60000");
    }
    Daemon::start_logged(command)
}

fn actor(proxy: &Proxy) -> Actor {
    Actor::builder("tester").proxy(proxy.address()).options(patient()).build().unwrap()
}

/// A browser that has `/events` open.
struct Browser(BufReader<TcpStream>);

impl Browser {
    /// Opens the page. `buffer` is roughly how many bytes the system receives before the browser reads them.
    async fn open(address: &str, buffer: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(buffer) = buffer {
            socket.set_recv_buffer_size(buffer).unwrap();
        }
        let stream = within("a connection", socket.connect(address.parse().unwrap())).await.unwrap();
        let mut browser = Self(BufReader::new(stream));
        // With HTTP 1.0, the body is sent unchanged up to the end of the connection.
        let request = format!("GET /events HTTP/1.0\r\nHost: {address}\r\n\r\n");
        browser.0.get_mut().write_all(request.as_bytes()).await.unwrap();
        let status = browser.line().await.unwrap();
        assert!(status.ends_with("200 OK"), "{status}");
        while !browser.line().await.expect("the rest of the head").is_empty() {}
        browser
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = within("a line", self.0.read_line(&mut line)).await.unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Returns the type and the data of the next event, or `None` at the end.
    async fn event(&mut self) -> Option<(String, String)> {
        let (mut kind, mut data) = (String::from("message"), None);
        loop {
            let line = self.line().await?;
            match line.split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut kind),
                Some(("data", text)) => data = Some(text.to_owned()),
                _ if line.is_empty() => {
                    if let Some(data) = data.take() {
                        return Some((kind, data));
                    }
                }
                _ => {} // a comment, which keeps the connection alive
            }
        }
    }

    /// Expects messages that begin with these numbers.
    async fn expect(&mut self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let (kind, data) = self.event().await.expect("it goes on");
            assert_eq!((kind.as_str(), number_of(&data)), ("message", number));
        }
    }
}

fn number_of(text: &str) -> usize {
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Publishes texts that begin with these numbers, and waits until the proxy has confirmed them.
async fn publish(actor: &Actor, numbers: std::ops::Range<usize>, padding: usize) {
    for number in numbers {
        let text = format!("{number} {}", "x".repeat(padding));
        actor.publish(&Message::of("news", text).unwrap()).await.unwrap();
    }
    actor.flush(PATIENCE).await.unwrap();
}

/// Starts the web service, and returns its address.
async fn web(proxy: &Proxy) -> (Daemon, String) {
    let mut web = start("web_events", proxy, "127.0.0.1:0");
    let line = web.line().await;
    let address = line.strip_prefix("http://").and_then(|rest| rest.strip_suffix('/'));
    (web, address.unwrap_or_else(|| panic!("no address: {line}")).to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_browsers_get_every_message_and_the_end() {
    let proxy = proxy().start().await.unwrap();
    let (mut web, address) = web(&proxy).await;
    let mut browsers = join_all((0..300).map(|_| Browser::open(&address, None))).await;
    let publisher = actor(&proxy);
    // These are fewer messages than the service keeps for slow browsers, so that none may be missed.
    publish(&publisher, 0..200, 100).await;
    join_all(browsers.iter_mut().map(|browser| browser.expect(0..200))).await;

    // Messages that the proxy had when the service was stopped still reach all browsers.
    publish(&publisher, 200..250, 100).await;
    web.signal("TERM").await;
    join_all(browsers.iter_mut().map(|browser| async {
        browser.expect(200..250).await;
        assert_eq!(browser.event().await, None);
    }))
    .await;
    assert_eq!(web.line().await, "nothing is left");
    assert!(web.end().await.success());
    assert_eq!(web.log_lines(), [""; 0]);
}

/// Returns the resident memory of a process in bytes.
fn resident(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_browser_holds_up_no_other_and_is_told_what_it_missed() {
    // These are 64 MiB, far more than the system buffers for a connection. The service keeps 256 messages,
    // which are 2 MiB.
    const ROUND: usize = 128;
    const ROUNDS: usize = 64;
    const SIZE: usize = 8 << 10;
    let proxy = proxy().start().await.unwrap();
    let (mut web, address) = web(&proxy).await;
    let mut slow = Browser::open(&address, Some(128 << 10)).await;
    let mut fast = join_all((0..4).map(|_| Browser::open(&address, None))).await;
    let publisher = actor(&proxy);
    let mut before = 0;
    for round in 0..ROUNDS {
        let numbers = round * ROUND..(round + 1) * ROUND;
        publish(&publisher, numbers.clone(), SIZE).await;
        join_all(fast.iter_mut().map(|browser| browser.expect(numbers.clone()))).await;
        if round == 4 {
            before = resident(&web);
        }
    }
    let grown = resident(&web).saturating_sub(before);
    assert!(grown < 16 << 20, "the service has grown by {grown} bytes");

    let (mut next, mut missed) = (0, 0);
    while next < ROUND * ROUNDS {
        let (kind, data) = slow.event().await.expect("it goes on");
        if kind == "missed" {
            missed += number_of(&data);
            next += number_of(&data);
        } else {
            assert_eq!(number_of(&data), next);
            next += 1;
        }
    }
    assert!(missed > 0, "it missed nothing");
    web.signal("TERM").await;
    assert_eq!(slow.event().await, None);
    assert_eq!(web.line().await, "nothing is left");
    assert!(web.end().await.success());
}

/// Starts the service of the example, and waits until it is ready.
async fn service(proxy: &Proxy, name: &str) -> Daemon {
    let mut service = start("graceful_restart", proxy, name);
    assert_eq!(service.line().await, format!("{name} is ready"));
    service
}

/// Ends the service as an init system does. Returns the number of requests that it had received, all of which
/// were answered.
async fn end(mut service: Daemon) -> u64 {
    service.signal("TERM").await;
    let line = service.line().await;
    let received =
        line.split_once(" received ").and_then(|(_, rest)| rest.strip_suffix(" requests; nothing is left"));
    assert!(service.end().await.success());
    received.unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

/// A client that sends requests all the time, several at once, and repeats those that time out.
struct Client {
    actor: Actor,
    answered: Arc<AtomicU64>,
    repeated: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Client {
    fn start(proxy: &Proxy, limit: Duration) -> Self {
        let (answered, repeated) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (actor, enough) = (actor(proxy), Arc::<AtomicBool>::default());
        let ask = |task: u64| {
            let (actor, enough) = (actor.clone(), enough.clone());
            let (answered, repeated) = (answered.clone(), repeated.clone());
            async move {
                let mut number = task << 32;
                while !enough.load(Ordering::Relaxed) {
                    match actor.request(&Message::of("work", number).unwrap(), limit).await {
                        Ok(answer) => {
                            assert_eq!(answer.value::<u64>().unwrap(), number);
                            answered.fetch_add(1, Ordering::Relaxed);
                            number += 1;
                        }
                        Err(error) if error.kind() == ErrorKind::Timeout => {
                            repeated.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        };
        let tasks = (0..8).map(|task| tokio::spawn(ask(task))).collect();
        Self { actor, answered, repeated, enough, tasks }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests were answered.
    async fn go_on(&self, more: u64) {
        let goal = self.answered() + more;
        until("answers", || self.answered() >= goal).await;
    }

    /// Sends no more requests, and waits for the last answers.
    async fn finish(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            within("the last answers", task).await.unwrap();
        }
    }
}

/// A service is replaced by its successor five times, while it gets requests all the time. Every request is
/// answered at the first attempt. Every request that a service had received was answered by it, even if two
/// services had received the same request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_replaced_loses_no_request() {
    let proxy = proxy().start().await.unwrap();
    let mut current = service(&proxy, "service 0").await;
    let mut client = Client::start(&proxy, PATIENCE);
    let mut received = 0;
    for number in 1..=5 {
        client.go_on(100).await;
        let successor = service(&proxy, &format!("service {number}")).await;
        received += end(std::mem::replace(&mut current, successor)).await;
    }
    client.go_on(100).await;
    client.finish().await;
    received += end(current).await;
    assert_eq!(client.repeated(), 0);
    // If there are two answers to one request, the second is late.
    let answers = || client.answered() + client.actor.late_replies();
    until("all answers", || answers() >= received).await;
    assert_eq!(answers(), received);
}

/// A service is ended before its successor is started. What it had received is answered, and requests in the
/// gap are repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_between_two_services_has_requests_repeated() {
    let proxy = proxy().start().await.unwrap();
    let first = service(&proxy, "first").await;
    let mut client = Client::start(&proxy, Duration::from_secs(1));
    client.go_on(100).await;
    let received = end(first).await;
    let answers = || client.answered() + client.actor.late_replies();
    until("the answers of the first one", || answers() >= received).await;
    assert_eq!(answers(), received);

    until("a request that times out", || client.repeated() > 0).await;
    let second = service(&proxy, "second").await;
    client.go_on(100).await;
    client.finish().await;
    end(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_on_the_sockets_of_the_zeromq_crate_takes_part() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().to_string();
    let mut program = start("zeromq_crate", &proxy, &address);
    assert_eq!(program.line().await, format!("at work at {address}"));
    let actor = actor(&proxy);
    let mut converted = actor.subscribe("fahrenheit:oslo").await.unwrap();
    // The crate does not report when a subscription is active. Until then, published messages are lost.
    let asking = async {
        loop {
            actor.publish(&Message::of("celsius:oslo", 4.5).unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let message = tokio::select! {
        message = within("an answer", converted.next()) => message.unwrap().unwrap(),
        () = asking => unreachable!("it asks for ever"),
    };
    assert_eq!(message.value::<f64>().unwrap().to_string(), "40.1");
}
