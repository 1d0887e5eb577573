//! How long the registrar takes: `cargo run --release -p xmsg-proxy --example registrar_bench
//! [REGISTRATIONS]`.
//!
//! Ten registrations a topic: the time of each kind of question in the store, the round trip through TCP, and
//! how many registrations a second are acknowledged, by 1 and by 200 clients, in memory and on the disk.

use std::time::{Duration, Instant};

use xmsg_core::registration::{Argument, OwnerType, Query, Registration, Request};
use xmsg_core::{ProxyAddress, Topic};
use xmsg_proxy::registrar::Registrar;
use xmsg_proxy::registrar::store::Store;

const OWNER: OwnerType = OwnerType::Publisher;
const QUESTIONS: usize = 2000;

fn registration(number: usize) -> Registration {
    let group = number / 10;
    let topic = Topic::with_types(format!("d{}", group % 10), format!("s{}", group / 10), "t");
    let proxy = ProxyAddress::new(format!("10.0.{}.{}", number % 7, number % 250), 7771);
    let (topic, proxy) = (topic.expect("a topic"), proxy.expect("an address"));
    Registration::new(OWNER, format!("actor{number}"), &topic, &proxy)
}

fn asked(query: &Query) -> Registration {
    match Request::discover("bench", xmsg_core::registration::Action::Find, query).argument {
        Argument::Registration(registration) => registration,
        _ => unreachable!("a question has a registration"),
    }
}

fn measure(name: &str, mut ask: impl FnMut(usize) -> usize) {
    let mut times: Vec<Duration> = Vec::with_capacity(QUESTIONS);
    let mut results = 0;
    for number in 0..QUESTIONS {
        let started = Instant::now();
        results = ask(number);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    println!(
        "{name:32} {results:3} results   p50 {:6.2} µs   p99 {:6.2} µs",
        times[QUESTIONS / 2].as_secs_f64() * 1e6,
        times[QUESTIONS * 99 / 100].as_secs_f64() * 1e6,
    );
}

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let count = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let started = Instant::now();
    let mut store = Store::new(usize::MAX, None);
    for number in 0..count {
        store.register(OWNER, &registration(number), Duration::ZERO).expect("there is room");
    }
    println!("{count} registrations in {:.2} s", started.elapsed().as_secs_f64());

    let topic = |number: usize| registration(number * 7919 % count).topic().expect("a topic");
    measure("find publishers", |number| {
        store.find(OWNER, &asked(&Query::topic(OWNER, &topic(number)))).map_or(0, |found| found.len())
    });
    measure("exact", |number| {
        store.exact(OWNER, &asked(&Query::topic(OWNER, &topic(number)))).map_or(0, |found| found.len())
    });
    measure("filter by domain and subject", |number| {
        let topic = topic(number);
        let query = Query::parts(OWNER, topic.domain(), topic.subject(), "*");
        store.filter(OWNER, &asked(&query)).len()
    });
    measure("filter by subject", |number| {
        store.filter(OWNER, &asked(&Query::parts(OWNER, "*", topic(number).subject(), "*"))).len()
    });
    drop(store);

    let folder = std::env::temp_dir().join(format!("xmsg-registrar-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the snapshot");
    for (kept, snapshot) in [("in memory", None), ("with journal", Some(folder.join("snapshot")))] {
        for clients in [1, 200] {
            let mut builder = Registrar::bind("127.0.0.1:0");
            if let Some(path) = &snapshot {
                builder = builder.snapshot(path.with_extension(clients.to_string()));
            }
            let registrar = builder.start().await?;
            let each = if clients == 1 { 2000 } else { 100 };
            let started = Instant::now();
            let work = (0..clients).map(|client| {
                let address = registrar.address().clone();
                tokio::spawn(async move {
                    let client_of =
                        xmsg_core::Registrar::builder(address).registration_timeout(Duration::from_secs(60));
                    let registrar = client_of.renewal_interval(None).build()?;
                    for number in 0..each {
                        registrar.register(&registration(client * each + number)).await?;
                    }
                    Ok::<_, xmsg_core::Error>(())
                })
            });
            for done in futures::future::join_all(work).await {
                done.expect("no panic")?;
            }
            let rate = (clients * each) as f64 / started.elapsed().as_secs_f64();
            println!("{kept}, {clients:3} clients: {rate:8.0} registrations/s");
            registrar.stop(Duration::from_secs(1)).await;
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}
