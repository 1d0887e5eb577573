//! Command lines that cannot work. Each ends with its exit code, and the error says what is wrong, where, and
//! what to do.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::time::{Duration, Instant};

use common::terminal::Terminal;
use common::{Running, proxy, xmsg};

/// Arguments, exit code, and words of the error. `{nowhere}` is an address where nothing listens, `{proxy}`,
/// `{subscribers}` and `{control}` are the ports of a proxy, `{folder}` is a folder, `{file}` is a file.
const ROWS: &[(&str, i32, &[&str])] = &[
    // Commands.
    ("pubb a b", 2, &["unrecognized subcommand 'pubb'", "'pub'"]),
    ("help pubb", 2, &["no help about 'pubb'", "pub, sub"]),
    ("registrar lst", 2, &["'lst'", "list"]),
    ("completions tcsh", 2, &["'tcsh'", "bash, elvish, fish"]),
    ("context", 2, &["Usage: xmsg context"]),
    // Missing or superfluous arguments.
    ("pub", 2, &["<TOPIC>", "Usage: xmsg pub"]),
    ("sub", 2, &["<TOPIC>"]),
    ("reply a", 2, &["what to reply?", "--echo"]),
    ("register a --name x", 2, &["--publisher|--subscriber"]),
    ("deregister a --name x", 2, &["--publisher or --subscriber"]),
    ("keygen --show", 2, &["<FILE>"]),
    ("passwd {file}", 2, &["<USER>"]),
    ("pub a x -f y", 2, &["cannot be used with"]),
    ("ping -q -v", 2, &["--quiet", "cannot be used with", "--verbose"]),
    ("connections end", 2, &["<ID>"]),
    ("connections end abc", 2, &["not the number of a connection"]),
    ("connect", 2, &["Usage: xmsg connect"]),
    ("connect lst", 2, &["'lst'", "list"]),
    ("connect show", 2, &["<NAME>"]),
    ("connect show a --sort socket", 2, &["'socket' for '--sort <SORT>'"]),
    ("connect rm a --drain 1m --purge", 2, &["cannot be used with"]),
    ("connect rm a --drain soon", 2, &["the unit `soon`"]),
    ("connect dead a --revive 1 --discard-all", 2, &["cannot be used with"]),
    ("connect dead a --sort channel", 2, &["a channel has no messages"]),
    ("connect send a x --property priority", 2, &["'priority' for '--property", "`=`"]),
    ("connect send a x --header X:=three", 2, &["a number, true or false"]),
    ("connect send a x --mime text", 2, &["is no mime type"]),
    ("connect add {folder}/none.toml", 1, &["cannot open {folder}/none.toml"]),
    ("connect list --proxy a", 2, &["'--proxy'"]),
    ("connect list --admin {nowhere}", 3, &["nobody serves HTTP", "xmsg-proxy --admin"]),
    // Options that the command does not use.
    ("keygen --proxy a", 2, &["'--proxy'"]),
    ("keygen --server-key a", 2, &["'--server-key'"]),
    ("--server-key a keygen", 2, &["'--server-key' means nothing to `xmsg keygen`"]),
    ("--context a passwd {file} me", 2, &["'--context' means nothing to `xmsg passwd`"]),
    ("completions bash --registrar a", 2, &["'--registrar'"]),
    // Numbers.
    ("pub a b --count many", 2, &["'many' for '--count", "not a whole number", "1e6"]),
    ("pub a b --count 1.5", 2, &["not a whole number"]),
    ("pub a b --count 1,000", 2, &["not a whole number, such as 1000"]),
    ("pub a b --count -1", 2, &["'-1' for '--count", "give 1 or more"]),
    ("pub a b -n 0", 2, &["give 1 or more"]),
    ("sub a -n 1e30", 2, &["too large"]),
    ("reply a b --concurrency 1e6", 2, &["give 1 to 65535"]),
    ("demo --publishers 5000", 2, &["give 1 to 1000"]),
    ("bench --threads 0", 2, &["give 1 to 1024"]),
    ("bench -p 0", 2, &["give 1 to 10000"]),
    ("bench --size 1TB", 2, &["32 MiB at most"]),
    ("demo --size 1", 2, &["12 or more"]),
    ("demo --size 1x", 2, &["the unit `x`", "KiB"]),
    ("bench latency --rate 0", 2, &["not a rate", "above 0"]),
    ("pub a b --rate 1/s", 2, &["not a rate"]),
    ("registrar run --port 99999", 2, &["give 0 to 65535"]),
    ("find a --filter --port 0", 2, &["give 1 to 65535"]),
    // Durations.
    ("pub a b --linger soon", 2, &["the unit `soon`", "ms, s, m"]),
    ("sub a --timeout 10parsecs", 2, &["'10parsecs' for '--timeout <DURATION>'", "the unit `parsecs`"]),
    ("sub a --timeout -1", 2, &["'-1' for '--timeout", "not a time"]),
    ("req a b --timeout 0", 2, &["--timeout can't be 0"]),
    ("registrar run --ttl 1y", 2, &["the unit `y`"]),
    // Topics and data.
    ("sub *", 2, &["domain of a topic can't be `*`"]),
    ("pub *:a 1", 2, &["domain of a topic can't be `*`"]),
    ("sub a --format %q", 2, &["`%q` is not known", "%t %m"]),
    ("pub a 1 --mime text/sting", 2, &["`text/sting` is not known here", "is `text/string` meant?"]),
    ("pub a 1 --mime binary/dobule", 2, &["is `binary/double` meant?"]),
    ("reply a 1 --mime double", 2, &["is no mime type", "is `binary/double` meant?"]),
    ("req a 1 --mime whatever", 2, &["is no mime type", "two parts"]),
    ("pub a xyz --mime binary/sint32", 2, &["not a value of --mime binary/sint32: `xyz`"]),
    ("pub a xyz --hex", 2, &["not hexadecimal"]),
    ("pub a 1 --meta status=fine", 2, &["info, warning, error"]),
    // Addresses.
    ("ping --proxy a:70000", 2, &["invalid value 'a:70000' for --proxy: ", "no usable port"]),
    ("ping --proxy 127.0.0.1:65535", 2, &["for --proxy: ", "three ports"]),
    ("ping --proxy http://localhost", 2, &["leave out `http://`"]),
    ("ping --proxy=", 2, &["--proxy is empty"]),
    ("registrar list --registrar a:0", 2, &["for --registrar: ", "can't be 0"]),
    ("connections --admin a:70000", 2, &["for --admin: ", "HOST:PORT"]),
    ("connections --admin https://a", 2, &["for --admin: ", "no TLS"]),
    // Nothing listens at the address.
    (
        "ping -n 1 --proxy {nowhere}",
        3,
        &["{nowhere}: nobody listens there", "Start one with `xmsg-proxy`", "--proxy"],
    ),
    (
        "pub a b --proxy no.such.host.invalid",
        3,
        &["no.such.host.invalid", "no such host", "is its name right?"],
    ),
    (
        "ping -n 1 --proxy {subscribers}",
        3,
        &["another port of a proxy", "is {proxy} meant?", "a port for subscribers"],
    ),
    (
        "ping -n 1 --proxy {control}",
        3,
        &["another port of a proxy", "is {proxy} meant?", "a port for requests"],
    ),
    (
        "list --registrar {nowhere}",
        3,
        &["no registrar at {nowhere}: nobody listens there", "`xmsg registrar run`"],
    ),
    ("registrar find a --registrar {nowhere}", 3, &["no registrar at {nowhere}: nobody listens there"]),
    ("registrar register a --name x --publisher --registrar {nowhere}", 3, &["no registrar at {nowhere}"]),
    ("deregister a --name x --publisher --registrar {nowhere}", 3, &["no registrar at {nowhere}"]),
    (
        "registrar list --registrar no.such.host.invalid",
        3,
        &["no.such.host.invalid:8888: this host is not known"],
    ),
    ("registrar list --registrar {proxy}", 3, &["a port for publishers"]),
    ("connections --admin {nowhere}", 3, &["nobody serves HTTP at http://{nowhere}", "xmsg-proxy --admin"]),
    ("registrar run --host no.such.host.invalid", 2, &["--host: ", "no.such.host.invalid"]),
    // Files and folders.
    ("pub a -f {folder}/none/x --proxy {proxy}", 1, &["{folder}/none/x", "No such file"]),
    ("record {folder}/none/a.xmr", 1, &["the folder {folder}/none is not there: make it"]),
    ("record {file}/a.xmr", 1, &["the folder {file} is no folder"]),
    ("record --force {folder}", 1, &["it is a folder: name a file"]),
    ("replay {folder}/none.xmr", 1, &["{folder}/none.xmr", "No such file"]),
    ("replay {file}", 1, &["is not a recording of `xmsg record`"]),
    ("bench --embedded --plot {folder}/none/a.svg", 1, &["the folder {folder}/none is not there"]),
    ("keygen {folder}/none/key", 1, &["the folder {folder}/none is not there"]),
    ("keygen {file}", 1, &["{file}", "exists"]),
    ("passwd {folder}/none/users me", 1, &["the folder {folder}/none is not there"]),
    ("passwd {folder}/users a:b", 2, &["neither `:` nor `#`"]),
    ("passwd {folder}/users me", 2, &["no password on standard input"]),
    ("registrar run --port 0 --snapshot {folder}/none/s", 1, &["the folder {folder}/none is not there"]),
    ("man {file}", 1, &["cannot write manual pages to {file}"]),
    // Credentials.
    ("ping --server-key abc", 2, &["--server-key: ", "40 characters", "xmsg keygen"]),
    ("ping --key-file {file}", 2, &["--key-file is given without --server-key"]),
    ("ping --user me", 2, &["--user is given without --password-file"]),
    ("ping --context none", 2, &["no context \"none\"", "--context", "xmsg context add"]),
    ("connections --admin-token-file {folder}/none", 1, &["--admin-token-file: ", "{folder}/none"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_says_what_is_wrong_and_what_to_do() {
    let (_proxy, address) = proxy().await;
    let (host, port) = address.rsplit_once(':').unwrap();
    let [subscribers, control] = [1, 2].map(|n| format!("{host}:{}", port.parse::<u16>().unwrap() + n));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "nothing of use\n".repeat(100)).unwrap();
    let filled = |text: &str| {
        text.replace("{nowhere}", "127.0.0.1:1")
            .replace("{proxy}", &address)
            .replace("{subscribers}", &subscribers)
            .replace("{control}", &control)
            .replace("{folder}", folder.path().to_str().unwrap())
            .replace("{file}", file.to_str().unwrap())
    };
    let mut wrong: Vec<String> = Vec::new();
    for (line, code, words) in ROWS {
        let arguments: Vec<_> = line.split(' ').map(filled).collect();
        let ended = xmsg(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let missing: Vec<_> = words.iter().filter(|word| !ended.stderr.contains(&filled(word))).collect();
        if ended.code != Some(*code) || !ended.stdout.is_empty() || !missing.is_empty() {
            wrong.push(format!(
                "xmsg {line}: {:?} for {code}, without {missing:?}: {}",
                ended.code, ended.stderr
            ));
        }
        // Errors must not expose how a value is stored or parsed.
        for word in ["digit found", "target type", "os error 2) at path"] {
            assert!(!ended.stderr.contains(word), "xmsg {line}: {}", ended.stderr);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A missing registrar is reported at once, in one sentence. The client itself would wait for it until its
/// time limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_registrar_that_is_not_there_is_told_at_once() {
    /// The default of `--registrar-timeout`.
    const TIME_LIMIT: Duration = Duration::from_secs(3);
    for command in [&["list"][..], &["find", "a"]] {
        let arguments = [command, &["--registrar", "127.0.0.1:1"]].concat();
        // On a busy machine a process sometimes starts slowly, but not in every attempt.
        let mut times = Vec::new();
        while times.last().is_none_or(|time| *time >= TIME_LIMIT) {
            assert!(times.len() < 10, "{times:?} for {command:?}");
            let started = Instant::now();
            let ended = xmsg(&arguments).await;
            times.push(started.elapsed());
            let told = "xmsg: no registrar at 127.0.0.1:1: nobody listens there";
            assert_eq!(ended.stderr.lines().next(), Some(told), "{command:?}");
            ended.failed(3, "Start one with `xmsg registrar run`");
        }
    }
}

/// Counts may be written in short forms.
#[tokio::test(flavor = "multi_thread")]
async fn large_counts_can_be_written_in_short() {
    let (_proxy, address) = proxy().await;
    let subscriber = Running::subscribe(&address, &["a", "-n", "1e3", "--raw"]).await;
    let ended = xmsg(&["-v", "pub", "a", "x", "-n", "1_000", "--proxy", &address]).await;
    assert!(ended.stderr.contains("published 1,000 messages"), "{}", ended.stderr);
    assert_eq!(subscriber.end().await.done().len(), 1000);
}

/// On a terminal, a password is typed twice and never shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_not_shown_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    let type_in = async |first: &str, second: &str| {
        let mut terminal = Terminal::start(80, 24, &[], &["passwd", users.to_str().unwrap(), "alice"]);
        for (prompt, answer) in [("Password: ", first), ("The same again: ", second)] {
            terminal.shows(prompt, |text| text.contains(prompt.trim_end())).await;
            terminal.press(&format!("{answer}\n"));
        }
        let code = terminal.end().await;
        let shown = terminal.shows("what became of it", |text| text.contains("xmsg: ")).await;
        assert!(!terminal.written().contains("sesame"), "{shown}");
        (code, shown)
    };
    let (code, shown) = type_in("open sesame", "open sesame").await;
    assert!(code == Some(0) && shown.contains("added"), "{shown}");
    let before = std::fs::read_to_string(&users).unwrap();
    assert!(before.starts_with("alice:"), "{before}");
    let (code, shown) = type_in("open sesame", "open cezame").await;
    assert!(code == Some(1) && shown.contains("the two passwords differ"), "{shown}");
    assert_eq!(std::fs::read_to_string(&users).unwrap(), before);
}
