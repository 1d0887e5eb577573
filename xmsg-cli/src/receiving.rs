//! Receiving: until there are enough messages, time is up, somebody interrupts it, or nobody reads what is written.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;

use crate::exit::Exit;
use crate::output::{counted, grouped, note, reader_gone, warn};
use crate::signals::Interrupt;

/// Messages that are written before others get their turn.
const TURN: u64 = 256;
/// At the end, how long whoever reads our output may take for the rest.
const HASTY_LINGER: Duration = Duration::from_secs(1);

/// Where messages come from.
pub(crate) trait Source: Send + 'static {
    type Message: Send;

    /// What comes next; `None` at the end. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Self::Message>> + Send;
}

/// How messages are written.
pub(crate) trait Writer<M>: Send + 'static {
    /// Writes a message, and returns how many bytes it has; `None`: it is passed over, and does not count.
    fn write(&mut self, message: M, number: u64) -> anyhow::Result<Option<u64>>;

    /// Shows what was written.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Waits until something is to be written though no message comes; for ever, if that is never so.
    fn due(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Writes that.
    fn write_due(&mut self) -> anyhow::Result<()> {
        self.flush()
    }

    /// Writes what is left at the end.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_due()
    }
}

/// Takes messages and has them written.
#[derive(Debug)]
pub(crate) struct Receiver<S, W> {
    pub(crate) source: S,
    pub(crate) writer: W,
    /// It ends after so many messages …
    pub(crate) count: Option<u64>,
    /// … or after this time.
    pub(crate) timeout: Option<Duration>,
    pub(crate) verbose: bool,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended<S> {
    exit: Exit,
    /// Where messages came from; `None` if it was left while nobody read what is written.
    pub(crate) source: Option<S>,
    /// Whether the time was up before there were enough messages.
    pub(crate) is_late: bool,
    /// How many messages there were then, and how many should have come.
    missed: Option<(u64, u64)>,
}

impl<S> Ended<S> {
    /// The exit code. Says how many messages are missing, if that is why it ended.
    pub(crate) fn exit(self) -> Exit {
        if let Some((written, count)) = self.missed {
            let expected = counted(count, "message");
            warn(format_args!("timed out: {} of {expected} arrived", grouped(written)));
        }
        self.exit
    }
}

impl<S: Source, W: Writer<S::Message>> Receiver<S, W> {
    /// Receives to the end. `watching` is run meanwhile, and fails if nothing can come any more.
    pub(crate) async fn run(
        self,
        interrupt: &mut Interrupt,
        watching: impl Future<Output = anyhow::Error>,
    ) -> anyhow::Result<Ended<S>> {
        let (count, timeout) = (self.count, self.timeout);
        let time_is_up = async {
            match timeout {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let (stop, stopped) = watch::channel(false);
        // A task of its own: it may be blocked by whoever reads our output, and signals have to be heard meanwhile.
        let mut receiving = tokio::spawn(self.work(stopped));
        let (exit, is_late) = tokio::select! {
            result = &mut receiving => {
                let (source, _) = result??;
                return Ok(Ended { exit: Exit::Done, source: Some(source), is_late: false, missed: None });
            }
            error = watching => return Err(error),
            exit = interrupt.wait() => (exit, false),
            () = time_is_up => (if count.is_some() { Exit::TimedOut } else { Exit::Done }, true),
            () = reader_gone() => (Exit::Done, false),
        };
        stop.send_replace(true);
        let unread = |exit| Ok(Ended { exit, source: None, is_late: false, missed: None });
        let (source, written) = tokio::select! {
            result = &mut receiving => result??,
            () = tokio::time::sleep(HASTY_LINGER) => {
                if !exit.is_interrupted() {
                    warn("ended while nobody reads what is written: the rest is lost");
                }
                return unread(exit);
            }
            exit = interrupt.wait() => return unread(exit),
        };
        // The last one may have come together with the end of the time.
        let is_enough = count == Some(written);
        let exit = if is_enough && exit == Exit::TimedOut { Exit::Done } else { exit };
        let missed = count.filter(|_| exit == Exit::TimedOut).map(|count| (written, count));
        Ok(Ended { exit, source: Some(source), is_late: is_late && !is_enough, missed })
    }

    /// Until told to stop or the count is reached. Returns how many messages were written, too.
    async fn work(mut self, mut stopped: watch::Receiver<bool>) -> anyhow::Result<(S, u64)> {
        let (mut messages, mut bytes, mut turn) = (0_u64, 0_u64, 0_u64);
        while self.count.is_none_or(|count| messages < count) {
            turn += 1;
            if turn.is_multiple_of(TURN) {
                if *stopped.borrow() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let polled = futures::poll!(pin!(self.source.next()));
            let next = match polled {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    // Nothing more for now: what there is shall be seen.
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
