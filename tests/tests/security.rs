//! Tests of security: who can connect, what they may do there, and interoperability with the CURVE and PLAIN
//! of libzmq on every port and in both directions.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use xmsg_core::security::{KeyPair, Password, PublicKey, Security};
use xmsg_core::{
    ConnectOptions, Connection, ErrorKind, Message, OwnerType, ProxyAddress, Query, Registrar, Registration,
    Topic,
};
use xmsg_proxy::Proxy;
use xmsg_proxy::security::{Authority, Mechanism, Passwords, Rights, Rules, hash_password};
use xmsg_tests::peer::Peer;
use xmsg_tests::{PATIENCE, next, proxy, topic, within};
use xmsg_zmq::{Dealer, Endpoint, FromSubscriber, Requester, SocketOptions, Subscriber, XPub};

/// Returns keys that the other implementations accept on their command line: Python would read a key with a
/// leading hyphen as an option.
fn keys() -> KeyPair {
    loop {
        let keys = KeyPair::generate().unwrap();
        let texts = [keys.public().to_string(), keys.secret().expose_text().to_string()];
        if texts.iter().all(|text| !text.starts_with('-')) {
            return keys;
        }
    }
}

fn rights(publish: &[&'static str], subscribe: &[&'static str]) -> Arc<Rights> {
    let prefixes =
        |list: &[&'static str]| list.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
    Arc::new(Rights {
        publish: prefixes(publish),
        subscribe: prefixes(subscribe),
        register: false,
        inspect: false,
    })
}

fn allow(clients: &[(&KeyPair, Arc<Rights>)]) -> Rules {
    let keys: HashMap<PublicKey, Arc<Rights>> =
        clients.iter().map(|(keys, rights)| (*keys.public(), rights.clone())).collect();
    Rules { keys, ..Rules::default() }
}

fn curve(keys: &KeyPair, server: &KeyPair) -> Security {
    Security::CurveClient { keys: keys.clone(), server: *server.public() }
}

fn setup(security: Security) -> ConnectOptions {
    let setup = ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE);
    setup.security(security)
}

fn connect(proxy: &Proxy, security: Security) -> Connection {
    Connection::with_options(proxy.address().clone(), setup(security)).unwrap()
}

/// Returns a plain socket with this subscription.
fn subscriber(proxy: &Proxy, security: Security, topic: &'static str) -> Subscriber {
    let subscriber = Subscriber::new(SocketOptions::default().security(security));
    subscriber.subscribe(topic).unwrap();
    subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    subscriber
}

async fn curve_proxy(server: &KeyPair, rules: Rules) -> Proxy {
    proxy().security(Mechanism::Curve(server.clone()), rules).start().await.unwrap()
}

fn open_rules() -> Rules {
    Rules { other_keys: Some(Arc::new(Rights::all())), ..Rules::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_size_pass_an_encrypted_proxy() {
    let server = keys();
    let proxy = curve_proxy(&server, open_rules()).await;
    let (publisher, subscriber) =
        (connect(&proxy, curve(&keys(), &server)), connect(&proxy, curve(&keys(), &server)));
    let mut messages = within("the checks", subscriber.subscribe([topic("a")])).await.unwrap();
    let sizes = [0, 1, 100, 254, 255, 256, 8191, 8192, 70_000, 3_000_000];
    let sending = async {
        for round in 0..20 {
            for size in sizes {
                let data = Bytes::from(vec![round; size]);
                let message = Message::with_mime(topic("a:b"), "binary/bytes", data);
                publisher.publish(&message).await.unwrap();
            }
        }
    };
    let receiving = async {
        for round in 0..20 {
            for size in sizes {
                let message = next(&mut messages).await;
                assert_eq!(message.data().len(), size);
                assert!(message.data().iter().all(|byte| *byte == round));
            }
        }
    };
    futures::join!(sending, receiving);
    assert_eq!(proxy.totals().dropped.messages, 0);
    assert!(proxy.subscribers()[0].principal.as_ref().unwrap().starts_with("key "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_clients_pass_our_encrypted_proxy() {
    let (server, client) = (keys(), keys());
    let proxy = curve_proxy(&server, allow(&[(&client, Arc::new(Rights::all()))])).await;
    let port = proxy.address().publish_port().to_string();
    let (public, secret) = (server.public().to_string(), client.secret().expose_text());
    let security = ["--curve-client", &public, &secret];
    let with = |arguments: &[&'static str]| {
        let arguments = arguments.iter().map(|text| (*text).to_owned());
        let own = ["--port".to_owned(), port.clone()].into_iter().chain(security.map(str::to_owned));
        own.chain(arguments).collect::<Vec<String>>()
    };
    let start = |script: &str, arguments: &[&'static str]| {
        let arguments = with(arguments);
        Peer::python(script, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };

    // The peers of other languages give up after a second, which is too short on a loaded machine.
    for language in ["python"] {
        let mut control = start("control.py", &["--heartbeat", "2000", "--language", language]);
        for word in ["connected", "replied", "subscribed", "echo"] {
            control.expect(word).await;
        }
        control.finish().await;
    }

    let mut subscriber =
        start("subscriber.py", &["--topic", "t:", "--count", "20000", "--heartbeat", "2000"]);
    subscriber.expect("ready").await;
    let mut publisher =
        start("publisher.py", &["--topic", "t:a", "--count", "20000", "--size", "300", "--wait-subscriber"]);
    publisher.expect("sent").await;
    assert_eq!(subscriber.expect("received").await, ["20000", "disorder", "0"]);
    publisher.finish().await;
    subscriber.finish().await;

    // This is the other direction, from libzmq to this project.
    let ours = connect(&proxy, curve(&client, &server));
    let mut messages = within("the checks", ours.subscribe([topic("u")])).await.unwrap();
    let publisher = start("publisher.py", &["--topic", "u", "--count", "10", "--wait-subscriber"]);
    for _ in 0..10 {
        next(&mut messages).await;
    }
    publisher.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_clients_pass_libzmqs_encrypted_proxy() {
    let server = keys();
    let secret = server.secret().expose_text();
    let mut old = Peer::python("old_proxy.py", &["--curve-server", &secret]);
    let port: u16 = old.expect("listening").await[0].parse().unwrap();
    let address = ProxyAddress::new("127.0.0.1", port).unwrap();
    let connection = || Connection::with_options(address.clone(), setup(curve(&keys(), &server))).unwrap();
    let (publisher, subscriber) = (connection(), connection());
    let mut messages = within("the checks", subscriber.subscribe([topic("a:b"), topic("c")])).await.unwrap();
    for number in 0..1000 {
        publisher.publish(&Message::of(topic("a:b:c"), number).unwrap()).await.unwrap();
    }
    for number in 0..1000 {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    assert!(publisher.close(Duration::from_secs(30)).await.is_nothing());
    old.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registrar_lets_in_and_lets_register_whom_it_should() {
    let (server, owner, guest) = (keys(), keys(), keys());
    let mut rules = allow(&[(&owner, Arc::new(Rights::all())), (&guest, rights(&[], &[]))]);
    rules.passwords = Passwords::default();
    let config = xmsg_proxy::registrar::Config {
        security: Mechanism::Curve(server.clone()),
        authority: Arc::new(Authority::new(rules)),
        ..xmsg_proxy::registrar::Config::default()
    };
    let registrar =
        xmsg_proxy::registrar::Registrar::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let client =
        |security| Registrar::builder(registrar.address().clone()).security(security).build().unwrap();
    let record = Registration::new(OwnerType::Publisher, "me", &topic("a:b:c"), &"10.0.0.1".parse().unwrap());
    let (owner_client, guest_client) = (client(curve(&owner, &server)), client(curve(&guest, &server)));
    within("a registration", owner_client.register(&record)).await.unwrap();
    let error = within("a refusal", guest_client.register(&record)).await.unwrap_err();
    assert!(error.to_string().contains("not allowed"), "{error}");
    let found = within("an answer", guest_client.find(&Query::topic(OwnerType::Publisher, &topic("a"))))
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
    let error = within("a refusal", guest_client.deregister(&record)).await.unwrap_err();
    assert!(error.to_string().contains("not allowed"), "{error}");
    within("a removal", owner_client.deregister(&record)).await.unwrap();

    // A libzmq client whose key may register does so, and is refused what its key may not do.
    let port = registrar.address().port().to_string();
    let (public, secret) = (server.public().to_string(), owner.secret().expose_text());
    let arguments = ["--port", &port, "--curve-client", &public, &secret];
    let mut libzmq = Peer::python("registrar_client.py", &arguments);
    libzmq.expect("registered").await;
    libzmq.expect("found").await;
    libzmq.expect("refused").await;
    libzmq.expect("served").await;
    libzmq.expect("removed").await;
    libzmq.finish().await;
}

/// Clients that are still allowed are not disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_let_in_no_more_loses_the_registrar_and_the_control_port_too() {
    let (server, stays, goes) = (keys(), keys(), keys());
    let nothing = rights(&[], &[]);
    let rules = allow(&[(&stays, nothing.clone()), (&goes, nothing.clone())]);
    let authority = Arc::new(Authority::new(rules.clone()));
    let config = xmsg_proxy::registrar::Config {
        security: Mechanism::Curve(server.clone()),
        authority: authority.clone(),
        ..xmsg_proxy::registrar::Config::default()
    };
    let registrar = xmsg_proxy::registrar::Registrar::bind("127.0.0.1:0").config(config);
    let registrar = registrar.on_its_own_thread().start().await.unwrap();
    let proxy = curve_proxy(&server, rules).await;
    let options = |keys: &KeyPair| SocketOptions::any().security(curve(keys, &server));
    let endpoint = |port| Endpoint::tcp("127.0.0.1", port);
    let both = [&stays, &goes];
    let requesters = both.map(|keys| {
        Requester::connecting_to(endpoint(registrar.address().port()), options(keys).for_socket())
    });
    let dealers = both.map(|keys| {
        Dealer::connecting_to(endpoint(proxy.address().control_port()), options(keys).for_socket())
    });
    let ask =
        async |requester: &Requester, patience| requester.request(["allPublisher", "me", ""], patience).await;
    for (requester, dealer) in requesters.iter().zip(&dealers) {
        within("an answer", ask(requester, PATIENCE)).await.unwrap();
        within("a connection", dealer.connected()).await.unwrap();
    }
    let mut events = dealers.each_ref().map(Dealer::events);

    let rules = allow(&[(&stays, nothing)]);
    authority.replace(rules.clone());
    registrar.enforce_rules().await;
    proxy.replace_rules(rules).await;
    let event = within("the end of the connection", events[1].next()).await;
    assert!(matches!(event, Some(xmsg_zmq::SocketEvent::Disconnected { .. })), "{event:?}");
    within("the end of the other one", async {
        while registrar.monitor().connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let refused = ask(&requesters[1], Duration::from_millis(300)).await;
    assert!(refused.is_err(), "{refused:?}");
    within("an answer", ask(&requesters[0], PATIENCE)).await.unwrap();
    assert!(events[0].next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_at_once() {
    let (server, known) = (keys(), keys());
    let proxy = curve_proxy(&server, allow(&[(&known, Arc::new(Rights::all()))])).await;
    let strangers = [
        ("no security", Security::Null),
        ("an unknown key", curve(&keys(), &server)),
        ("another server key", curve(&known, &keys())),
        ("PLAIN", Security::PlainClient { user: "a".into(), password: Password::new("b").unwrap() }),
    ];
    for (who, security) in strangers {
        // PATIENCE is the time limit of the check, so an answer within it means that the client did not wait
        // for the limit.
        let error = within(who, connect(&proxy, security).connect()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAllowed, "{who}: {error:?}");
    }
    // The client may get the error before the proxy has counted it.
    let counted = async {
        while proxy.totals().refused < 4 {
            tokio::task::yield_now().await;
        }
    };
    within("the count", counted).await;
    within("a good key", connect(&proxy, curve(&known, &server)).connect()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_passwords() {
    let line = format!("alice:{}", *hash_password("sesame").unwrap());
    let rules = Rules {
        passwords: Passwords::parse(&line).unwrap(),
        other_users: Some(Arc::new(Rights::all())),
        ..Rules::default()
    };
    let proxy = proxy().security(Mechanism::Plain, rules).start().await.unwrap();
    let plain = |user: &str, password: &str| Security::PlainClient {
        user: user.into(),
        password: Password::new(password).unwrap(),
    };
    let alice = connect(&proxy, plain("alice", "sesame"));
    let mut messages = within("the checks", alice.subscribe([topic("a")])).await.unwrap();
    for (user, password) in [("alice", "sesam"), ("bob", "sesame"), ("", "")] {
        let error = within("a refusal", connect(&proxy, plain(user, password)).connect()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAllowed, "{user}");
    }
    let port = proxy.address().publish_port().to_string();
    let arguments =
        ["--port", &port, "--plain", "alice", "sesame", "--topic", "a", "--count", "5", "--wait-subscriber"];
    let publisher = Peer::python("publisher.py", &arguments);
    for _ in 0..5 {
        next(&mut messages).await;
    }
    publisher.finish().await;
    assert_eq!(proxy.subscribers()[0].principal.as_deref(), Some("user \"alice\""));
}

/// Publishes to both topics, and returns the one that arrives first.
async fn first_of(
    publisher: &Connection,
    topics: [&str; 2],
    messages: &mut xmsg_core::Subscription,
) -> Topic {
    for text in topics {
        publisher.publish(&Message::of(topic(text), 1).unwrap()).await.unwrap();
    }
    next(messages).await.topic().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_kept_and_change_without_a_reconnection() {
    let (server, writer, reader) = (keys(), keys(), keys());
    let everything = Arc::new(Rights::all());
    let proxy =
        curve_proxy(&server, allow(&[(&writer, rights(&["b:"], &[])), (&reader, everything.clone())])).await;
    let publisher = connect(&proxy, curve(&writer, &server));
    let subscriber = connect(&proxy, curve(&reader, &server));
    let mut messages = within("the checks", subscriber.subscribe([topic("a"), topic("b")])).await.unwrap();
    within("a connection", publisher.connect()).await.unwrap();

    assert_eq!(first_of(&publisher, ["a:1", "b:1"], &mut messages).await, topic("b:1"), "a is not allowed");
    assert_eq!(proxy.totals().denied, 1);
    let setup =
        ConnectOptions::new().subscription_timeout(Duration::from_millis(300)).connection_timeout(PATIENCE);
    let setup = setup.security(curve(&writer, &server));
    let nosy = Connection::with_options(proxy.address().clone(), setup).unwrap();
    let error = within("a refusal", nosy.subscribe([topic("b")])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "a subscription that is not allowed is never confirmed");

    // The peers get more rights while they stay connected.
    let events = publisher.events();
    proxy.replace_rules(allow(&[(&writer, rights(&["a:"], &[])), (&reader, everything)])).await;
    assert_eq!(first_of(&publisher, ["b:2", "a:2"], &mut messages).await, topic("a:2"), "b is not any more");

    // They get fewer rights: subscriptions that are not allowed any more get nothing.
    proxy
        .replace_rules(allow(&[(&writer, rights(&["a:", "b:"], &[])), (&reader, rights(&[], &["b"]))]))
        .await;
    assert_eq!(first_of(&publisher, ["a:3", "b:3"], &mut messages).await, topic("b:3"));
    assert!(publisher.is_connected());
    drop(events);

    // They get no rights: a peer that is no longer allowed is disconnected.
    let mut events = subscriber.events();
    proxy.replace_rules(allow(&[(&writer, rights(&["a:"], &[]))])).await;
    let event = within("the end of the connection", events.next()).await;
    assert!(matches!(event, Some(xmsg_zmq::SocketEvent::Disconnected { .. })), "{event:?}");
    assert!(publisher.is_connected());
}

/// Updates `kept` with the subscriptions that the publisher receives, until it receives `last`.
async fn told(publisher: &XPub, kept: &mut BTreeSet<Bytes>, last: (bool, &str)) {
    loop {
        let (is_wanted, prefix) = match within("what is wanted", publisher.recv()).await.unwrap() {
            FromSubscriber::Subscribed { prefix, .. } => (true, prefix),
            FromSubscriber::Unsubscribed { prefix, .. } => (false, prefix),
            other => panic!("{other:?}"),
        };
        if is_wanted {
            kept.insert(prefix.clone());
        } else {
            kept.remove(&prefix);
        }
        if (is_wanted, &prefix[..]) == (last.0, last.1.as_bytes()) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_hear_of_no_topics_that_they_may_not_publish() {
    let (server, low, none, owner) = (keys(), keys(), keys(), keys());
    let rules = |publish: &[&'static str]| {
        let all = Arc::new(Rights::all());
        allow(&[(&low, rights(publish, &[])), (&none, rights(&[], &[])), (&owner, all)])
    };
    let proxy = curve_proxy(&server, rules(&["daq:"])).await;
    let publisher = |keys: &KeyPair| {
        let options = SocketOptions::default().security(curve(keys, &server));
        let publisher = XPub::new(options);
        publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
        publisher
    };
    let reader = connect(&proxy, curve(&owner, &server));
    let subscribe = async |text: &str| within("a check", reader.subscribe([topic(text)])).await.unwrap();
    let secret = subscribe("secret:7").await;
    let (daq, nobody) = (publisher(&low), publisher(&none));
    let (mut kept, mut nothing) = (BTreeSet::new(), BTreeSet::new());
    told(&nobody, &mut nothing, (true, "xmsg:control")).await;
    told(&daq, &mut kept, (true, "xmsg:control")).await;
    let power = subscribe("daq:power").await;
    let wide = subscribe("d").await;
    told(&daq, &mut kept, (true, "daq:")).await;
    assert!(kept.iter().eq(["daq:", "daq:power", "xmsg:control"]), "{kept:?}");
    drop(wide);
    told(&daq, &mut kept, (false, "daq:")).await;
    assert!(kept.iter().eq(["daq:power", "xmsg:control"]), "{kept:?}");

    // With other rights, the publisher receives other subscriptions.
    proxy.replace_rules(rules(&["secret:"])).await;
    told(&daq, &mut kept, (true, "secret:7")).await;
    drop((power, secret));
    let _last = subscribe("secret:last").await;
    told(&daq, &mut kept, (true, "secret:last")).await;
    assert!(
        kept.contains(&b"xmsg:control"[..]) && !kept.iter().any(|prefix| prefix.starts_with(b"daq")),
        "{kept:?}"
    );

    // The publisher would have received the other subscriptions before this one.
    proxy
        .replace_rules(allow(&[(&none, rights(&["secret:l"], &[])), (&owner, Arc::new(Rights::all()))]))
        .await;
    told(&nobody, &mut nothing, (true, "secret:last")).await;
    assert!(nothing.iter().eq(["secret:last", "xmsg:control"]), "{nothing:?}");
}

/// When a client removes its subscription to control requests, other clients can still send them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_requests_are_wanted_whoever_wants_them_no_more() {
    let proxy = proxy().start().await.unwrap();
    let asking = connect(&proxy, Security::Null);
    within("a connection", asking.connect()).await.unwrap();
    let nosy = Subscriber::new(SocketOptions::default());
    nosy.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    for _ in 0..3 {
        nosy.subscribe("xmsg:control").unwrap();
        within("a check", asking.subscribe([topic("a")])).await.unwrap();
        nosy.unsubscribe("xmsg:control");
        within("its end", async {
            while proxy.subscriptions() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // The change is sent to publishers after that.
        let other = connect(&proxy, Security::Null);
        within("a connection", other.connect()).await.unwrap();
        within("a check", asking.subscribe([topic("a")])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_cannot_be_stolen_with_another_key() {
    let (server, owner, thief) = (keys(), keys(), keys());
    let everything = Arc::new(Rights::all());
    let proxy = curve_proxy(&server, allow(&[(&owner, everything.clone()), (&thief, everything)])).await;
    let control = Endpoint::tcp("127.0.0.1", proxy.address().control_port());
    let dealer = |keys: &KeyPair| {
        let identity = Bytes::from_static(b"412300001");
        let security = curve(keys, &server);
        Dealer::connecting_to(control.clone(), SocketOptions::default().identity(identity).security(security))
    };
    // The other key connects before the owner of the identity, and again after it.
    let theirs = dealer(&thief);
    within("a connection", theirs.connected()).await.unwrap();
    let ours = dealer(&owner);
    within("a connection", ours.connected()).await.unwrap();
    let late = dealer(&thief);
    within("a connection", late.connected()).await.unwrap();
    let asking = connect(&proxy, curve(&owner, &server));
    within("a connection", asking.connect()).await.unwrap();
    let request = Message::from_frames(
        Bytes::from_static(b"xmsg:control"),
        Bytes::from_static(b"pub"),
        Bytes::from_static(b"412300001"),
    );
    asking.publish(&request).await.unwrap();
    let answer = within("the answer", ours.recv()).await.unwrap();
    assert_eq!(answer.frames(), ["pub"]);
    assert!(theirs.recv().now_or_never().is_none(), "it is not for somebody with another key");
}

/// A client that may not subscribe to a topic can't make the proxy publish to it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_goes_to_nobody_but_who_may_have_asked_for_it() {
    let (server, low, other, owner) = (keys(), keys(), keys(), keys());
    let rules = allow(&[
        (&low, rights(&["low:"], &["low:"])),
        (&other, rights(&["daq:"], &["daq:"])),
        (&owner, Arc::new(Rights::all())),
    ]);
    let proxy = curve_proxy(&server, rules).await;
    let mut alarms = subscriber(&proxy, curve(&owner, &server), "daq:");
    let ask = |topic: &'static [u8]| {
        Message::from_frames(
            Bytes::from_static(b"xmsg:control:con"),
            Bytes::from_static(b"sub"),
            Bytes::from_static(topic),
        )
    };
    // One client may not subscribe to the topic. The other one may, but its principal is not that of the
    // subscriber.
    for keys in [&low, &other] {
        let asking = connect(&proxy, curve(keys, &server));
        within("a connection", asking.connect()).await.unwrap();
        for _ in 0..100 {
            asking.publish(&ask(b"daq:alarm")).await.unwrap();
        }
        within("its end", asking.close(PATIENCE)).await;
    }
    assert_eq!(proxy.totals().denied, 100);
    let asking = connect(&proxy, curve(&owner, &server));
    within("a connection", asking.connect()).await.unwrap();
    asking.publish(&ask(b"daq:mine")).await.unwrap();
    let first = within("a confirmation", alarms.recv()).await.unwrap();
    assert_eq!(first.frames(), ["daq:mine", "sub"], "nobody else's came before");
}

/// Every client may send control requests, but the requests of a client without the right to publish reach no
/// subscriber.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_requests_without_a_right_to_publish_reach_no_subscriber() {
    let (server, low, owner) = (keys(), keys(), keys());
    let rules = allow(&[(&low, rights(&[], &["low:"])), (&owner, Arc::new(Rights::all()))]);
    let proxy = curve_proxy(&server, rules).await;
    let mut recorder = subscriber(&proxy, curve(&owner, &server), "xmsg:control:data");
    let say = |text: &'static [u8]| {
        let topic = Bytes::from_static(b"xmsg:control:data");
        Message::from_frames(topic, Bytes::from_static(b"text/string"), Bytes::from_static(text))
    };
    let entitled = connect(&proxy, curve(&owner, &server));
    within("a connection", entitled.connect()).await.unwrap();
    let ready = async {
        loop {
            // The subscription may take a moment to become active.
            entitled.publish(&say(b"ready")).await.unwrap();
            if tokio::time::timeout(Duration::from_millis(20), recorder.recv()).await.is_ok() {
                return;
            }
        }
    };
    within("a subscription", ready).await;
    let asking = connect(&proxy, curve(&low, &server));
    // The proxy answers the requests of this client.
    within("a connection", asking.connect()).await.unwrap();
    asking.publish(&say(b"forged")).await.unwrap();
    within("a confirmation", asking.flush(PATIENCE)).await.unwrap();
    entitled.publish(&say(b"last")).await.unwrap();
    let last = async {
        loop {
            let message = recorder.recv().await.unwrap();
            if message.frames()[2] != "ready" {
                return message;
            }
        }
    };
    assert_eq!(within("a message", last).await.frames()[2], "last");
}

/// libzmq gives up for good if a handshake ends with an ERROR command, and tries again if the connection just
/// ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_clients_come_back_after_a_proxy_with_a_wrong_key() {
    let (right, wrong) = (keys(), keys());
    let client = keys();
    let first = curve_proxy(&right, open_rules()).await;
    let address = first.address().clone();
    let at = async |server: &KeyPair| {
        let builder = Proxy::bind(address.to_string());
        builder.security(Mechanism::Curve(server.clone()), open_rules()).start().await.unwrap()
    };
    let port = address.publish_port().to_string();
    let (public, secret) = (right.public().to_string(), client.secret().expose_text());
    let start = |socket: &str| {
        let arguments =
            ["--port", &port, "--socket", socket, "--topic", "t", "--curve-client", &public, &secret];
        Peer::python("events.py", &arguments)
    };
    let (mut subscriber, mut publisher) = (start("sub"), start("pub"));
    subscriber.until("message 3").await;
    first.stop(Duration::ZERO).await;
    subscriber.until("disconnected").await;
    publisher.until("disconnected").await;

    let second = at(&wrong).await;
    for peer in [&mut subscriber, &mut publisher] {
        peer.until("failed").await;
        // The peer has already tried again.
        peer.until("failed").await;
    }
    // Our client gets an error, and continues to try, too.
    let error = within("a refusal", connect(&second, curve(&client, &right)).connect()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    let said = error.with_causes().to_string();
    assert!(said.contains("it has another key than the server key that is set here"), "{said}");
    second.stop(Duration::ZERO).await;

    let _third = at(&right).await;
    subscriber.until("connected").await;
    subscriber.until("message 3").await;
    publisher.until("connected").await;
    for peer in [subscriber, publisher] {
        peer.finish().await;
    }
}

/// As with a server of libzmq, the monitors of clients report that their credentials are not valid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_clients_learn_that_their_credentials_are_not_good() {
    let (server, known, stranger) = (keys(), keys(), keys());
    let curve_proxy = curve_proxy(&server, allow(&[(&known, Arc::new(Rights::all()))])).await;
    let plain_proxy = proxy().security(Mechanism::Plain, Rules::default()).start().await.unwrap();
    let (public, secret) = (server.public().to_string(), stranger.secret().expose_text());
    for (proxy, security) in [
        (&curve_proxy, ["--curve-client", public.as_str(), secret.as_str()]),
        (&plain_proxy, ["--plain", "alice", "guess"]),
    ] {
        for socket in ["sub", "pub"] {
            let port = proxy.address().publish_port().to_string();
            let arguments = [&["--port", &port, "--socket", socket, "--topic", "t"][..], &security].concat();
            let mut peer = Peer::python("events.py", &arguments);
            peer.until("refused 400").await;
            peer.finish().await;
        }
    }
}
