//! The registrar daemon as its user starts it: lines, signals, exit codes, and what `kill -9` leaves behind.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::process::Command;
use xmsg_core::{OwnerType, ProxyAddress, Registrar, RegistrarAddress, Registration, Topic};
use xmsg_tests::http::{get, samples};
use xmsg_tests::process::{Daemon, run};
use xmsg_tests::{PATIENCE, within};

const REGISTRAR: &str = env!("CARGO_BIN_EXE_xmsg-registrar");
const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");

/// Starts a registrar and reads its address from its first line: `xmsg-registrar VERSION at ADDRESS: …`.
async fn start(arguments: &[&str]) -> (Daemon, RegistrarAddress, String) {
    let mut daemon = Daemon::start(REGISTRAR, &[&["--port", "0"], arguments].concat());
    let line = daemon.line().await;
    let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':');
    (daemon, address.parse().unwrap(), line)
}

fn client(address: &RegistrarAddress) -> Registrar {
    Registrar::builder(address.clone())
        .registration_timeout(PATIENCE)
        .discovery_timeout(PATIENCE)
        .renewal_interval(None)
        .build()
        .unwrap()
}

fn registration(name: String) -> Registration {
    let topic = Topic::new("a", "b").unwrap();
    Registration::new(OwnerType::Publisher, name, &topic, &ProxyAddress::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    const CLIENTS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot").display().to_string();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let (mut daemon, address, line) = start(&["--snapshot", &path]).await;
        assert!(line.contains("publishers") && line.contains(&path), "{line}");
        let found = client(&address).all(OwnerType::Publisher).await.unwrap();
        for name in &acknowledged {
            assert!(found.iter().any(|registration| registration.name == *name), "{name} is lost");
        }
        let count = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..CLIENTS)
            .map(|writer| {
                let (count, client) = (count.clone(), client(&address));
                let mut done = Vec::new();
                let (send, receive) = tokio::sync::oneshot::channel::<()>();
                let task = tokio::spawn(async move {
                    let mut stop = receive;
                    for number in 0.. {
                        let name = format!("{round}-{writer}-{number}");
                        let mine = registration(name.clone());
                        tokio::select! {
                            result = client.register(&mine) => result.unwrap(),
                            _ = &mut stop => return done,
                        }
                        done.push(name);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    done
                });
                (task, send)
            })
            .collect();
        within("some registrations", async {
            while count.load(Ordering::Relaxed) < 500 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        daemon.signal("KILL").await;
        daemon.end().await;
        for (task, stop) in writers {
            drop(stop);
            acknowledged.extend(within("a writer", task).await.unwrap());
        }
    }
    let (mut daemon, address, _) = start(&["--snapshot", &path]).await;
    let found = client(&address).all(OwnerType::Publisher).await.unwrap();
    for name in &acknowledged {
        assert!(found.iter().any(|registration| registration.name == *name), "{name} is lost");
    }
    daemon.signal("TERM").await;
    let totals = daemon.line().await;
    assert!(totals.starts_with("xmsg-registrar stopped: publishers "), "{totals}");
    assert!(daemon.end().await.success());
}

/// Section 6 of the protocol: `XMSG_REGISTRAR_DEBUG`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_are_logged_if_the_environment_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for (variable, expected) in [("XMSG_REGISTRAR_DEBUG=1", true), ("OTHER=1", false)] {
        let script = format!("unset RUST_LOG; export {variable}; exec \"$0\" --port 0 2>\"$1\"");
        let mut daemon = Daemon::start("sh", &["-c", &script, REGISTRAR, log.to_str().unwrap()]);
        let line = daemon.line().await;
        let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        let everywhere = xmsg_core::Query::any(OwnerType::Publisher);
        client(&address).find(&everywhere).await.unwrap_err();
        daemon.signal("TERM").await;
        assert!(daemon.end().await.success());
        let log = std::fs::read_to_string(&log).unwrap();
        assert_eq!(log.contains("refused action=findPublisher"), expected, "{variable}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_kept_aside_and_the_rest_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    std::fs::write(&path, "not a snapshot").unwrap();
    let (mut daemon, address, _) = start(&["--snapshot", path.to_str().unwrap()]).await;
    client(&address).register(&registration("n".into())).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("snapshot.corrupt-1")).unwrap(), b"not a snapshot");
    daemon.signal("KILL").await;
    daemon.end().await;
    let (_daemon, address, _) = start(&["--snapshot", path.to_str().unwrap()]).await;
    assert_eq!(client(&address).all(OwnerType::Publisher).await.unwrap().len(), 1);
}

/// A limit of the size of files stands for a disk that is full, and can be lifted while the registrar runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_its_end_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    // Blocks of 512 bytes in some shells, of 1024 in others.
    let script = "trap '' XFSZ; ulimit -S -f 300; exec \"$0\" --port 0 --admin 127.0.0.1:0 --snapshot \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, REGISTRAR]).arg(&path).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    let address =
        daemon.line().await.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let admin = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();
    let client = client(&address);
    let long = |number: usize| registration(number.to_string()).with_description("d".repeat(3000));
    assert_eq!(get(&admin, "/readyz").await.status, 200);

    let mut stored = Vec::new();
    let error = loop {
        let mine = long(stored.len());
        match client.register(&mine).await {
            Ok(()) => stored.push(mine),
            Err(error) => break error,
        }
    };
    assert!(stored.len() > 10);
    assert!(error.to_string().contains("not stored") && error.to_string().contains("too large"), "{error}");
    let names = |mut found: Vec<Registration>| {
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    };
    let expected = names(stored.clone());
    assert_eq!(
        names(client.all(OwnerType::Publisher).await.unwrap()),
        expected,
        "what was refused is not there"
    );
    client.deregister(&stored[0]).await.unwrap_err();
    client.remove_all("127.0.0.1").await.unwrap_err();
    assert_eq!(names(client.all(OwnerType::Publisher).await.unwrap()), expected, "nor is anything gone");
    // What is stored already is no change.
    client.register(&stored[0]).await.unwrap();
    let ready = get(&admin, "/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("stored"), "{ready:?}");
    let found = samples(&get(&admin, "/metrics").await.body);
    assert_eq!((found["xmsg_registrar_writable"], found["xmsg_registrar_ready"]), (0.0, 0.0));
    assert!(found["xmsg_registrar_write_failures_total"] >= 1.0);
    daemon.logged(&["changes can't be stored", "too large"]).await;

    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
    let unlimited = rustix::process::Rlimit { current: maximum, maximum };
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, unlimited).unwrap();
    daemon.logged(&["changes are stored again"]).await;
    assert_eq!(get(&admin, "/readyz").await.status, 200);
    stored.push(long(stored.len()));
    client.register(stored.last().unwrap()).await.unwrap();
    daemon.signal("KILL").await;
    daemon.end().await;
    let (_daemon, address, _) = start(&["--snapshot", path.to_str().unwrap()]).await;
    let client = self::client(&address);
    assert_eq!(names(client.all(OwnerType::Publisher).await.unwrap()), names(stored));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_costs_one_registration_and_a_cut_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let arguments = ["--snapshot", path.to_str().unwrap()];
    let (mut daemon, address, _) = start(&arguments).await;
    let client = client(&address);
    for number in 0..9 {
        client.register(&registration(format!("actor-{number}"))).await.unwrap();
    }
    daemon.signal("KILL").await;
    daemon.end().await;
    let journal = folder.path().join("snapshot.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let at = bytes.windows(7).position(|name| name == b"actor-4").unwrap();
    bytes[at] ^= 1;
    // Half of the last one was written when the power failed.
    bytes.truncate(bytes.len() - 9);
    std::fs::write(&journal, bytes).unwrap();

    let mut command = Command::new(REGISTRAR);
    command.args(["--port", "0"]).args(arguments).env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    let address =
        daemon.line().await.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let found = self::client(&address).all(OwnerType::Publisher).await.unwrap();
    let mut names: Vec<_> = found.into_iter().map(|registration| registration.name).collect();
    names.sort();
    let expected = [0, 1, 2, 3, 5, 6, 7].map(|number| format!("actor-{number}"));
    assert_eq!(names, expected);
    daemon.logged(&["is damaged", "snapshot.journal.corrupt-1", "1 place"]).await;
    daemon.logged(&["was cut short"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_said() {
    let (_daemon, address, _) = start(&[]).await;
    let port = address.port().to_string();
    let missing = Path::new("/does/not/exist/snapshot").display().to_string();
    for (arguments, code, says) in [
        (&["--port", &port][..], 1, "in use"),
        (&["--port", "0", "--snapshot", &missing], 1, "/does/not/exist"),
        (&["--port", "70000"], 2, "65535"),
        (&["--host", "a b"], 2, "host"),
        (&["--ttl=-1"], 2, "seconds"),
        (&["--what"], 2, "--what"),
    ] {
        let output = run(REGISTRAR, arguments).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(says), "{arguments:?}: {error}");
        assert!(error.starts_with("xmsg-registrar: "), "{arguments:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_runs_one_too() {
    let mut daemon = Daemon::start(PROXY, &["--port", "0", "--registrar", "0"]);
    let mut address = None;
    while address.is_none() {
        let line = daemon.line().await;
        address = line.strip_prefix("xmsg-registrar at ").map(|address| address.parse().unwrap());
    }
    let client = client(&address.unwrap());
    client.register(&registration("n".into())).await.unwrap();
    assert_eq!(client.all(OwnerType::Publisher).await.unwrap().len(), 1);
    // What it does takes no time from messages: it has a thread of its own.
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    let names: Vec<_> = names.collect();
    assert!(names.iter().any(|name| name.trim() == "xmsg-registrar"), "{names:?}");
    daemon.signal("TERM").await;
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped"));
    assert!(daemon.end().await.success());
}
