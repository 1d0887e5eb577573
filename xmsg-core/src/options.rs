//! Options of connections: security, queues, heartbeats, checks, time limits and hooks.

// Longer than 500 lines: one list of options, each with its documentation, default and environment variable.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::security::{self, Security};
use crate::{Error, ErrorKind, ProxyAddress, Result};
use xmsg_zmq::xmsg_zmtp::Limits;
use xmsg_zmq::{Endpoint, HighWaterMark, Receives, Sends, SocketOptions};

/// How often a check without an answer is repeated (section 2 of the xMsg protocol).
pub const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a check may take by default. For a subscription to several topics, it is the time between two
/// confirmations.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection may be silent by default before a heartbeat (PING) is sent. It costs a few bytes, so
/// it is sent often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How long the other side has to answer a heartbeat by default.
///
/// Together with the interval, it takes half a minute to notice that a proxy has vanished. The time to answer
/// is the larger part: giving up a proxy that is merely busy may cost messages. Examples are a Java proxy
/// that collects garbage, and a machine that swaps.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);

/// What happens to messages that were written to a connection that broke before the proxy had confirmed them.
///
/// ```
/// use xmsg_core::Delivery;
/// assert_eq!("at-least-once".parse::<Delivery>()?, Delivery::AtLeastOnce);
/// assert_eq!(Delivery::default().to_string(), "at-most-once");
/// # Ok::<_, xmsg_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Delivery {
    /// No message is sent twice. Messages that were not confirmed may be lost: at most as many as
    /// [`Connection::unconfirmed`](crate::Connection::unconfirmed) counts.
    #[default]
    AtMostOnce,
    /// Unconfirmed messages are sent again, in their order and before all others, with the header
    /// [`REPEATED`](crate::meta::REPEATED); see
    /// [`Message::may_be_repeated`](crate::Message::may_be_repeated). Until they are confirmed, which happens
    /// at least once a second, they count towards the [high-water mark](ConnectOptions::high_water_mark).
    ///
    /// The guarantee is for delivery to the proxy. Messages that a proxy has confirmed and not yet forwarded
    /// are lost when it is killed.
    AtLeastOnce,
}

impl Delivery {
    const NAMES: [(&str, Self); 2] =
        [("at-most-once", Self::AtMostOnce), ("at-least-once", Self::AtLeastOnce)];
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMostOnce => Self::NAMES[0].0,
            Self::AtLeastOnce => Self::NAMES[1].0,
        })
    }
}

impl std::str::FromStr for Delivery {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, delivery)| delivery).ok_or_else(|| {
            let what = format!("there is no delivery {text:?}: say at-most-once or at-least-once");
            Error::new(ErrorKind::InvalidOption, what)
        })
    }
}

/// The type parameter of [`SocketOptions`] for the sockets of a connection to a proxy, which send and
/// receive.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionSocket(());

impl Sends for ConnectionSocket {}

impl Receives for ConnectionSocket {}

/// The options of the sockets of a connection.
type ConnectionOptions = SocketOptions<ConnectionSocket>;

type SocketHook = Arc<dyn Fn(ConnectionOptions, &ProxyAddress) -> ConnectionOptions + Send + Sync>;
type Hook = Arc<dyn Fn(&ProxyAddress) + Send + Sync>;

/// Options of [connections](crate::Connection), and of the [actors](crate::Actor) and [pools](crate::Pool)
/// that make them.
///
/// Every option has a documented default. What the program sets takes precedence over the environment, and
/// the environment over the default. The order in which options are set makes no difference.
/// [`new`](Self::new) reads the environment once. Values that make no sense are reported by
/// [`check`](Self::check), and by whatever is built with the options.
///
/// ```
/// use std::time::Duration;
/// use xmsg_core::{Actor, ConnectOptions};
/// let options = ConnectOptions::new()
///     .high_water_mark(16 << 20)
///     .heartbeat_interval(Duration::from_secs(5))
///     .connection_timeout(Duration::from_secs(3));
/// let actor = Actor::builder("daq").proxy("10.0.0.7").options(options).build()?;
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ConnectOptions {
    socket: ConnectionOptions,
    delivery: Delivery,
    check_connection: bool,
    check_subscription: bool,
    connection_timeout: Duration,
    subscription_timeout: Duration,
    post_connection_sleep: Duration,
    post_subscription_sleep: Duration,
    before_connect: Option<SocketHook>,
    after_connect: Option<Hook>,
    before_subscribe: Option<SocketHook>,
    after_subscribe: Option<Hook>,
    /// Endpoints to connect to instead of those of the address.
    endpoints: Option<Arc<[Endpoint; 3]>>,
    /// Errors in the environment, each with the name of its option. Setting the option removes the error.
    wrong: Vec<(&'static str, Error)>,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("socket", &self.socket)
            .field("delivery", &self.delivery)
            .field("check_connection", &self.check_connection)
            .field("check_subscription", &self.check_subscription)
            .field("connection_timeout", &self.connection_timeout)
            .field("subscription_timeout", &self.subscription_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectOptions {
    /// Makes options with the defaults and what the environment sets:
    ///
    /// | variable | option |
    /// |---|---|
    /// | `XMSG_CONNECTION_TIMEOUT` (milliseconds) | [`connection_timeout`](Self::connection_timeout) |
    /// | `XMSG_SUBSCRIPTION_TIMEOUT` (milliseconds) | [`subscription_timeout`](Self::subscription_timeout) |
    /// | `XMSG_POST_CONNECTION_SLEEP`, `XMSG_POST_SUBSCRIPTION_SLEEP` (milliseconds) | a pause after each connection or subscription; default none |
    /// | `XMSG_NO_CHECK_CONNECTION`, `XMSG_NO_CHECK_SUBSCRIPTION` (set at all) | [`check_connection`](Self::check_connection), [`check_subscription`](Self::check_subscription) |
    /// | `XMSG_DELIVERY` (`at-most-once`, `at-least-once`) | [`delivery`](Self::delivery) |
    /// | `XMSG_SERVER_KEY`, `XMSG_KEY_FILE`, `XMSG_USER`, `XMSG_PASSWORD_FILE` | [`security`](Self::security), as [`security::from_environment`] reads them |
    #[must_use]
    pub fn new() -> Self {
        Self::with_variables(|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty() || is_flag(name))
        })
    }

    /// Makes options with the defaults alone, without reading the environment.
    #[must_use]
    pub fn without_environment() -> Self {
        Self::with_variables(|_| None)
    }

    fn with_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut options = Self {
            socket: with_heartbeats(),
            delivery: Delivery::default(),
            check_connection: variable("XMSG_NO_CHECK_CONNECTION").is_none(),
            check_subscription: variable("XMSG_NO_CHECK_SUBSCRIPTION").is_none(),
            connection_timeout: CHECK_TIMEOUT,
            subscription_timeout: CHECK_TIMEOUT,
            post_connection_sleep: Duration::ZERO,
            post_subscription_sleep: Duration::ZERO,
            before_connect: None,
            after_connect: None,
            before_subscribe: None,
            after_subscribe: None,
            endpoints: None,
            wrong: Vec::new(),
        };
        let mut wrong = Vec::new();
        let mut millis = |name: &'static str, option: &'static str, value: &mut Duration| {
            let Some(text) = variable(name) else { return };
            match text.trim().parse() {
                Ok(ms) => *value = Duration::from_millis(ms),
                Err(error) => {
                    let what = format!("{name}={text:?} in the environment is not a number of milliseconds");
                    wrong.push((option, Error::new(ErrorKind::InvalidOption, what).with_source(error)));
                }
            }
        };
        millis("XMSG_CONNECTION_TIMEOUT", "connection_timeout", &mut options.connection_timeout);
        millis("XMSG_SUBSCRIPTION_TIMEOUT", "subscription_timeout", &mut options.subscription_timeout);
        millis("XMSG_POST_CONNECTION_SLEEP", "post_connection_sleep", &mut options.post_connection_sleep);
        millis(
            "XMSG_POST_SUBSCRIPTION_SLEEP",
            "post_subscription_sleep",
            &mut options.post_subscription_sleep,
        );
        match variable("XMSG_DELIVERY").map(|text| text.trim().parse()) {
            None => {}
            Some(Ok(delivery)) => options.delivery = delivery,
            Some(Err(error)) => {
                let what = "XMSG_DELIVERY in the environment is no delivery";
                wrong.push(("delivery", Error::new(ErrorKind::InvalidOption, what).with_source(error)));
            }
        }
        match security::from_variables(&variable) {
            Ok(security) => options.socket = options.socket.security(security),
            Err(error) => wrong.push(("security", error)),
        }
        options.wrong = wrong;
        options
    }

    /// Records that the program has set an option, so that an error of the environment about it no longer
    /// matters.
    fn set(mut self, option: &'static str) -> Self {
        self.wrong.retain(|(about, _)| *about != option);
        self
    }

    /// Sets the security mechanism and our credentials. The default is NULL (no security), unless the
    /// environment sets another. For keys that differ from proxy to proxy, use
    /// [`before_connect`](Self::before_connect), which receives the address.
    #[must_use]
    pub fn security(mut self, security: Security) -> Self {
        self.socket = self.socket.security(security);
        self.set("security")
    }

    /// Sets what happens to messages that were written to a connection that broke before the proxy had
    /// confirmed them. By default they are not sent again.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self.set("delivery")
    }

    /// Sets how many bytes of messages a connection accepts before a publisher has to wait. The default is 64
    /// MiB.
    #[must_use]
    pub fn high_water_mark(mut self, bytes: usize) -> Self {
        let mark = HighWaterMark { bytes, ..self.socket.settings().send_high_water_mark };
        self.socket = self.socket.send_high_water_mark(mark);
        self
    }

    /// Sets how many bytes of received messages may wait for the subscriber. Above that, nothing more is read
    /// from the proxy, whose policy for slow subscribers then applies. The default is 16 MiB.
    #[must_use]
    pub fn receive_high_water_mark(mut self, bytes: usize) -> Self {
        self.socket = self.socket.receive_high_water_mark(bytes);
        self
    }

    /// Sets the size of the largest message that is sent or received, in bytes, including frame headers. The
    /// default is 64 MiB. `xmsg-proxy` may announce a smaller limit, which then holds for sending.
    #[must_use]
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        let limits = Limits { message_size: bytes, ..self.socket.settings().limits.clone() };
        self.socket = self.socket.limits(limits);
        self
    }

    /// Sets how long a connection that was dropped goes on sending what it has accepted. The default is 5 s.
    #[must_use]
    pub fn linger(mut self, time: Duration) -> Self {
        self.socket = self.socket.linger(time);
        self
    }

    /// Sets how long a proxy may be silent before a heartbeat is sent to it; `None` disables heartbeats. The
    /// default is [`HEARTBEAT_INTERVAL`], 10 s. Heartbeats need a proxy that speaks ZMTP 3.1.
    ///
    /// While `xmsg-proxy` makes a publisher wait, it says so every second. A foreign proxy that stops reading
    /// altogether answers nothing: if it may do so for longer than the interval and the timeout together, set
    /// longer ones, or disable heartbeats.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.socket = self.socket.heartbeat_interval(interval);
        self
    }

    /// Sets how long the proxy has to answer a heartbeat. The default is [`HEARTBEAT_TIMEOUT`], 20 s.
    #[must_use]
    pub fn heartbeat_timeout(mut self, time: Duration) -> Self {
        self.socket = self.socket.heartbeat_timeout(time);
        self
    }

    /// Sets whether a new connection is checked with the proxy, by the control request of xMsg. The default
    /// is `true`. Disable the check for a peer that is not an xMsg proxy; such a peer cannot confirm a
    /// [flush](crate::Connection::flush) either, because it does not answer.
    #[must_use]
    pub fn check_connection(mut self, check: bool) -> Self {
        self.check_connection = check;
        self
    }

    /// Sets whether a new subscription is checked with the proxy. The default is `true`.
    #[must_use]
    pub fn check_subscription(mut self, check: bool) -> Self {
        self.check_subscription = check;
        self
    }

    /// Sets how long it may take to make a connection, including its check. The default is 1000 ms.
    #[must_use]
    pub fn connection_timeout(mut self, time: Duration) -> Self {
        self.connection_timeout = time;
        self.set("connection_timeout")
    }

    /// Sets how long the check of a subscription may take. With several topics, it is the time between two
    /// confirmations. The default is 1000 ms.
    #[must_use]
    pub fn subscription_timeout(mut self, time: Duration) -> Self {
        self.subscription_timeout = time;
        self.set("subscription_timeout")
    }

    /// Sets a hook that is called before a socket connects, with the options of the socket and the address of
    /// the proxy. The hook returns the options that the socket is to have. Use it for options that are not in
    /// this type, or that differ from proxy to proxy.
    #[must_use]
    pub fn before_connect(
        mut self,
        hook: impl Fn(SocketOptions<ConnectionSocket>, &ProxyAddress) -> SocketOptions<ConnectionSocket>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.before_connect = Some(Arc::new(hook));
        self
    }

    /// Makes the sockets connect to these endpoints, whatever the address is. They are those for publishers,
    /// subscribers and control sockets, in this order. Simulations, which have their own network, use it.
    #[doc(hidden)]
    #[must_use]
    pub fn endpoints(mut self, endpoints: [Endpoint; 3]) -> Self {
        self.endpoints = Some(Arc::new(endpoints));
        self
    }

    /// Sets a hook that is called after a connection to a proxy was made and checked, with the address of the
    /// proxy.
    #[must_use]
    pub fn after_connect(mut self, hook: impl Fn(&ProxyAddress) + Send + Sync + 'static) -> Self {
        self.after_connect = Some(Arc::new(hook));
        self
    }

    /// Sets a hook that is called with the options of a subscribing socket, after
    /// [`before_connect`](Self::before_connect) and before the socket connects and subscribes. It returns the
    /// options that the socket is to have.
    #[must_use]
    pub fn before_subscribe(
        mut self,
        hook: impl Fn(SocketOptions<ConnectionSocket>, &ProxyAddress) -> SocketOptions<ConnectionSocket>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.before_subscribe = Some(Arc::new(hook));
        self
    }

    /// Sets a hook that is called after a subscription was made and checked, with the address of the proxy.
    #[must_use]
    pub fn after_subscribe(mut self, hook: impl Fn(&ProxyAddress) + Send + Sync + 'static) -> Self {
        self.after_subscribe = Some(Arc::new(hook));
        self
    }

    /// Checks that every option makes sense.
    ///
    /// # Errors
    /// [`InvalidOption`](ErrorKind::InvalidOption) for the first option that does not. The error names it.
    /// Errors in keys and files that the environment names have their own kinds.
    pub fn check(&self) -> Result<()> {
        if let Some((_, error)) = self.wrong.first() {
            return Err(error.clone());
        }
        let socket = self.socket.settings();
        let checks = [
            (
                socket.send_high_water_mark.bytes > 0,
                "the high-water mark for sending is 0: nothing could be sent",
            ),
            (
                socket.receive_high_water_mark > 0,
                "the high-water mark for receiving is 0: nothing could be received",
            ),
            (
                self.delivery == Delivery::AtMostOnce || self.check_connection,
                "delivery at least once needs the check of connections: without it, the proxy confirms nothing",
            ),
            (socket.limits.message_size > 0, "the limit of the message size is 0: nothing could be sent"),
            (!self.connection_timeout.is_zero(), "the time limit of the connection check is 0"),
            (!self.subscription_timeout.is_zero(), "the time limit of the subscription check is 0"),
            (socket.heartbeat_interval.is_none_or(|time| !time.is_zero()), "the heartbeat interval is 0"),
            (!socket.heartbeat_timeout.is_zero(), "the time limit of heartbeats is 0"),
        ];
        match checks.iter().find(|(fine, _)| !fine) {
            Some((_, what)) => Err(Error::new(ErrorKind::InvalidOption, *what)),
            None => Ok(()),
        }
    }

    pub(crate) fn mechanism(&self) -> &Security {
        &self.socket.settings().security
    }

    /// Returns the endpoints for publishers, subscribers and control sockets, in this order.
    pub(crate) fn endpoints_of(&self, address: &ProxyAddress) -> Result<[Endpoint; 3]> {
        match &self.endpoints {
            Some(endpoints) => Ok((**endpoints).clone()),
            None => Ok([
                address.publish_endpoint().parse()?,
                address.subscribe_endpoint().parse()?,
                address.control_endpoint().parse()?,
            ]),
        }
    }

    /// Returns whether unconfirmed messages are sent again.
    pub(crate) fn repeats(&self) -> bool {
        self.delivery == Delivery::AtLeastOnce
    }

    pub(crate) fn connection_limit(&self) -> Duration {
        self.connection_timeout
    }

    pub(crate) fn subscription_limit(&self) -> Duration {
        self.subscription_timeout
    }

    /// Returns how long a connection that was dropped goes on sending what it has accepted.
    pub(crate) fn linger_time(&self) -> Duration {
        self.socket.settings().linger
    }

    pub(crate) fn checks_connection(&self) -> bool {
        self.check_connection
    }

    pub(crate) fn checks_subscription(&self) -> bool {
        self.check_subscription
    }

    /// Returns the options of a publishing or control socket, after the `before_connect` hook.
    pub(crate) fn connecting(&self, address: &ProxyAddress) -> ConnectionOptions {
        hooked(self.socket.clone(), self.before_connect.as_ref(), address)
    }

    /// Returns the options of a subscribing socket, after the `before_connect` and `before_subscribe` hooks.
    pub(crate) fn subscribing(&self, address: &ProxyAddress) -> ConnectionOptions {
        hooked(self.connecting(address), self.before_subscribe.as_ref(), address)
    }

    pub(crate) async fn connected(&self, address: &ProxyAddress) {
        pause(self.post_connection_sleep).await;
        if let Some(hook) = &self.after_connect {
            hook(address);
        }
    }

    pub(crate) async fn subscribed(&self, address: &ProxyAddress) {
        pause(self.post_subscription_sleep).await;
        if let Some(hook) = &self.after_subscribe {
            hook(address);
        }
    }
}

/// Returns whether a variable counts as set even if it is empty.
fn is_flag(name: &str) -> bool {
    name.starts_with("XMSG_NO_CHECK_")
}

/// Returns the default options, with heartbeats, of sockets that belong to a connection or to a client of the
/// registrar.
pub(crate) fn with_heartbeats<S>() -> SocketOptions<S> {
    SocketOptions::default().heartbeat_interval(HEARTBEAT_INTERVAL).heartbeat_timeout(HEARTBEAT_TIMEOUT)
}

fn hooked(
    options: ConnectionOptions,
    hook: Option<&SocketHook>,
    address: &ProxyAddress,
) -> ConnectionOptions {
    match hook {
        Some(hook) => hook(options, address),
        None => options,
    }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> ProxyAddress {
        ProxyAddress::default()
    }

    #[test]
    fn every_variable_has_its_effect_and_an_option_that_is_set_goes_before_it() {
        let nothing = ConnectOptions::without_environment();
        nothing.check().unwrap();
        assert_eq!(
            (nothing.connection_timeout, nothing.subscription_timeout),
            (CHECK_TIMEOUT, CHECK_TIMEOUT)
        );
        assert!(nothing.post_connection_sleep.is_zero() && nothing.post_subscription_sleep.is_zero());
        assert!(nothing.check_connection && nothing.check_subscription);

        let variable = |name: &str| {
            let text = match name {
                "XMSG_CONNECTION_TIMEOUT" => "1",
                "XMSG_SUBSCRIPTION_TIMEOUT" => "2",
                "XMSG_POST_CONNECTION_SLEEP" => "3",
                "XMSG_POST_SUBSCRIPTION_SLEEP" => " 4 ",
                "XMSG_NO_CHECK_CONNECTION" | "XMSG_NO_CHECK_SUBSCRIPTION" => "",
                "XMSG_DELIVERY" => "at-most-once",
                // The variables of security have their own tests.
                "XMSG_SERVER_KEY" | "XMSG_KEY_FILE" | "XMSG_USER" | "XMSG_PASSWORD_FILE" => return None,
                other => panic!("{other} is not in the contract"),
            };
            Some(text.to_owned())
        };
        let all = ConnectOptions::with_variables(variable);
        all.check().unwrap();
        let times = [
            all.connection_timeout,
            all.subscription_timeout,
            all.post_connection_sleep,
            all.post_subscription_sleep,
        ];
        assert_eq!(times, [1, 2, 3, 4].map(Duration::from_millis));
        assert!(!all.check_connection && !all.check_subscription);

        let set =
            ConnectOptions::with_variables(variable).connection_timeout(CHECK_TIMEOUT).check_connection(true);
        assert_eq!(set.connection_timeout, CHECK_TIMEOUT);
        assert!(set.check_connection && !set.check_subscription);
    }

    /// Setting an option undoes no other option, nor what the environment sets for others, in whatever order
    /// options are set.
    #[test]
    fn the_order_of_options_makes_no_difference() {
        let variable = |name: &str| match name {
            "XMSG_USER" => Some("alice".to_owned()),
            "XMSG_CONNECTION_TIMEOUT" => Some("250".to_owned()),
            _ => None,
        };
        let keys =
            || Security::anonymous("rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7".parse().unwrap()).unwrap();
        let one = ConnectOptions::with_variables(variable)
            .security(keys())
            .high_water_mark(1)
            .linger(Duration::ZERO);
        let other = ConnectOptions::with_variables(variable)
            .linger(Duration::ZERO)
            .high_water_mark(1)
            .security(keys());
        for options in [one, other] {
            let socket = options.connecting(&address());
            let socket = socket.settings();
            assert!(matches!(socket.security, Security::CurveClient { .. }));
            assert_eq!((socket.send_high_water_mark.bytes, socket.linger), (1, Duration::ZERO));
            assert_eq!(socket.heartbeat_interval, Some(HEARTBEAT_INTERVAL), "what was not set is as it was");
            assert_eq!(options.connection_timeout, Duration::from_millis(250));
        }
    }

    #[test]
    fn what_is_wrong_in_the_environment_is_told_unless_the_option_is_set() {
        let variable = |name: &str| match name {
            "XMSG_CONNECTION_TIMEOUT" => Some("soon".to_owned()),
            "XMSG_SERVER_KEY" => Some("no key".to_owned()),
            _ => None,
        };
        let wrong = ConnectOptions::with_variables(variable);
        assert!(wrong.check().unwrap_err().to_string().contains("XMSG_CONNECTION_TIMEOUT=\"soon\""));
        let wrong = wrong.connection_timeout(CHECK_TIMEOUT);
        assert!(wrong.check().unwrap_err().to_string().contains("XMSG_SERVER_KEY"));
        wrong.security(Security::Null).check().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_made_before_the_hooks() {
        let called = Arc::new(std::sync::Mutex::new(Vec::new()));
        let start = tokio::time::Instant::now();
        let note = || {
            let called = called.clone();
            move |_: &ProxyAddress| called.lock().unwrap().push(start.elapsed().as_millis())
        };
        let variable = |name: &str| match name {
            "XMSG_POST_CONNECTION_SLEEP" => Some("300".to_owned()),
            "XMSG_POST_SUBSCRIPTION_SLEEP" => Some("40".to_owned()),
            _ => None,
        };
        let options = ConnectOptions::with_variables(variable).after_connect(note()).after_subscribe(note());
        options.connected(&address()).await;
        options.subscribed(&address()).await;
        assert_eq!(*called.lock().unwrap(), [300, 340]);
    }

    #[test]
    fn heartbeats_are_on_unless_told_otherwise() {
        let heartbeats = |options: ConnectionOptions| {
            (options.settings().heartbeat_interval, options.settings().heartbeat_timeout)
        };
        let on = (Some(HEARTBEAT_INTERVAL), HEARTBEAT_TIMEOUT);
        assert_eq!(heartbeats(ConnectOptions::without_environment().subscribing(&address())), on);
        let second = Duration::from_secs(1);
        let set = ConnectOptions::new().heartbeat_interval(second).heartbeat_timeout(second * 2);
        assert_eq!(heartbeats(set.connecting(&address())), (Some(second), second * 2));
        let off = ConnectOptions::new().heartbeat_interval(None);
        assert_eq!(heartbeats(off.connecting(&address())).0, None);
        assert_eq!(heartbeats(SocketOptions::default()).0, None, "sockets of one's own have none");
    }

    #[test]
    fn delivery_is_set_by_the_program_or_the_environment() {
        let with = |text: &'static str| {
            ConnectOptions::with_variables(move |name| (name == "XMSG_DELIVERY").then(|| text.to_owned()))
        };
        assert!(with("at-least-once").repeats() && !with("at-most-once").repeats());
        assert!(!ConnectOptions::without_environment().repeats());
        let wrong = with("exactly-once");
        let error = wrong.check().unwrap_err();
        assert!(error.with_causes().to_string().contains("exactly-once"), "{error:?}");
        wrong.delivery(Delivery::AtLeastOnce).check().unwrap();
        let unchecked = with("at-least-once").check_connection(false);
        assert!(unchecked.check().unwrap_err().to_string().contains("needs the check"));
    }

    #[test]
    fn values_that_make_no_sense_are_told() {
        for options in [
            ConnectOptions::new().heartbeat_interval(Duration::ZERO),
            ConnectOptions::new().heartbeat_timeout(Duration::ZERO),
            ConnectOptions::new().high_water_mark(0),
            ConnectOptions::new().receive_high_water_mark(0),
            ConnectOptions::new().max_message_size(0),
            ConnectOptions::new().connection_timeout(Duration::ZERO),
            ConnectOptions::new().subscription_timeout(Duration::ZERO),
        ] {
            assert_eq!(options.check().unwrap_err().kind(), ErrorKind::InvalidOption);
        }
    }

    #[test]
    fn hooks_change_the_options_of_their_sockets_and_are_told_the_address() {
        let options = ConnectOptions::new()
            .before_connect(|socket, address| {
                socket.linger(Duration::from_secs(u64::from(address.publish_port())))
            })
            .before_subscribe(|socket, _| socket.receive_high_water_mark(77));
        let linger = Duration::from_secs(7771);
        assert_eq!(options.connecting(&address()).settings().linger, linger);
        assert_ne!(options.connecting(&address()).settings().receive_high_water_mark, 77);
        assert_eq!(options.subscribing(&address()).settings().receive_high_water_mark, 77);
        assert_eq!(options.subscribing(&address()).settings().linger, linger);
    }
}
