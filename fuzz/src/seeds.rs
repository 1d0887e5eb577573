//! The seed corpora: good sessions, and a few invalid ones. `cargo run --bin seeds` writes them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use xmsg_core::data::{Data, Payload};
use xmsg_core::registration::{Action, OwnerType, Query, Registration, Request};
use xmsg_core::{Message, ProxyAddress, Topic};
use xmsg_zmtp::{Command, Properties, SocketType, Version, encode_frame, encode_message};

/// A seed: its name and its bytes.
pub type Seed = (&'static str, Vec<u8>);

/// Returns what a peer with NULL security sends up to the end of its handshake, for ZMTP 3.1 if `latest` is
/// true, and otherwise for ZMTP 3.0.
#[must_use]
pub fn handshake(socket_type: SocketType, latest: bool) -> Vec<u8> {
    let mut bytes = BytesMut::from(&greeting(3, u8::from(latest), "NULL")[..]);
    let mut properties = Properties::default();
    properties.push("Socket-Type", socket_type.name());
    properties.push("Identity", "me");
    Command::Ready(properties).write(&mut bytes);
    bytes.to_vec()
}

pub(crate) fn greeting(major: u8, minor: u8, mechanism: &str) -> Vec<u8> {
    let mut bytes = [0; 64];
    bytes[..10].copy_from_slice(b"\xff\0\0\0\0\0\0\0\x01\x7f");
    (bytes[10], bytes[11]) = (major, minor);
    bytes[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    bytes.to_vec()
}

fn wire<F: AsRef<[u8]>>(messages: &[&[F]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for message in messages {
        encode_message(&mut out, message);
    }
    out.to_vec()
}

fn commands(commands: &[Command]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for command in commands {
        command.write(&mut out);
    }
    out.to_vec()
}

fn ping() -> Command {
    Command::Ping { ttl: Duration::from_secs(3), context: Bytes::from_static(b"are you there") }
}

/// Returns the seeds of a target.
#[must_use]
pub fn of(target: &str) -> Vec<Seed> {
    match target {
        "greeting" => greetings(),
        "curve" => curves(),
        "plain" => plains(),
        "settings" => settings(),
        "codec" => {
            codec().into_iter().map(|(name, bytes)| (name, [&[6, 100], &bytes[..]].concat())).collect()
        }
        "engine" => engines(),
        "control" => controls(),
        "registrar" => registrars(),
        "message" => messages(),
        _ => Vec::new(),
    }
}

fn greetings() -> Vec<Seed> {
    vec![
        ("null-3-1", greeting(3, 1, "NULL")),
        ("null-3-0", greeting(3, 0, "NULL")),
        ("curve", greeting(3, 1, "CURVE")),
        ("handshake", handshake(SocketType::Pub, true)),
        ("version-2", b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x01\0\0".to_vec()),
        ("version-1", b"\x01\0".to_vec()),
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("padding", [&greeting(3, 1, "NULL")[..20], b"x", &greeting(3, 1, "NULL")[21..]].concat()),
    ]
}

fn codec() -> Vec<Seed> {
    let mut between = BytesMut::new();
    encode_frame(&mut between, b"data", true);
    ping().write(&mut between);
    encode_frame(&mut between, b"end", false);
    vec![
        ("short", wire(&[&["topic", "meta", "data"], &["a", "b", "c"]])),
        ("long", wire(&[&["topic".repeat(60), "x".repeat(300)]])),
        ("empty-frames", wire(&[&["", "", ""], &[""]])),
        ("command", commands(&[ping(), Command::Pong { context: Bytes::new() }])),
        ("command-between", between.to_vec()),
        ("many-frames", wire(&[&["f"; 9]])),
        ("too-long", b"\x02\0\0\x20\0\0\0\0\0".to_vec()),
        ("too-long-together", wire(&[&vec!["x".repeat(200); 4][..]])),
        ("reserved", b"\x08\x01x".to_vec()),
        ("command-more", b"\x05\x01x".to_vec()),
    ]
}

fn engines() -> Vec<Seed> {
    // The first byte chooses the type of the engine's socket. From 128 on, the input starts behind a
    // handshake. The types are in the order of their ZMTP 2.0 codes.
    const PUB: u8 = 1;
    const SUB: u8 = 2;
    const ROUTER: u8 = 6;
    const XPUB: u8 = 9;
    const XSUB: u8 = 10;
    // 128 mod 11 is 7, so adding 4 makes the result a multiple of 11.
    let behind = |kind: u8| 128 + (kind + 4) % 11;
    let mut subscriptions = BytesMut::new();
    for version in [Version::V3_1, Version::V3_0] {
        for subscribe in [true, false] {
            version.write_subscription(&mut subscriptions, subscribe, &Bytes::from_static(b"data:"));
        }
    }
    let with = |kind: u8, piece: u8, bytes: &[u8]| [&[kind, piece], bytes].concat();
    let mut seeds = vec![
        ("xsub-handshake", with(XSUB, 9, &handshake(SocketType::Pub, true))),
        ("xpub-handshake-3-0", with(XPUB, 0, &handshake(SocketType::Sub, false))),
        ("xpub-version-2", with(XPUB, 3, b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x02\0\x02me\0\x03\x01ab")),
        ("wrong-type", with(PUB, 40, &handshake(SocketType::Push, true))),
        ("wrong-mechanism", with(SUB, 5, &greeting(3, 1, "PLAIN"))),
        ("router", with(ROUTER, 30, &[handshake(SocketType::Dealer, true), wire(&[&["", "x"]])].concat())),
        ("subscriptions", with(behind(XPUB), 4, &subscriptions)),
        (
            "prefix-too-long",
            with(behind(PUB), 20, &commands(&[Command::Subscribe(Bytes::from(vec![b'x'; 33]))])),
        ),
        ("error", with(behind(SUB), 20, &commands(&[Command::Error("go away".into())]))),
        (
            "pings",
            with(behind(SUB), 1, &commands(&[ping(), ping(), Command::Unknown(Bytes::from_static(b"WHAT"))])),
        ),
    ];
    seeds.extend(codec().into_iter().map(|(name, bytes)| (name, with(behind(XSUB), 7, &bytes))));
    seeds
}

fn controls() -> Vec<Seed> {
    let request = |kind: &'static str, argument: &'static str| wire(&[&["xmsg:control:con", kind, argument]]);
    vec![
        ("pub", request("pub", "412300001")),
        ("sub", request("sub", "data:power")),
        ("rep", request("rep", "412300001")),
        ("unknown", request("quit", "now")),
        ("nobody", request("pub", "")),
        ("two-frames", wire(&[&["xmsg:control", "pub"]])),
        ("long-id", wire(&[&["xmsg:control".to_owned(), "pub".to_owned(), "9".repeat(256)]])),
    ]
}

fn registrars() -> Vec<Seed> {
    let proxy = ProxyAddress::default();
    let topic = Topic::wrap("data:power:volts");
    let registration = |owner, topic: &Topic| {
        Registration::new(owner, "meter", topic, &proxy).with_description("it measures")
    };
    let session = |requests: &[Request]| {
        let frames: Vec<[Bytes; 3]> = requests.iter().map(Request::frames).collect();
        wire(&frames.iter().map(|frames| &frames[..]).collect::<Vec<_>>())
    };
    let register = |owner| Request::register("me", registration(owner, &topic));
    let publisher = OwnerType::Publisher;
    let ask = |action: fn(OwnerType) -> Action, query: &Query| Request::discover("me", action, query);
    let by_topic = Query::topic(publisher, &Topic::wrap("data:power"));
    vec![
        ("register", session(&[register(publisher), register(OwnerType::Subscriber)])),
        ("find", session(&[register(publisher), ask(Action::Find, &by_topic)])),
        ("exact", session(&[register(publisher), ask(Action::Exact, &Query::topic(publisher, &topic))])),
        ("filter", session(&[register(publisher), ask(Action::Filter, &Query::any(publisher).port(7771))])),
        ("all", session(&[register(publisher), ask(Action::All, &Query::any(publisher))])),
        ("remove", session(&[register(publisher), Request::remove("me", registration(publisher, &topic))])),
        ("remove-all", session(&[register(publisher), Request::remove_all("me", "localhost")])),
        ("nonsense", wire(&[&["registerPublisher", "me", "\u{1}\u{2}"], &["what", "me", ""]])),
        ("frames", wire(&[&["registerPublisher"], &["a"]])),
    ]
}

fn messages() -> Vec<Seed> {
    let topic = || Topic::wrap("data:power:volts");
    // An already valid topic can always be used.
    let message = |value: Data| Message::of(topic(), value).expect("a topic");
    let of = |value: Data| wire(&[&message(value).into_frames()[..]]);
    let mut request = message(3.0.into());
    // This can't fail, because the metadata was written just above.
    let _ = request.set_reply_to(&Topic::wrap("ret:0a1b2c3d:4000007"));
    let payload = Payload { items: vec![("run".into(), 17.into()), ("gain".into(), 2.5.into())] };
    let values: Vec<(&'static str, Data)> = vec![
        ("int", 7.into()),
        ("long", (-7_i64).into()),
        ("double", f64::NAN.into()),
        ("string", "zoë".into()),
        ("bytes", vec![0_u8, 255].into()),
        ("ints", Data::Sint32Array(vec![1, -2, 3])),
        ("strings", Data::StringArray(vec!["a".into(), String::new()])),
        ("many-bytes", Data::BytesArray(vec![Bytes::from_static(b"ab"), Bytes::new()])),
    ];
    let mut seeds: Vec<Seed> = values.into_iter().map(|(name, value)| (name, of(value))).collect();
    let data = Data::from(5).encode();
    let native = Message::with_mime(topic(), "binary/native", data);
    seeds.push(("request", wire(&[&request.into_frames()[..]])));
    seeds.push((
        "payload",
        wire(&[&Message::with_mime(topic(), "binary/payload", payload.encode()).into_frames()[..]]),
    ));
    seeds.push(("native", wire(&[&native.into_frames()[..]])));
    seeds.push((
        "odd-topics",
        wire(&[&["::", "", ""], &["*:a:\u{e9}", "\u{1}", "\u{2}"], &["a:b:c:d;e", "", ""]]),
    ));
    seeds
}

fn curves() -> Vec<Seed> {
    vec![
        ("good", vec![0]),
        (
            "good-with-traffic",
            [&[0][..], b"\0\x2f\x07MESSAGE\0\0\0\0\0\0\0\x03 and more that is no box"].concat(),
        ),
        ("hello-key", vec![1, 0, 150, 1]),
        ("hello-box", vec![1, 0, 190, 0x80]),
        ("initiate-cookie", vec![1, 1, 40, 1]),
        ("initiate-box", vec![1, 1, 180, 1]),
        ("minor-version", vec![1, 0, 11, 1]),
        ("padding", vec![2, 0, 80, 255, 0, 81, 255]),
        ("giant-box", [&[0, 2][..], &(1_u64 << 45).to_be_bytes()].concat()),
    ]
}

fn plains() -> Vec<Seed> {
    let hello = b"\x04\x0a\x05HELLO\x01a\x01b";
    let initiate = b"\x04\x1b\x08INITIATE\x0bSocket-Type\0\0\0\x03PUB";
    vec![
        ("good", [&[3][..], hello, initiate].concat()),
        ("refused", [&[2][..], hello, initiate].concat()),
        ("no-password", [&[3][..], b"\x04\x08\x05HELLO\x01a"].concat()),
        ("initiate-first", [&[3][..], initiate].concat()),
        ("twice", [&[3][..], hello, hello].concat()),
        ("traffic", [&[3][..], hello, initiate, &wire(&[&[&b"topic"[..], b"data"]])].concat()),
        ("null", [&[1][..], &handshake(SocketType::Pub, true)].concat()),
    ]
}

fn settings() -> Vec<Seed> {
    vec![
        ("proxy", include_bytes!("../../docs/xmsg-proxy.toml").to_vec()),
        ("registrar", include_bytes!("../../docs/xmsg-registrar.toml").to_vec()),
        ("small", b"port = 0\nlinger_s = 0.25\n[log]\nfilter = \"debug\"\n".to_vec()),
        (
            "security",
            b"[security]\nmechanism = \"curve\"\nkey_file = \"k\"\n[[security.client]]\npublish = [\"a:\"]\n"
                .to_vec(),
        ),
        (
            "policy",
            b"[[policy]]\nprefix = \"a\"\nslow_subscriber = \"conflate\"\nhigh_water_mark_mib = 1\n".to_vec(),
        ),
        (
            "password",
            b"# users\nalice:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\n".to_vec(),
        ),
        ("wrong", b"prot = 1\n[".to_vec()),
    ]
}
