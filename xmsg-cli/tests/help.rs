//! Help, completions and manual pages, which are generated from the same definitions.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use common::{Running, proxy, within, xmsg};

#[tokio::test(flavor = "multi_thread")]
async fn the_help_has_commands_in_groups_on_one_screen() {
    let text = xmsg(&["--help"]).await.text();
    assert!(text.starts_with("Publish and subscribe through an xMsg proxy\n\nUsage: xmsg "), "{text}");
    assert!(text.lines().count() <= 40, "{text}");
    for group in ["Messages", "Inspect", "Measure", "Record", "Registrar", "Connect", "Security"] {
        assert!(text.lines().any(|line| line.starts_with(group)), "{group}: {text}");
    }
    assert_eq!(xmsg(&["help"]).await.text(), text);
    assert_eq!(xmsg(&["-h"]).await.text(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commands_share_is_told_once() {
    let page = xmsg(&["help", "connection"]).await.text();
    for word in
        ["--proxy", "--registrar", "--admin", "--server-key", "--context", "XMSG_PROXY", "contexts.toml"]
    {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert!(xmsg(&["help", "security"]).await.text().contains("CURVE"));
    assert!(xmsg(&["help", "exit-codes"]).await.text().contains("143"));
    for command in ["pub", "sub", "ping", "bench", "connections"] {
        let text = xmsg(&[command, "--help"]).await.text();
        assert!(text.ends_with("xmsg help connection\n") || text.ends_with("xmsg help connection"), "{text}");
        assert_eq!(xmsg(&["help", command]).await.text().trim_end(), text.trim_end());
    }
    let text = xmsg(&["help", "registrar", "find"]).await.text();
    assert!(text.contains("Usage: xmsg registrar find"), "{text}");
    xmsg(&["help", "pubb"]).await.failed(2, "no help about 'pubb'");
    xmsg(&["help", "pub", "x"]).await.failed(2, "`xmsg pub` has no command 'x'");
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_what_is_there_and_nothing_else() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = xmsg(&["completions", shell]).await.text();
        assert!(script.contains("keygen") && script.contains("connect-timeout"), "{shell}");
        assert!(!script.contains("deregister\")"), "{shell}");
        assert!(script.contains("exit-codes"), "{shell}");
    }
    // The script runs in bash itself, after `xmsg keygen --`.
    let script = xmsg(&["completions", "bash"]).await.text();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, script).unwrap();
    let complete = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let asked = format!(
            "source {}\nCOMP_WORDS=({line}); COMP_CWORD={}; _xmsg xmsg '{}' ''; echo \"${{COMPREPLY[*]}}\"",
            file.path().display(),
            words.len() - 1,
            words.last().unwrap()
        );
        let output = std::process::Command::new("bash").args(["-c", &asked]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let keygen = complete("xmsg keygen --");
    assert!(keygen.contains("--show") && !keygen.contains("--server-key"), "{keygen}");
    let publish = complete("xmsg pub --");
    assert!(publish.contains("--server-key") && publish.contains("--proxy"), "{publish}");
    assert_eq!(complete("xmsg fin").trim(), "");
    assert_eq!(complete("xmsg registrar fin").trim(), "find");
    // `xmsg help` completes commands, their subcommands, and pages.
    for (line, word) in [
        ("xmsg help con", "connections connect context connection"),
        ("xmsg help exit", "exit-codes"),
        ("xmsg help sec", "security"),
        ("xmsg help registrar fin", "find"),
        ("xmsg help fin", ""),
    ] {
        assert_eq!(complete(line).trim(), word, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_has_its_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man1");
    xmsg(&["man", dir.to_str().unwrap()]).await.done();
    let page = |name: &str| {
        std::fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for name in
        ["xmsg.1", "xmsg-pub.1", "xmsg-registrar-find.1", "xmsg-context-add.1", "xmsg-bench-latency.1"]
    {
        let text = page(name);
        assert!(text.contains(".TH") && text.contains("SYNOPSIS"), "{name}: {text}");
    }
    assert!(
        page("xmsg-connection.1").contains("XMSG\\_PROXY")
            || page("xmsg-connection.1").contains("XMSG_PROXY")
    );
    assert!(!dir.join("xmsg-find.1").exists());
    assert!(xmsg(&["man"]).await.text().contains(".TH xmsg 1"));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    xmsg(&["man", file.to_str().unwrap()]).await.failed(1, "cannot write manual pages to");
}

/// `--quiet` suppresses notes, but neither errors nor losses.
#[tokio::test(flavor = "multi_thread")]
async fn quiet_says_nothing_but_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    assert!(xmsg(&["keygen", &path("a")]).await.stderr.contains("the secret key is in"));
    let quiet = xmsg(&["-q", "keygen", &path("b")]).await;
    assert_eq!((quiet.stderr.as_str(), quiet.code), ("", Some(0)));
    xmsg(&["keygen", "-q", &path("b")]).await.failed(1, "exists");
    xmsg(&["-q", "-v", "keygen"]).await.failed(2, "cannot be used with");
    let (_proxy, address) = proxy().await;
    let timed_out = ["sub", "a", "-q", "-n", "1", "--timeout", "50ms", "--proxy", &address];
    xmsg(&timed_out).await.failed(27, "timed out: 0 of 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_can_be_had_as_json() {
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let (_proxy, address) = proxy().await;
    let text = xmsg(&["ping", "-n", "2", "--interval", "0", "--json", "--proxy", &address]).await.text();
    let lines: Vec<_> = text.lines().map(json).collect();
    assert_eq!((lines.len(), &lines[0]["ping"], &lines[1]["ping"]), (3, &1.into(), &2.into()), "{text}");
    assert!(lines[0]["round_trip_ms"].as_f64() > Some(0.0) && lines[1]["handshake_ms"].as_f64() > Some(0.0));
    assert_eq!((&lines[2]["pings"], &lines[2]["lost"]), (&2.into(), &0.into()));
    assert_eq!(lines[2]["proxy"], *address);

    let keys = json(&xmsg(&["keygen", "--json"]).await.text());
    assert_eq!(keys["public_key"].as_str().map(str::len), keys["secret_key"].as_str().map(str::len));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys").display().to_string();
    let made = json(&xmsg(&["keygen", "--json", &path]).await.text());
    assert!(made["file"] == *path && made.get("secret_key").is_none(), "{made}");
    assert_eq!(json(&xmsg(&["keygen", "--json", "--show", &path]).await.text()), made);
}

/// Old names and old forms still work.
#[tokio::test(flavor = "multi_thread")]
async fn options_have_one_name_and_their_old_ones() {
    let mut registrar = Running::start(&["registrar", "--port", "0"]);
    let line = registrar.said("registrar at ").await;
    let address = line.split(' ').nth(3).unwrap().to_owned();
    for list in [&["list"][..], &["registrar", "list"], &["find", "a"], &["registrar", "find", "a"]] {
        assert_eq!(xmsg(&[list, &["--registrar", &address]].concat()).await.text(), "");
    }
    registrar.signal("INT");
    assert_eq!(within("its end", registrar.end()).await.code, Some(130));
    let mut registrar = Running::start(&["registrar", "run", "--port", "0", "--ttl", "0"]);
    registrar.said("registrar at ").await;
    registrar.signal("INT");
    assert_eq!(within("its end", registrar.end()).await.code, Some(130));
    for time in [&["--for", "100ms"], &["--duration", "100ms"], &["-d", "0.1"]] {
        xmsg(&[&["demo", "--size", "1KiB", "--rate", "10"], &time[..]].concat()).await.done();
        xmsg(&[&["bench", "--embedded", "--warmup", "0"], &time[..]].concat()).await.done();
    }
}
