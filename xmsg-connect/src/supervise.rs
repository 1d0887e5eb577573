//! The supervision of a link: it starts the session, waits and starts it again when it has ended, and follows
//! changes of the definition. Each link has a task of its own, so that one that hangs holds up no other.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use xmsg_zmq::deadline::Deadline;

use crate::definition::Reconnect;
use crate::error::{Error, ErrorKind};
use crate::status::{LinkState, Status};

/// How long a session may take to end by itself once it is told to: what is on its way may arrive. After that
/// it is dropped.
const GRACE: Duration = Duration::from_millis(500);

/// What a link is to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan<P> {
    /// The link does nothing.
    Inactive,
    /// The link runs with this configuration.
    Active(P),
}

/// Why a session has ended by itself.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the session had worked before that, so that pauses begin anew.
    pub(crate) had_worked: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, had_worked: false }
    }
}

/// The pauses between attempts, each about twice as long as the one before.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) fn next(&mut self, reconnect: Reconnect) -> Duration {
        let pause = reconnect.min.get().saturating_mul(1 << self.0.min(20)).min(reconnect.max.get());
        self.0 = self.0.saturating_add(1);
        if reconnect.jitter { pause.mul_f64(fastrand::f64().mul_add(-0.5, 1.0)) } else { pause }
    }
}

/// Runs sessions by the plan of the moment until there are no plans any more. A session gets the number of
/// the attempt, counted from 0, and a token: once that is cancelled, it ends soon, or is dropped.
pub(crate) async fn supervise<P, S>(
    status: &Status,
    mut plans: watch::Receiver<Plan<P>>,
    reconnect: impl Fn(&P) -> Reconnect,
    session: impl Fn(P, usize, CancellationToken) -> S,
) where
    P: Clone + Send + 'static,
    S: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut backoff = Backoff::default();
    let mut attempt = 0;
    loop {
        let plan = plans.borrow_and_update().clone();
        let Plan::Active(plan) = plan else {
            status.set(LinkState::Inactive);
            match plans.changed().await {
                Ok(()) => continue,
                Err(_) => break,
            }
        };
        let stop = CancellationToken::new();
        // The session has a task of its own, so that a panic ends the session alone.
        let mut running = AbortOnDropHandle::new(tokio::spawn(session(plan.clone(), attempt, stop.clone())));
        attempt += 1;
        let ended = tokio::select! {
            ended = &mut running => Some(ended),
            _ = plans.changed() => None,
        };
        status.set_peer(None);
        let Some(ended) = ended else {
            stop.cancel();
            if Deadline::after(GRACE).limit(&mut running).await.is_err() {
                running.abort();
                let _ = running.await;
            }
            backoff = Backoff::default();
            attempt = 0;
            if plans.has_changed().is_err() {
                break;
            }
            continue;
        };
        let failure = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(failure)) => failure,
            Err(panic) => {
                let what =
                    format!("a fault of this program has ended the session, which begins again: {panic}");
                Failure { error: Error::new(ErrorKind::Closed, what), had_worked: false }
            }
        };
        if failure.had_worked {
            backoff = Backoff::default();
        }
        let state = match failure.error.kind() {
            ErrorKind::NotAllowed
            | ErrorKind::Refused
            | ErrorKind::InvalidDefinition
            | ErrorKind::Storage => LinkState::Faulted,
            _ => LinkState::Disconnected,
        };
        status.fail(state, failure.error.with_causes());
        let pause = Deadline::after(backoff.next(reconnect(&plan)));
        tokio::select! {
            () = pause.passed() => {}
            changed = plans.changed() => match changed {
                Ok(()) => backoff = Backoff::default(),
                Err(_) => break,
            },
        }
        // The loop looks at the plan again: `changed` above has marked it as seen only if it was there.
    }
    status.set_peer(None);
    status.set(LinkState::Ended);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::definition::Span;

    fn at_once() -> Reconnect {
        Reconnect {
            min: Span::of(Duration::from_millis(1)),
            max: Span::of(Duration::from_millis(4)),
            jitter: false,
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let millis: Vec<_> = (0..5).map(|_| backoff.next(at_once()).as_millis()).collect();
        assert_eq!(millis, [1, 2, 4, 4, 4]);
        let with_jitter = Reconnect { jitter: true, ..at_once() };
        let pause = Backoff(30).next(with_jitter);
        assert!((Duration::from_millis(2)..=Duration::from_millis(4)).contains(&pause), "{pause:?}");
    }

    #[tokio::test]
    async fn a_session_that_fails_or_panics_begins_again() {
        let status = Arc::new(Status::new("outgoing \"x\"".into()));
        let (plans, followed) = watch::channel(Plan::Active(()));
        let began = Arc::new(AtomicUsize::new(0));
        let (counted, shared) = (began.clone(), status.clone());
        let supervisor = tokio::spawn(async move {
            supervise(
                &shared,
                followed,
                |()| at_once(),
                |(), attempt, stop| {
                    let began = counted.clone();
                    async move {
                        began.fetch_add(1, Ordering::SeqCst);
                        match attempt {
                            0 => Err(Error::new(ErrorKind::Unreachable, "nobody there").into()),
                            1 => panic!("on purpose"),
                            2 => Err(Error::new(ErrorKind::Refused, "no such exchange").into()),
                            _ => {
                                stop.cancelled().await;
                                Ok(())
                            }
                        }
                    }
                },
            )
            .await;
        });
        let mut seen = status.watch();
        seen.wait_for(|(state, _)| *state == LinkState::Faulted).await.unwrap();
        while began.load(Ordering::SeqCst) < 4 {
            tokio::task::yield_now().await;
        }
        let whats: Vec<_> = status.report().incidents.into_iter().map(|incident| incident.what).collect();
        assert!(whats[0].contains("nobody there") && whats[1].contains("on purpose"), "{whats:?}");
        plans.send(Plan::Inactive).unwrap();
        seen.wait_for(|(state, _)| *state == LinkState::Inactive).await.unwrap();
        drop(plans);
        supervisor.await.unwrap();
        assert_eq!(status.state(), LinkState::Ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_does_not_end_is_dropped() {
        let status = Status::new("outgoing \"x\"".into());
        let (plans, followed) = watch::channel(Plan::Active(()));
        let supervisor = supervise(&status, followed, |()| at_once(), |(), _, _| std::future::pending());
        tokio::pin!(supervisor);
        assert!(Deadline::after(Duration::from_secs(60)).limit(&mut supervisor).await.is_err());
        drop(plans);
        Deadline::after(GRACE * 2).limit(supervisor).await.expect("it is dropped after the grace");
    }
}
