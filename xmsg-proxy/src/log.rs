//! A queue between a daemon's log and standard error. A slow or stuck reader of standard error never makes a
//! logging thread wait.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use xmsg_zmq::fault::catch;
use xmsg_zmq::lock::lock;

/// The bytes of lines that wait, including those that are being written. Lines for which there is no room are
/// dropped and counted.
const BYTES_MAX: usize = 1 << 20;
/// The last lines, which are kept to be shown: their number, their bytes together, and the bytes of each.
const TAIL_LINES: usize = 1000;
const TAIL_BYTES: usize = 256 << 10;
const TAIL_LINE: usize = 4 << 10;
/// The stack of the thread that writes. It formats a line of its own now and then.
const STACK: usize = 256 << 10;

/// A queue of log lines that a thread of its own writes. It is cheap to clone. Each write adds one line.
///
/// When 1 MiB of lines wait, further lines are dropped and [counted](Self::lost). As soon as something can be
/// written again, a line states how many were lost. Lines that can't be written are counted, too.
#[derive(Clone, Debug)]
pub struct LogQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    lost: AtomicU64,
    tail: Mutex<Tail>,
    /// The number of lines so far, for followers.
    lines: watch::Sender<u64>,
}

/// The last lines, whether they could be written or not.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
    /// The number of lines in all.
    count: u64,
}

impl Tail {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        self.count += 1;
        while self.lines.len() > TAIL_LINES || self.bytes > TAIL_BYTES {
            let Some(first) = self.lines.pop_front() else { break };
            self.bytes -= first.len();
        }
    }
}

/// Follows the log: first come the last lines that are kept, then what is added.
#[derive(Debug)]
pub(crate) struct Follower {
    queue: LogQueue,
    lines: watch::Receiver<u64>,
    /// The number of lines that were returned.
    seen: u64,
}

impl Follower {
    /// Returns the lines that were not returned yet, and the number of those that were missed because they
    /// came too fast. It waits until there is one.
    pub(crate) async fn next(&mut self) -> (Vec<String>, u64) {
        loop {
            let found = self.look();
            if !found.0.is_empty() || self.lines.changed().await.is_err() {
                return found;
            }
        }
    }

    fn look(&mut self) -> (Vec<String>, u64) {
        self.lines.borrow_and_update();
        let tail = lock(&self.queue.0.tail);
        let first = tail.count - tail.lines.len() as u64;
        let missed = first.saturating_sub(self.seen);
        let from = self.seen.max(first) - first;
        let lines = tail.lines.iter().skip(from as usize).cloned().collect();
        self.seen = tail.count;
        (lines, missed)
    }
}

/// Returns a line as text without colours, cut if it is too long.
fn plain(line: &[u8]) -> String {
    let (mut text, mut is_code) = (String::new(), false);
    for character in String::from_utf8_lossy(line).trim_end().chars() {
        match character {
            '\u{1b}' => is_code = true,
            'm' if is_code => is_code = false,
            _ if is_code => {}
            _ if text.len() >= TAIL_LINE => break,
            _ => text.push(character),
        }
    }
    text
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// The bytes of all lines that wait or are being written.
    bytes: usize,
    /// The number of lines that were lost since the last line that reported losses.
    unreported: u64,
}

impl LogQueue {
    /// Starts a thread that writes to `out` as long as the process runs.
    ///
    /// # Errors
    ///
    /// If the thread can't be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::start_with_report(out, |lost| {
            tracing::warn!(
                lost,
                "log lines were lost: standard error was not read in time, or could not be written"
            );
        })
    }

    /// Starts the thread with another way to report losses: `tell` is called with the number of lost lines.
    fn start_with_report(
        out: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            lost: AtomicU64::new(0),
            tail: Mutex::default(),
            lines: watch::Sender::new(0),
        }));
        let writing = queue.clone();
        // Nothing waits for this thread, because it may be blocked for ever. See `flush_within`.
        std::thread::Builder::new()
            .name("xmsg-log".to_owned())
            .stack_size(STACK)
            .spawn(move || writing.run(out, tell))?;
        Ok(queue)
    }

    /// Adds a line, or drops it if there is no room. It never waits for the reader of the log.
    pub fn push(&self, line: &[u8]) {
        self.keep(line);
        let mut state = self.state();
        if state.bytes + line.len() > BYTES_MAX {
            self.lose(&mut state, 1);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_owned());
        drop(state);
        self.0.changed.notify_all();
    }

    /// Returns a follower of the log. A slow follower misses lines.
    pub(crate) fn follow(&self) -> Follower {
        Follower { queue: self.clone(), lines: self.0.lines.subscribe(), seen: 0 }
    }

    /// Returns the number of lines that were not written since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, but at most for `patience`.
    pub fn flush_within(&self, patience: Duration) {
        let state = self.state();
        // The result does not matter: the caller continues in either case.
        drop(self.0.changed.wait_timeout_while(state, patience, |state| state.bytes > 0));
    }

    fn run(&self, mut out: impl Write, tell: impl Fn(u64)) {
        loop {
            let line = self.next();
            // A panic loses this line. Without this thread, all that follow would be lost.
            let written = catch(|| out.write_all(&line).and_then(|()| out.flush()));
            let written = written.unwrap_or_else(|fault| Err(io::Error::other(fault)));
            let mut state = self.state();
            state.bytes -= line.len();
            // If lines can't be written, a line that reports it can't be written either. If there was no room
            // for lines, such a line needs room itself.
            let can_tell = written.is_ok() && state.bytes <= BYTES_MAX / 2;
            let unreported = if can_tell { std::mem::take(&mut state.unreported) } else { 0 };
            if written.is_err() {
                self.lose(&mut state, 1);
            }
            drop(state);
            self.0.changed.notify_all();
            if unreported > 0 {
                // If `tell` panics, that has been reported already.
                let _ = catch(|| tell(unreported));
            }
        }
    }

    /// Waits for the next line to write, and returns it.
    fn next(&self) -> Vec<u8> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return line;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps a line among the last ones.
    fn keep(&self, line: &[u8]) {
        let mut tail = lock(&self.0.tail);
        tail.push(plain(line));
        let count = tail.count;
        drop(tail);
        self.0.lines.send_replace(count);
    }

    fn lose(&self, state: &mut State, lines: u64) {
        state.unreported += lines;
        self.0.lost.fetch_add(lines, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A writer that reports each line and writes it only when that is allowed.
    struct Gate {
        written: Sender<String>,
        allowed: Receiver<io::Result<()>>,
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.written.send(String::from_utf8(line.to_owned()).unwrap()).unwrap();
            self.allowed.recv().unwrap_or(Ok(())).map(|()| line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns a queue for such a writer, the lines that it reports, the channel that allows writes, and the
    /// reported numbers of lost lines.
    fn gate() -> (LogQueue, Receiver<String>, Sender<io::Result<()>>, Receiver<u64>) {
        let ((written, lines), (allow, allowed), (tell, lost_lines)) = (channel(), channel(), channel());
        let queue =
            LogQueue::start_with_report(Gate { written, allowed }, move |lost| tell.send(lost).unwrap());
        (queue.unwrap(), lines, allow, lost_lines)
    }

    #[test]
    fn whoever_logs_waits_for_nobody_and_what_has_no_room_is_counted_and_told() {
        let (queue, lines, allow, lost_lines) = gate();
        let line = vec![b'x'; 1 << 10];
        queue.push(b"first");
        assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "first");
        // The line that is being written takes room, too.
        let room = (BYTES_MAX - "first".len()) / line.len();
        for _ in 0..room + 7 {
            queue.push(&line);
        }
        assert_eq!(queue.lost(), 7);
        queue.flush_within(Duration::from_millis(1));
        assert!(lost_lines.try_recv().is_err(), "nothing can be written yet");
        drop(allow);
        assert_eq!(lost_lines.recv_timeout(PATIENCE).unwrap(), 7);
        queue.flush_within(PATIENCE);
        queue.push(b"last");
        queue.flush_within(PATIENCE);
        assert_eq!(lines.try_iter().count(), room + 1);
        assert!(lost_lines.try_recv().is_err(), "once");
        assert_eq!(queue.lost(), 7);
    }

    /// A line that reports lost lines can't be written while no line can be written.
    #[test]
    fn what_cannot_be_written_is_told_once_something_can() {
        let (queue, lines, allow, lost_lines) = gate();
        for line in ["one", "two", "three"] {
            queue.push(line.as_bytes());
        }
        for _ in 0..2 {
            allow.send(Err(io::Error::other("there is nobody"))).unwrap();
        }
        for line in ["one", "two", "three"] {
            assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), line);
        }
        assert!(lost_lines.try_recv().is_err());
        assert_eq!(queue.lost(), 2);
        allow.send(Ok(())).unwrap();
        assert_eq!(lost_lines.recv_timeout(PATIENCE).unwrap(), 2);
    }

    /// A writer that panics over one line.
    struct Faulty(Sender<String>);

    impl Write for Faulty {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            assert_ne!(line, b"two", "on purpose");
            self.0.send(String::from_utf8(line.to_owned()).unwrap()).unwrap();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_loses_one_line_and_is_told() {
        let ((written, lines), (tell, lost_lines)) = (channel(), channel());
        let queue = LogQueue::start_with_report(Faulty(written), move |lost| {
            tell.send(lost).unwrap();
            panic!("on purpose, too");
        })
        .unwrap();
        for line in ["one", "two", "three", "four"] {
            queue.push(line.as_bytes());
        }
        for line in ["one", "three", "four"] {
            assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), line);
        }
        queue.flush_within(PATIENCE);
        assert_eq!((lost_lines.recv_timeout(PATIENCE).unwrap(), queue.lost()), (1, 1));
    }

    #[tokio::test]
    async fn who_follows_gets_the_last_lines_and_those_that_are_added() {
        let queue = LogQueue::start(io::sink()).unwrap();
        queue.push(b"\x1b[2mtime\x1b[0m \x1b[33m WARN\x1b[0m one\n");
        let mut follower = queue.follow();
        assert_eq!(follower.next().await, (vec!["time  WARN one".to_owned()], 0));
        let adding = queue.clone();
        let added = std::thread::spawn(move || adding.push(b"two\n"));
        assert_eq!(follower.next().await, (vec!["two".to_owned()], 0));
        added.join().unwrap();
        // More than are kept: some are missed, and counted.
        for number in 0..TAIL_LINES + 5 {
            queue.push(format!("{number}\n").as_bytes());
        }
        let (lines, missed) = follower.next().await;
        assert_eq!((lines.len(), missed, &*lines[0]), (TAIL_LINES, 5, "5"));
        queue.push(&vec![b'x'; TAIL_LINE * 2]);
        assert_eq!(follower.next().await.0[0].len(), TAIL_LINE);
        for _ in 0..TAIL_BYTES / TAIL_LINE * 2 {
            queue.push(&vec![b'x'; TAIL_LINE]);
        }
        assert_eq!(follower.next().await.0.len(), TAIL_BYTES / TAIL_LINE);
    }
}
