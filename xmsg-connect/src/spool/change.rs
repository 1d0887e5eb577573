//! Changes and questions that are rare: what they do within a transaction, and how they are answered.

use std::path::Path;

use tokio::sync::OwnedSemaphorePermit;

use super::queue::Reply;
use super::record::{DeadCause, DeadLetter, cost_of_body};
use super::store::StoreError;
use super::tables::Tables;
use super::{Purged, SpoolError, SpoolErrorKind, SpoolOptions};

/// A change or a question that is rare.
#[derive(Debug)]
pub(super) enum Change {
    Bury {
        sequence: u64,
        reason: String,
        answer: Answer<bool>,
    },
    Revive {
        sequence: u64,
        answer: Answer<u64>,
    },
    /// `None`: all of them.
    Discard {
        sequences: Option<Vec<u64>>,
        answer: Answer<u64>,
    },
    Purge {
        answer: Answer<Purged>,
    },
    Dead {
        after: u64,
        limit: usize,
        answer: Answer<Vec<DeadLetter>>,
    },
    /// All that was confirmed so far is to be on disk.
    Sync {
        answer: Answer<()>,
    },
}

/// An answer that is known within a transaction, and told after it.
#[derive(Debug)]
pub(super) struct Answer<T> {
    reply: Reply<T>,
    known: Option<Result<T, SpoolError>>,
}

impl<T> Answer<T> {
    pub(super) fn to(reply: Reply<T>) -> Self {
        Self { reply, known: None }
    }

    pub(super) fn set(&mut self, answer: Result<T, SpoolError>) {
        self.known = Some(answer);
    }

    /// Tells the answer, or why the transaction failed.
    pub(super) fn tell(self, committed: &Result<(), SpoolError>) {
        let answer = match committed {
            Ok(()) => self.known,
            Err(error) => Some(Err(error.clone())),
        };
        if let Some(answer) = answer {
            // Nobody listens if the call was cancelled.
            let _ = self.reply.send(answer);
        }
    }
}

#[derive(Debug)]
pub(super) struct ChangeCall {
    pub change: Change,
    pub turn: OwnedSemaphorePermit,
}

impl Change {
    /// Whether it is part of the transaction that it shares with others.
    pub(super) fn is_small(&self) -> bool {
        !matches!(self, Self::Purge { .. } | Self::Dead { .. })
    }

    /// Does it, if it [is small](Self::is_small).
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        options: &SpoolOptions,
        now_ms: u64,
        dir: &Path,
    ) -> Result<(), StoreError> {
        match self {
            Self::Bury { sequence, reason, answer } => {
                answer.set(Ok(tables.bury(*sequence, DeadCause::Buried, reason, now_ms)?));
            }
            Self::Revive { sequence, answer } => answer.set(revive(tables, *sequence, options, now_ms, dir)?),
            Self::Discard { sequences: None, answer } => answer.set(Ok(tables.discard_all()?)),
            Self::Discard { sequences: Some(sequences), answer } => {
                let mut discarded = 0;
                for &sequence in &*sequences {
                    discarded += u64::from(tables.discard(sequence)?);
                }
                answer.set(Ok(discarded));
            }
            Self::Sync { answer } => answer.set(Ok(())),
            Self::Purge { .. } | Self::Dead { .. } => {}
        }
        Ok(())
    }
}

impl ChangeCall {
    /// Tells the answer, or why the transaction failed.
    pub(super) fn tell(self, committed: &Result<(), SpoolError>) {
        match self.change {
            Change::Bury { answer, .. } => answer.tell(committed),
            Change::Revive { answer, .. } | Change::Discard { answer, .. } => answer.tell(committed),
            Change::Purge { answer } => answer.tell(committed),
            Change::Dead { answer, .. } => answer.tell(committed),
            Change::Sync { answer } => answer.tell(committed),
        }
        drop(self.turn);
    }
}

fn revive(
    tables: &mut Tables<'_>,
    sequence: u64,
    options: &SpoolOptions,
    now_ms: u64,
    dir: &Path,
) -> Result<Result<u64, SpoolError>, StoreError> {
    let dir = dir.display();
    let refused = |kind, text| Ok(Err(SpoolError::new(kind, text)));
    let Some(letter) = tables.letter(sequence)? else {
        return refused(
            SpoolErrorKind::NotFound,
            format!("there is no dead letter {sequence} in the spool {dir}"),
        );
    };
    if letter.cause == DeadCause::Damaged {
        let text =
            format!("the dead letter {sequence} in the spool {dir} is damaged: it can only be discarded");
        return refused(SpoolErrorKind::Damaged, text);
    }
    if tables.ledger.bytes + cost_of_body(letter.body.len()) > options.max_bytes {
        let text = format!(
            "the spool {dir} is full: the dead letter {sequence} has to wait until entries have left"
        );
        return refused(SpoolErrorKind::Full, text);
    }
    Ok(Ok(tables.revive(&letter, now_ms)?))
}
