//! How fast a spool is on this disk, and what it takes.
//!
//! ```sh
//! cargo run --release --example spool_rates -- DIR [SECONDS]
//! ```
//!
//! `DIR` has to be on the disk that is meant, with 2 GiB free; a directory is made in it, and removed at the
//! end.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use xmsg_connect::spool::{Spool, SpoolOptions};

const BODY: usize = 1024;
const MANY: u64 = 1_000_000;
/// Entries that a delivery takes at a time, and that are confirmed together.
const PAGE: usize = 1024;
/// What the process that is killed says when it is time.
const FILLED: &str = "filled";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = PathBuf::from(arguments.first().map_or("/tmp", String::as_str)).join("spool-rates");
    if arguments.get(1).is_some_and(|argument| argument == FILLED) {
        return fill_and_wait(&dir).await;
    }
    let time = Duration::from_secs(arguments.get(1).map_or(Ok(4), |seconds| seconds.parse())?);
    let _ = fs::remove_dir_all(&dir);

    println!("appends of 1 KiB, acknowledged after fsync:");
    // The last: four writers with 256 entries at a time.
    for (writers, together) in [(1, 1), (64, 1), (256, 1), (1024, 1), (4, 256)] {
        for with_removal in [false, true] {
            rates(&dir, writers, together, with_removal, time).await?;
        }
    }
    million(&dir).await?;
    hundred(&dir).await?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Measures so many writers, each with so many entries on their way, and perhaps a delivery that confirms all
/// it is given.
async fn rates(
    dir: &Path,
    writers: usize,
    together: usize,
    with_removal: bool,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    let spool = open(dir).await?;
    let (start, end) = (Instant::now(), Instant::now() + time);
    let appends: Vec<_> = (0..writers)
        .map(|_| {
            let (spool, body) = (spool.clone(), body());
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                while Instant::now() < end {
                    let start = Instant::now();
                    spool.append_many(vec![body.clone(); together]).await?;
                    longest = longest.max(start.elapsed());
                }
                Ok::<_, xmsg_connect::spool::SpoolError>(longest)
            })
        })
        .collect();
    let delivery = with_removal.then(|| tokio::spawn(deliver(spool.clone())));
    let mut longest = Duration::ZERO;
    for append in appends {
        longest = longest.max(append.await??);
    }
    let seconds = start.elapsed().as_secs_f64();
    spool.sync().await?;
    let status = spool.status();
    spool.close().await?;
    let delivered = match delivery {
        Some(delivery) => format!("; delivered and removed {:.0}/s", delivery.await? as f64 / seconds),
        None => String::new(),
    };
    let (accepted, commits) = (status.accepted, status.commits);
    println!(
        "  {writers:4} × {together:3} waiting: {:7.0}/s, {:5.1} per commit, slowest {:3} ms{delivered}",
        accepted as f64 / seconds,
        accepted as f64 / commits as f64,
        longest.as_millis(),
    );
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// Takes entries and confirms them, until the spool is closed. Returns how many there were.
async fn deliver(spool: Spool) -> usize {
    let (mut after, mut delivered) = (0, 0);
    while let Ok(page) = spool.next_after(after, PAGE, 2 << 20).await {
        let sequences: Vec<u64> = page.iter().map(|entry| entry.sequence).collect();
        after = sequences.last().copied().unwrap_or(after);
        if spool.remove(&sequences).await.is_err() {
            break;
        }
        delivered += sequences.len();
    }
    delivered
}

/// Measures a spool with 1,000,000 entries: filled, opened after a `kill -9`, read, and drained.
async fn million(dir: &Path) -> Result<(), Box<dyn Error>> {
    let parent = dir.parent().unwrap_or(dir);
    let start = Instant::now();
    let mut child =
        Command::new(std::env::current_exe()?).arg(parent).arg(FILLED).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("no output of the process that fills the spool")?;
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
    child.kill()?;
    child.wait()?;
    println!(
        "{MANY} entries of 1 KiB were appended in {:.1} s; {}; it was killed",
        start.elapsed().as_secs_f64(),
        said.trim()
    );

    let start = Instant::now();
    let spool = open(dir).await?;
    let opened = start.elapsed();
    let first = spool.next_after(0, 1, 1 << 20).await?;
    let status = spool.status();
    println!(
        "opened in {opened:?}, first entry ({}) after {:?}: {} entries, file {} MiB; {}",
        first[0].sequence,
        start.elapsed(),
        status.entries,
        status.file_bytes >> 20,
        memory()
    );
    let (start, mut after) = (Instant::now(), 0);
    while after < status.newest_sequence {
        let page = spool.next_after(after, 1024, 2 << 20).await?;
        let sequences: Vec<u64> = page.iter().map(|entry| entry.sequence).collect();
        after = sequences.last().copied().unwrap_or(after);
        spool.remove(&sequences).await?;
    }
    spool.sync().await?;
    let seconds = start.elapsed().as_secs_f64();
    println!("drained in {seconds:.1} s, {:.0}/s; {}", MANY as f64 / seconds, memory());
    let start = Instant::now();
    while spool.status().file_bytes > 64 << 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("file {} KiB, {:?} later", spool.status().file_bytes >> 10, start.elapsed());
    spool.close().await?;
    fs::remove_dir_all(dir)?;
    Ok(())
}

async fn fill_and_wait(dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut options = SpoolOptions::default();
    options.max_bytes = 4 << 30;
    let spool = Spool::open(dir, options)?;
    let appends: Vec<_> = (0..1000)
        .map(|_| {
            let (spool, body) = (spool.clone(), body());
            tokio::spawn(async move {
                for _ in 0..MANY / 1000 {
                    spool.append(body.clone()).await?;
                }
                Ok::<_, xmsg_connect::spool::SpoolError>(())
            })
        })
        .collect();
    for append in appends {
        append.await??;
    }
    println!("{}", memory());
    std::future::pending().await
}

/// A hundred spools in one process.
async fn hundred(dir: &Path) -> Result<(), Box<dyn Error>> {
    println!("before a hundred spools: {}", memory());
    let start = Instant::now();
    let mut spools = Vec::new();
    for n in 0..100 {
        spools.push(open(&dir.join(n.to_string())).await?);
    }
    println!("a hundred spools, opened in {:?}: {}", start.elapsed(), memory());
    let start = Instant::now();
    let appends: Vec<_> = spools
        .iter()
        .flat_map(|spool| {
            (0..100).map(|_| {
                let (spool, body) = (spool.clone(), body());
                tokio::spawn(async move { spool.append(body).await })
            })
        })
        .collect();
    for append in appends {
        append.await??;
    }
    println!("a hundred entries in each of them, in {:?}: {}", start.elapsed(), memory());
    for spool in spools {
        spool.close().await?;
    }
    Ok(())
}

async fn open(dir: &Path) -> Result<Spool, Box<dyn Error>> {
    let dir = dir.to_owned();
    let mut options = SpoolOptions::default();
    options.max_bytes = 4 << 30;
    Ok(tokio::task::spawn_blocking(move || Spool::open(&dir, options)).await??)
}

fn body() -> Bytes {
    let mut body = vec![0; BODY];
    fastrand::fill(&mut body);
    Bytes::from(body)
}

/// What this process takes of memory, threads and descriptors, where the system says so.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    format!("memory {} MiB, {} threads, {descriptors} descriptors", value("VmRSS") >> 10, value("Threads"))
}
