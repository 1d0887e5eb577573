//! These tests check that the programs of this version read the files of earlier versions. Each folder in
//! `tests/formats` has the name of a version, and one file of each format, as the programs of that version
//! wrote it (`tests/formats/make`).
//!
//! All folders have the same content, so one test checks all of them. `docs/stability.md` says what is
//! promised.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use xmsg_tests::document::three_spare_ports;
use xmsg_tests::process::{Daemon, built, finish};
use xmsg_tests::{proxy, until, within};

const TOKEN: &str = "a-token-of-this-test";

/// A copy of the files of one version, which the programs may change.
struct Files {
    version: String,
    folder: TempDir,
}

impl Files {
    /// Copies what every version has left. There is at least one.
    fn of_every_version() -> Vec<Self> {
        let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats");
        let folders = std::fs::read_dir(formats).unwrap().map(|entry| entry.unwrap().path());
        let is_version = |path: &PathBuf| path.is_dir() && path.join("connect").is_dir();
        let all: Vec<_> = folders.filter(is_version).map(|folder| Self::copy(&folder)).collect();
        assert!(!all.is_empty(), "there is a set of files");
        all
    }

    fn copy(from: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(from, folder.path());
        let version = from.file_name().unwrap().to_string_lossy().into_owned();
        println!("files of version {version}");
        Self { version, folder }
    }

    /// Returns the path of a file, which is there.
    fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        assert!(path.exists(), "{} has no {name}", self.version);
        path.to_str().unwrap().to_owned()
    }
}

/// Copies a folder with all that is in it. Files are readable to their owner alone, as those with secrets
/// have to be. Stores are unpacked.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
            continue;
        }
        std::fs::copy(&path, &target).unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
        if target.extension().is_some_and(|extension| extension == "gz") {
            let unpacked = std::process::Command::new("gzip").arg("-d").arg(&target).status().unwrap();
            assert!(unpacked.success(), "{}", target.display());
        }
    }
}

/// Returns a command of `xmsg` that takes nothing from the environment of the test.
fn xmsg(arguments: &[&str]) -> Command {
    let mut command = Command::new(built("xmsg"));
    command.args(arguments).env("XMSG_CONFIG", "/nonexistent/contexts.toml");
    // The machine may be so loaded that an answer takes longer than commands wait for it.
    for time in ["XMSG_CONNECTION_TIMEOUT", "XMSG_SUBSCRIPTION_TIMEOUT"] {
        command.env(time, "30000");
    }
    for name in ["XMSG_PROXY", "XMSG_REGISTRAR", "XMSG_SERVER_KEY", "XMSG_KEY_FILE", "XMSG_ADMIN"] {
        command.env_remove(name);
    }
    command
}

/// Returns what a command has written to standard output, which has succeeded.
async fn output_of(command: Command) -> String {
    let what = format!("{:?}", command.as_std());
    let output = finish(command).await;
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the documents that a command of `xmsg` has written, one on each line.
async fn asked(command: Command) -> Vec<Value> {
    let written = output_of(command).await;
    let documents = serde_json::Deserializer::from_str(&written).into_iter();
    documents.map(|document| document.unwrap()).collect()
}

/// What each set has recorded: topic, mime type, and the value, or the data where the type is none of xMsg's.
fn recorded() -> BTreeMap<String, (Value, Value)> {
    let values = [
        ("text", "text/string", json!("größer → 4 °C")),
        ("int", "binary/sfixed32", json!(-17)),
        ("long", "binary/sfixed64", json!(-9_000_000_000_i64)),
        ("varint", "binary/sint32", json!(-2)),
        ("varlong", "binary/sint64", json!(-3_000_000_000_i64)),
        ("float", "binary/float", json!(0.25)),
        ("double", "binary/double", json!(2.5e-300)),
        ("ints", "binary/array-sfixed32", json!([1, 2, 3])),
        ("doubles", "binary/array-double", json!([0.5, -0.5])),
        ("texts", "binary/array-string", json!(["a", "b c"])),
        ("bytes", "binary/bytes", json!("AP8Q")),
        ("json", "application/json", json!(r#"{"pieces": 17}"#)),
    ];
    let values = values.into_iter().map(|(topic, mime, value)| (topic, (json!(mime), value)));
    let plain = [("plain", (Value::Null, json!("two frames")))];
    values.chain(plain).map(|(topic, value)| (format!("value:{topic}"), value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_of_every_version_are_read_and_published_again() {
    for files in Files::of_every_version() {
        for (name, is_compressed) in [("plain.xmr", false), ("compressed.xmr", true)] {
            let file = files.path(name);
            let [info] = &asked(xmsg(&["record", "--info", "--check", "--json", &file])).await[..] else {
                panic!("one document")
            };
            assert_eq!(
                (&info["messages"], &info["damaged_places"], &info["zstd"], &info["index"]),
                (&json!(13), &json!(0), &json!(is_compressed), &json!(true)),
                "{info}"
            );
            let proxy = proxy().start().await.unwrap();
            let address = proxy.address().to_string();
            let mut subscriber = xmsg(&["sub", "value:", "-n", "13", "--json", "--proxy", &address]);
            let subscriber =
                subscriber.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
            let replay = ["replay", &file, "--speed", "max", "--wait-sub", "--proxy", &address];
            output_of(xmsg(&replay)).await;
            let heard = within("all messages", subscriber.wait_with_output()).await.unwrap();
            let mut found = BTreeMap::new();
            for line in String::from_utf8(heard.stdout).unwrap().lines() {
                let message: Value = serde_json::from_str(line).unwrap();
                let value = Some(&message["value"]).filter(|value| !value.is_null());
                let value = value.unwrap_or(&message["data"]).clone();
                let topic = message["topic"].as_str().unwrap().to_owned();
                if topic == "value:text" {
                    let meta = &message["meta"];
                    assert_eq!(meta["author"], "me", "{message}");
                    assert_eq!(meta["description"], "a text", "{message}");
                    assert_eq!(meta["severityId"], -3, "{message}");
                }
                found.insert(topic, (message["mime"].clone(), value));
            }
            assert_eq!(found, recorded(), "{name} of {}", files.version);
        }
    }
}

/// Starts a registrar with these files, and checks what it knows. Then it adds a registration, and waits
/// until the files are of the current format.
async fn check_registrar(folder: &Path) {
    let snapshot = folder.join("registrar");
    let mut daemon =
        Daemon::start(built("xmsg-registrar"), &["--port", "0", "--snapshot", snapshot.to_str().unwrap()]);
    let ready = daemon.line().await;
    let address = ready.split(" at ").nth(1).unwrap().split(':').take(2).collect::<Vec<_>>().join(":");
    let known =
        asked(xmsg(&["registrar", "list", "--json", "--registrar-timeout", "30s", "--registrar", &address]))
            .await;
    let text = |one: &Value| {
        let words = ["name", "topic", "host", "port", "description"].map(|key| one[key].to_string());
        words.join(" ")
    };
    let mut known: Vec<_> = known.iter().map(text).collect();
    known.sort();
    assert_eq!(
        known,
        [
            r#""display" "weather" "10.0.0.8" 8000 null"#,
            r#""thermometer" "weather:oslo:air" "10.0.0.7" 7771 "on the roof""#,
        ],
        "{ready}"
    );
    let new = ["registrar", "register", "weather:new", "--name", "new", "--publisher", "--proxy", "10.0.0.1"];
    output_of(xmsg(&[&new[..], &["--registrar-timeout", "30s", "--registrar", &address]].concat())).await;
    let is_current = |(name, mark): (&str, &[u8])| {
        std::fs::read(folder.join(name)).is_ok_and(|bytes| bytes.starts_with(mark))
    };
    // The next files are written beside the old ones, and replace them when they are complete.
    let current = [("registrar", &b"XMSGREG2"[..]), ("registrar.journal", b"XMSGJRN2")];
    until("files of the current format", || current.into_iter().all(is_current)).await;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_of_every_version_are_there() {
    for files in Files::of_every_version() {
        check_registrar(files.folder.path()).await;
    }
}

/// The first version of these files has no salt in its checksums. They are written anew with the first
/// change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registrar_writes_files_of_its_first_version_anew() {
    let files = Files::copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/registrar-1"));
    assert!(std::fs::read(files.path("registrar")).unwrap().starts_with(b"XMSGREG1"));
    assert!(std::fs::read(files.path("registrar.journal")).unwrap().starts_with(b"XMSGJRN1"));
    check_registrar(files.folder.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_spools_of_every_version_is_delivered() {
    for files in Files::of_every_version() {
        let token = files.folder.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let token = token.to_str().unwrap();
        let proxy = proxy().start().await.unwrap();
        let mut daemon = Daemon::start(
            built("xmsg-connect"),
            &[
                &["--state-dir", &files.path("connect"), "--proxy", &proxy.address().to_string()][..],
                &["--admin", "127.0.0.1:0", "--admin-token-file", token],
            ]
            .concat(),
        );
        let ready = daemon.line().await;
        assert!(ready.contains("with 2 outgoing connections, 1 channel"), "{ready}");
        let http = daemon.line().await;
        let admin = http.strip_prefix("HTTP at http://").unwrap();
        let with_token = |arguments: &[&str]| {
            xmsg(&[arguments, &["--admin", admin, "--admin-token-file", token]].concat())
        };

        let dead = asked(with_token(&["connect", "dead", "feed", "--json"])).await;
        let dead = dead.iter().map(Value::to_string).collect::<String>();
        for word in ["orders:old", "expired"] {
            assert!(dead.contains(word), "no {word:?} in {dead}");
        }
        let exported = output_of(with_token(&["connect", "export"])).await;
        for word in ["name = \"crm\"", "name = \"crm-orders\"", "name = \"readings\"", "name = \"feed\""] {
            assert!(exported.contains(word), "no {word} in {exported}");
        }

        // The peer that these messages waited for is here at last, at another address.
        let address = format!("tcp://127.0.0.1:{}", three_spare_ports());
        let mut peer = xmsg(&["zmq", "recv", "PULL", "--bind", &address, "-n", "2", "--json"]);
        let peer = peer.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let definition = format!(
            "[[outgoing]]\nname = \"feed\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\naddress = \"{address}\"\n"
        );
        let file = files.folder.path().join("new.toml");
        std::fs::write(&file, definition).unwrap();
        output_of(with_token(&["connect", "edit", "feed", file.to_str().unwrap()])).await;
        let delivered = within("the messages", peer.wait_with_output()).await.unwrap();
        let delivered = String::from_utf8(delivered.stdout).unwrap();
        let frames: Vec<Value> = delivered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let frame = |message: &Value, at: usize| message["frames"][at].as_str().unwrap().to_owned();
        let heard: Vec<_> = frames.iter().map(|message| (frame(message, 0), frame(message, 2))).collect();
        let sent = [("orders:new", "first"), ("orders:new", r#"{"pieces": 17}"#)];
        assert_eq!(heard, sent.map(|(topic, data)| (topic.to_owned(), data.to_owned())), "{}", files.version);
        daemon.signal("TERM").await;
        assert!(daemon.end().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_keys_passwords_and_contexts_of_every_version_are_good() {
    for files in Files::of_every_version() {
        for (daemon, name) in [
            ("xmsg-proxy", "proxy.toml"),
            ("xmsg-registrar", "registrar.toml"),
            ("xmsg-connect", "connect.toml"),
        ] {
            let mut check = Command::new(built(daemon));
            check.args(["--config", &files.path(name), "--check-config"]);
            output_of(check).await;
        }
        for name in ["proxy", "me"] {
            let shown = output_of(xmsg(&["keygen", "--show", &files.path(&format!("{name}.key"))])).await;
            let public = std::fs::read_to_string(files.path(&format!("{name}.public"))).unwrap();
            assert_eq!(shown, public, "{}", files.version);
        }
        let mut contexts = xmsg(&["context", "list", "--json"]);
        contexts.env("XMSG_CONFIG", files.path("contexts.toml"));
        let contexts = output_of(contexts).await;
        for word in ["lab", "home", "10.0.0.7", "localhost", "me.key"] {
            assert!(contexts.contains(word), "no {word:?} in {contexts}");
        }

        // A user whose password was hashed by that version is let in.
        let settings = files.folder.path().join("plain.toml");
        let security = "port = 0\n[security]\nmechanism = \"plain\"\npassword_file = \"users\"\n\
                        [[security.client]]\nuser = \"alice\"\n";
        std::fs::write(&settings, security).unwrap();
        let mut daemon = Daemon::start(built("xmsg-proxy"), &["--config", settings.to_str().unwrap()]);
        let ready = daemon.line().await;
        let address = ready.split(" at ").nth(1).unwrap().split(':').take(2).collect::<Vec<_>>().join(":");
        let password = files.path("password");
        let ping = ["ping", "-n", "1", "--user", "alice", "--password-file", &password];
        output_of(xmsg(&[&ping[..], &["--proxy", &address, "--connect-timeout", "30s"]].concat())).await;
    }
}

/// After a downgrade, files may be of a later version than the program knows. None of them is overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_later_versions_are_kept_as_they_are() {
    for files in Files::of_every_version() {
        // A recording says which version its format has.
        let recording = files.path("plain.xmr");
        let mut bytes = std::fs::read(&recording).unwrap();
        bytes[8] = 2;
        std::fs::write(&recording, &bytes).unwrap();
        let refused = finish(xmsg(&["record", "--info", &recording])).await;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("its format has version 2"), "{why}");
        assert_eq!(std::fs::read(&recording).unwrap(), bytes);

        // A definition has a field that is not known yet.
        let state = files.path("connect/connect.toml");
        let definitions = std::fs::read_to_string(&state).unwrap();
        let later = definitions.replace("name = \"feed\"\n", "name = \"feed\"\nfrom_the_future = 1\n");
        std::fs::write(&state, &later).unwrap();
        let mut connect = Command::new(built("xmsg-connect"));
        connect.args(["--state-dir", &files.path("connect"), "--proxy", "127.0.0.1:9"]);
        let refused = finish(connect).await;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("from_the_future"), "{why}");
        assert_eq!(std::fs::read_to_string(&state).unwrap(), later);

        // The files of a registrar begin with a mark that has their version. With another mark, they count as
        // damaged: what can be read is read, and the files are kept aside.
        let mut originals = Vec::new();
        for name in ["registrar", "registrar.journal"] {
            let path = files.path(name);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[7] = b'3';
            std::fs::write(&path, &bytes).unwrap();
            originals.push((format!("{name}.corrupt-1"), bytes));
        }
        check_registrar(files.folder.path()).await;
        for (name, bytes) in originals {
            assert!(std::fs::read(files.path(&name)).unwrap() == bytes, "{name} is as it was");
        }
    }
}
