//! The command line: commands, options that several of them have, and how values are read.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Parser, Subcommand};
use xmsg_core::options::CHECK_TIMEOUT;
use xmsg_core::{Connection, Error, ErrorKind, ProxyAddress, Registrar, RegistrarAddress, Security, Topic};

#[cfg(feature = "bench")]
use crate::commands::bench;
use crate::commands::{
    connections, demo, discover, keys, ping, publish, record, register, registrar, replay, reply, request,
    subscribe,
};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed while running
  2    usage: an option, a topic or an address that cannot be used
  3    cannot connect to the proxy or the registrar
  4    not allowed: keys, name and password, or the token, are not good
  27   timed out
  130  interrupted
  143  asked to end by SIGTERM

Try `xmsg demo` for a first look: it needs nothing else to run.";

/// Publish and subscribe through an xMsg proxy.
#[derive(Debug, Parser)]
#[command(name = "xmsg", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Say on standard error what is done; twice: debug messages of the library, too
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(flatten)]
    pub(crate) security: SecurityOptions,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pub(Box<publish::Arguments>),
    Sub(Box<subscribe::Arguments>),
    Req(Box<request::Arguments>),
    Reply(Box<reply::Arguments>),
    Record(Box<record::Arguments>),
    Replay(Box<replay::Arguments>),
    Ping(ping::Arguments),
    #[cfg(feature = "bench")]
    Bench(Box<bench::Arguments>),
    Demo(demo::Arguments),
    Registrar(registrar::Arguments),
    Register(Box<register::Arguments>),
    Deregister(Box<register::RemovalArguments>),
    Find(Box<discover::FindArguments>),
    List(discover::ListArguments),
    Connections(connections::Arguments),
    Keygen(keys::Keygen),
    Passwd(keys::Passwd),
}

impl Command {
    /// How many threads it wants, if not one for each core.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        match self {
            #[cfg(feature = "bench")]
            Self::Bench(arguments) => arguments.threads(),
            _ => None,
        }
    }
}

/// Which proxy to connect to, and how long that may take.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectOptions {
    /// The proxy: its host and the first of its three ports
    #[arg(long, value_name = "HOST[:PORT]", env = "XMSG_PROXY", default_value = "127.0.0.1:7771")]
    pub(crate) proxy: ProxyAddress,

    /// How long the proxy may take to answer, such as 500ms or 10s [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    connect_timeout: Option<Duration>,
}

impl ConnectOptions {
    /// A connection that is not opened yet.
    pub(crate) fn connection(&self) -> xmsg_core::Result<Connection> {
        Connection::with_options(self.proxy.clone(), self.options()?)
    }

    /// The options of a connection, to be completed.
    pub(crate) fn options(&self) -> xmsg_core::Result<xmsg_core::ConnectOptions> {
        let options = xmsg_core::ConnectOptions::new().security(SecurityOptions::security()?);
        Ok(match self.connect_timeout {
            Some(time) => options.connection_timeout(time).subscription_timeout(time),
            None => options,
        })
    }

    /// How long the proxy may take to answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(CHECK_TIMEOUT)
    }
}

/// How to be let in. The same for everything that a command connects to.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub(crate) struct SecurityOptions {
    /// CURVE: the public key of the proxy, or of the registrar
    // A key may begin with a hyphen.
    #[arg(long, value_name = "KEY", env = "XMSG_SERVER_KEY", global = true, allow_hyphen_values = true)]
    server_key: Option<String>,

    /// CURVE: the file with our keys, from `xmsg keygen` [default: keys made up for this once]
    #[arg(long, value_name = "FILE", env = "XMSG_KEY_FILE", global = true)]
    key_file: Option<String>,

    /// PLAIN: our name
    #[arg(long, value_name = "NAME", env = "XMSG_USER", global = true)]
    user: Option<String>,

    /// PLAIN: the file with our password
    #[arg(long, value_name = "FILE", env = "XMSG_PASSWORD_FILE", global = true)]
    password_file: Option<String>,
}

/// What was given on the command line; set once, at the start.
static SECURITY: OnceLock<SecurityOptions> = OnceLock::new();

impl SecurityOptions {
    /// Makes these the options of all connections.
    pub(crate) fn apply(self) {
        SECURITY.get_or_init(|| self);
    }

    pub(crate) fn security() -> xmsg_core::Result<Security> {
        let Some(options) = SECURITY.get() else { return Ok(Security::Null) };
        let value = |name: &str| {
            let (_, value) = options.find(name)?;
            value.clone().filter(|value| !value.is_empty())
        };
        let called = |name: &str| match options.find(name) {
            // What the environment has may be given as an option, too: then either name is right.
            Some((_, Some(value))) if std::env::var(name).is_ok_and(|variable| variable == *value) => {
                format!("{name} in the environment")
            }
            Some((option, _)) => option.to_owned(),
            None => name.to_owned(),
        };
        Security::from_options(value, called)
    }

    /// The option that goes over this environment variable, and its value.
    fn find(&self, variable: &str) -> Option<(&'static str, &Option<String>)> {
        Some(match variable {
            "XMSG_SERVER_KEY" => ("--server-key", &self.server_key),
            "XMSG_KEY_FILE" => ("--key-file", &self.key_file),
            "XMSG_USER" => ("--user", &self.user),
            "XMSG_PASSWORD_FILE" => ("--password-file", &self.password_file),
            _ => return None,
        })
    }
}

/// Which registrar to ask, and how long that may take.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registrar")]
pub(crate) struct RegistrarOptions {
    /// The registrar
    #[arg(long, value_name = "HOST[:PORT]", env = "XMSG_REGISTRAR", default_value = "127.0.0.1:8888")]
    registrar: RegistrarAddress,

    /// How long the registrar may take to answer, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration)]
    registrar_timeout: Duration,
}

impl RegistrarOptions {
    /// A client that is not connected yet.
    pub(crate) fn client(&self) -> xmsg_core::Result<Registrar> {
        Registrar::builder(self.registrar.clone())
            .security(SecurityOptions::security()?)
            .registration_timeout(self.registrar_timeout)
            .discovery_timeout(self.registrar_timeout)
            .build()
    }
}

/// A topic to subscribe to. The empty one is everything; a `:` at the end stays, so that `a:b:` is what is below `a:b`.
pub(crate) fn parse_subscription(text: &str) -> xmsg_core::Result<Topic> {
    if text.is_empty() {
        return Ok(Topic::everything());
    }
    if text == "*" || text.starts_with("*:") {
        let what = "the domain of a topic can't be `*`: name one, or subscribe to '' for everything";
        return Err(Error::new(ErrorKind::InvalidTopic, what));
    }
    text.parse()
}

/// `500ms`, `10s`, `2m`, `1h`, with decimals if need be; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(format!("the unit `{unit}` is not one of ms, s, m, h, d")),
    };
    let number = number.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: Option<f64> = if digits { number.parse().ok() } else { None };
    value
        .and_then(|value| Duration::try_from_secs_f64(value * unit_seconds).ok())
        // Further ahead, a clock would overflow.
        .filter(|time| *time <= Duration::from_secs(100 * 365 * 86400))
        .ok_or_else(|| "not a time: expected a number and a unit, such as 500ms, 10s or 2m".to_owned())
}

/// Reads a number of bytes, such as `100`, `64k`, `1KiB`, `100MB` or `2GiB`. `K`, `M`, `G` and `T` without `B` stand for
/// powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("the unit `{unit}` is not one of B, kB, KiB, MB, MiB, GB, GiB, TB, TiB")),
    };
    let size = number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    size.filter(|size| *size > 0).ok_or_else(|| "not a size: expected bytes, such as 100 or 64KiB".to_owned())
}

/// Messages per second: a number above 0.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (1e-6..=1e9).contains(&rate) => Ok(rate),
        _ => Err("not a rate: expected messages per second, a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_key_may_begin_with_a_hyphen() {
        let key = format!("-{}", "x".repeat(39));
        for arguments in [["xmsg", "--server-key", &key, "ping"], ["xmsg", "ping", "--server-key", &key]] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            assert_eq!(cli.security.server_key.as_deref(), Some(&*key));
        }
    }

    #[test]
    fn durations_are_read() {
        let cases = [
            ("500ms", 500_000),
            ("10s", 10_000_000),
            ("2m", 120_000_000),
            ("1.5s", 1_500_000),
            ("1h", 3_600_000_000),
            ("3", 3_000_000),
            ("0", 0),
            (".5", 500_000),
            ("250us", 250),
            ("1 s", 1_000_000),
        ];
        for (text, micros) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "s", "-1s", "1x", "1sec", "1e3s", "inf", "nan", "99999999999h", "1s2", "+1", ". s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, size) in
            [("100", 100), ("64k", 65536), ("2 kB", 2000), ("1GiB", 1 << 30), ("5GB", 5_000_000_000)]
        {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
        for text in ["", "0", "-1", "k", "1.5k", "1x", "99999999999999999999", "99999999999999999M"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_above_zero() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn subscriptions_keep_the_colon_at_their_end() {
        for (text, topic) in
            [("", ""), ("a", "a"), ("a:", "a:"), ("a:b:", "a:b:"), ("a:b:c:", "a:b:c:"), ("a:*", "a")]
        {
            assert_eq!(parse_subscription(text).unwrap(), topic, "{text}");
        }
        for text in ["*", "*:x", ":", ":x"] {
            assert!(parse_subscription(text).is_err(), "{text}");
        }
    }
}
