//! The path `/metrics`: everything that is counted, in the `OpenMetrics` text format.
//! [`classic_text`](super::classic_text) converts it for those who want the older format.
//!
//! Nothing is counted here. What the parts count anyway is read when somebody asks, so that metrics cost the
//! data plane nothing.

use std::cmp::Reverse;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Amount, ViolationCounts};

use super::State;
use super::process::{Process, unix_s};
use crate::log::LogQueue;
use crate::registrar::Counts;
use crate::security::LoginCounts;
use crate::switch::{Drops, SubscriberStats, Totals};
use crate::upstream::UpstreamStats;

/// How many subscribers have time series of their own: those with the longest queues. Whoever stores the
/// series pays for every subscriber that ever connects.
pub(super) const SUBSCRIBER_SERIES: usize = 100;

pub(super) const BYTES: Option<&Unit> = Some(&Unit::Bytes);
pub(super) const SECONDS: Option<&Unit> = Some(&Unit::Seconds);

/// Reads all counts, and writes them.
pub(super) fn encode(state: &State) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot::take(state)));
    let mut text = String::with_capacity(8 << 10);
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// All counts at one time.
#[derive(Debug)]
struct Snapshot {
    /// The prefix of names, such as `xmsg_proxy`.
    prefix: String,
    is_ready: bool,
    started_unix_s: f64,
    process: Process,
    refused_requests: [(&'static str, u64); 5],
    logins: Option<LoginCounts>,
    log_lines_lost: Option<u64>,
    proxy: Option<ProxySnapshot>,
    registrar: Option<RegistrarSnapshot>,
    #[cfg(feature = "connect")]
    connect: Option<super::connect::ConnectSnapshot>,
}

#[derive(Debug)]
struct RegistrarSnapshot {
    counts: Counts,
    connections: usize,
    memory_limit: usize,
    memory: MemoryBudget,
    is_writable: bool,
}

#[derive(Debug)]
struct ProxySnapshot {
    totals: Totals,
    publishers: usize,
    subscribers: usize,
    control: usize,
    upstreams: Vec<UpstreamStats>,
    double_paths: usize,
    subscriptions: usize,
    memory: MemoryBudget,
    queued: Amount,
    /// The subscribers with series of their own.
    detailed: Vec<SubscriberStats>,
}

impl Snapshot {
    fn take(state: &State) -> Self {
        let proxy = state.proxy.as_ref().map(|proxy| {
            let mut detailed = proxy.subscribers();
            let (subscribers, queued) = (detailed.len(), queued(&detailed));
            detailed.sort_by_key(|one| (Reverse(one.queued.bytes), Reverse(one.dropped.messages), one.id));
            detailed.truncate(SUBSCRIBER_SERIES);
            ProxySnapshot {
                totals: proxy.totals(),
                publishers: proxy.publishers().len(),
                subscribers,
                control: proxy.control_connections(),
                upstreams: proxy.upstreams(),
                double_paths: proxy.double_paths(),
                subscriptions: proxy.subscriptions(),
                memory: proxy.memory().clone(),
                queued,
                detailed,
            }
        });
        Self {
            prefix: state.name.replace('-', "_"),
            is_ready: state.is_ready(),
            started_unix_s: unix_s(state.started_at),
            process: Process::read_all(),
            refused_requests: state.refused_requests.counts(),
            logins: state.authority.as_ref().map(|authority| authority.logins()),
            log_lines_lost: state.log.as_ref().map(LogQueue::lost),
            proxy,
            registrar: state.registrar.as_ref().map(|registrar| RegistrarSnapshot {
                counts: registrar.counts(),
                connections: registrar.connections(),
                memory_limit: registrar.memory_limit(),
                memory: registrar.memory().clone(),
                is_writable: registrar.is_writable(),
            }),
            #[cfg(feature = "connect")]
            connect: state.connect.as_ref().map(super::connect::ConnectSnapshot::take),
        }
    }
}

/// Returns what waits for all subscribers together.
pub(super) fn queued(subscribers: &[SubscriberStats]) -> Amount {
    subscribers.iter().fold(Amount::default(), |sum, one| sum + one.queued)
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Families { encoder };
        let name = |rest: &str| format!("{}_{rest}", self.prefix);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.encoder
            .encode_descriptor(&name("build"), "Version of the running daemon.", None, MetricType::Info)?
            .encode_info(&version)?;
        let ready = "1 while the daemon accepts connections and can store registrations, otherwise 0.";
        out.gauge(&name("ready"), ready, None, u64::from(self.is_ready))?;
        if let Some(proxy) = &self.proxy {
            proxy.encode(&mut out)?;
        }
        let help =
            "HTTP requests to the admin interface that were refused because the token was missing or wrong.";
        let values = self.refused_requests.map(|(reason, count)| ([("reason", reason.to_owned())], count));
        out.counters(&name("admin_refused_requests"), help, None, values)?;
        if let Some(counts) = self.logins {
            let help = "Attempts to log in with a password (PLAIN), by outcome.";
            let values = logins(counts).map(|(outcome, count)| ([("outcome", outcome.to_owned())], count));
            out.counters(&name("logins"), help, None, values)?;
        }
        if let Some(lost) = self.log_lines_lost {
            let help = "Lines of the log that were lost, because standard error was not read in time or could not be written.";
            out.counter(&name("log_lines_lost"), help, None, lost)?;
        }
        if let Some(registrar) = &self.registrar {
            registrar.encode(&mut out)?;
        }
        #[cfg(feature = "connect")]
        if let Some(connect) = &self.connect {
            connect.encode(&mut out)?;
        }
        self.process.encode(self.started_unix_s, &mut out)
    }
}

impl ProxySnapshot {
    fn encode(&self, out: &mut Families<'_>) -> Result<(), fmt::Error> {
        let Totals {
            received,
            delivered,
            // This is the sum of `drops`.
            dropped: _,
            drops,
            waits,
            waited,
            disconnected,
            undelivered,
            held,
            unmatched,
            refused,
            crowded_out,
            evicted,
            denied,
            violations,
            requests,
            requests_lost,
            answers_lost,
        } = self.totals;
        out.counter(
            "xmsg_proxy_messages_received",
            "Messages received from publishers.",
            None,
            received.messages,
        )?;
        out.counter(
            "xmsg_proxy_received",
            "Bytes received from publishers, with their framing.",
            BYTES,
            received.bytes,
        )?;
        let delivered_help = "Messages written to subscribers; a message for two subscribers counts as two.";
        out.counter("xmsg_proxy_messages_delivered", delivered_help, None, delivered.messages)?;
        out.counter(
            "xmsg_proxy_delivered",
            "Bytes of the messages written to subscribers.",
            BYTES,
            delivered.bytes,
        )?;
        out.counters(
            "xmsg_proxy_messages_dropped",
            "Messages that a subscriber did not get: dropped by the policy of that name, larger than the subscriber takes (too_large), or still on their way when it or their publisher left (left).",
            None,
            reasons(drops, |amount| amount.messages).chain([
                ([("reason", "too_large".to_owned())], drops.too_large.messages),
                ([("reason", "left".to_owned())], undelivered),
            ]),
        )?;
        out.counters(
            "xmsg_proxy_dropped",
            "Bytes of the messages that were dropped because a queue was full.",
            BYTES,
            reasons(drops, |amount| amount.bytes),
        )?;
        let waits_help = "How often a publisher had to wait for a subscriber under the policy block: at the high-water mark, or for moments, to let the subscriber catch up.";
        out.counter("xmsg_proxy_publisher_waits", waits_help, None, waits)?;
        let encoder = out.encoder.encode_descriptor(
            "xmsg_proxy_publisher_wait",
            "Time that publishers waited for subscribers under the policy block.",
            SECONDS,
            MetricType::Counter,
        )?;
        ConstCounter::new(waited.as_secs_f64()).encode(encoder)?;
        let help = "Subscribers that were disconnected because they were too slow.";
        out.counter("xmsg_proxy_subscribers_disconnected", help, None, disconnected)?;
        let help = "Publishers that had left, and whose unread messages were given up because new connections needed their places.";
        out.counter("xmsg_proxy_publishers_crowded_out", help, None, crowded_out)?;
        let help = "Connections that were ended to make room for other addresses, because their address held more than half of all connections.";
        out.counter("xmsg_proxy_connections_gave_way", help, None, evicted)?;
        let unmatched_help = "Messages received that no subscriber had subscribed to.";
        out.counter("xmsg_proxy_messages_unmatched", unmatched_help, None, unmatched)?;
        out.counter(
            "xmsg_proxy_handshakes_refused",
            "Connections that were refused: the handshake failed, or the limit of connections was reached.",
            None,
            refused,
        )?;
        let requests_help =
            "Control requests received: clients check their connections and subscriptions with them.";
        out.counter("xmsg_proxy_control_requests", requests_help, None, requests)?;
        let lost_help =
            "Control requests that were dropped because they came faster than they could be answered.";
        out.counter("xmsg_proxy_control_requests_lost", lost_help, None, requests_lost)?;
        let unsent_help = "Answers to control requests that could not be sent: whoever was to get them does not read, or is not there.";
        out.counter("xmsg_proxy_control_answers_lost", unsent_help, None, answers_lost)?;
        encode_violations("xmsg_proxy_violations", violations, out)?;
        let denied_help =
            "Messages and subscriptions that were refused because the peer has no right to them.";
        out.counter("xmsg_proxy_denied", denied_help, None, denied)?;
        let held_help = "Messages that publishers hold while they wait for a subscriber under the policy block; they are in no queue yet.";
        out.gauge("xmsg_proxy_held_messages", held_help, None, held)?;
        let connections =
            [("publisher", self.publishers), ("subscriber", self.subscribers), ("control", self.control)];
        out.gauges(
            "xmsg_proxy_connections",
            "Connections to the proxy that are open now.",
            None,
            connections.map(|(side, count)| ([("side", side.to_owned())], count as u64)),
        )?;
        super::upstreams::encode(&self.upstreams, self.double_paths, out)?;
        let subscriptions_help = "Subscriptions: each prefix of each subscriber counts as one.";
        out.gauge("xmsg_proxy_subscriptions", subscriptions_help, None, self.subscriptions as u64)?;
        let memory = &self.memory;
        let limit_help = "Memory that all peers together may hold: see --memory-limit.";
        out.gauge("xmsg_proxy_memory_limit", limit_help, BYTES, memory.limit() as u64)?;
        let used_help =
            "Memory that all peers together hold: unfinished messages, queues, subscriptions, connections.";
        out.gauge("xmsg_proxy_memory_used", used_help, BYTES, memory.used() as u64)?;
        let ended_help = "Connections that were ended because they held the most memory when the memory limit was reached.";
        out.counter("xmsg_proxy_memory_ended", ended_help, None, memory.ended())?;
        out.gauge(
            "xmsg_proxy_queue_messages",
            "Messages queued for all subscribers.",
            None,
            self.queued.messages,
        )?;
        out.gauge(
            "xmsg_proxy_queue",
            "Memory of the messages queued for all subscribers.",
            BYTES,
            self.queued.bytes,
        )?;

        let each = |value: fn(&SubscriberStats) -> u64| {
            self.detailed.iter().map(move |one| {
                ([("subscriber", one.id.to_string()), ("peer", one.peer.clone())], value(one))
            })
        };
        let whose = "for the subscribers with the longest queues";
        let help = |what: &str| format!("{what}, {whose}.");
        let queue = |one: &SubscriberStats| one.queued.bytes;
        out.gauges(
            "xmsg_proxy_subscriber_queue",
            &help("Memory of the queued messages"),
            BYTES,
            each(queue),
        )?;
        let waiting = |one: &SubscriberStats| one.queued.messages;
        let name = "xmsg_proxy_subscriber_queue_messages";
        out.gauges(name, &help("Messages queued"), None, each(waiting))?;
        let delivered = |one: &SubscriberStats| one.delivered.messages;
        let name = "xmsg_proxy_subscriber_messages_delivered";
        out.counters(name, &help("Messages written"), None, each(delivered))?;
        let dropped = |one: &SubscriberStats| one.dropped.messages;
        let name = "xmsg_proxy_subscriber_messages_dropped";
        out.counters(name, &help("Messages dropped"), None, each(dropped))?;
        let without = (self.subscribers - self.detailed.len()) as u64;
        let help = "Subscribers without time series of their own: those have shorter queues.";
        out.gauge("xmsg_proxy_subscribers_without_series", help, None, without)
    }
}

/// Returns the outcomes of logins with a password.
pub(super) fn logins(counts: LoginCounts) -> [(&'static str, u64); 5] {
    let LoginCounts { admitted, recognized, refused, too_soon, too_many } = counts;
    [
        ("admitted", admitted),
        ("recognized", recognized),
        ("refused", refused),
        ("too_soon", too_soon),
        ("too_many", too_many),
    ]
}

/// Returns what was dropped, by the policy that chose it.
fn reasons(
    drops: Drops,
    value: fn(Amount) -> u64,
) -> impl Iterator<Item = ([(&'static str, String); 1], u64)> {
    let Drops { newest, oldest, conflated, too_large: _ } = drops;
    [("drop_newest", newest), ("drop_oldest", oldest), ("conflate", conflated)]
        .into_iter()
        .map(move |(reason, amount)| ([("reason", reason.to_owned())], value(amount)))
}

/// Writes the violations of each reason, also of those that there were none of yet, since an alarm needs
/// something to start from.
fn encode_violations(name: &str, counts: ViolationCounts, out: &mut Families<'_>) -> Result<(), fmt::Error> {
    let help = "Connections that were ended because the peer broke a rule or a limit.";
    let values = counts.iter().map(|(reason, count)| ([("reason", reason.to_string())], count));
    out.counters(name, help, None, values)
}

impl RegistrarSnapshot {
    fn encode(&self, out: &mut Families<'_>) -> Result<(), fmt::Error> {
        let Self { counts, connections, memory_limit, memory, is_writable } = self;
        let owners = [("publisher", counts.publishers), ("subscriber", counts.subscribers)];
        out.gauges(
            "xmsg_registrar_registrations",
            "Registrations that the registrar holds now.",
            None,
            owners.map(|(owner, count)| ([("owner", owner.to_owned())], count)),
        )?;
        let help = "Memory of all registrations.";
        out.gauge("xmsg_registrar_registration_memory", help, BYTES, counts.memory)?;
        let help = "Memory that all registrations together may take.";
        out.gauge("xmsg_registrar_registration_memory_limit", help, BYTES, *memory_limit as u64)?;
        let help = "Memory that all clients of the registrar together may hold, beside the registrations.";
        out.gauge("xmsg_registrar_memory_limit", help, BYTES, memory.limit() as u64)?;
        let help =
            "Memory that all clients of the registrar together hold: requests, unread answers, connections.";
        out.gauge("xmsg_registrar_memory_used", help, BYTES, memory.used() as u64)?;
        let help = "Clients of the registrar that were disconnected because they held the most memory when the memory limit was reached.";
        out.counter("xmsg_registrar_memory_ended", help, None, memory.ended())?;
        let help = "Memory of answers of the registrar that clients have not read yet.";
        out.gauge("xmsg_registrar_queue", help, BYTES, memory.queues().bytes() as u64)?;
        out.counter(
            "xmsg_registrar_requests",
            "Requests that the registrar has answered.",
            None,
            counts.requests,
        )?;
        let help = "Requests that the registrar has answered with an error.";
        out.counter("xmsg_registrar_requests_refused", help, None, counts.refused)?;
        let help = "Registrations that were refused because the limit of their number or memory was reached.";
        out.counter("xmsg_registrar_registrations_refused", help, None, counts.full)?;
        let help = "1 while the registrar can store changes, 0 while it refuses them because they can't be written to disk.";
        out.gauge("xmsg_registrar_writable", help, None, u64::from(*is_writable))?;
        let help = "Attempts of the registrar to write changes to disk that failed.";
        out.counter("xmsg_registrar_write_failures", help, None, counts.write_failures)?;
        encode_violations("xmsg_registrar_violations", counts.violations, out)?;
        let help = "Registrations that were removed because their owner did not renew them in time.";
        out.counter("xmsg_registrar_registrations_expired", help, None, counts.expired)?;
        out.gauge(
            "xmsg_registrar_connections",
            "Connections to the registrar that are open now.",
            None,
            *connections as u64,
        )
    }
}

impl Process {
    /// Writes the metrics of the process under the names that all exporters use.
    fn encode(&self, started_unix_s: f64, out: &mut Families<'_>) -> Result<(), fmt::Error> {
        if let Some(cpu_s) = self.cpu_s {
            let help = "Processor time of the process, user and system.";
            let encoder = out.encoder.encode_descriptor("process_cpu", help, SECONDS, MetricType::Counter)?;
            ConstCounter::new(cpu_s).encode(encoder)?;
        }
        let help = "Start of the process, as Unix time.";
        let encoder =
            out.encoder.encode_descriptor("process_start_time", help, SECONDS, MetricType::Gauge)?;
        ConstGauge::new(started_unix_s).encode(encoder)?;
        for (name, help, unit, value) in [
            ("process_resident_memory", "Memory in use.", BYTES, self.resident_bytes),
            ("process_virtual_memory", "Address space in use.", BYTES, self.virtual_bytes),
            ("process_open_fds", "Open file descriptors.", None, self.open_fds),
            ("process_max_fds", "File descriptors that may be open.", None, self.max_fds),
        ] {
            if let Some(value) = value {
                out.gauge(name, help, unit, value)?;
            }
        }
        Ok(())
    }
}

/// Writes families of metrics.
#[derive(Debug)]
pub(super) struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> Result<(), fmt::Error> {
        let counter = ConstCounter::new(value);
        counter.encode(self.encoder.encode_descriptor(name, help, unit, MetricType::Counter)?)
    }

    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: u64,
    ) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    pub(super) fn counters<const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'static str, String); LABELS], u64)>,
    ) -> Result<(), fmt::Error> {
        let family = self.encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        each(family, values, |value, encoder| ConstCounter::new(value).encode(encoder))
    }

    pub(super) fn gauges<const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'static str, String); LABELS], u64)>,
    ) -> Result<(), fmt::Error> {
        let family = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        each(family, values, |value, encoder| ConstGauge::new(value).encode(encoder))
    }
}

fn each<const LABELS: usize>(
    mut family: MetricEncoder<'_>,
    values: impl IntoIterator<Item = ([(&'static str, String); LABELS], u64)>,
    encode: fn(u64, MetricEncoder<'_>) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    for (labels, value) in values {
        encode(value, family.encode_family(&labels)?)?;
    }
    Ok(())
}
