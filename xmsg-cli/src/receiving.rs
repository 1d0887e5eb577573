//! Receiving messages until there are enough, the time is up, a signal arrives, or the reader of the output
//! is gone.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;

use crate::exit::Exit;
use crate::output::{counted, grouped, note, output_closed, warn};
use crate::signals::Interrupt;

/// The number of messages that are written before other tasks get their turn.
const YIELD_AFTER: u64 = 256;
/// How long the reader of our output may take for the rest at the end.
const INTERRUPTED_LINGER: Duration = Duration::from_secs(1);

/// A source of messages.
pub(crate) trait Source: Send + 'static {
    type Message: Send;

    /// Returns the next message; `None` at the end. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Self::Message>> + Send;
}

/// Writes messages.
pub(crate) trait Writer<M>: Send + 'static {
    /// Writes a message and returns its size in bytes; `None` if it is skipped and does not count.
    fn write(&mut self, message: M, number: u64) -> anyhow::Result<Option<u64>>;

    /// Makes everything visible that was written.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Waits until something has to be written even without a new message. The default waits forever.
    fn due(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Writes what has become due.
    fn write_due(&mut self) -> anyhow::Result<()> {
        self.flush()
    }

    /// Writes the rest at the end.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_due()
    }
}

/// Receives messages and writes them.
#[derive(Debug)]
pub(crate) struct Receiver<S, W> {
    pub(crate) source: S,
    pub(crate) writer: W,
    /// The number of messages after which it ends.
    pub(crate) count: Option<u64>,
    /// The time after which it ends.
    pub(crate) timeout: Option<Duration>,
    pub(crate) verbose: bool,
}

/// The result of receiving.
#[derive(Debug)]
pub(crate) struct Finished<S> {
    exit: Exit,
    /// The source; `None` if it was abandoned because nobody read the output.
    pub(crate) source: Option<S>,
    /// Whether the time was up before there were enough messages.
    pub(crate) is_late: bool,
    /// The number of messages that were written and of those that were expected, if the time was up.
    missed: Option<(u64, u64)>,
}

impl<S> Finished<S> {
    /// Returns the exit code. Reports how many messages are missing, if a timeout was the reason for the end.
    pub(crate) fn exit(self) -> Exit {
        if let Some((written, count)) = self.missed {
            let expected = counted(count, "message");
            warn(format_args!("timed out: {} of {expected} arrived", grouped(written)));
        }
        self.exit
    }
}

impl<S: Source, W: Writer<S::Message>> Receiver<S, W> {
    /// Receives until the end. `watching` runs at the same time, and returns an error when no more messages
    /// can arrive.
    pub(crate) async fn run(
        self,
        interrupt: &mut Interrupt,
        watching: impl Future<Output = anyhow::Error>,
    ) -> anyhow::Result<Finished<S>> {
        let (count, timeout) = (self.count, self.timeout);
        let time_is_up = async {
            match timeout {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let (stop, stopped) = watch::channel(false);
        // The work has its own task, because a slow reader of our output may block it, and signals must be
        // handled in the meantime.
        let mut receiving = tokio::spawn(self.work(stopped));
        let (exit, is_late) = tokio::select! {
            result = &mut receiving => {
                let (source, _) = result??;
                return Ok(Finished { exit: Exit::Done, source: Some(source), is_late: false, missed: None });
            }
            error = watching => return Err(error),
            exit = interrupt.wait() => (exit, false),
            () = time_is_up => (if count.is_some() { Exit::TimedOut } else { Exit::Done }, true),
            () = output_closed() => (Exit::Done, false),
        };
        stop.send_replace(true);
        let unread = |exit| Ok(Finished { exit, source: None, is_late: false, missed: None });
        let (source, written) = tokio::select! {
            result = &mut receiving => result??,
            () = tokio::time::sleep(INTERRUPTED_LINGER) => {
                if !exit.is_interrupted() {
                    warn("ended while nobody reads what is written: the rest is lost");
                }
                return unread(exit);
            }
            exit = interrupt.wait() => return unread(exit),
        };
        // The last message may have arrived together with the end of the time.
        let is_enough = count == Some(written);
        let exit = if is_enough && exit == Exit::TimedOut { Exit::Done } else { exit };
        let missed = count.filter(|_| exit == Exit::TimedOut).map(|count| (written, count));
        Ok(Finished { exit, source: Some(source), is_late: is_late && !is_enough, missed })
    }

    /// Works until it is stopped or the count is reached. Returns the source and the number of written
    /// messages.
    async fn work(mut self, mut stopped: watch::Receiver<bool>) -> anyhow::Result<(S, u64)> {
        let (mut messages, mut bytes, mut turn) = (0_u64, 0_u64, 0_u64);
        while self.count.is_none_or(|count| messages < count) {
            turn += 1;
            if turn.is_multiple_of(YIELD_AFTER) {
                if *stopped.borrow() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let polled = futures::poll!(pin!(self.source.next()));
            let next = match polled {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    // No message is waiting, so the written ones are made visible.
                    self.writer.flush()?;
                    tokio::select! {
                        biased;
                        next = self.source.next() => next,
                        _ = stopped.wait_for(|stopped| *stopped) => break,
                        () = self.writer.due() => {
                            self.writer.write_due()?;
                            continue;
                        }
                    }
                }
            };
            let Some(message) = next else { break };
            if let Some(len) = self.writer.write(message, messages + 1)? {
                messages += 1;
                bytes += len;
            }
        }
        self.writer.finish()?;
        if self.verbose {
            note(format_args!("received {} ({})", counted(messages, "message"), counted(bytes, "byte")));
        }
        Ok((self.source, messages))
    }
}
