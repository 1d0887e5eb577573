//! Rare changes and queries of a spool: what they do within a transaction, and how they are answered.

use std::path::Path;

use tokio::sync::OwnedSemaphorePermit;

use super::queue::Reply;
use super::record::{DeadCause, DeadLetter, cost_of_body};
use super::store::StoreError;
use super::tables::Tables;
use super::{Purged, SpoolError, SpoolErrorKind, SpoolOptions};

/// A rare change or query.
#[derive(Debug)]
pub(super) enum Change {
    DeadLetter {
        sequence: u64,
        reason: String,
        answer: DeferredReply<bool>,
    },
    Revive {
        sequence: u64,
        answer: DeferredReply<u64>,
    },
    /// `None`: all of them.
    Discard {
        sequences: Option<Vec<u64>>,
        answer: DeferredReply<u64>,
    },
    Purge {
        answer: DeferredReply<Purged>,
    },
    Dead {
        after: u64,
        limit: usize,
        answer: DeferredReply<Vec<DeadLetter>>,
    },
    /// Waits until the removal of all entries that were removed so far is on disk.
    Sync {
        answer: DeferredReply<()>,
    },
}

/// A reply whose result is known within a transaction, and which is sent after it.
#[derive(Debug)]
pub(super) struct DeferredReply<T> {
    reply: Reply<T>,
    result: Option<Result<T, SpoolError>>,
}

impl<T> DeferredReply<T> {
    pub(super) fn new(reply: Reply<T>) -> Self {
        Self { reply, result: None }
    }

    pub(super) fn set(&mut self, answer: Result<T, SpoolError>) {
        self.result = Some(answer);
    }

    /// Sends the result, or why the transaction failed.
    pub(super) fn send_answer(self, committed: &Result<(), SpoolError>) {
        let answer = match committed {
            Ok(()) => self.result,
            Err(error) => Some(Err(error.clone())),
        };
        if let Some(answer) = answer {
            // The send fails if the call was cancelled.
            let _ = self.reply.send(answer);
        }
    }
}

#[derive(Debug)]
pub(super) struct ChangeCall {
    pub change: Change,
    pub permit: OwnedSemaphorePermit,
}

impl Change {
    /// Returns whether the change is made in one transaction with others.
    pub(super) fn shares_transaction(&self) -> bool {
        !matches!(self, Self::Purge { .. } | Self::Dead { .. })
    }

    /// Applies the change, if it [shares a transaction](Self::shares_transaction).
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        options: &SpoolOptions,
        now_ms: u64,
        dir: &Path,
    ) -> Result<(), StoreError> {
        match self {
            Self::DeadLetter { sequence, reason, answer } => {
                answer.set(Ok(tables.dead_letter(*sequence, DeadCause::Undeliverable, reason, now_ms)?));
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
    /// Sends the result, or why the transaction failed.
    pub(super) fn send_answer(self, committed: &Result<(), SpoolError>) {
        match self.change {
            Change::DeadLetter { answer, .. } => answer.send_answer(committed),
            Change::Revive { answer, .. } | Change::Discard { answer, .. } => answer.send_answer(committed),
            Change::Purge { answer } => answer.send_answer(committed),
            Change::Dead { answer, .. } => answer.send_answer(committed),
            Change::Sync { answer } => answer.send_answer(committed),
        }
        drop(self.permit);
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
    if tables.totals.bytes + cost_of_body(letter.body.len()) > options.max_bytes {
        let text = format!(
            "the spool {dir} is full: the dead letter {sequence} has to wait until entries have left"
        );
        return refused(SpoolErrorKind::Full, text);
    }
    Ok(Ok(tables.revive(&letter, now_ms)?))
}
