//! Where settings come from, what is said of bad ones, and what SIGHUP takes over.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;
use xmsg_core::security::{KeyPair, Password, Security};
use xmsg_core::{
    ConnectOptions, Connection, ErrorKind, OwnerType, Registrar, RegistrarAddress, Registration, Topic,
};
use xmsg_proxy::security::hash_password;
use xmsg_tests::process::{Daemon, finish, run};
use xmsg_tests::{http, patient, within};
use xmsg_zmq::{Endpoint, Requester, SocketEvent, SocketOptions, Subscriber};

const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");
const REGISTRAR: &str = env!("CARGO_BIN_EXE_xmsg-registrar");

/// A file with this text.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Writes a file that only its owner can read.
fn secret(folder: &Path, name: &str, text: &str) -> String {
    let path = file(folder, name, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn output(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The settings that a proxy would have.
async fn printed(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(PROXY);
    command.arg("--print-config").args(arguments).envs(environment.iter().copied()).env_remove("RUST_LOG");
    for (name, value) in environment {
        command.env(name, value);
    }
    let (code, text, error) = output(&finish(command).await);
    assert_eq!(code, Some(0), "{error}");
    text
}

#[tokio::test]
async fn flags_go_over_the_environment_and_both_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = file(
        folder.path(),
        "a.toml",
        "port = 1001\nlinger_s = 1\npublishers_send = \"all\"\n[log]\nfilter = \"error\"",
    );
    let from = async |arguments: &[&str], environment: &[(&str, &str)], key: &str| {
        let text = printed(&[&["--config", &config], arguments].concat(), environment).await;
        text.lines().find(|line| line.starts_with(key)).map(str::to_owned)
    };
    let port = [("XMSG_PROXY_PORT", "1002")];
    assert_eq!(from(&[], &[], "port").await.unwrap(), "port = 1001");
    assert_eq!(from(&[], &port, "port").await.unwrap(), "port = 1002");
    assert_eq!(from(&["--port", "1003"], &port, "port").await.unwrap(), "port = 1003");
    assert_eq!(
        from(&["--publishers-send-all=false"], &[], "publishers_send").await.unwrap(),
        "publishers_send = \"subscribed\""
    );

    let (debug, rust_log) = (("XMSG_PROXY_DEBUG", "1"), ("RUST_LOG", "warn"));
    for (arguments, environment, filter) in [
        (&[][..], &[][..], "error"),
        (&[], &[debug], "debug"),
        (&[], &[debug, rust_log], "warn"),
        (&[], &[("RUST_LOG", "")], "error"),
        (&["--verbose"], &[rust_log], "debug"),
        (&["--verbose", "--log-filter", "trace"], &[rust_log], "trace"),
    ] {
        let found = from(arguments, environment, "filter").await;
        assert_eq!(found.unwrap(), format!("filter = \"{filter}\""), "{arguments:?} {environment:?}");
    }
}

/// Whatever a flag says can stand in the file: what is printed with it reads back to the same.
#[tokio::test]
async fn every_flag_has_its_place_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let defaults = printed(&[], &[]).await;
    for flags in [
        &["--host", "::1"][..],
        &["--port", "0"],
        &["--slow-subscriber", "block"],
        &["--high-water-mark", "1"],
        &["--high-water-mark-messages", "9"],
        &["--queue-ceiling", "9"],
        &["--max-message-size", "9"],
        &["--publishers-send-all"],
        &["--upstream", "daq", "--upstream", "tcp://site:5556"],
        &["--registrar"],
        &["--registrar", "9"],
        &["--registrar", "--registrar-snapshot", "relative"],
        &["--threads", "0"],
        &["--linger", "0.125"],
        &["--admin", "off"],
        &["--admin", "localhost:0"],
        &["--admin", "9"],
        &["--log-format", "json"],
        &["--log-filter", "info,xmsg_proxy::switch=debug"],
        &["--verbose"],
    ] {
        let first = printed(flags, &[]).await;
        assert_ne!(first, defaults, "{flags:?}");
        let path = file(folder.path(), "printed.toml", &first);
        assert_eq!(printed(&["--config", &path], &[]).await, first, "{flags:?}");
    }
    assert_eq!(printed(&["--registrar", "off", "--admin"], &[]).await, defaults);
    // What is printed reads back to the same: so it names no port that nobody has asked for.
    let in_environment = printed(&[], &[("XMSG_PROXY_ADMIN", "off")]).await;
    assert!(defaults.contains("[admin]\nenabled = true\n") && !defaults.contains("listen ="), "{defaults}");
    assert!(in_environment.contains("[admin]\nenabled = false\n"), "{in_environment}");
}

#[tokio::test]
async fn a_configuration_is_checked_without_starting_anything() {
    let folder = tempfile::tempdir().unwrap();
    // Its port is taken, which only matters to those who bind it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = secret(folder.path(), "token", "0123456789abcdef\n");
    let open = file(folder.path(), "open", "0123456789abcdef\n");
    let text = format!(
        "port = {port}\n[admin]\nenabled = true\nlisten = \"0.0.0.0:{port}\"\ntoken_file = \"token\""
    );
    let good = file(folder.path(), "good.toml", &text);
    let (code, said, error) = output(&run(PROXY, &["--config", &good, "--check-config"]).await);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(said.contains("good"), "{said}");

    std::fs::write(&token, "short").unwrap();
    let missing = folder.path().join("missing.toml").display().to_string();
    let unknown = file(folder.path(), "unknown.toml", "# one\nport = 1\n\n[log]\nlevel = \"x\"\n");
    let broken = file(folder.path(), "broken.toml", "port 1");
    let snapshot =
        file(folder.path(), "snapshot.toml", "[registrar]\nenabled = true\nsnapshot = \"no/folder/x\"");
    for (arguments, says) in [
        (&["--config", &good][..], &["token", "16 to 1024"][..]),
        (&["--config", &missing], &["missing.toml", "No such file"]),
        (&["--config", &unknown], &["unknown.toml, line 5", "\"level\"", "take it out", "filter"]),
        (&["--config", &broken], &["broken.toml, line 1"]),
        (&["--config", &snapshot], &["no/folder", "make it"]),
        (&["--admin", "0.0.0.0:0"], &["without a token", "--admin-token-file"]),
        (&["--admin-token-file", &missing], &["missing.toml"]),
        (&["--admin-token-file", &open], &["open", "chmod 600"]),
        (&["--log-filter", "a=b=c"], &["a=b=c", "RUST_LOG"]),
        (&["--registrar-snapshot", "/x"], &["--registrar"]),
    ] {
        let (code, said, error) = output(&run(PROXY, &[arguments, &["--check-config"]].concat()).await);
        assert_eq!((code, said.as_str()), (Some(2), ""), "{arguments:?}: {error}");
        assert!(says.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
        // What is no good does not start, either; but for the folder, which is looked for when it is wanted.
        if !error.contains("make it") {
            assert_eq!(run(PROXY, arguments).await.status.code(), Some(2), "{arguments:?}");
        }
    }
    let (code, _, error) = output(&run(REGISTRAR, &["--config", &good, "--check-config"]).await);
    assert_eq!(code, Some(2), "{error}");
}

/// A daemon with this configuration, and the address of its HTTP server.
async fn start(config: &Path, arguments: &[&str]) -> (Daemon, xmsg_core::ProxyAddress, String) {
    let mut command = Command::new(PROXY);
    command.arg("--config").arg(config).args(arguments).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let proxy = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let line = daemon.line().await;
    (daemon, proxy, line.strip_prefix("HTTP at http://").unwrap().to_owned())
}

fn config(folder: &Path, text: &str) -> PathBuf {
    let mut all = "port = 0\n".to_owned();
    let _ = write!(all, "{text}");
    if !text.contains("[admin]") {
        all.push_str("\n[admin]\nenabled = true\nlisten = \"127.0.0.1:0\"\n");
    }
    PathBuf::from(file(folder, "proxy.toml", &all))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_takes_over_what_it_can_and_names_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), "linger_s = 30\n[log]\nfilter = \"info\"");
    let (mut daemon, proxy, admin) = start(&path, &["--threads", "2"]).await;

    config(folder.path(), "linger_s = 0\nhost = \"::1\"\nthreads = 4\n[log]\nfilter = \"debug\"");
    daemon.signal("HUP").await;
    let reloaded = daemon.logged(&["configuration reloaded"]).await;
    assert!(reloaded.contains("taken_over=2") && reloaded.contains("needs_restart=1"), "{reloaded}");
    daemon.logged(&["taken over", "setting=\"linger_s\"", "30.0", "0.0"]).await;
    daemon.logged(&["needs a restart", "setting=\"host\"", "::1"]).await;
    assert!(
        !daemon.log_lines().iter().any(|line| line.contains("\"threads\"")),
        "the flag still goes over it"
    );

    // Now that everything is logged, so is a connection; and those from before are still there.
    let connection = Connection::with_options(proxy, patient()).unwrap();
    connection.connect().await.unwrap();
    daemon.logged(&["DEBUG", "connected", "Publishers"]).await;
    let varz: serde_json::Value = serde_json::from_str(&http::get(&admin, "/varz").await.body).unwrap();
    assert_eq!(varz["config"]["linger_s"], 0.0);
    assert_eq!(varz["config"]["host"], "127.0.0.1");

    config(folder.path(), "linger_s = 7\nlinger = 8");
    daemon.signal("HUP").await;
    daemon.logged(&["not reloaded", "proxy.toml, line 3", "\"linger\""]).await;
    let varz: serde_json::Value = serde_json::from_str(&http::get(&admin, "/varz").await.body).unwrap();
    assert_eq!(varz["config"]["linger_s"], 0.0, "nothing of it was taken over");
    assert!(connection.is_connected());

    // With the linger of 30 s that it was started with it would wait for the publisher to take leave.
    let _silent = xmsg_tests::raw::Raw::handshake(connection.address().publish_port(), "PUB").await;
    daemon.signal("TERM").await;
    daemon.logged(&["stopping", "linger_s=0.0"]).await;
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_file_sighup_changes_nothing() {
    let mut command = Command::new(REGISTRAR);
    command.args(["--port", "0"]).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    daemon.line().await;
    daemon.signal("HUP").await;
    daemon.logged(&["no configuration file"]).await;
    daemon.logged(&["configuration reloaded", "taken_over=0", "needs_restart=0"]).await;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_can_be_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), "[log]\nformat = \"json\"");
    let (mut daemon, ..) = start(&path, &[]).await;
    daemon.signal("TERM").await;
    let line = daemon.logged(&["stopping"]).await;
    assert!(daemon.end().await.success());
    let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(entry["level"], "INFO");
    assert_eq!(entry["message"], "stopping: delivering what is queued");
    assert_eq!(entry["linger_s"], 5.0);
    assert!(entry["timestamp"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_takes_over_keys_and_rights() {
    let folder = tempfile::tempdir().unwrap();
    let (server, first, second) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let key_file =
        file(folder.path(), "key", &format!("secret-key = \"{}\"", *server.secret().expose_text()));
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let allowing = |clients: &[&KeyPair]| {
        let mut text = "[security]\nmechanism = \"curve\"\nkey_file = \"key\"\n".to_owned();
        for client in clients {
            write!(text, "[[security.client]]\nkey = '{}'\npublish = [\"a\"]\n", client.public()).unwrap();
        }
        text
    };
    let path = config(folder.path(), &allowing(&[&first]));
    let (mut daemon, proxy, _) = start(&path, &[]).await;
    let connection = |keys: &KeyPair| {
        let security = Security::CurveClient { keys: keys.clone(), server: *server.public() };
        let setup = ConnectOptions::new().connection_timeout(xmsg_tests::PATIENCE).security(security);
        Connection::with_options(proxy.clone(), setup).unwrap()
    };
    let stays = connection(&first);
    within("a connection", stays.connect()).await.unwrap();
    let error = within("a refusal", connection(&second).connect()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAllowed);

    config(folder.path(), &allowing(&[&first, &second]));
    daemon.signal("HUP").await;
    daemon.logged(&["the rights of clients have changed"]).await;
    within("a connection", connection(&second).connect()).await.unwrap();
    assert!(stays.is_connected());

    let mut events = stays.events();
    config(folder.path(), &allowing(&[&second]));
    daemon.signal("HUP").await;
    daemon.logged(&["no longer allowed"]).await;
    assert!(matches!(within("its end", events.next()).await, Some(SocketEvent::Disconnected { .. })));

    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    daemon.signal("HUP").await;
    daemon.logged(&["not reloaded", "chmod 600"]).await;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
    let (code, _, error) = output(&run(PROXY, &["--config", path.to_str().unwrap(), "--check-config"]).await);
    assert!(code == Some(2) && error.contains("chmod 600"), "{error}");
}

/// Rules for one mechanism say something else, or nothing, under another one. In both daemons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_another_mechanism_in_the_file_the_rules_in_force_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    secret(folder.path(), "key", &format!("secret-key = \"{}\"", *server.secret().expose_text()));
    secret(folder.path(), "users", &format!("me:{}", *hash_password("sesame").unwrap()));
    let section = |mechanism: &str| {
        let files = "key_file = 'key'\npassword_file = 'users'";
        format!("port = 0\n[security]\nmechanism = '{mechanism}'\n{files}\n[[security.client]]\n")
    };
    let security = |mechanism: &str| match mechanism {
        "null" => Security::Null,
        "plain" => Security::PlainClient { user: "me".into(), password: Password::new("sesame").unwrap() },
        _ => Security::CurveClient { keys: client.clone(), server: *server.public() },
    };
    let all = ["null", "plain", "curve"];
    let pairs = all.iter().flat_map(|before| all.map(|after| (*before, after)));
    for (before, after) in pairs.filter(|(before, after)| before != after) {
        for (program, arguments) in [(PROXY, &["--registrar", "0"][..]), (REGISTRAR, &[])] {
            let limited = "publish = ['daq:']\nsubscribe = ['daq:']\nregister = false\n";
            let path = file(folder.path(), "settings.toml", &(section(before) + limited));
            let mut command = Command::new(program);
            command.args(["--admin", "off", "--config", &path]).args(arguments).env_remove("RUST_LOG");
            let mut daemon = Daemon::start_logged(command);
            let (mut ports, mut registrar) = (None, None);
            while registrar.is_none() {
                let line = daemon.line().await;
                let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
                let found =
                    line.split_once(" at 127.0.0.1:").map(|(_, rest)| digits(rest).parse::<u16>().unwrap());
                if line.starts_with("xmsg-registrar") { registrar = found } else { ports = found }
            }
            let registrar = RegistrarAddress::new("127.0.0.1", registrar.unwrap()).unwrap();
            let registrar = Registrar::builder(registrar).security(security(before)).build().unwrap();
            let topic = Topic::wrap("a:b:c".to_owned());
            let record = Registration::new(OwnerType::Publisher, "me", &topic, &"10.0.0.1".parse().unwrap());
            // A connection of its own each time: one that exists already shows no new mechanism.
            let limits = async |forbidden: &str| {
                let error = within("a refusal", registrar.register(&record)).await.unwrap_err();
                assert!(error.to_string().contains("not allowed"), "{before} to {after}: {error}");
                let Some(port) = ports else { return };
                let subscriber = Subscriber::new(SocketOptions::default().security(security(before)));
                subscriber.subscribe(forbidden.to_owned()).unwrap();
                subscriber.connect(Endpoint::tcp("127.0.0.1", port + 1));
                daemon.logged(&["not allowed to subscribe", &format!("topic={forbidden}")]).await;
            };
            limits("secret:1").await;
            // Whoever is not named may do everything.
            file(folder.path(), "settings.toml", &section(after));
            daemon.signal("HUP").await;
            daemon.logged(&["configuration reloaded", "taken_over=0", "needs_restart=2"]).await;
            let (before_name, after_name) = (before.to_uppercase(), after.to_uppercase());
            daemon.logged(&["another security mechanism", &before_name, &after_name]).await;
            limits("secret:2").await;
            daemon.signal("TERM").await;
            assert!(daemon.end().await.success());
        }
    }
}

/// All are ended, and the log does not name each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_many_connections_is_revoked_in_a_few_lines() {
    const COUNT: usize = 150;
    let folder = tempfile::tempdir().unwrap();
    let [server, stays, goes] = std::array::from_fn(|_| KeyPair::generate().unwrap());
    secret(folder.path(), "key", &format!("secret-key = \"{}\"", *server.secret().expose_text()));
    let allowing = |clients: &[&KeyPair]| {
        let clients = clients.iter().map(|keys| format!("[[security.client]]\nkey = '{}'\n", keys.public()));
        format!("[security]\nmechanism = \"curve\"\nkey_file = \"key\"\n{}", clients.collect::<String>())
    };
    let path = config(folder.path(), &allowing(&[&stays, &goes]));
    let (mut daemon, proxy, admin) = start(&path, &[]).await;
    let subscribers: Vec<_> = [&stays]
        .into_iter()
        .chain([&goes; COUNT])
        .map(|keys| {
            let security = Security::CurveClient { keys: keys.clone(), server: *server.public() };
            let subscriber = Subscriber::new(SocketOptions::default().security(security));
            subscriber.subscribe("a").unwrap();
            subscriber.connect(Endpoint::tcp("127.0.0.1", proxy.subscribe_port()));
            subscriber
        })
        .collect();
    let until = async |count: usize| {
        let found = async || {
            let page = http::get(&admin, "/metrics").await.body;
            http::samples(&page)["xmsg_proxy_connections{side=\"subscriber\"}"]
        };
        within("connections", async { while (found().await - count as f64).abs() > 0.5 {} }).await;
    };
    until(1 + COUNT).await;
    config(folder.path(), &allowing(&[&stays]));
    daemon.signal("HUP").await;
    until(1).await;
    daemon.logged(&["log lines were suppressed", "clients that are no longer allowed"]).await;
    let lines = daemon.log_lines().iter().filter(|line| line.contains("no longer allowed: ")).count();
    assert!((1..COUNT / 2).contains(&lines), "{lines} lines");
    drop(subscribers);
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

/// In both daemons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_ends_connections_to_the_registrar_of_those_who_are_not_let_in_any_more() {
    for (program, arguments) in [(REGISTRAR, &[][..]), (PROXY, &["--registrar", "0"])] {
        let folder = tempfile::tempdir().unwrap();
        let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let key_file =
            file(folder.path(), "key", &format!("secret-key = \"{}\"", *server.secret().expose_text()));
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let allowing = |key: &KeyPair| {
            let text =
                "port = 0\n[security]\nmechanism = \"curve\"\nkey_file = \"key\"\n[[security.client]]\n";
            file(folder.path(), "settings.toml", &format!("{text}key = '{}'\n", key.public()))
        };
        let path = allowing(&client);
        let mut command = Command::new(program);
        command.args(["--admin", "off", "--config", &path]).args(arguments).env_remove("RUST_LOG");
        let mut daemon = Daemon::start_logged(command);
        let port = loop {
            let line = daemon.line().await;
            if line.starts_with("xmsg-registrar")
                && let Some((_, address)) = line.split_once(" at 127.0.0.1:")
            {
                let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
        };
        let security = Security::CurveClient { keys: client.clone(), server: *server.public() };
        let options = SocketOptions::default().security(security);
        let asking = Requester::connecting_to(Endpoint::tcp("127.0.0.1", port), options);
        let ask = async |patience| asking.request(["allPublisher", "me", ""], patience).await;
        within("an answer", ask(xmsg_tests::PATIENCE)).await.unwrap();

        allowing(&KeyPair::generate().unwrap());
        daemon.signal("HUP").await;
        daemon.logged(&["no longer allowed"]).await;
        within("a refusal", async { while ask(Duration::from_millis(300)).await.is_ok() {} }).await;
        daemon.signal("TERM").await;
        assert!(daemon.end().await.success());
    }
}

/// What a reload would do is told before, and is what it does then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sighup_would_change_is_told_before() {
    let folder = tempfile::tempdir().unwrap();
    let token = secret(folder.path(), "token", "operator-0123456789abcdef\n");
    let with = |rest: &str| {
        let admin = format!("[admin]\nenabled = true\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{token}\"\n");
        config(folder.path(), &format!("{rest}\n{admin}"))
    };
    let path = with("linger_s = 30");
    let (daemon, _proxy, admin) = start(&path, &["--threads", "2"]).await;
    let told = async |token: &str, good: &dyn Fn(&serde_json::Value) -> bool| {
        within("what would change", async {
            loop {
                let bearer = format!("Authorization: Bearer {token}\r\n");
                let response = http::get_with(&admin, "/api/v1/settings/changes", &bearer).await;
                if response.status == 200 {
                    let told = serde_json::from_str(&response.body).unwrap();
                    if good(&told) {
                        return told;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    };
    let first = "operator-0123456789abcdef";
    told(first, &|told| told["changes"] == serde_json::json!([]) && told["has_file"] == true).await;

    with("linger_s = 0\nhost = \"::1\"\nthreads = 4");
    secret(folder.path(), "token", "another-0123456789abcdef\n");
    let now = told(first, &|told| told["changes"].as_array().is_some_and(|all| all.len() == 3)).await;
    let of = |setting: &str| now["changes"].as_array().unwrap().iter().find(|one| one["setting"] == setting);
    assert_eq!(of("linger_s").unwrap()["is_reloadable"], true, "{now}");
    assert_eq!(of("linger_s").unwrap()["in_file"], "0.0", "{now}");
    assert_eq!(of("host").unwrap()["is_reloadable"], false, "{now}");
    let content = of("admin.token_file").unwrap();
    assert!(content["is_content"] == true && content["is_reloadable"] == true, "{now}");
    assert!(!now.to_string().contains("0123456789abcdef"), "a token is told to nobody: {now}");

    with("linger_s = 0\nlinger = 8");
    let wrong = told(first, &|told| told["problem"].is_string()).await;
    assert!(wrong["problem"].as_str().unwrap().contains("line 3"), "{wrong}");

    with("linger_s = 0\nhost = \"::1\"");
    daemon.signal("HUP").await;
    daemon.logged(&["configuration reloaded", "taken_over=1", "needs_restart=1"]).await;
    let left = told("another-0123456789abcdef", &|told| {
        told["changes"].as_array().is_some_and(|all| all.len() == 1)
    })
    .await;
    assert_eq!(left["changes"][0]["setting"], "host", "{left}");
}
