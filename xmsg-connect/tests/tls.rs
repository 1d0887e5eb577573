//! A broker that is spoken to with TLS: errors say what is wrong with its certificate.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use xmsg_connect::definition::ConnectionDefinition;
use xmsg_connect::{ErrorKind, LinkState, Sort};
use xmsg_tests::rabbitmq::{Broker, make_stranger};

use common::{LIMIT, Site, broker, message, outgoing};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_tls_is_trusted_by_its_signer_and_its_name() {
    let rabbit = Broker::with_tls().await;
    rabbit.declare_queue("secured").await;
    let site = Site::new().await;
    // Beside the state file, from whose folder relative files count.
    std::fs::copy(rabbit.ca_file(), site.folder.path().join("state/ca.pem")).unwrap();
    let good = ConnectionDefinition {
        uris: vec![format!("amqps://localhost:{}", rabbit.tls_port())],
        ca_file: Some("ca.pem".into()),
        ..broker(0)
    };
    site.registry.create(good.clone()).await.unwrap();
    let mut out = outgoing("out", "");
    out.routing_key = Some("secured".into());
    site.registry.create(out).await.unwrap();
    site.registry.send_confirmed("out", message("a", "b"), LIMIT).await.unwrap();
    assert_eq!(rabbit.queue_len("secured").await, 1);

    let stranger = site.folder.path().join("stranger.pem");
    make_stranger(&stranger);
    let nothing = site.folder.path().join("nothing.pem");
    std::fs::write(&nothing, "no certificate").unwrap();
    let with_file = |file| ConnectionDefinition { ca_file: Some(file), ..good.clone() };
    let at = |uri: String| ConnectionDefinition { uris: vec![uri], ..good.clone() };
    for (definition, kind, says) in [
        (
            with_file(stranger),
            ErrorKind::NotAllowed,
            &["has signed its certificate", "stranger.pem", "ca_file"][..],
        ),
        (
            at(format!("amqps://127.0.0.1:{}", rabbit.tls_port())),
            ErrorKind::NotAllowed,
            &["another name than \"127.0.0.1\"", "localhost"],
        ),
        (at(format!("amqps://localhost:{}", rabbit.port())), ErrorKind::Refused, &["does not speak TLS"]),
        (with_file(nothing), ErrorKind::InvalidDefinition, &["nothing.pem", "ca_file"]),
        (with_file("missing.pem".into()), ErrorKind::Storage, &["state/missing.pem", "ca_file"]),
    ] {
        site.registry.update("broker", definition).await.unwrap();
        let error = site.registry.ping(Sort::Connection, "broker", LIMIT).await.unwrap_err();
        let said = error.with_causes();
        assert!(error.kind() == kind && says.iter().all(|word| said.contains(word)), "{says:?}: {error:?}");
        site.until("out", "the fault", |report| {
            let reason = report.link.reason.as_ref();
            report.link.state == LinkState::Faulted
                && reason.is_some_and(|reason| reason.what.contains(says[0]))
        })
        .await;
    }
    // Without TLS at its port for TLS: it says nothing that AMQP knows.
    let plain = at(format!("amqp://localhost:{}", rabbit.tls_port()));
    site.registry.update("broker", plain).await.unwrap();
    site.registry.ping(Sort::Connection, "broker", LIMIT).await.unwrap_err();

    site.registry.update("broker", good).await.unwrap();
    site.registry.send_confirmed("out", message("a", "b"), LIMIT).await.unwrap();
    site.registry.close().await.unwrap();
}
