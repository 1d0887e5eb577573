//! `xmsg ping`: checks whether a proxy answers, and how fast.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use xmsg_core::text::{escaped, json_escaped};
use xmsg_core::{Connection, Error, ErrorKind, Message, ProxyAddress, Topic};

use crate::args::{ConnectOptions, parse_count_from_1, parse_duration};
use crate::exit::Exit;
use crate::output::{Output, counted, grouped};
use crate::pace::Pace;
use crate::rights;
use crate::signals::Interrupt;

/// The prefix of the topics of its messages.
const PINGED: &str = "xmsg:ping:";

const EXAMPLES: &str = "\
Examples:
  xmsg ping                                          the proxy of this host
  xmsg ping --proxy 10.0.0.7 -n 1                    is it there? exit code 3 when not
  xmsg ping -n 1000 --interval 10ms";

/// Check a proxy: connect to it, and send a message through it
///
/// Each ping makes a new connection. It shows how long the handshake took, until the proxy's control port
/// answered, and how long a message took from being published until it arrived at a subscriber. The topics of
/// these messages start with `xmsg:ping:`.
///
/// Exit code 3: the proxy does not answer; the first ping that fails ends the command, later ones are counted
/// as lost.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many pings
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 4,
          value_parser = parse_count_from_1)]
    count: u64,

    /// Time from one ping to the next
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,

    /// Write one object of JSON on each line: one for each ping, and at the end one for all
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let mut pinger = Pinger {
        proxy: arguments.connect.proxy()?,
        // The checks are what the command measures, so the environment must not disable them.
        options: arguments.connect.options()?.check_connection(true).check_subscription(true),
        timeout: arguments.connect.timeout(),
        output: Output::stdout()?,
        as_json: arguments.json,
        sent: 0,
        lost: 0,
        handshake: Times::default(),
        round_trip: Times::default(),
    };
    let pace = (!arguments.interval.is_zero()).then(|| Pace::new(1.0 / arguments.interval.as_secs_f64()));
    let exit = tokio::select! {
        result = pinger.run(arguments.count, pace) => {
            if let Err(error) = result {
                return Err(explained(&arguments.connect, error).await);
            }
            if pinger.lost > 0 { Exit::NoConnection } else { Exit::Done }
        }
        exit = interrupt.wait() => exit,
    };
    pinger.summary()?;
    Ok(exit)
}

/// Explains a missing right to subscribe to our own messages, which is not a failure of the proxy.
async fn explained(connect: &ConnectOptions, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Error>() {
        Ok(error) => rights::explained(connect, &[Topic::wrap(PINGED)], error).await.into(),
        Err(error) => error,
    }
}

#[derive(Debug)]
struct Pinger {
    proxy: ProxyAddress,
    options: xmsg_core::ConnectOptions,
    timeout: Duration,
    output: Output,
    as_json: bool,
    sent: u64,
    lost: u64,
    handshake: Times,
    round_trip: Times,
}

impl Pinger {
    async fn run(&mut self, count: u64, mut pace: Option<Pace>) -> anyhow::Result<()> {
        for number in 1..=count {
            if let Some(pace) = &mut pace {
                pace.wait().await;
            }
            let pinged = self.ping().await;
            self.sent += 1;
            let proxy = &self.proxy;
            let out = self.output.buffer();
            // Writing to memory cannot fail.
            let _ = match pinged {
                Ok((handshake, round_trip)) => {
                    self.handshake.add(handshake);
                    self.round_trip.add(round_trip);
                    let [handshake, round_trip] = [handshake, round_trip].map(milliseconds);
                    if self.as_json {
                        let line =
                            json!({ "ping": number, "handshake_ms": handshake, "round_trip_ms": round_trip });
                        writeln!(out, "{line}")
                    } else {
                        writeln!(
                            out,
                            "{proxy}: ping {number}: handshake {handshake:.3} ms, round trip {round_trip:.3} ms"
                        )
                    }
                }
                Err(error) if number == 1 => return Err(error.into()),
                Err(error) => {
                    self.lost += 1;
                    if self.as_json {
                        let line = json!({ "ping": number, "lost": error.to_string() }).to_string();
                        writeln!(out, "{}", json_escaped(&line))
                    } else {
                        let reason = escaped(&error.to_string()).into_owned();
                        writeln!(out, "{proxy}: ping {number}: lost: {reason}")
                    }
                }
            };
            self.output.flush()?;
        }
        Ok(())
    }

    /// Returns how long it took to connect, and how long a message took to come back.
    async fn ping(&self) -> xmsg_core::Result<(Duration, Duration)> {
        let connection = Connection::with_options(self.proxy.clone(), self.options.clone())?;
        let started = Instant::now();
        connection.connect().await?;
        let handshake = started.elapsed();

        let topic = Topic::wrap(format!("{PINGED}{}", uuid::Uuid::new_v4()));
        let mut subscription = connection.subscribe(&topic).await?;
        let started = Instant::now();
        connection.publish(&Message::of(topic, "ping")?).await?;
        let limit = self.timeout;
        let back = tokio::time::timeout(limit, subscription.next()).await;
        let round_trip = started.elapsed();
        match back {
            Ok(Some(message)) => drop(message?),
            Ok(None) => return Err(Error::new(ErrorKind::Closed, "the subscription has ended")),
            Err(_) => {
                let what = format!(
                    "the proxy at {} did not pass on a message within {} ms: is it an xMsg proxy?",
                    self.proxy,
                    limit.as_millis()
                );
                return Err(Error::new(ErrorKind::Timeout, what));
            }
        }
        subscription.close().await;
        // The message that it published has come back.
        let _ = connection.close(Duration::ZERO).await;
        Ok((handshake, round_trip))
    }

    fn summary(&mut self) -> anyhow::Result<()> {
        if self.as_json {
            let summary = json!({
                "proxy": self.proxy.to_string(),
                "pings": self.sent,
                "lost": self.lost,
                "handshake_ms": self.handshake.json(),
                "round_trip_ms": self.round_trip.json(),
            });
            let _ = writeln!(self.output.buffer(), "{summary}");
            return self.output.flush();
        }
        let (pings, lost) = (counted(self.sent, "ping"), grouped(self.lost));
        let out = self.output.buffer();
        let _ = writeln!(out, "--- {} ---\n{pings}, {lost} lost", self.proxy);
        if self.handshake.count > 0 {
            let _ = writeln!(out, "handshake  min/avg/max = {}", self.handshake);
            let _ = writeln!(out, "round trip min/avg/max = {}", self.round_trip);
        }
        self.output.flush()
    }
}

/// The minimum, the mean and the maximum of some times.
#[derive(Debug, Default)]
struct Times {
    min: Duration,
    max: Duration,
    sum: Duration,
    count: u64,
}

impl Times {
    fn add(&mut self, time: Duration) {
        self.min = if self.count == 0 { time } else { self.min.min(time) };
        self.max = self.max.max(time);
        self.sum += time;
        self.count += 1;
    }

    /// Returns the times in milliseconds; `None` if there are none.
    fn json(&self) -> Option<Value> {
        (self.count > 0).then(|| {
            let mean = milliseconds(self.sum) / self.count as f64;
            json!({ "min": milliseconds(self.min), "mean": mean, "max": milliseconds(self.max) })
        })
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = milliseconds(self.sum) / self.count.max(1) as f64;
        write!(f, "{:.3}/{mean:.3}/{:.3} ms", milliseconds(self.min), milliseconds(self.max))
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up() {
        let mut times = Times::default();
        for time in [3, 1, 5] {
            times.add(Duration::from_millis(time));
        }
        assert_eq!(times.to_string(), "1.000/3.000/5.000 ms");
    }
}
