//! The fuzz targets: one function for each way in which untrusted bytes reach this project. Each function
//! accepts any bytes, and panics if an invariant does not hold. `tests/tests/fuzz_regressions.rs` runs the
//! same functions on all stored inputs.
//!
//! | function | its input |
//! |---|---|
//! | [`greeting`] | what a peer sends first |
//! | [`codec`] | frames, in pieces |
//! | [`engine`] | two bytes that choose the engine and the sizes of the pieces, then what a peer sends |
//! | [`control`] | messages to the control topic, as on the wire |
//! | [`registrar`] | requests to one registrar, as on the wire |
//! | [`message`] | xMsg messages, as on the wire |
//! | [`curve`] | changes of a good CURVE session, and bytes to add to it |
//! | [`plain`] | what a peer sends to a PLAIN server |
//! | [`settings`] | a settings file, or a password file |

pub mod seeds;

use bytes::{Bytes, BytesMut};
use xmsg_core::data::{Data, Payload, mime};
use xmsg_core::registration::{Registration, Reply, Request};
use xmsg_core::{ConnectionId, Message, Meta, Topic};
use xmsg_zmq::Multipart;
use xmsg_zmtp::curve::{CurveClient, CurveServer, Entropy, KeyPair, SecretKey};
use xmsg_zmtp::{
    Credentials, Engine, Event, Frames, GREETING_LEN, Greeting, Header, Limits, Mechanism, Options, Peer,
    PlainServer, Principal, Scanner, SocketType, Span, Stop, Violation, encode_message, encoded_len,
    whole_messages_within,
};

/// A fuzz target: a function that accepts any bytes.
pub type Target = fn(&[u8]);

/// All targets by name. A new target also needs a file in `fuzz_targets` and an entry in `Cargo.toml`.
pub const TARGETS: [(&str, Target); 9] = [
    ("greeting", greeting),
    ("codec", codec),
    ("engine", engine),
    ("control", control),
    ("registrar", registrar),
    ("message", message),
    ("curve", curve),
    ("plain", plain),
    ("settings", settings),
];

/// The longest header of a frame, in bytes.
const FRAME_HEADER_MAX: usize = 9;

/// Returns small limits, which short inputs can reach.
fn limits() -> Limits {
    Limits {
        message_size: 640,
        frames: 8,
        command_size: 128,
        subscription_len: 32,
        subscriptions: 16,
        ..Limits::default()
    }
}

/// Checks that a greeting is read or refused, and that an engine agrees.
pub fn greeting(data: &[u8]) {
    let mut engine = Engine::new(Options::new(SocketType::Xsub), std::time::Instant::now());
    let mut input = BytesMut::from(data);
    let verdict = engine.poll_event(&mut input);
    let Some(bytes) = data.first_chunk::<GREETING_LEN>() else {
        // A ZMTP 2.0 peer needs fewer bytes than a complete greeting.
        let version_2 = data.get(10).is_some_and(|major| (1..3).contains(major));
        assert!(version_2 || !matches!(verdict, Ok(Some(_))), "ready after {} bytes", data.len());
        return;
    };
    match Greeting::read(bytes) {
        Ok(greeting) => {
            assert!(greeting.mechanism.len() <= 20 && !greeting.mechanism.contains(&0));
            if matches!(verdict, Ok(Some(_))) && greeting.major >= 3 {
                assert_eq!(greeting.mechanism, b"NULL");
            }
        }
        Err(_) if bytes[10] >= 3 => assert!(verdict.is_err()),
        Err(_) => {}
    }
}

/// Checks that the scanner finds the same in whatever pieces the frames come, and that each message can be
/// split into frames and encoded again.
pub fn codec(data: &[u8]) {
    let Some((&[pattern, cut], stream)) = data.split_first_chunk::<2>() else { return };
    let whole = scan(stream, usize::MAX);
    assert_eq!(whole, scan(stream, usize::from(pattern) + 1), "in pieces of {}", u16::from(pattern) + 1);
    for message in &whole.0 {
        let frames: Vec<Bytes> = Frames::of(message.clone()).collect();
        let mut again = BytesMut::new();
        encode_message(&mut again, &frames);
        assert_eq!(again.len(), encoded_len(&frames));
        assert_eq!(Frames::of(again.freeze()).collect::<Vec<_>>(), frames);
    }
    // Checks the number of complete messages that a peer can have received if the connection broke after this
    // many bytes.
    let messages = whole.0.concat();
    let len = usize::from(cut) * messages.len() / 255;
    let (mut count, mut boundary) = (0, 0);
    for message in &whole.0 {
        if boundary + message.len() > len {
            break;
        }
        boundary += message.len();
        count += 1;
    }
    assert_eq!(whole_messages_within([&messages[..]], len), (count, boundary));
}

/// The messages, the bodies of the commands, and the violation that ended the scan.
type Scanned = (Vec<Bytes>, Vec<Bytes>, Option<Violation>);

fn scan(stream: &[u8], piece: usize) -> Scanned {
    let mut scanner = Scanner::new(&limits());
    let mut input = BytesMut::new();
    let (mut messages, mut commands) = (Vec::new(), Vec::new());
    for bytes in stream.chunks(piece.min(stream.len().max(1))) {
        input.extend_from_slice(bytes);
        loop {
            let mut spans = Vec::new();
            match scanner.scan(&input, &mut spans) {
                Err(violation) => return (messages, commands, Some(violation)),
                Ok(_) if !spans.is_empty() => {
                    let wire = input.split_to(spans[spans.len() - 1].end).freeze();
                    messages.extend(parts(&wire, &spans));
                }
                Ok(Stop::Incomplete) => break,
                Ok(Stop::Command { frame, body }) => {
                    commands.push(Bytes::copy_from_slice(&input[body]));
                    let behind = input.split_off(frame.end);
                    input.truncate(frame.start);
                    input.unsplit(behind);
                }
            }
        }
        let missing = scanner.missing(&input);
        assert!(missing == 0 || Header::read(&input).is_ok(), "it waits behind a bad header");
    }
    (messages, commands, None)
}

/// Returns the messages at these spans, and checks that they are as the spans say.
fn parts(wire: &Bytes, spans: &[Span]) -> Vec<Bytes> {
    let mut end = 0;
    let parts = spans.iter().map(|span| {
        assert_eq!(span.start, end, "spans lie end to end");
        end = span.end;
        let message = wire.slice(span.start..span.end);
        let frames: Vec<Bytes> = Frames::of(message.clone()).collect();
        assert_eq!(frames.len(), span.frames);
        assert_eq!(frames[0], span.first(wire));
        let limits = limits();
        assert!(message.len() <= limits.message_size && frames.len() <= limits.frames);
        message
    });
    let parts = parts.collect();
    assert_eq!(end, wire.len(), "the last span ends where the bytes end");
    parts
}

const TYPES: [SocketType; 11] = [
    SocketType::Pair,
    SocketType::Pub,
    SocketType::Sub,
    SocketType::Req,
    SocketType::Rep,
    SocketType::Dealer,
    SocketType::Router,
    SocketType::Pull,
    SocketType::Push,
    SocketType::Xpub,
    SocketType::Xsub,
];

/// Checks that an engine answers, emits and refuses the same in whatever pieces a peer's bytes come, before
/// and after the handshake.
pub fn engine(data: &[u8]) {
    let Some((&[kind, pattern], stream)) = data.split_first_chunk::<2>() else { return };
    let ours = TYPES[usize::from(kind) % TYPES.len()];
    // A kind of 128 or more starts behind a good handshake, which is of ZMTP 3.0 from 192 on, and otherwise
    // of ZMTP 3.1.
    let version_3_0 = kind >= 192;
    let stream = if kind >= 128 {
        [&seeds::handshake(fitting(ours), !version_3_0)[..], stream].concat()
    } else {
        stream.to_vec()
    };
    let piece = usize::from(pattern) + 1;
    let (whole, pieces) = (drive(ours, &stream, usize::MAX), drive(ours, &stream, piece));
    assert_eq!(whole, pieces, "in pieces of {piece}");
}

fn fitting(ours: SocketType) -> SocketType {
    // Every type has at least one compatible type.
    TYPES.into_iter().find(|theirs| ours.fits(*theirs)).unwrap_or(ours)
}

/// The output of an engine.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    peer: Option<Peer>,
    messages: Vec<Bytes>,
    subscriptions: Vec<(bool, Bytes)>,
    answers: Vec<u8>,
    violation: Option<Violation>,
}

fn drive(ours: SocketType, stream: &[u8], piece: usize) -> Heard {
    let start = std::time::Instant::now();
    let options = Options { limits: limits(), ..Options::new(ours) };
    let mut engine = Engine::new(options, start);
    let (mut heard, mut input) = (Heard::default(), BytesMut::new());
    for bytes in stream.chunks(piece.min(stream.len().max(1))) {
        input.extend_from_slice(bytes);
        engine.handle_received(start);
        loop {
            let event = engine.poll_event(&mut input);
            while let Some(bytes) = engine.poll_transmit() {
                heard.answers.extend_from_slice(&bytes);
            }
            match event {
                Err(violation) => {
                    heard.violation = Some(violation);
                    return heard;
                }
                Ok(None) => break,
                Ok(Some(Event::Ready(peer))) => {
                    assert!(ours.fits(peer.socket_type) && heard.peer.is_none());
                    heard.peer = Some(peer);
                }
                Ok(Some(Event::Messages(wire))) => {
                    assert!(heard.peer.is_some() && !ours.takes_subscriptions());
                    heard.messages.extend(parts(&wire, engine.spans()));
                }
                Ok(Some(Event::Subscribe(prefix))) => heard.subscriptions.push((true, prefix)),
                Ok(Some(Event::Cancel(prefix))) => heard.subscriptions.push((false, prefix)),
                Ok(Some(Event::Credentials(_))) => unreachable!("NULL shows none"),
                Ok(Some(
                    Event::Drain
                    | Event::Drained
                    | Event::Dropped(_)
                    | Event::FromSubscriber(_)
                    | Event::Handled,
                )) => {}
            }
        }
        // A command may begin between the frames of a message. Then both are incomplete.
        let limits = limits();
        let longest = limits.message_size + limits.command_size + FRAME_HEADER_MAX;
        assert!(input.len() <= longest, "it hoards {}", input.len());
        // A query of the timeout must have no effect.
        let due = engine.poll_timeout();
        assert!(due.is_none_or(|due| due >= start));
    }
    assert!(heard.subscriptions.is_empty() || ours.takes_subscriptions());
    assert!(heard.subscriptions.iter().all(|(_, prefix)| prefix.len() <= limits().subscription_len));
    heard
}

/// Returns the messages in a stream of bytes, up to the first invalid one.
fn messages(data: &[u8]) -> Vec<Multipart> {
    let mut spans = Vec::new();
    let wire = Bytes::copy_from_slice(data);
    let scanned = Scanner::new(&Limits::default()).scan(&wire, &mut spans);
    drop(scanned);
    spans.iter().map(|span| Frames::of(wire.slice(span.start..span.end)).collect()).collect()
}

/// Checks that a control request is recognized or ignored.
pub fn control(data: &[u8]) {
    for message in messages(data) {
        let known = xmsg_proxy::fuzzing::is_control_request(&message);
        assert!(!known || message.frames().len() == 3);
        if let [_, kind, argument] = message.frames()
            && kind == "pub"
        {
            assert_eq!(known, (1..=255).contains(&argument.len()));
        }
    }
}

/// Checks that every request gets a valid reply with valid registrations, and that an invalid request is not
/// carried out.
pub fn registrar(data: &[u8]) {
    let mut registrar = xmsg_proxy::fuzzing::Registrar::default();
    for message in messages(data) {
        let frames = message.frames();
        let reply = registrar.answer(frames);
        let reply =
            Reply::read(&reply).unwrap_or_else(|error| panic!("a reply that nobody can read: {error}"));
        for registration in reply.outcome.iter().flatten() {
            let found = Registration::decode(registration);
            assert!(found.is_ok(), "it gives out what nobody can read: {found:?}");
        }
        let Ok(request) = Request::read(frames, &Bytes::new()) else {
            assert!(reply.outcome.is_err(), "it carries out what nobody can read");
            continue;
        };
        assert!(frames.len() == 3 && request.action.name().as_bytes() == frames[0]);
    }
}

/// Checks that the frames of an xMsg message are read or refused, and that what is read can be written and
/// read again with the same result.
pub fn message(data: &[u8]) {
    for message in messages(data) {
        let Some([topic, meta, data]) = message.into_array() else { continue };
        read_topic(&topic);
        let known = Meta::decode(&meta).inspect(|known| {
            assert_eq!(Meta::decode(&known.encode()).as_ref().ok(), Some(known), "metadata");
            assert_eq!(known.encoded_len(), known.encode().len());
        });
        let message = Message::from_frames(topic, meta, data.clone());
        if let Ok(known) = &known {
            assert_eq!(message.mime_type().ok(), Some(&known.data_type[..]));
        }
        let _ = format!("{message:?}");
        let _ = (message.reply(), message.reply_with(1));
        let mut request = message.clone();
        if request.set_reply_to(&Topic::wrap("ret:a:1")).is_ok() {
            assert!(request.reply_to().is_ok_and(|to| to.is_some_and(|to| to == "ret:a:1")));
            assert!(request.clear_reply_to().is_ok());
            assert!(request.reply_to().is_ok_and(|to| to.is_none()));
        }
        for mime_type in [message.mime_type().unwrap_or_default(), mime::NATIVE].into_iter().chain(KINDS) {
            read_data(mime_type, &data);
        }
        let _ = (message.value::<Vec<String>>(), message.value::<i64>());
        if let Ok(payload) = Payload::decode(&data) {
            let again = Payload::decode(&payload.encode());
            assert_eq!(again.map(|again| again.encode()).ok(), Some(payload.encode()), "a payload");
        }
    }
}

const KINDS: [&str; 6] =
    [mime::SINT32, mime::STRING, mime::BYTES, mime::ARRAY_SFIXED32, "binary/array-string", "binary/double"];

fn read_topic(bytes: &Bytes) {
    let topic = Topic::wrap(bytes.clone());
    assert_eq!(topic.as_bytes(), bytes);
    let _ = (topic.domain(), topic.subject(), topic.types(), topic.to_string(), format!("{topic:?}"));
    assert!(!bytes.starts_with(b"a:") || Topic::wrap("a").is_parent(&topic));
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(topic) = text.parse::<Topic>()
    {
        // A `*` ends the topic. The part before it parses to the same topic again.
        let again = topic.to_str().ok().and_then(|text| text.parse::<Topic>().ok());
        assert_eq!(again, Some(topic.clone()));
        assert!(topic.is_parent(&topic));
    }
    if let Ok(id) = ConnectionId::try_from(&bytes[..]) {
        assert_eq!(id.as_bytes(), bytes);
    }
}

fn read_data(mime_type: &str, frame: &Bytes) {
    if let Ok(data) = Data::decode(mime_type, frame) {
        // The encoded bytes are compared, because NaN is not equal to itself.
        let again = Data::decode(data.mime_type(), &data.encode());
        assert_eq!(again.map(|again| again.encode()).ok(), Some(data.encode()), "{mime_type}");
        let native = Data::decode(mime::NATIVE, &data.encode_native());
        assert_eq!(native.map(|native| native.encode()).ok(), Some(data.encode()), "native {mime_type}");
    }
}

fn keys(seed: u8) -> KeyPair {
    SecretKey::from_bytes([seed; 32]).into()
}

fn entropy(seed: u8) -> Entropy {
    Entropy { transient: SecretKey::from_bytes([seed; 32]), nonce: [seed; 16], cookie: [seed; 96].into() }
}

fn secured(socket_type: SocketType, mechanism: impl Mechanism + 'static) -> Engine {
    let options = Options { limits: limits(), ..Options::new(socket_type) };
    Engine::with_mechanism(options, Box::new(mechanism), std::time::Instant::now())
}

/// Applies changes to a good session, and adds bytes behind it. The input starts with the number of changes.
/// Each change has a position and a byte, which is combined with the original by exclusive or. Checks that an
/// accepted client is the genuine one, and that no box is opened that was not made with the keys.
pub fn curve(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (edits, added) = rest.split_at((usize::from(count % 8) * 3).min(rest.len()));
    let changed = |at: usize, byte: u8| {
        let edits = edits
            .as_chunks::<3>()
            .0
            .iter()
            .filter(|[a, b, _]| usize::from(u16::from_be_bytes([*a, *b])) == at);
        edits.fold(byte, |byte, [_, _, bits]| byte ^ bits)
    };
    let mut client = secured(SocketType::Pub, CurveClient::new(keys(1), *keys(2).public(), entropy(3)));
    let mut server = secured(SocketType::Xsub, CurveServer::new(keys(2), entropy(4)));
    let (mut to_server, mut to_client, mut sent, mut entered) = (BytesMut::new(), BytesMut::new(), 0, None);
    loop {
        let before = sent;
        while let Some(bytes) = client.poll_transmit() {
            to_server.extend(bytes.iter().enumerate().map(|(index, byte)| changed(sent + index, *byte)));
            sent += bytes.len();
        }
        loop {
            match server.poll_event(&mut to_server) {
                Ok(Some(Event::Credentials(credentials))) => {
                    assert_eq!(credentials, Credentials::Key(*keys(1).public()));
                    assert!(server.set_verdict(true).is_ok());
                }
                Ok(Some(Event::Ready(peer))) => {
                    assert_eq!(peer.principal, Some(Principal::Key(*keys(1).public())));
                    entered = Some(peer);
                    break;
                }
                Ok(Some(event)) => unreachable!("{event:?} before the handshake is done"),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        while let Some(bytes) = server.poll_transmit() {
            to_client.extend_from_slice(&bytes);
        }
        // The bytes of an honest server are always valid. After a changed greeting they may be of another
        // version.
        while let Ok(Some(event)) = client.poll_event(&mut to_client) {
            assert!(matches!(event, Event::Ready(_)));
        }
        if entered.is_some() || sent == before && to_client.is_empty() {
            break;
        }
    }
    let Some(cipher) = server.take_cipher().filter(|_| entered.is_some()) else { return };
    let (mut opener, mut boxed) = (cipher.opener, to_server);
    boxed.extend_from_slice(added);
    assert!(!matches!(opener.open(&mut boxed, &mut BytesMut::new()), Ok(true)), "a forged box was opened");
    // What the client itself sends is opened, whatever its flags and length.
    if let Some(mut cipher) = client.take_cipher() {
        let flags = added.first().map_or(0, |flags| flags & 1);
        let (mut boxed, mut frames) = (BytesMut::new(), BytesMut::new());
        cipher.sealer.seal(flags, added, &mut boxed);
        if entered.is_some_and(|_| opener.open(&mut boxed, &mut frames) == Ok(true)) {
            let header = Header::read(&frames).ok().flatten().expect("a whole frame");
            assert_eq!((&frames[header.len..], header.has_more()), (added, flags == 1));
        }
    }
}

/// Checks that a PLAIN server emits credentials once, before anything else, and continues only if they are
/// good.
pub fn plain(data: &[u8]) {
    let Some((&mode, stream)) = data.split_first() else { return };
    let stream =
        if mode & 2 == 0 { stream.to_vec() } else { [&seeds::greeting(3, 1, "PLAIN")[..], stream].concat() };
    let mut engine = secured(SocketType::Xsub, PlainServer::default());
    let (mut input, mut asked) = (BytesMut::from(&stream[..]), 0);
    loop {
        match engine.poll_event(&mut input) {
            Ok(Some(Event::Credentials(credentials))) => {
                assert!(matches!(credentials, Credentials::Password { .. }));
                asked += 1;
                let waiting = input.len();
                assert!(matches!(engine.poll_event(&mut input), Ok(None)) && input.len() == waiting);
                if engine.set_verdict(mode & 1 == 1).is_err() {
                    assert_eq!(mode & 1, 0);
                    return;
                }
            }
            Ok(Some(Event::Ready(peer))) => assert!(asked == 1 && mode & 1 == 1 && peer.principal.is_some()),
            Ok(Some(_)) => assert_eq!(asked, 1),
            Ok(None) | Err(_) => break,
        }
    }
    assert!(asked <= 1);
}

/// Checks that a settings file is read or refused, and that settings that were read can be written and read
/// again with the same result.
pub fn settings(data: &[u8]) {
    use xmsg_proxy::settings::{ProxySettings, RegistrarSettings, Settings, parse, print};

    fn file<S: Settings + std::fmt::Debug>(text: &str) {
        let Ok(settings) = parse::<S>(text, "file") else { return };
        let _ = settings.check();
        let printed = print(&settings).expect("settings can be written");
        assert_eq!(parse::<S>(&printed, "printed").expect("and read"), settings);
    }

    let text = String::from_utf8_lossy(data);
    file::<ProxySettings>(&text);
    file::<RegistrarSettings>(&text);
    let _ = xmsg_proxy::security::Passwords::parse(&text);
}
