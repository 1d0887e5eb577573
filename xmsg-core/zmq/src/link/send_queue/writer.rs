//! The writer of a send queue: it takes what is queued and writes it, in clear text or in CURVE boxes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::OptionFuture;
use smallvec::SmallVec;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::retained::Chunks;
use super::{Amount, Chunk, KEPT, SPARE, SendQueue, TAIL_LEN};
use crate::link::admission::Activity;
use crate::link::session::now;
use crate::memory_budget::PeerClaim;
use xmsg_zmtp::curve::{LONG_FRAME, Sealer};
use xmsg_zmtp::{Command, Header, whole_messages_within};

/// The maximum number of slices that are passed to the system in one write.
const SLICES: usize = 64;
/// The maximum number of bytes that are passed to the system in one write, so that urgent answers need not
/// wait for long.
pub(super) const WRITE_MAX: usize = 1 << 20;
/// The number of bytes that are encrypted before they are written. A longer frame is encrypted as a whole.
const SEAL_MAX: usize = 64 << 10;
/// The maximum number of bytes by which a box is longer than its frame.
const BOX_EXTRA: usize = 64;

/// Drains a [`SendQueue`] into a stream. If it is dropped in the middle, it puts back every message that the
/// peer cannot have received whole, so that the next writer begins with that message.
#[derive(Debug)]
pub struct Writer<'a> {
    send_queue: &'a SendQueue,
    /// The written chunks of a message that is not completely written yet.
    written_of_message: Vec<Chunk>,
    chunks: VecDeque<Chunk>,
    /// The number of bytes of the first chunk that are written.
    offset: usize,
    /// Whether urgent bytes wait for the next end of a message.
    pub(super) urgent_waits: bool,
    sealing: Option<Sealing>,
    /// Whether written messages are retained. It is updated with each fetch, because retaining may be enabled
    /// after the writer was created.
    retains: bool,
    activity: Option<Arc<Activity>>,
}

impl<'a> Writer<'a> {
    /// Creates a writer for this queue.
    #[must_use]
    pub fn new(send_queue: &'a SendQueue) -> Self {
        Self {
            send_queue,
            written_of_message: Vec::new(),
            chunks: VecDeque::new(),
            offset: 0,
            urgent_waits: false,
            sealing: None,
            retains: false,
            activity: None,
        }
    }

    /// Encrypts everything with this sealer, if there is one.
    #[must_use]
    pub fn sealed(mut self, sealer: Option<Sealer>) -> Self {
        self.sealing = sealer.map(Sealing::new);
        self
    }

    /// Claims the memory of long boxes.
    pub(crate) fn claiming(mut self, claim: Option<PeerClaim>) -> Self {
        if let Some(sealing) = &mut self.sealing {
            sealing.claim = claim;
        }
        self
    }

    /// Has `activity` note when something was last written.
    pub(crate) fn noting(mut self, activity: Option<Arc<Activity>>) -> Self {
        self.activity = activity;
        self
    }

    fn note_activity(&self) {
        if let Some(activity) = &self.activity {
            activity.note(now());
        }
    }

    /// Writes until the stream fails, or the queue is closed and empty.
    pub async fn run(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        loop {
            if self.offset == 0 && self.written_of_message.is_empty() {
                let urgent = self.send_queue.take_urgent();
                if let Some(urgent) = urgent {
                    let urgent = match &mut self.sealing {
                        None => urgent,
                        Some(sealing) => urgent.sealed(|commands| sealing.seal_apart(commands)),
                    };
                    stream.write_all(urgent.bytes()).await?;
                }
                if self.chunks.is_empty() && !self.fetch().await {
                    return Ok(());
                }
            }
            if !self.chunks.is_empty() {
                if self.sealing.is_some() {
                    self.write_sealed(stream).await?;
                } else {
                    self.write_some(stream).await?;
                }
            }
        }
    }

    /// Writes a command directly, without the queue.
    pub(crate) async fn write_command(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        command: &Command,
    ) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        command.write(&mut bytes);
        match &mut self.sealing {
            None => stream.write_all(&bytes).await,
            Some(sealing) => stream.write_all(&sealing.seal_apart(&bytes)).await,
        }
    }

    /// Waits for something to write. Returns `false` when the queue is closed and empty.
    async fn fetch(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            let mut state = self.send_queue.state();
            if state.has_messages() {
                self.retains = state.retained.is_some();
                state.flush_tail();
                state.in_a_row = 0;
                // Not everything is taken at once, because urgent bytes go before what has not been taken.
                // But only whole messages are taken.
                let (mut len, mut whole) = (0, false);
                while len < WRITE_MAX || !whole {
                    let Some(chunk) = state.next_chunk(len) else { break };
                    len += chunk.bytes.len();
                    whole = chunk.ends_message;
                    self.chunks.push_back(chunk);
                }
                self.urgent_waits = false;
            } else if state.urgent.is_empty() {
                if state.closed && state.chunks.is_empty() && state.tail.is_empty() {
                    return Poll::Ready(false);
                }
                state.release_tail();
                if let Some(sealing) = &mut self.sealing {
                    sealing.release();
                }
                match &mut state.writer {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            Poll::Ready(true)
        })
        .await
    }

    async fn write_some(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut len) = (0, 0);
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let bytes = if count == 0 { &chunk.bytes[self.offset..] } else { &chunk.bytes[..] };
            *slice = IoSlice::new(bytes);
            count += 1;
            len += bytes.len();
            if len >= WRITE_MAX || self.urgent_waits {
                break;
            }
        }
        let written = if count == 1 {
            stream.write(&slices[0]).await?
        } else {
            stream.write_vectored(&slices[..count]).await?
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.note_activity();
        self.advance(written);
        Ok(())
    }

    /// Encrypts the next frames and writes them completely.
    async fn write_sealed(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let Some(sealing) = &mut self.sealing else { return Ok(()) };
        if let Some(long) = sealing.seal(&self.chunks, self.offset, self.urgent_waits) {
            sealing.seal_long(long).await?;
        }
        while let Some(sealing) = self.sealing.as_mut().filter(|sealing| !sealing.sealed.is_empty()) {
            let end = sealing.claim.as_ref().and_then(PeerClaim::end);
            let end = OptionFuture::from(end.map(CancellationToken::cancelled));
            let written = tokio::select! {
                biased;
                written = stream.write(&sealing.sealed) => written?,
                Some(()) = end => return Err(io::ErrorKind::OutOfMemory.into()),
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let plain = sealing.advance(written);
            self.note_activity();
            if plain > 0 {
                self.advance(plain);
            } else {
                self.send_queue.state().written_of_boxes += written as u64;
            }
        }
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        let (mut done, mut copied) = (Amount::default(), 0);
        let mut used: SmallVec<[Bytes; SPARE]> = SmallVec::new();
        let mut kept: Vec<Chunks> = Vec::new();
        let mut left = written;
        while let Some(chunk) = self.chunks.front() {
            let rest = chunk.bytes.len() - self.offset;
            if left < rest {
                self.offset += left;
                break;
            }
            left -= rest;
            self.offset = 0;
            // `front` has just shown that there is one.
            let Some(chunk) = self.chunks.pop_front() else { break };
            let ends_message = chunk.ends_message;
            self.written_of_message.push(chunk);
            if ends_message {
                for chunk in &self.written_of_message {
                    done += Amount::new(chunk.messages, chunk.charge);
                    copied += if chunk.slab_charge.is_none() { chunk.charge } else { 0 };
                }
                if self.retains {
                    kept.push(self.written_of_message.drain(..).collect());
                }
                for chunk in self.written_of_message.drain(..) {
                    if chunk.slab_charge.is_none() && chunk.bytes.len() >= TAIL_LEN / 2 && used.len() < SPARE
                    {
                        used.push(chunk.bytes);
                    }
                }
            }
        }
        self.send_queue.uncount_copied(copied);
        let mut state = self.send_queue.state();
        if let Some(spare) = &mut state.spare {
            let full = used.into_iter().filter_map(|bytes| bytes.try_into_mut().ok());
            for mut chunk in full.take(SPARE - spare.len()).filter(|chunk| chunk.capacity() >= TAIL_LEN) {
                chunk.clear();
                spare.push(chunk);
            }
        }
        state.queued -= done;
        state.retain(kept);
        state.written += Amount { messages: done.messages, bytes: written as u64 };
        self.urgent_waits = !state.urgent.is_empty();
        let waiters = self.send_queue.take_waiters_for_room(&mut state);
        let is_watched = std::mem::take(&mut state.is_progress_awaited);
        let somebody_waits = state.note_written_for_senders(written);
        drop(state);
        self.send_queue.wake(waiters);
        if somebody_waits {
            self.send_queue.wake_next_sender();
        }
        if is_watched {
            self.send_queue.progress.notify_waiters();
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        let whole_chunks = self.written_of_message.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        let written = whole_chunks + self.offset;
        let mut chunks: VecDeque<Chunk> =
            self.written_of_message.drain(..).chain(self.chunks.drain(..)).collect();
        let (mut messages, mut boundary) =
            whole_messages_within(chunks.iter().map(|chunk| &chunk.bytes[..]), written);
        // A box that was written in part counts, too.
        let is_inside = written > boundary || self.sealing.as_ref().is_some_and(Sealing::is_inside);
        // What the peer may have received whole leaves the queue; the rest goes back to the front.
        let (mut whole, mut copied) = (Amount::new(messages, 0), 0);
        let mut kept = Chunks::new();
        while boundary > 0 {
            let Some(chunk) = chunks.front_mut() else { break };
            let len = boundary.min(chunk.bytes.len());
            boundary -= len;
            let of_this_chunk = chunk.messages.min(messages);
            messages -= of_this_chunk;
            let rest = chunk.bytes.split_off(len);
            // A slab stays charged until its last slice goes. Copied bytes are uncharged as they go.
            let charge = match (&chunk.slab_charge, rest.is_empty()) {
                (Some(_), false) => 0,
                (_, true) => chunk.charge,
                (None, false) => len.min(chunk.charge),
            };
            whole.bytes += charge as u64;
            copied += if chunk.slab_charge.is_none() { charge } else { 0 };
            if self.retains {
                kept.push(Chunk { charge, ..Chunk::copied(chunk.bytes.clone(), of_this_chunk) });
            }
            if rest.is_empty() {
                chunks.pop_front();
            } else {
                chunk.messages -= of_this_chunk;
                chunk.charge -= charge;
                chunk.bytes = rest;
            }
        }
        self.send_queue.uncount_copied(copied);
        let mut state = self.send_queue.state();
        state.queued -= whole;
        state.retain((!kept.is_empty()).then_some(kept));
        state.written.messages += whole.messages;
        state.note_end(is_inside);
        state.urgent.clear();
        state.writer = None;
        chunks.append(&mut state.chunks);
        state.chunks = chunks;
        // The next writer may not come for long, so the room is given away now.
        let waiters = self.send_queue.take_waiters_for_room(&mut state);
        drop(state);
        self.send_queue.wake(waiters);
    }
}

/// A frame whose encryption takes long.
#[derive(Debug)]
struct LongFrame {
    flags: u8,
    body: Bytes,
    /// The length with its header in clear text.
    len: usize,
}

/// Frames that are taken from the queue in clear text and written to the stream in boxes.
#[derive(Debug)]
struct Sealing {
    /// `None` only while another thread uses it.
    sealer: Option<Sealer>,
    /// What is encrypted and not yet written.
    sealed: BytesMut,
    /// The number of bytes of `sealed` that were written already.
    written: usize,
    /// The end of the last box that was written completely.
    whole: usize,
    /// For each encrypted frame, the end of its box, counted from the first one, and its length in clear
    /// text.
    frames: VecDeque<(usize, usize)>,
    /// The claim for the memory of a long box.
    claim: Option<PeerClaim>,
}

impl Sealing {
    fn new(sealer: Sealer) -> Self {
        Self {
            sealer: Some(sealer),
            sealed: BytesMut::new(),
            written: 0,
            whole: 0,
            frames: VecDeque::new(),
            claim: None,
        }
    }

    /// Encrypts frames, beginning at `offset` in the first chunk: about [`SEAL_MAX`] bytes or, if
    /// `one_message`, up to the end of the first message. If a long frame comes first, it is returned
    /// instead.
    fn seal(&mut self, chunks: &VecDeque<Chunk>, offset: usize, one_message: bool) -> Option<LongFrame> {
        (self.written, self.whole) = (0, 0);
        let sealer = self.sealer.as_mut()?;
        let (mut index, mut at) = (0, offset);
        while self.sealed.len() < SEAL_MAX {
            let Some(chunk) = chunks.get(index) else { break };
            if at == chunk.bytes.len() {
                (index, at) = (index + 1, 0);
                continue;
            }
            // Chunks end at the end of a frame or of its header. In the second case, the body is a chunk of
            // its own.
            let Ok(Some(header)) = Header::read(&chunk.bytes[at..]) else { break };
            let (start, len) = (at + header.len, header.body_len as usize);
            let (chunk, start) = if start == chunk.bytes.len() && len > 0 {
                index += 1;
                (chunks.get(index)?, 0)
            } else {
                (chunk, start)
            };
            at = start + len;
            if len >= LONG_FRAME {
                if !self.sealed.is_empty() {
                    break;
                }
                let body = (at <= chunk.bytes.len()).then(|| chunk.bytes.slice(start..at))?;
                return Some(LongFrame { flags: header.flags, body, len: header.len + len });
            }
            sealer.seal(header.flags, chunk.bytes.get(start..at)?, &mut self.sealed);
            self.frames.push_back((self.sealed.len(), header.len + len));
            if one_message && !header.has_more() {
                break;
            }
        }
        None
    }

    /// Encrypts one long frame on a blocking thread, so that other connections need not wait for it.
    async fn seal_long(&mut self, frame: LongFrame) -> io::Result<()> {
        let LongFrame { flags, body, len } = frame;
        let needed = len + BOX_EXTRA;
        if let Some(claim) = &mut self.claim
            && !claim.allow(needed).await
        {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let Some(mut sealer) = self.sealer.take() else { return Ok(()) };
        let mut out = BytesMut::with_capacity(needed);
        let task = tokio::task::spawn_blocking(move || {
            sealer.seal(flags, &body, &mut out);
            (sealer, out)
        });
        let (sealer, out) = task.await.map_err(io::Error::other)?;
        (self.sealer, self.sealed) = (Some(sealer), out);
        self.frames.push_back((self.sealed.len(), len));
        Ok(())
    }

    /// Encrypts whole commands that are written at once.
    fn seal_apart(&mut self, commands: &[u8]) -> BytesMut {
        let (mut sealed, mut rest) = (BytesMut::new(), commands);
        while let Ok(Some(header)) = Header::read(rest) {
            let end = header.len + header.body_len as usize;
            let Some(body) = rest.get(header.len..end) else { break };
            if let Some(sealer) = &mut self.sealer {
                sealer.seal(header.flags, body, &mut sealed);
            }
            rest = &rest[end..];
        }
        sealed
    }

    /// Releases the memory of boxes that were written, if it is much.
    fn release(&mut self) {
        if self.sealed.is_empty() && self.sealed.try_reclaim(KEPT + 1) {
            self.sealed = BytesMut::new();
        }
    }

    /// Whether a box was written in part.
    fn is_inside(&self) -> bool {
        !self.frames.is_empty() && self.written > self.whole
    }

    /// Notes that `written` encrypted bytes were written. Returns the length in clear text of the frames that
    /// this completes.
    fn advance(&mut self, written: usize) -> usize {
        self.written += written;
        self.sealed.advance(written);
        let mut plain = 0;
        while let Some((end, len)) = self.frames.front().filter(|(end, _)| *end <= self.written) {
            self.whole = *end;
            plain += len;
            self.frames.pop_front();
        }
        if self.sealed.is_empty() {
            if self.sealed.capacity() <= 2 * SEAL_MAX {
                self.sealed.clear();
            } else {
                // The memory of one long box is not kept for ever.
                self.sealed = BytesMut::new();
            }
            if let Some(claim) = &mut self.claim {
                claim.give_back(0);
            }
        }
        plain
    }
}
