//! The exit codes of `xmsg`, and its last messages.

mod common;

use std::time::Duration;

use common::{Running, proxy, publish, within, xmsg};

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_say_what_is_wrong() {
    let cases: &[(&[&str], &str)] = &[
        (&["pub"], "TOPIC"),
        (&["sub"], "TOPIC"),
        (&["publish", "a"], "unrecognized subcommand"),
        (&["pub", "*:x", "1"], "domain of a topic can't be `*`"),
        (&["pub", "", "1"], "no domain"),
        (&["sub", "*:x"], "domain of a topic can't be `*`"),
        (&["pub", "a", "1", "--proxy", "host:70000"], "no usable port"),
        (&["sub", "a", "--proxy", "host:65535"], "three ports"),
        (&["sub", "a", "--proxy", "a b"], "not a host"),
        (&["pub", "a", "1", "--color"], "--color"),
        (&["pub", "a", "1", "--meta", "colour=red"], "keys: version, description, author"),
        (&["pub", "a", "1", "--meta", "status=fine"], "info, warning, error"),
        (&["pub", "a", "xyz", "--hex"], "not hexadecimal"),
        (&["pub", "a", "*", "--base64"], "not base64"),
        (&["pub", "a", "x", "--mime", "binary/double"], "not a value of --mime binary/double"),
        (&["pub", "a", "{{Now}}", "--template"], "`{{Now}}` is not known"),
        (&["pub", "a", "x", "-f", "y"], "cannot be used with"),
        (&["pub", "a", "-l", "-0"], "cannot be used with"),
        (&["pub", "a", "x", "--rate", "0"], "not a rate"),
        (&["pub", "a", "x", "--linger", "soon"], "the unit `soon`"),
        (&["sub", "a", "--timeout", "10 parsecs"], "the unit `parsecs`"),
        (&["sub", "a", "--format", "%z"], "`%z` is not known"),
        (&["sub", "a", "--json", "--raw"], "cannot be used with"),
        (&["sub", "a", "-n", "0"], "0"),
        (&["sub", "a", "--connect-timeout", "0"], "time limit of the connection check is 0"),
        (&["pub", "a", "-5"], "use '-- -5'"),
        (&["demo", "--size", "1"], "1"),
    ];
    for (arguments, says) in cases {
        let ended = xmsg(arguments).await;
        assert!(ended.stdout.is_empty() && ended.code == Some(2), "{arguments:?}: {}", ended.stderr);
        ended.failed(2, says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proxy_the_address_is_named() {
    let (proxy, address) = proxy().await;
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    for command in ["pub", "sub"] {
        let arguments = [command, "a", "--proxy", &address, "--connect-timeout", "300ms"];
        xmsg(&arguments).await.failed(3, &address);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_named() {
    let (_proxy, address) = proxy().await;
    xmsg(&["pub", "a", "-f", "/does/not/exist", "--proxy", &address]).await.failed(1, "/does/not/exist");
    xmsg(&["pub", "a", "-f", "/", "--proxy", &address]).await.failed(1, "reading failed");

    let mut publisher = Running::start(&["pub", "a", "-l", "--mime", "binary/sint32", "--proxy", &address]);
    publisher.type_in(b"1\n2\nthree\n").await;
    publisher.end().await.failed(1, "message 3: not a value of --mime binary/sint32: `three`");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_runs_out() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["a", "-n", "2", "--timeout", "1s"]).await;
    publish(&address, &["a", "x"], b"").await;
    let ended = subscriber.end().await;
    assert_eq!(ended.stdout, b"a x\n");
    ended.failed(27, "timed out: 1 of 2 messages arrived");

    // Without a count, only the time was requested.
    assert_eq!(xmsg(&["sub", "a", "--timeout", "50ms", "--proxy", &address]).await.done(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_writes_what_there_is() {
    let (_proxy, address) = proxy().await;
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let subscriber = Running::subscribe(&address, &["a"]).await;
        let second = Running::subscribe(&address, &["a", "-n", "1"]).await;
        publish(&address, &["a", "x"], b"").await;
        second.end().await.done();
        subscriber.signal(signal);
        let ended = subscriber.end().await;
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(ended.stderr.contains("received"), "{}", ended.stderr);
    }
    // The subscriber is blocked, because nobody reads its output.
    let (mut blocked, stdout) = Running::start_unread(&["-v", "sub", "a", "--raw", "--proxy", &address]);
    blocked.said("subscribed").await;
    publish(&address, &["a", "{{Random 1000000}}", "--template", "--count", "4"], b"").await;
    blocked.signal("INT");
    assert_eq!(blocked.end().await.code, Some(130));
    drop(stdout);

    let mut publisher = Running::start(&["-v", "pub", "b", "x", "--wait-sub", "--proxy", &address]);
    publisher.said("waiting for a subscriber").await;
    publisher.signal("INT");
    assert_eq!(publisher.end().await.code, Some(130));
    let endless = Running::start(&["pub", "b", "x", "--count", "1000000000000", "--proxy", &address]);
    let mut witness = Running::subscribe(&address, &["b", "-n", "1"]).await;
    witness.said("received").await;
    endless.signal("INT");
    assert_eq!(endless.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_is_an_error() {
    let (proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["a", "-n", "1"]).await;
    let mut publisher = Running::start(&["pub", "a", "-l", "--linger", "0.2", "--proxy", &address]);
    publisher.type_in(b"one\n").await;
    subscriber.end().await.done();
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    publisher.said("was lost").await;
    publisher.type_in(b"two\nthree\n").await;
    publisher.end().await.failed(1, "2 of 3 messages could not be sent");
}

/// A publisher whose proxy is away and that is interrupted says what it waits for, and has the exit code of
/// an interrupt.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_publisher_says_what_it_waits_for() {
    let (proxy, address) = proxy().await;
    let start = async |linger: &str| {
        let mut publisher = Running::start(&["pub", "a", "-l", "--linger", linger, "--proxy", &address]);
        let witness = Running::subscribe(&address, &["a", "-n", "1"]).await;
        publisher.type_in(b"one\n").await;
        witness.end().await.done();
        publisher
    };
    let (mut patient, mut hasty) = (start("600").await, start("1").await);
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    for publisher in [&mut patient, &mut hasty] {
        publisher.said("was lost").await;
        publisher.type_in(b"two\n").await;
    }
    patient.signal("INT");
    let said = patient.said("interrupted: waiting up to 600 s for").await;
    assert_waiting(&said, |waiting| {
        format!(
            "interrupted: waiting up to 600 s for {address} to take {waiting}; interrupt again to end at once"
        )
    });
    patient.signal("INT");
    patient.end().await.failed(130, " not sent");
    // The input stays open, because the publisher would wait at its end in any case.
    let input = hasty.stdin.take();
    hasty.signal("TERM");
    hasty.end().await.failed(143, "1 of 2 messages could not be sent");
    drop(input);
}

/// Checks that a publisher says for how many of its two messages it waits. The proxy may have confirmed the
/// first one before it ended, or not.
fn assert_waiting(said: &str, expected: impl Fn(&str) -> String) {
    let expected = ["1 message", "2 messages"].map(expected);
    assert!(expected.iter().any(|expected| said.contains(expected)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_at_the_end_of_its_input_says_what_it_waits_for() {
    let (proxy, address) = proxy().await;
    let mut publisher = Running::start(&["pub", "a", "-l", "--linger", "600", "--proxy", &address]);
    let witness = Running::subscribe(&address, &["a", "-n", "1"]).await;
    publisher.type_in(b"one\n").await;
    witness.end().await.done();
    within("the end of the proxy", proxy.stop(Duration::from_secs(5))).await;
    publisher.said("was lost").await;
    publisher.type_in(b"two\n").await;
    drop(publisher.stdin.take());
    let said = publisher.said("waiting up to 600 s for").await;
    assert_waiting(&said, |waiting| {
        format!("waiting up to 600 s for {address} to take {waiting}; interrupt to end at once")
    });
    publisher.signal("INT");
    publisher.end().await.failed(130, "1 message not sent");
}

/// With a time limit, a reader that has stalled does not keep a subscriber from ending.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_holds_while_nobody_reads_the_output() {
    let (_proxy, address) = proxy().await;
    let mut all_blocked = Vec::new();
    for how in [&["--raw"][..], &[], &["--json"], &["--format", "%p"]] {
        // All of them start, and the messages come, before that.
        let arguments = [&["-v", "sub", "a", "--timeout", "12s", "--proxy", &address], how].concat();
        let (mut blocked, stdout) = Running::start_unread(&arguments);
        blocked.said("subscribed").await;
        all_blocked.push((how, blocked, stdout));
    }
    publish(&address, &["a", "{{Random 1000000}}", "--template", "--count", "4"], b"").await;
    for (how, blocked, stdout) in all_blocked {
        let ended = blocked.end().await;
        assert_eq!(ended.code, Some(0), "{how:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("nobody reads"), "{how:?}: {}", ended.stderr);
        drop(stdout);
    }
}

/// Errors about security name the option or variable that the user gave.
#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_option_or_the_variable_that_was_given() {
    let key = "a".repeat(40);
    for (arguments, code, named) in [
        (&["--server-key", "abc"][..], 2, "--server-key: "),
        (&["--server-key", &key, "--key-file", "/no/such/file"], 1, "--key-file: "),
        (&["--key-file", "/no/such/file"], 2, "--key-file is given without --server-key"),
        (&["--user", "me"], 2, "--user is given without --password-file"),
        (&["--user", "me", "--server-key", &key], 2, "--server-key means CURVE and --user means PLAIN"),
        (&["--user", "me", "--password-file", "/no/such/file"], 1, "--password-file: "),
    ] {
        let ended = xmsg(&[&["ping"], arguments].concat()).await;
        assert!(!ended.stderr.contains("XMSG_"), "{}", ended.stderr);
        ended.failed(code, named);
    }
    let with_variable = Running::start_with(&[("XMSG_SERVER_KEY", "abc")], &["ping"]).end().await;
    with_variable.failed(2, "XMSG_SERVER_KEY in the environment: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_arguments_show_the_help() {
    let ended = xmsg(&[]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("Usage: xmsg") && ended.stdout.is_empty());
    assert!(xmsg(&["--help"]).await.text().contains("Exit codes:"));
    assert!(xmsg(&["--version"]).await.text().starts_with("xmsg "));
}

/// A subscriber whose output nobody reads is too slow, and reports what the proxy had to drop for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_is_too_slow_says_so() {
    let config = xmsg_proxy::Config {
        high_water_mark: xmsg_zmq::HighWaterMark::bytes(64 << 10),
        ..xmsg_proxy::Config::default()
    };
    let proxy = xmsg_proxy::Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let address = proxy.address().to_string();
    let (mut slow, mut stdout) = Running::start_unread(&["-v", "sub", "a", "--raw", "--proxy", &address]);
    slow.said("subscribed").await;
    let dropped =
        || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>() > 0;
    while !dropped() {
        publish(&address, &["a", "{{Random 1000000}}", "--template", "--count", "40"], b"").await;
    }
    // The subscriber learns of the dropped messages when it reads on.
    let reading = tokio::spawn(async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await });
    let note = slow.said("dropped by the proxy: this subscriber is too slow").await;
    assert!(note.starts_with("xmsg: ") && note.contains(" message"), "{note}");
    slow.signal("INT");
    slow.end().await;
    reading.await.unwrap().unwrap();
}
