//! Tests from the test suites of the other implementations about registrar clients: Java `xMsgRegDriverTest`,
//! `xMsgRegRequestTest`, `xMsgRegResponseTest` and the older `xMsgTest`, C++ `regdis_test`, Python
//! `test_xMsgRegDriver`, `test_xMsgRegRequest`.

use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registrar::{DISCOVERY_TIMEOUT, REGISTRATION_TIMEOUT};
use xmsg_core::registration::{Action, Argument, OwnerType, Query, Registration, Reply, Request};
use xmsg_core::{Actor, ErrorKind, ProxyAddress, Registrar, RegistrarAddress, Result, Topic};
use xmsg_tests::{PATIENCE, within};
use xmsg_zmq::{Endpoint, Multipart, Replier, SocketOptions};

use OwnerType::{Publisher, Subscriber};

fn trio() -> Topic {
    Topic::with_types("music", "jazz", "trio").unwrap()
}

fn proxy() -> ProxyAddress {
    ProxyAddress::new("10.1.2.3", 7771).unwrap()
}

fn ada(owner: OwnerType) -> Registration {
    Registration::new(owner, "ada", &trio(), &proxy()).with_description("plays the piano")
}

/// A test double of a registrar: it returns prepared answers, and shows the requests.
struct Double {
    replier: Replier,
    address: RegistrarAddress,
}

impl Double {
    async fn start() -> Self {
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
        let Endpoint::Tcp { port, .. } = endpoint else { panic!("it is TCP") };
        Self { replier, address: RegistrarAddress::new("127.0.0.1", port).unwrap() }
    }

    fn client(&self) -> Registrar {
        Registrar::builder(self.address.clone())
            .sender("me")
            .registration_timeout(PATIENCE)
            .discovery_timeout(PATIENCE)
            .renewal_interval(None)
            .build()
            .unwrap()
    }

    /// Returns the request that `call` has sent, and its result when these frames are the reply.
    async fn exchange<T>(&self, call: impl Future<Output = T>, reply: &[Bytes]) -> (Vec<Bytes>, T) {
        let answer = async {
            let (path, request) = self.replier.recv().await.expect("the socket is open");
            self.replier.try_reply(&path, reply.iter().cloned().collect::<Multipart>()).unwrap();
            request.frames().to_vec()
        };
        within("an exchange", async { futures::join!(answer, call) }).await
    }

    /// Checks that the call sends this action with this data, and succeeds.
    async fn expect(&self, call: impl Future<Output = Result<()>>, action: &str, data: &[u8]) {
        let (request, result) = self.exchange(call, &success(action, &[])).await;
        assert_eq!(request, [action.as_bytes(), b"me", data]);
        result.unwrap();
    }
}

fn success(action: &str, registrations: &[Bytes]) -> Vec<Bytes> {
    let outcome = Ok(registrations.to_vec());
    Reply { action: action.to_owned().into(), sender: "10.1.2.4:registrar".into(), outcome }.into_frames()
}

/// Returns the data of a query, as a registration.
fn data(query: &Query) -> Bytes {
    Request::discover("me", Action::Find, query).frames()[2].clone()
}

/// Corresponds to Java `sendPublisherRegistration`, `sendSubscriberRegistration`, `sendPublisherRemoval`,
/// `sendSubscriberRemoval`, `sendHostRemoval`; C++ `DriverTest` of the same names; Python
/// `test_send_frontend_…`, `test_send_host_removal`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_and_removals_are_sent_as_their_action() {
    let double = Double::start().await;
    let client = double.client();
    for (owner, register, remove) in [
        (Publisher, "registerPublisher", "removePublisherRegistration"),
        (Subscriber, "registerSubscriber", "removeSubscriberRegistration"),
    ] {
        double.expect(client.register(&ada(owner)), register, &ada(owner).encode()).await;
        double.expect(client.deregister(&ada(owner)), remove, &ada(owner).encode()).await;
    }
    double.expect(client.remove_all("10.1.2.3"), "removeAllRegistration", b"10.1.2.3").await;
}

/// Corresponds to Java `sendPublisherFind`, `sendPublisherFilter`, `sendPublisherAll` and the same of
/// subscribers; C++ `SendPublisherFind`, `SendSubscriberFind`; Python `test_send_fe_publisher_find`,
/// `test_send_fe_subscriber_find`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_sent_as_their_action() {
    let double = Double::start().await;
    let client = double.client();
    for (owner, names) in [
        (Publisher, ["findPublisher", "filterPublisher", "exactPublisher", "allPublisher"]),
        (Subscriber, ["findSubscriber", "filterSubscriber", "exactSubscriber", "allSubscriber"]),
    ] {
        let topic = Query::topic(owner, &trio());
        let domain = Query::parts(owner, "music", "*", "*").host("10.1.2.3");
        let [find, filter, exact, all] = names;
        double.expect(async { client.find(&topic).await.map(drop) }, find, &data(&topic)).await;
        double.expect(async { client.filter(&domain).await.map(drop) }, filter, &data(&domain)).await;
        double.expect(async { client.exact(&topic).await.map(drop) }, exact, &data(&topic)).await;
        let asking = async { client.all(owner).await.map(drop) };
        Box::pin(double.expect(asking, all, &data(&Query::any(owner)))).await;
    }
}

/// Corresponds to Java `sendPublisherFilter` and similar tests with the empty filter of `xMsgRegFactory`:
/// missing parts are `*`.
#[test]
fn a_question_leaves_open_what_it_does_not_say() {
    let read = Registration::decode(&data(&Query::any(Subscriber))).unwrap();
    assert_eq!((read.domain.as_str(), read.subject(), read.types()), ("*", "*", "*"));
    assert_eq!((read.host.as_str(), read.port, read.owner), ("undefined", 0, Some(Subscriber)));
}

/// The time limits of requests in the tests of all three implementations.
#[test]
fn requests_have_three_seconds() {
    assert_eq!((REGISTRATION_TIMEOUT, DISCOVERY_TIMEOUT), (Duration::from_secs(3), Duration::from_secs(3)));
}

/// Corresponds to Java `getRegistration`, C++ `DriverTest.GetRegistration`, Python
/// `test_get_registration_from_fe`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn found_registrations_are_those_of_the_reply() {
    let double = Double::start().await;
    let client = double.client();
    let mut other = ada(Publisher);
    other.name = "ben".into();
    let reply = success("findPublisher", &[ada(Publisher).encode(), other.encode()]);
    let query = Query::topic(Publisher, &trio());
    let (_, found) = double.exchange(client.find(&query), &reply).await;
    assert_eq!(found.unwrap(), [ada(Publisher), other]);
}

/// Corresponds to Java `xMsgTest`: `registerPublisher`, `registerSubscriber`, `removePublisher`,
/// `removeSubscriber`, `findPublishers`, `findSubscribers`, `filter…`, `all…`. The sender is the name of the
/// actor, and the address is that of its proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_asks_in_its_own_name() {
    let double = Double::start().await;
    let actor = Actor::builder("ada").proxy(proxy()).registrar(double.address.clone()).build().unwrap();
    for owner in OwnerType::ALL {
        let topic = trio();
        let register = actor.register(owner, &topic, "plays the piano");
        let (request, result) = double.exchange(register, &success("", &[])).await;
        result.unwrap();
        assert_eq!(
            request,
            [Action::Register(owner).name().as_bytes(), b"ada", ada(owner).encode().as_ref()]
        );

        let (request, result) = double.exchange(actor.deregister(owner, &trio()), &success("", &[])).await;
        result.unwrap();
        let mut plain = ada(owner);
        plain.description = None;
        assert_eq!(request, [Action::Remove(owner).name().as_bytes(), b"ada", plain.encode().as_ref()]);

        let query = Query::topic(owner, &trio());
        let (request, result) =
            double.exchange(actor.discover(&query), &success("", &[ada(owner).encode()])).await;
        assert_eq!(result.unwrap(), [ada(owner)]);
        assert_eq!(request, [Action::Find(owner).name().as_bytes(), b"ada", data(&query).as_ref()]);

        let parts = Query::parts(owner, "music", "*", "*");
        let (request, result) = double.exchange(actor.discover_filtered(&parts), &success("", &[])).await;
        assert_eq!(result.unwrap(), []);
        assert_eq!(request, [Action::Filter(owner).name().as_bytes(), b"ada", data(&parts).as_ref()]);

        let (request, result) = double.exchange(actor.discover_exact(&query), &success("", &[])).await;
        assert_eq!(result.unwrap(), []);
        assert_eq!(request, [Action::Exact(owner).name().as_bytes(), b"ada", data(&query).as_ref()]);

        let (request, result) = double.exchange(actor.discover_all(owner), &success("", &[])).await;
        assert_eq!(result.unwrap(), []);
        let any = data(&Query::any(owner));
        assert_eq!(request, [Action::All(owner).name().as_bytes(), b"ada", any.as_ref()]);
    }
}

fn read(frames: &[&[u8]]) -> Result<Request, Reply> {
    let frames: Vec<_> = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
    Request::read(&frames, &"10.1.2.4:registrar".into())
}

/// Corresponds to Java `createDataRequest`, C++ `Request.CreateDataRequest`, Python `test_get_topic`,
/// `test_get_sender`, `test_get_data`, `test_msg`.
#[test]
fn a_request_reads_back() {
    let sent = Request::register("me", ada(Subscriber));
    let received = Request::read(&sent.frames(), &Bytes::new()).unwrap();
    assert_eq!(received.action.name(), "registerSubscriber");
    assert_eq!(received.sender, "me");
    assert_eq!(received.argument, Argument::Registration(ada(Subscriber)));
    assert_eq!(received.frames(), sent.frames());
}

/// Corresponds to Java `createTextRequest`, C++ `Request.CreateTextRequest`.
#[test]
fn a_request_of_text_reads_back() {
    let received = read(&[b"removeAllRegistration", b"me", b"10.1.2.3"]).unwrap();
    assert_eq!(received, Request::remove_all("me", "10.1.2.3"));
}

/// Corresponds to Java `xMsgRegRequestTest.failWithMalformedMessage`, `failWithMalformedData`; Python
/// `test_raises_exception`.
#[test]
fn malformed_requests_are_refused_with_a_reply() {
    let format = read(&[b"registerPublisher", b"me"]).unwrap_err();
    assert_eq!(format.outcome.unwrap_err().0, "invalid registrar server request format");
    let frame = ada(Publisher).encode();
    let cut = read(&[b"registerPublisher", b"me", &frame[..frame.len() - 9]]).unwrap_err();
    assert_eq!(cut.action, "registerPublisher");
    assert!(cut.outcome.is_err());
}

/// Corresponds to Java `createSuccessResponse`, `createDataResponse`; C++ `Response.CreateSuccessResponse`,
/// `CreateDataResponse`.
#[test]
fn replies_read_back() {
    for data in [vec![], vec![ada(Publisher).encode(), ada(Subscriber).encode()]] {
        let read = Reply::read(&success("findPublisher", &data)).unwrap();
        assert_eq!(
            (read.action.as_ref(), read.sender.as_ref()),
            (&b"findPublisher"[..], &b"10.1.2.4:registrar"[..])
        );
        assert_eq!(read.outcome.unwrap(), data);
    }
}

/// Corresponds to Java `createErrorResponse`, `xMsgRegResponseTest.failWithMalformedMessage`,
/// `failWithMalformedData`; C++ `Response.CreateErrorResponse`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_no_success_is_an_error_and_the_next_request_works() {
    let double = Double::start().await;
    let client = double.client();
    let frame = ada(Publisher).encode();
    let cut = frame.slice(..frame.len() - 9);
    for (reply, kind, says) in [
        (vec![Bytes::from("a"), "b".into(), "no room left".into()], ErrorKind::Remote, "no room left"),
        (vec![Bytes::from("a"), "b".into()], ErrorKind::InvalidMessage, "2 frames"),
        (success("findPublisher", &[frame.clone(), cut]), ErrorKind::InvalidMessage, "registration"),
    ] {
        let query = Query::topic(Publisher, &trio());
        let (_, result) = double.exchange(client.find(&query), &reply).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(says), "{error}");
        let (_, result) =
            double.exchange(client.find(&query), &success("", std::slice::from_ref(&frame))).await;
        assert_eq!(result.unwrap(), [ada(Publisher)]);
    }
}
