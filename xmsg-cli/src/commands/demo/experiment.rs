//! A small experiment: sensors, a detector, and the subscribers of both, each with a connection of its own.

use std::f64::consts::TAU;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use xmsg_core::{ConnectOptions, Connection, Message, ProxyAddress, Subscription, Topic};
use xmsg_proxy::Monitor;

use crate::pace::Pace;

/// The number of bytes of one waveform.
const WAVEFORM_LEN: usize = 8 << 10;
/// The number of waveforms per second.
const WAVEFORMS: f64 = 500.0;
/// The number of waveforms per second that the archive takes.
const ARCHIVED: f64 = 150.0;
/// The number of bytes that may wait in the archive itself. It is small, so that messages pile up in the
/// proxy.
const ARCHIVE_HIGH_WATER_MARK: usize = 128 << 10;
/// The number of messages that wait to be shown. At this number, no more are taken from the subscription.
const DISPLAYED: usize = 1024;
/// The beginning of the topics of requests to the proxy.
const CONTROL: &[u8] = b"xmsg:";
/// The time limit of each step of the setup.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a connection may take to end.
const LINGER: Duration = Duration::from_secs(1);

/// A value that swings around its mean, with noise.
struct Sensor {
    topic: &'static str,
    unit: &'static str,
    mean: f64,
    swing: f64,
    period_s: f64,
    noise: f64,
    /// The number of messages per second.
    rate: f64,
    decimals: usize,
}

const fn sensor(
    topic: &'static str,
    unit: &'static str,
    mean: f64,
    swing: f64,
    period_s: f64,
    rate: f64,
    decimals: usize,
) -> Sensor {
    Sensor { topic, unit, mean, swing, period_s, noise: swing / 12.0, rate, decimals }
}

const BEAM: [Sensor; 3] = [
    sensor("beam:current", "uA", 82.0, 4.5, 33.0, 20.0, 2),
    sensor("beam:energy", "MeV", 2204.6, 1.2, 51.0, 10.0, 1),
    sensor("beam:position:x", "mm", 0.0, 0.35, 14.0, 20.0, 3),
];
const HALL: [Sensor; 3] = [
    sensor("hall:magnet:current", "A", 1250.0, 1.8, 75.0, 5.0, 1),
    sensor("hall:target:temperature", "K", 19.6, 0.4, 26.0, 2.0, 2),
    sensor("hall:vacuum:pressure", "nbar", 3.4, 0.6, 40.0, 1.0, 2),
];

impl Sensor {
    fn text(&self, at: Duration, random: &mut Rng) -> String {
        let noise = self.noise * (2.0 * random.f64() - 1.0);
        let value = self.mean + self.swing * (TAU * at.as_secs_f64() / self.period_s).sin() + noise;
        format!("{value:.*} {}", self.decimals, self.unit)
    }
}

/// A participant: the number of its connection at the proxy, and its name.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: u32,
    pub(super) name: &'static str,
    pub(super) does: &'static str,
}

/// The running experiment. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Experiment {
    pub(super) members: Vec<Member>,
    tasks: JoinSet<xmsg_core::Result<()>>,
}

impl Experiment {
    /// Starts all participants, and returns the subscription of the display.
    pub(super) async fn start(
        address: &ProxyAddress,
        proxy: &Monitor,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Message>)> {
        let options =
            || ConnectOptions::new().connection_timeout(STEP_TIMEOUT).subscription_timeout(STEP_TIMEOUT);
        let connection = |options| Connection::with_options(address.clone(), options);
        let (mut members, mut tasks) = (Vec::new(), JoinSet::new());
        let mut join = |id, name, does| members.push(Member { id, name, does });
        let newest_subscriber = || proxy.subscribers().iter().map(|found| found.id).max().unwrap_or_default();
        let newest_publisher = || proxy.publishers().iter().map(|found| found.id).max().unwrap_or_default();

        let (display, shown) = mpsc::channel(DISPLAYED);
        let subscription = connection(options())?.subscribe(Topic::everything()).await?;
        join(newest_subscriber(), "display", "sees everything: this screen");
        tasks.spawn(forward(subscription, display));
        let subscription = connection(options())?.subscribe("beam:").await?;
        join(newest_subscriber(), "run control", "follows beam:");
        tasks.spawn(follow(subscription, None));
        let slow =
            options().before_subscribe(|socket, _| socket.receive_high_water_mark(ARCHIVE_HIGH_WATER_MARK));
        let subscription = connection(slow)?.subscribe("detector:waveform").await?;
        join(newest_subscriber(), "archive", "slow on purpose");
        tasks.spawn(follow(subscription, Some(ARCHIVED)));

        // They are started one after the other, so that the newest connection at the proxy is known to be
        // theirs.
        let beam = connection(options())?;
        beam.connect().await?;
        join(newest_publisher(), "accelerator", "publishes beam:");
        tasks.spawn(publish_sensors(beam, &BEAM));
        let hall = connection(options())?;
        hall.connect().await?;
        join(newest_publisher(), "hall", "publishes hall:");
        tasks.spawn(publish_sensors(hall, &HALL));
        let detector = connection(options())?;
        detector.connect().await?;
        join(newest_publisher(), "detector", "publishes detector:");
        tasks.spawn(publish_events(detector));
        Ok((Self { members, tasks }, shown))
    }

    /// Waits until one of the parts has failed. Parts do not end by themselves.
    pub(super) async fn failure(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error.into(),
            Some(Err(error)) => error.into(),
            _ => anyhow::anyhow!("a part of the demo ended before its time"),
        }
    }
}

async fn forward(mut subscription: Subscription, display: mpsc::Sender<Message>) -> xmsg_core::Result<()> {
    while let Some(message) = subscription.next().await {
        let message = message?;
        // Requests of connections to the proxy are not for the display.
        if message.topic().as_bytes().starts_with(CONTROL) {
            continue;
        }
        if display.send(message).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes messages and does nothing with them, at most `rate` in a second.
async fn follow(mut subscription: Subscription, rate: Option<f64>) -> xmsg_core::Result<()> {
    let mut pace = rate.map(Pace::new);
    while let Some(message) = subscription.next().await {
        message?;
        if let Some(pace) = &mut pace {
            pace.wait().await;
        }
    }
    Ok(())
}

async fn publish_sensors(connection: Connection, sensors: &'static [Sensor]) -> xmsg_core::Result<()> {
    let start = Instant::now();
    let mut random = Rng::new();
    let mut sent = vec![0_u64; sensors.len()];
    let mut ticks = tokio::time::interval(Duration::from_millis(25));
    loop {
        ticks.tick().await;
        let at = start.elapsed();
        for (sensor, sent) in sensors.iter().zip(&mut sent) {
            if at.as_secs_f64() * sensor.rate >= *sent as f64 {
                *sent += 1;
                connection.publish(&Message::of(sensor.topic, sensor.text(at, &mut random))?).await?;
            }
        }
    }
}

/// Publishes events with their energy, each with the waveform that it was found in.
async fn publish_events(connection: Connection) -> xmsg_core::Result<()> {
    let mut random = Rng::new();
    let waveform = Bytes::from(vec![0; WAVEFORM_LEN]);
    let mut pace = Pace::new(WAVEFORMS);
    for number in 1_u64.. {
        pace.wait().await;
        let channel = random.u32(0..64);
        // The energies are those of two lines, over a continuum.
        let (mean, width) = [(1.17, 0.02), (1.33, 0.02), (0.6, 0.5)][random.usize(0..3)];
        let energy = mean + width * (2.0 * random.f64() - 1.0);
        let event = format!("{energy:.3} MeV, event {number}, channel {channel}");
        connection.publish(&Message::of("detector:event", event)?).await?;
        connection.publish(&Message::of("detector:waveform", waveform.clone())?).await?;
    }
    connection.close(LINGER).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensors_have_values_with_units() {
        let mut random = Rng::with_seed(1);
        for sensor in BEAM.iter().chain(&HALL) {
            for second in 0..200 {
                let text = sensor.text(Duration::from_secs(second), &mut random);
                let (value, unit) = text.split_once(' ').unwrap();
                let value: f64 = value.parse().unwrap();
                assert_eq!(unit, sensor.unit);
                assert!((value - sensor.mean).abs() <= sensor.swing * 1.2, "{text}");
            }
        }
    }
}
