//! Decryption of what is received over a connection with CURVE.

use tokio::task::JoinError;
use xmsg_zmtp::Violation;
use xmsg_zmtp::curve::{LONG_FRAME, Opener};

use crate::fault::Fault;
use crate::link::buffer::ReceiveBuffer;
use crate::link::session::Ended;
use crate::memory_budget::PeerClaim;

/// Received CURVE boxes that are to be decrypted.
#[derive(Debug)]
pub(super) struct Decryption {
    /// `None` only while another thread uses it.
    pub(super) opener: Option<Opener>,
    pub(super) boxed: ReceiveBuffer,
}

impl Decryption {
    /// Decrypts boxes until the slab of `plain` is full. Returns whether it stopped for that reason. Clear
    /// text counts against the budget before memory is allocated for it: a box may be as long as a message.
    pub(super) async fn open(
        &mut self,
        plain: &mut ReceiveBuffer,
        memory: &mut Option<PeerClaim>,
    ) -> Result<bool, Ended> {
        let mut done = 0;
        while let Some(len) = self.next_len()? {
            if !plain.fits(len) {
                if done > 0 {
                    return Ok(true);
                }
                if let Some(memory) = memory
                    && !memory.allow(self.boxed.held() + plain.needs_in_all_for(len)).await
                {
                    return Err(Ended::OutOfMemory);
                }
                plain.reserve(len);
            }
            match &mut self.opener {
                Some(opener) if len < LONG_FRAME => {
                    opener.open(&mut self.boxed.input, &mut plain.input)?;
                }
                _ => self.open_apart(plain).await?,
            }
            // The message may have to wait for a subscriber. Its box need not be kept so long.
            if self.boxed.give_up_large()
                && let Some(memory) = memory
            {
                memory.give_back(self.boxed.held() + plain.held());
            }
            done += len;
        }
        Ok(false)
    }

    /// The length in bytes of the next frame, if its whole box has arrived.
    fn next_len(&self) -> Result<Option<usize>, Violation> {
        self.opener.as_ref().map_or(Ok(None), |opener| opener.frame_len(&self.boxed.input))
    }

    /// Decrypts one long frame on a blocking thread, so that other connections need not wait for it.
    async fn open_apart(&mut self, plain: &mut ReceiveBuffer) -> Result<(), Ended> {
        let Some(mut opener) = self.opener.take() else { return Ok(()) };
        let mut boxed = std::mem::take(&mut self.boxed.input);
        // There is room for the frame in it already.
        let mut frames = std::mem::take(&mut plain.input);
        let task = tokio::task::spawn_blocking(move || {
            let result = opener.open(&mut boxed, &mut frames);
            (opener, boxed, frames, result)
        });
        let ended = |error: JoinError| match error.try_into_panic() {
            Ok(panic) => Ended::Fault(Fault::of(&*panic)),
            Err(_) => Ended::ByUs("the thread that opens its frames ended"),
        };
        let (opener, boxed, frames, result) = task.await.map_err(ended)?;
        (self.opener, self.boxed.input, plain.input) = (Some(opener), boxed, frames);
        result?;
        Ok(())
    }

    pub(super) fn missing(&self) -> usize {
        self.opener.as_ref().map_or(0, |opener| opener.missing(&self.boxed.input))
    }
}
