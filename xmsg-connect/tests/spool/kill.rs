//! A process that is killed at any moment loses nothing that it acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::tempdir;

use crate::common::{all, open};

const KILLS: usize = 20;
const WRITERS: u64 = 32;
/// The directory, for the process that is killed.
const DIR: &str = "XMSG_TEST_SPOOL_DIR";

/// This is not a test by itself, but the process that is killed. It appends and removes until then, and says
/// what it has done, line by line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let say = |line: String| {
        // One call, so that lines are not mixed. Nobody may listen any more.
        let _ = std::io::stdout().write_all(line.as_bytes());
    };
    let spool = open(dir.as_ref());
    for writer in 0..WRITERS {
        let spool = spool.clone();
        tokio::spawn(async move {
            for n in 0_u64.. {
                let tag = format!("{}-{writer}-{n}", std::process::id());
                let body = Bytes::from(format!("{tag} {}", "x".repeat((n * 37 % 3000) as usize)));
                let sequence = spool.append(body).await.unwrap();
                say(format!("acknowledged {sequence} {tag}\n"));
            }
        });
    }
    let mut after = 0;
    loop {
        let page = spool.next_after(after, 20, 1 << 20).await.unwrap();
        for entry in page {
            after = entry.sequence;
            if after % 3 != 0 {
                say(format!("removing {after}\n"));
                spool.remove(&[after]).await.unwrap();
            } else if after % 9 == 0 {
                say(format!("removing {after}\n"));
                spool.dead_letter(after, "nine").await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_process_that_is_killed() {
    let dir = tempdir().unwrap();
    let (mut acknowledged, mut removed) = (BTreeMap::new(), BTreeSet::new());
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (started, has_started) = mpsc::channel();
        let lines = std::thread::spawn(move || {
            let mut lines = Vec::new();
            let mut read = BufReader::new(stdout);
            let mut line = String::new();
            // The last line may be cut off: it counts only with its end.
            while read.read_line(&mut line).is_ok_and(|len| len > 0) && line.ends_with('\n') {
                if line.starts_with("acknowledged") {
                    let _ = started.send(());
                }
                lines.push(std::mem::take(&mut line));
            }
            lines
        });
        has_started.recv().unwrap();
        std::thread::sleep(Duration::from_micros(fastrand::u64(..200_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.join().unwrap() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["acknowledged", sequence, tag] => {
                    let old = acknowledged.insert(sequence.parse::<u64>().unwrap(), tag.to_owned());
                    assert_eq!(old, None, "sequence {sequence} was given twice");
                }
                ["removing", sequence] => drop(removed.insert(sequence.parse::<u64>().unwrap())),
                _ => {}
            }
        }
        let spool = open(dir.path());
        let status = spool.status();
        assert_eq!((status.damaged, status.rebuilt), (0, 0));
        let entries: BTreeMap<u64, Bytes> =
            all(&spool).await.into_iter().map(|e| (e.sequence, e.body)).collect();
        let dead: BTreeSet<u64> =
            spool.dead(0, usize::MAX).await.unwrap().iter().map(|d| d.sequence).collect();
        assert_eq!((status.entries, status.dead_entries), (entries.len() as u64, dead.len() as u64));
        assert!(dead.iter().all(|sequence| removed.contains(sequence) && !entries.contains_key(sequence)));
        for (sequence, tag) in &acknowledged {
            match entries.get(sequence) {
                Some(body) => {
                    assert!(
                        body.starts_with(format!("{tag} ").as_bytes()),
                        "entry {sequence} is another one"
                    );
                }
                None => assert!(removed.contains(sequence), "entry {sequence} is lost after kill {kill}"),
            }
        }
        spool.close().await.unwrap();
    }
    assert!(acknowledged.len() > KILLS);
}
