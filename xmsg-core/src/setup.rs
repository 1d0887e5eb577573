//! How connections are made: socket options, checks, time limits, hooks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::security::Security;
use crate::socket::SocketOptions;
use crate::{Error, ErrorKind, Result};

/// How often an unanswered check is repeated (section 2 of the xMsg protocol).
pub const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a check may take; of a subscription to several topics, from one confirmation to the next.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that was silent for so long is asked after. Asking costs a few bytes, so it is done often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How long the other side has to answer then. It is the larger part of the half-minute in which a proxy that vanished is
/// noticed, because giving up one that is merely busy (a Java proxy that collects garbage, a machine that swaps) may cost messages.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);

type SocketHook = Arc<dyn Fn(&mut SocketOptions) + Send + Sync>;
type Hook = Arc<dyn Fn() + Send + Sync>;

/// How a [`Connection`](crate::Connection) is set up. Cheap to clone; the environment is read once, when the builder is made.
///
/// ```
/// use std::time::Duration;
/// use xmsg_core::Setup;
/// let setup = Setup::builder()
///     .connection_timeout(Duration::from_secs(3))
///     .before_connect(|socket| socket.heartbeat_interval = Some(Duration::from_secs(5)))
///     .build()?;
/// assert_eq!(setup.connection_timeout(), Duration::from_secs(3));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Setup {
    socket: SocketOptions,
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
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("socket", &self.socket)
            .field("check_connection", &self.check_connection)
            .field("check_subscription", &self.check_subscription)
            .field("connection_timeout", &self.connection_timeout)
            .field("subscription_timeout", &self.subscription_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for Setup {
    /// The documented defaults, without looking at the environment.
    fn default() -> Self {
        Self {
            socket: with_heartbeats(),
            check_connection: true,
            check_subscription: true,
            connection_timeout: CHECK_TIMEOUT,
            subscription_timeout: CHECK_TIMEOUT,
            post_connection_sleep: Duration::ZERO,
            post_subscription_sleep: Duration::ZERO,
            before_connect: None,
            after_connect: None,
            before_subscribe: None,
            after_subscribe: None,
        }
    }
}

impl Setup {
    /// A builder that starts with the defaults and what the environment says:
    ///
    /// `XMSG_CONNECTION_TIMEOUT`, `XMSG_SUBSCRIPTION_TIMEOUT`, `XMSG_POST_CONNECTION_SLEEP`, `XMSG_POST_SUBSCRIPTION_SLEEP`
    /// (milliseconds), `XMSG_NO_CHECK_CONNECTION`, `XMSG_NO_CHECK_SUBSCRIPTION` (set: no check), and what
    /// [`Security::from_environment`] reads.
    pub fn builder() -> SetupBuilder {
        SetupBuilder::from_environment(|name| std::env::var(name).ok())
    }

    /// The security mechanism, before the hooks.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.socket.security
    }

    /// How long the check of a connection may take.
    #[must_use]
    pub fn connection_timeout(&self) -> Duration {
        self.connection_timeout
    }

    /// How long the check of a subscription may take; with several topics, from one confirmation to the next.
    #[must_use]
    pub fn subscription_timeout(&self) -> Duration {
        self.subscription_timeout
    }

    /// How long a connection that is given up goes on sending what it accepted.
    pub(crate) fn linger(&self) -> Duration {
        self.socket.linger
    }

    pub(crate) fn checks_connection(&self) -> bool {
        self.check_connection
    }

    pub(crate) fn checks_subscription(&self) -> bool {
        self.check_subscription
    }

    /// Options of a publishing or control socket, after the *before connecting* hook.
    pub(crate) fn connecting(&self) -> SocketOptions {
        hooked(&self.socket, self.before_connect.as_ref())
    }

    /// Options of a subscribing socket, after the *before subscribing* hook.
    pub(crate) fn subscribing(&self) -> SocketOptions {
        hooked(&self.connecting(), self.before_subscribe.as_ref())
    }

    pub(crate) async fn connected(&self) {
        pause(self.post_connection_sleep).await;
        if let Some(hook) = &self.after_connect {
            hook();
        }
    }

    pub(crate) async fn subscribed(&self) {
        pause(self.post_subscription_sleep).await;
        if let Some(hook) = &self.after_subscribe {
            hook();
        }
    }
}

/// The options of sockets that belong to a connection or a registrar's client.
pub(crate) fn with_heartbeats() -> SocketOptions {
    SocketOptions {
        heartbeat_interval: Some(HEARTBEAT_INTERVAL),
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        ..SocketOptions::default()
    }
}

fn hooked(options: &SocketOptions, hook: Option<&SocketHook>) -> SocketOptions {
    let mut options = options.clone();
    if let Some(hook) = hook {
        hook(&mut options);
    }
    options
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Builds a [`Setup`]; a value that makes no sense is told by [`build`](Self::build).
#[derive(Debug)]
#[must_use = "nothing is set up before `build`"]
pub struct SetupBuilder {
    setup: Setup,
    error: Option<Error>,
}

impl SetupBuilder {
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut builder = Self { setup: Setup::default(), error: None };
        let mut error = None;
        let mut millis = |name: &str, value: &mut Duration| {
            if let Some(text) = variable(name) {
                if let Ok(ms) = text.trim().parse() {
                    *value = Duration::from_millis(ms);
                } else {
                    let what = format!("{name}={text:?} in the environment is not a number of milliseconds");
                    error.get_or_insert(Error::new(ErrorKind::InvalidOption, what));
                }
            }
        };
        let setup = &mut builder.setup;
        millis("XMSG_CONNECTION_TIMEOUT", &mut setup.connection_timeout);
        millis("XMSG_SUBSCRIPTION_TIMEOUT", &mut setup.subscription_timeout);
        millis("XMSG_POST_CONNECTION_SLEEP", &mut setup.post_connection_sleep);
        millis("XMSG_POST_SUBSCRIPTION_SLEEP", &mut setup.post_subscription_sleep);
        setup.check_connection = variable("XMSG_NO_CHECK_CONNECTION").is_none();
        setup.check_subscription = variable("XMSG_NO_CHECK_SUBSCRIPTION").is_none();
        match Security::from_variables(&variable) {
            Ok(security) => setup.socket.security = security,
            Err(wrong) => {
                error.get_or_insert(wrong);
            }
        }
        builder.error = error;
        builder
    }

    /// Options of every socket of the connection, all of them: what is not set is as in [`SocketOptions::default`], which has no
    /// heartbeats.
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.setup.socket = options;
        self
    }

    /// The security mechanism, and our part in it.
    pub fn security(mut self, security: Security) -> Self {
        self.setup.socket.security = security;
        self
    }

    /// Bytes that a connection accepts before a publisher has to wait. Default 64 MiB.
    pub fn send_high_water_mark(mut self, bytes: usize) -> Self {
        self.setup.socket.send_high_water_mark.bytes = bytes;
        self
    }

    /// Ask after a proxy (ZMTP 3.1) that was silent for so long; `None`: never. Default [`HEARTBEAT_INTERVAL`], 10 s.
    ///
    /// A proxy of ours that makes a publisher wait says so every second. A foreign one that stops reading altogether answers
    /// nothing: if it may do so for longer than the interval and the time limit, set longer ones, or none.
    pub fn heartbeat_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.setup.socket.heartbeat_interval = interval.into();
        self
    }

    /// How long the proxy has to answer. Default [`HEARTBEAT_TIMEOUT`], 20 s.
    pub fn heartbeat_timeout(mut self, time: Duration) -> Self {
        self.setup.socket.heartbeat_timeout = time;
        self
    }

    /// Whether a new connection is checked with the proxy. Default yes.
    pub fn check_connection(mut self, check: bool) -> Self {
        self.setup.check_connection = check;
        self
    }

    /// Whether a new subscription is checked with the proxy. Default yes.
    pub fn check_subscription(mut self, check: bool) -> Self {
        self.setup.check_subscription = check;
        self
    }

    /// How long the check of a connection may take. Default 1000 ms.
    pub fn connection_timeout(mut self, time: Duration) -> Self {
        self.setup.connection_timeout = time;
        self
    }

    /// How long the check of a subscription may take; with several topics, from one confirmation to the next. Default 1000 ms.
    pub fn subscription_timeout(mut self, time: Duration) -> Self {
        self.setup.subscription_timeout = time;
        self
    }

    /// Called with the options of every socket before it connects.
    pub fn before_connect(mut self, hook: impl Fn(&mut SocketOptions) + Send + Sync + 'static) -> Self {
        self.setup.before_connect = Some(Arc::new(hook));
        self
    }

    /// Called after a connection was made and checked.
    pub fn after_connect(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.setup.after_connect = Some(Arc::new(hook));
        self
    }

    /// Called with the options of a subscribing socket before it connects and subscribes.
    pub fn before_subscribe(mut self, hook: impl Fn(&mut SocketOptions) + Send + Sync + 'static) -> Self {
        self.setup.before_subscribe = Some(Arc::new(hook));
        self
    }

    /// Called after a subscription was made and checked.
    pub fn after_subscribe(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.setup.after_subscribe = Some(Arc::new(hook));
        self
    }

    /// The setup, if everything makes sense.
    pub fn build(self) -> Result<Setup> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let socket = &self.setup.socket;
        let checks = [
            (
                socket.send_high_water_mark.bytes > 0,
                "the high-water mark for sending is 0: nothing could be sent",
            ),
            (
                socket.receive_high_water_mark > 0,
                "the high-water mark for receiving is 0: nothing could be received",
            ),
            (socket.identity.len() <= 255, "the identity is longer than 255 bytes"),
            (!self.setup.connection_timeout.is_zero(), "the time limit of the connection check is 0"),
            (!self.setup.subscription_timeout.is_zero(), "the time limit of the subscription check is 0"),
            (socket.heartbeat_interval.is_none_or(|time| !time.is_zero()), "the heartbeat interval is 0"),
            (!socket.heartbeat_timeout.is_zero(), "the time limit of heartbeats is 0"),
        ];
        match checks.iter().find(|(fine, _)| !fine) {
            Some((_, what)) => Err(Error::new(ErrorKind::InvalidOption, *what)),
            None => Ok(self.setup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read() {
        let variable = |name: &str| match name {
            "XMSG_CONNECTION_TIMEOUT" => Some("250".to_owned()),
            "XMSG_NO_CHECK_SUBSCRIPTION" => Some(String::new()),
            _ => None,
        };
        let setup = SetupBuilder::from_environment(variable).build().unwrap();
        assert_eq!(setup.connection_timeout, Duration::from_millis(250));
        assert!(setup.check_connection && !setup.check_subscription);
    }

    #[test]
    fn every_variable_has_its_effect() {
        let nothing = SetupBuilder::from_environment(|_| None).build().unwrap();
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
                "XMSG_NO_CHECK_CONNECTION" | "XMSG_NO_CHECK_SUBSCRIPTION" => "yes",
                // Those of security have tests of their own.
                "XMSG_SERVER_KEY" | "XMSG_KEY_FILE" | "XMSG_USER" | "XMSG_PASSWORD_FILE" => return None,
                other => panic!("{other} is not in the contract"),
            };
            Some(text.to_owned())
        };
        let all = SetupBuilder::from_environment(variable).build().unwrap();
        let times = [
            all.connection_timeout,
            all.subscription_timeout,
            all.post_connection_sleep,
            all.post_subscription_sleep,
        ];
        assert_eq!(times, [1, 2, 3, 4].map(Duration::from_millis));
        assert!(!all.check_connection && !all.check_subscription);

        // What the program says comes first.
        let said = SetupBuilder::from_environment(variable).connection_timeout(CHECK_TIMEOUT);
        assert_eq!(said.check_connection(true).build().unwrap().connection_timeout, CHECK_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_made_before_the_hooks() {
        let called = Arc::new(std::sync::Mutex::new(Vec::new()));
        let start = tokio::time::Instant::now();
        let note = || {
            let called = called.clone();
            move || called.lock().unwrap().push(start.elapsed().as_millis())
        };
        let variable = |name: &str| match name {
            "XMSG_POST_CONNECTION_SLEEP" => Some("300".to_owned()),
            "XMSG_POST_SUBSCRIPTION_SLEEP" => Some("40".to_owned()),
            _ => None,
        };
        let builder = SetupBuilder::from_environment(variable);
        let setup = builder.after_connect(note()).after_subscribe(note()).build().unwrap();
        setup.connected().await;
        setup.subscribed().await;
        assert_eq!(*called.lock().unwrap(), [300, 340]);
    }

    #[test]
    fn nonsense_is_told() {
        let bad =
            SetupBuilder::from_environment(|name| (name == "XMSG_CONNECTION_TIMEOUT").then(|| "soon".into()));
        assert!(bad.build().unwrap_err().to_string().contains("XMSG_CONNECTION_TIMEOUT=\"soon\""));
        let error = Setup::builder().send_high_water_mark(0).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }

    #[test]
    fn heartbeats_are_on_unless_told_otherwise() {
        let heartbeats = |options: SocketOptions| (options.heartbeat_interval, options.heartbeat_timeout);
        let on = (Some(HEARTBEAT_INTERVAL), HEARTBEAT_TIMEOUT);
        assert_eq!(heartbeats(Setup::default().connecting()), on);
        assert_eq!(heartbeats(Setup::builder().build().unwrap().subscribing()), on);
        let second = Duration::from_secs(1);
        let set = Setup::builder().heartbeat_interval(second).heartbeat_timeout(second * 2).build().unwrap();
        assert_eq!(heartbeats(set.connecting()), (Some(second), second * 2));
        let off = Setup::builder().heartbeat_interval(None).build().unwrap();
        assert_eq!(heartbeats(off.connecting()).0, None);
        assert_eq!(heartbeats(SocketOptions::default()).0, None, "sockets of one's own have none");
        for builder in [
            Setup::builder().heartbeat_interval(Duration::ZERO),
            Setup::builder().heartbeat_timeout(Duration::ZERO),
        ] {
            assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::InvalidOption);
        }
    }

    #[test]
    fn hooks_change_the_options_of_their_sockets() {
        let setup = Setup::builder()
            .before_connect(|socket| socket.linger = Duration::from_secs(9))
            .before_subscribe(|socket| socket.receive_high_water_mark = 77)
            .build()
            .unwrap();
        assert_eq!(setup.connecting().linger, Duration::from_secs(9));
        assert_ne!(setup.connecting().receive_high_water_mark, 77);
        assert_eq!(setup.subscribing().receive_high_water_mark, 77);
        assert_eq!(setup.subscribing().linger, Duration::from_secs(9));
    }
}
