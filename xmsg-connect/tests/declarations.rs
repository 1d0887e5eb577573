//! What is declared: several entries at once, files beside the state file, limits that agree.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use bytes::Bytes;
use xmsg_connect::ErrorKind;
use xmsg_connect::definition::{
    ByteSize, ChannelDefinition, ConnectionDefinition, Definitions, DurableDefinition, OutgoingDefinition,
    SendingSocket, SpoolDefinition, Target,
};
use xmsg_core::Message;
use xmsg_tests::amqp_peer::{Peer, Script, What};

use common::{LIMIT, Site, broker, message, outgoing};

#[tokio::test(flavor = "multi_thread")]
async fn several_entries_are_added_together_or_not_at_all() {
    let site = Site::new().await;
    let other = || ConnectionDefinition::amqp("other", "amqp://127.0.0.1:1");
    let out = || OutgoingDefinition { is_active: false, ..OutgoingDefinition::amqp("out", "other", "e") };
    let channel = |target: &str| ChannelDefinition {
        is_active: false,
        ..ChannelDefinition::amqp("in", "other", "q", Target::Outgoing(target.into()))
    };
    site.registry.create(broker(1)).await.unwrap();
    for (definitions, kind) in [
        (vec![other().into(), out().into(), channel("nobody").into()], ErrorKind::InvalidDefinition),
        (vec![other().into(), out().into(), broker(2).into()], ErrorKind::NameTaken),
        (vec![other().into(), out().into(), out().into()], ErrorKind::NameTaken),
    ] {
        let before = site.registry.export();
        assert_eq!(site.registry.create_all(definitions).await.unwrap_err().kind(), kind);
        assert_eq!(site.registry.export(), before);
    }
    // What refers to others may stand before them.
    site.registry.create_all([channel("out").into(), out().into(), other().into()]).await.unwrap();
    let report = site.registry.report();
    assert_eq!((report.connections.len(), report.outgoing.len(), report.channels.len()), (2, 1, 1));
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn relative_files_count_from_the_folder_of_the_state_file() {
    let peer = Peer::start(Script::confirming()).await;
    let site = Site::new().await;
    common::write_secret(&site.folder.path().join("state/password"), "beside it\n");
    let with_password =
        ConnectionDefinition { password_file: Some("password".into()), ..broker(peer.port()) };
    site.registry.create(with_password.clone()).await.unwrap();
    site.registry.create(outgoing("out", "")).await.unwrap();
    site.registry.send_confirmed("out", message("a", "b"), LIMIT).await.unwrap();
    let login = peer.find("a login", 1, |received| match &received.what {
        What::Login { password, .. } => Some(password.clone()),
        _ => None,
    });
    assert_eq!(login.await, "beside it");
    assert_eq!(site.registry.export().connections, [with_password], "it is written as it was");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_takes_what_the_limit_of_a_body_allows() {
    let site = Site::new().await;
    site.registry.create(broker(1)).await.unwrap();
    let large = || Message::with_mime("a".parse().unwrap(), "binary/bytes", Bytes::from(vec![7; 70 << 20]));
    let out = OutgoingDefinition { is_active: false, ..outgoing("out", "") };
    site.registry.create(out.clone()).await.unwrap();
    site.registry.send("out", large()).await.unwrap();
    assert_eq!(site.registry.outgoing("out").unwrap().spool.entries, 1);
    let smaller = OutgoingDefinition { max_message_size: Some(ByteSize::of(1 << 20)), ..out };
    site.registry.update("out", smaller).await.unwrap();
    // What is beside the body has a limit, too.
    let much = message("a", "b").with_header("long", &"x".repeat(3 << 20));
    let much =
        much.unwrap_or_else(|_| Message::from_frames("a".into(), vec![b'x'; 3 << 20].into(), "b".into()));
    for message in [large(), much] {
        let error = site.registry.send("out", message).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::TooLarge && error.to_string().contains("max_message_size"),
            "{error}"
        );
    }
    site.registry
        .create(OutgoingDefinition {
            is_active: false,
            ..OutgoingDefinition::zmq("z", SendingSocket::Push, "tcp://127.0.0.1:9")
        })
        .await
        .unwrap();
    site.registry.send("z", large()).await.unwrap();
    site.registry.close().await.unwrap();
}

#[test]
fn what_the_page_on_connections_shows_can_be_read() {
    let page = include_str!("../../docs/connect.md");
    let (_, rest) = page.split_once("```toml\n").expect("it shows all that may be declared");
    let (text, _) = rest.split_once("```").expect("the block ends");
    let definitions = Definitions::parse(text).unwrap();
    let defaults = Definitions::default().spool;
    assert_eq!(SpoolDefinition { max_age: None, ..definitions.spool }, defaults, "it shows the defaults");
    assert_eq!((definitions.outgoing.len(), definitions.channels.len()), (2, 2));
    let mut blocks = page.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
    let durable = blocks.find(|block| block.contains("[[durable]]")).expect("it shows one");
    let durables = Definitions::parse(durable).unwrap().durables;
    assert_eq!(durables, [DurableDefinition::new("billing", "rabbit", ["orders"])], "it shows the defaults");
}
