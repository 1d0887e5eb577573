//! The checks over the network: names, the ports of a proxy, the registrar, the HTTP server, versions and
//! clocks.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use xmsg_core::{ErrorKind, OwnerType, ProxyAddress, Query, Topic};
use xmsg_zmq::{Dealer, Endpoint, Publisher, SocketOptions, Subscriber};

use super::Arguments;
use super::finding::{Findings, Level, error_text};
use crate::args::SecurityOptions;
use crate::exit::AtRegistrar;
use crate::output::{counted, grouped};
use crate::settings;
use crate::stats::{Control, Source, Stats, Unknown};
use crate::table::size;

/// The interval between checks whether a connection has failed.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The difference between clocks that matters: the times in recordings and logs of two machines do not match.
const CLOCKS_APART: Duration = Duration::from_secs(2);
/// The divisor of the proxy's memory for peers that yields the part from which on its queues may soon drop
/// messages.
const PART_FULL: u64 = 5;

/// Makes all checks over the network. Without usable credentials, it connects to nothing.
pub(super) async fn check(arguments: &Arguments, mechanism: Option<&str>, findings: &mut Findings) {
    let proxy = match arguments.connect.proxy() {
        Ok(proxy) => proxy,
        Err(error) => return findings.problem("proxy", error_text(&error), "give it as --proxy HOST[:PORT]"),
    };
    if !check_name(&proxy, findings).await {
        return;
    }
    if mechanism.is_some() && check_ports(arguments, &proxy, findings).await {
        check_proxy(arguments, &proxy, findings).await;
    }
    if mechanism.is_some() {
        check_registrar(arguments, findings).await;
    }
    check_admin(arguments, &proxy, findings).await;
}

/// Checks the name of the proxy's host. Returns whether it is known.
async fn check_name(proxy: &ProxyAddress, findings: &mut Findings) -> bool {
    let host = proxy.host();
    let origin = settings::origin(&settings::PROXY).unwrap_or_default();
    match tokio::net::lookup_host((host, proxy.publish_port())).await.map(Iterator::collect::<Vec<_>>) {
        Ok(found) if !found.is_empty() => {
            let addresses: Vec<_> = found.iter().map(|address| address.ip().to_string()).collect();
            let found = match &addresses[..] {
                [address] if address == host => format!("{host} is an address. {origin}"),
                _ => format!("{host} is {}. {origin}", addresses.join(", ")),
            };
            findings.ok("name", found.trim_end());
            true
        }
        failed => {
            let why = failed.err().map(|error| format!(": {error}")).unwrap_or_default();
            let advice = "is it right? `getent hosts NAME` says what this machine knows";
            findings.problem("name", format!("the host {host} is not known{why}. {origin}"), advice);
            false
        }
    }
}

/// Checks whether the three ports of a proxy have the right sockets. Returns whether they have.
async fn check_ports(arguments: &Arguments, proxy: &ProxyAddress, findings: &mut Findings) -> bool {
    let options = match SecurityOptions::socket_options() {
        Ok(options) => options,
        Err(error) => {
            findings.problem("security", error_text(&error), "`xmsg help security` tells more");
            return false;
        }
    };
    let limit = arguments.connect.timeout();
    let mut all = true;
    // Each socket is closed when the check of its port has ended.
    macro_rules! check_port {
        ($check:literal, $what:literal, $endpoint:expr, $socket:expr) => {{
            let endpoint: String = $endpoint;
            let socket = $socket;
            if let Ok(address) = endpoint.parse::<Endpoint>() {
                socket.connect(address);
            }
            // The socket tries again and again, but the first failure is what we want to know.
            let outcome = async {
                loop {
                    match tokio::time::timeout(POLL_INTERVAL, socket.connected()).await {
                        Ok(connected) => break connected.err(),
                        Err(_) => match socket.failure() {
                            None => {}
                            failure => break failure,
                        },
                    }
                }
            };
            let failure = match tokio::time::timeout(limit, outcome).await {
                Ok(failure) => failure.map(|error| error_text(&error)),
                Err(_) => Some(format!("no answer within {} ms", limit.as_millis())),
            };
            match failure {
                None => findings.ok($check, format!("{endpoint} is for {}", $what)),
                Some(why) => {
                    all = false;
                    let advice = advice_for_port(&why);
                    let names_it = why.contains(&endpoint);
                    let found = if names_it { why } else { format!("{endpoint}: {why}") };
                    findings.problem($check, found, advice);
                }
            }
        }};
    }
    check_port!("publishers", "publishers", proxy.publish_endpoint(), Publisher::new(options.for_socket()));
    check_port!(
        "subscribers",
        "subscribers",
        proxy.subscribe_endpoint(),
        Subscriber::new(options.for_socket())
    );
    check_port!("control", "control requests", proxy.control_endpoint(), dealer(&options));
    all
}

fn dealer(options: &SocketOptions) -> Dealer {
    Dealer::new(options.for_socket())
}

fn advice_for_port(why: &str) -> &'static str {
    if why.contains("check the port") || why.contains("something else listens") {
        "give the first of the three ports of the proxy, the one for publishers"
    } else if why.contains("security") || why.contains("keys") || why.contains("mechanism") {
        "compare mechanism and keys with those of the proxy: `xmsg help security`"
    } else {
        "start it with `xmsg-proxy`, look for a firewall between here and there, or give another --proxy"
    }
}

/// Checks that the proxy works, and reports its version and state.
async fn check_proxy(arguments: &Arguments, proxy: &ProxyAddress, findings: &mut Findings) {
    let started = Instant::now();
    let connected = async {
        let connection = arguments.connect.connection()?;
        let connected = connection.connect().await;
        connection.close(Duration::ZERO).await;
        connected
    };
    if let Err(error) = connected.await {
        let advice = "is it an xMsg proxy? `xmsg ping` tries the same";
        return findings.problem("proxy", error_text(&error), advice);
    }
    findings.ok("proxy", format!("{proxy} answers, in {:.1} ms", milliseconds(started)));
    let request = async { Source::Control(Box::new(Control::open(&arguments.connect).await?)).ask().await };
    match request.await {
        Ok((stats, _)) => check_stats(&stats, findings),
        Err(error) if error.is::<Unknown>() => {
            let found = format!("the proxy at {proxy} does not say its version");
            let advice =
                "it is of another implementation or an older one, so `xmsg info` and `xmsg top` can't ask it";
            findings.warning("proxy version", found, advice);
        }
        Err(error) => {
            let refused = error.downcast_ref::<xmsg_core::Error>();
            let is_refused = refused.is_some_and(|error| error.kind() == ErrorKind::NotAllowed);
            let found = format!("not known: {}", error_text(error.as_ref()));
            let advice = "`xmsg help security`: the right `inspect` lets us see it";
            if is_refused {
                findings.warning("proxy version", found, advice);
            } else {
                findings.problem("proxy version", found, "try again, or look into the log of the proxy");
            }
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn check_stats(stats: &Stats, findings: &mut Findings) {
    let version = format!("{} {}", stats.name, stats.version);
    if stats.version == env!("CARGO_PKG_VERSION") {
        findings.ok("proxy version", format!("{version}, the same as this xmsg"));
    } else {
        let found = format!("{version}, but this is xmsg {}", env!("CARGO_PKG_VERSION"));
        findings.warning(
            "proxy version",
            found,
            "they work together; upgrade the older one for all features",
        );
    }
    let memory = stats.memory;
    let found = format!("{} of {} are used", size(memory.used), size(memory.limit));
    if memory.used >= memory.limit - memory.limit / PART_FULL && memory.limit > 0 {
        let advice = "see who is slow with `xmsg top`, or raise memory_limit_mib";
        findings.warning("proxy memory", found, advice);
    } else {
        findings.ok("proxy memory", found);
    }
    let slow = stats.connections.iter().filter(|one| one.slow_s.is_some()).count() as u64;
    let subscribers = counted(stats.subscribers, "subscriber");
    if slow > 0 {
        let found = format!("{} of {subscribers} are too slow now", grouped(slow));
        findings.warning("slow subscribers", found, "`xmsg top` shows which, and what they have lost");
    } else {
        findings.ok("slow subscribers", format!("none of {subscribers}"));
    }
    for link in stats.connections.iter().filter(|one| one.kind == "upstream") {
        let found = format!("{} is {}", link.peer, link.state.as_deref().unwrap_or("unknown"));
        match &link.error {
            Some(error) => findings.warning("upstream", format!("{found}: {error}"), "see `xmsg info`"),
            None => findings.ok("upstream", found),
        }
    }
}

async fn check_registrar(arguments: &Arguments, findings: &mut Findings) {
    let options = &arguments.registrar;
    let registrar = match options.client() {
        Ok(registrar) => registrar,
        Err(error) => {
            return findings.problem("registrar", error_text(&error), "give it as --registrar HOST[:PORT]");
        }
    };
    let address = registrar.address().to_string();
    // A question about one topic, because there may be millions of registrations.
    let query = Query::topic(OwnerType::Publisher, &Topic::wrap("xmsg:doctor"));
    let started = Instant::now();
    let request = async {
        options.find(&registrar).await?;
        registrar.exact(&query).await.map_err(AtRegistrar)
    };
    match request.await {
        Ok(_) => findings.ok("registrar", format!("{address} answers, in {:.1} ms", milliseconds(started))),
        Err(AtRegistrar(error)) => {
            let advice =
                "start one with `xmsg registrar run`, or say where it is with --registrar HOST[:PORT]";
            match error.kind() {
                _ if options.is_given() => findings.problem("registrar", error_text(&error), advice),
                ErrorKind::Refused => {
                    let found = format!("there is none at {address}; publish/subscribe does not need it");
                    findings.ok("registrar", found);
                }
                // The user has not said that there is a registrar.
                _ => findings.warning("registrar", error_text(&error), advice),
            }
        }
    }
}

async fn check_admin(arguments: &Arguments, proxy: &ProxyAddress, findings: &mut Findings) {
    let options = &arguments.admin;
    let is_expected = options.is_given().unwrap_or(true);
    let level = if is_expected { Level::Problem } else { Level::Warning };
    let admin = match options.clone().admin() {
        Ok(admin) => admin,
        Err(error) => {
            let advice = "see --admin and --admin-token-file in `xmsg help connection`";
            return findings.problem("http", error_text(error.as_ref()), advice);
        }
    };
    let address = admin.address().to_string();
    let answer = match admin.ask(Method::GET, "/readyz").await {
        Ok(answer) => answer,
        Err(_) if !is_expected => {
            findings.ok("http", format!("there is none at {address}"));
            return check_local_clock(proxy, findings);
        }
        Err(error) => {
            let advice = "start it with `xmsg-proxy --admin`, or say where it is with --admin HOST:PORT";
            findings.problem("http", error_text(error.as_ref()), advice);
            return check_local_clock(proxy, findings);
        }
    };
    if answer.status == StatusCode::OK {
        findings.ok("http", format!("{address} is ready"));
    } else {
        let found = format!("{address} is not ready: {} {}", answer.status, answer.text());
        findings.wrong(level, "http", found, "look into the log of the proxy");
    }
    // An address alone is not enough if a token is required.
    if let Err(error) = admin.ask(Method::GET, "/varz").await {
        findings.wrong(level, "token", error_text(error.as_ref()), "name its file with --admin-token-file");
    }
    check_clock(answer.date.as_deref(), &address, findings);
}

/// Compares the clock of the server, which it reports in whole seconds, with ours.
fn check_clock(date: Option<&str>, address: &str, findings: &mut Findings) {
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let Some(theirs) = theirs.map(|time| time.timestamp()) else {
        return findings.ok("clock", format!("{address} does not say what time it is"));
    };
    let apart = difference(Timestamp::now(), theirs);
    if apart > CLOCKS_APART {
        let found = format!("that of {address} and ours are {} s apart", apart.as_secs());
        findings.warning("clock", found, "let both machines follow a time server: `timedatectl`");
    } else {
        findings.ok("clock", format!("that of {address} and ours agree"));
    }
}

/// Returns the difference between two clocks, of which one reports the whole seconds that have begun.
fn difference(ours: Timestamp, theirs: Timestamp) -> Duration {
    let ours = ours.as_millisecond().div_euclid(1000);
    Duration::from_secs(ours.abs_diff(theirs.as_second()))
}

/// Checks the clock if the proxy runs on this machine. Otherwise it is not known without an HTTP server.
fn check_local_clock(proxy: &ProxyAddress, findings: &mut Findings) {
    let host = proxy.host();
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let found = if is_here {
        "the proxy is on this machine, and has the same"
    } else {
        "that of the proxy's machine is not known without its HTTP server"
    };
    findings.ok("clock", found);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Connection, Memory};

    #[test]
    fn what_a_proxy_says_of_itself_is_judged() {
        let levels = |stats: &Stats| {
            let mut findings = Findings::default();
            check_stats(stats, &mut findings);
            let document = findings.json();
            let checks = document["checks"].as_array().unwrap().iter();
            checks.map(|check| check["level"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let good = Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            memory: Memory { used: 79, limit: 100 },
            connections: vec![Connection { kind: "upstream".to_owned(), ..Connection::default() }],
            ..Stats::default()
        };
        assert_eq!(levels(&good), ["ok"; 4]);
        let slow = Connection { kind: "subscriber".to_owned(), slow_s: Some(3.0), ..Connection::default() };
        let error = Some("nobody listens there".to_owned());
        let link = Connection { kind: "upstream".to_owned(), error, ..Connection::default() };
        let bad = Stats {
            version: "0.0.1".to_owned(),
            memory: Memory { used: 80, limit: 100 },
            connections: vec![slow, link],
            ..Stats::default()
        };
        assert_eq!(levels(&bad), ["warning"; 4]);
        // An older proxy may say nothing of its memory.
        assert_eq!(levels(&Stats::default())[1], "ok");
    }

    #[test]
    fn clocks_are_compared_in_whole_seconds() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        assert_eq!(difference(at(10_999), at(10_000)), Duration::ZERO);
        assert_eq!(difference(at(11_000), at(10_000)), Duration::from_secs(1));
        assert_eq!(difference(at(10_000), at(70_000)), Duration::from_secs(60));
        let date = jiff::fmt::rfc2822::parse("Fri, 27 Nov 2026 15:12:41 GMT").unwrap();
        assert_eq!(date.timestamp().to_string(), "2026-11-27T15:12:41Z");
    }
}
