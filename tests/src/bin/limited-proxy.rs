//! A proxy and a registrar with limits for which the daemons have no options: `limited-proxy NAME=VALUE …`.
//! The program prints where they listen, and runs until it is killed.

use std::sync::Arc;
use std::time::Duration;

use xmsg_core::security::SecretKey;
use xmsg_proxy::registrar::{self, Registrar};
use xmsg_proxy::security::{Authority, Mechanism, Passwords, Rights, Rules};
use xmsg_proxy::{Config, Proxy};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmtp::Limits;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut config = Config::default();
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').expect("NAME=VALUE");
        let number = || value.parse::<usize>().expect("a number");
        let time = || Duration::from_millis(number() as u64);
        match name {
            "handshake_ms" => config.limits.handshake_timeout = time(),
            "heartbeat_ms" => (config.heartbeat_interval, config.heartbeat_timeout) = (Some(time()), time()),
            "subscriptions" => config.limits.subscriptions = number(),
            "subscription_bytes" => config.limits.subscription_bytes = number(),
            "handshakes" => config.handshakes = number(),
            "handshakes_per_address" => config.handshakes_per_address = number(),
            "memory_mib" => config.memory = MemoryBudget::new(number() << 20),
            "curve" => {
                let keys = value.parse::<SecretKey>().expect("a secret key");
                config.security = Mechanism::Curve(keys.into());
            }
            "plain" => {
                config.security = Mechanism::Plain;
                config.authority = Arc::new(Authority::new(Rules {
                    passwords: Passwords::parse(value).expect("a line of a password file"),
                    other_users: Some(Arc::new(Rights::all())),
                    ..Rules::default()
                }));
            }
            _ => panic!("{name} is not known"),
        }
    }
    if matches!(config.security, Mechanism::Curve(_)) {
        let rules = Rules { other_keys: Some(Arc::new(Rights::all())), ..Rules::default() };
        config.authority = Arc::new(Authority::new(rules));
    }
    let registrar = registrar::Config {
        security: config.security.clone(),
        authority: config.authority.clone(),
        handshakes: config.handshakes,
        handshakes_per_address: config.handshakes_per_address,
        limits: Limits { message_size: 16 << 20, ..config.limits.clone() },
        ..registrar::Config::default()
    };
    let proxy = Proxy::bind("127.0.0.1:0").config(config).start().await.expect("a proxy");
    let registrar = Registrar::bind("127.0.0.1:0").config(registrar).start().await.expect("a registrar");
    println!("limited-proxy at {}: as told", proxy.address());
    println!("xmsg-registrar at {}", registrar.address());
    std::future::pending::<()>().await;
}
