//! The send queue: the bounded queue between senders and the task that writes to a connection.
//!
//! ```text
//!                  has room                           takes up to 1 MiB
//!  sender ─► push ──────────► State.chunks, State.tail ─────────────────► Writer ─► stream
//!               │                    ▲                                      │
//!               ├─ no room ─► State.line ◄────────── takes the first ───────┤ what it has written makes room
//!               │             (sending.rs)                                  │
//!               └─ writer is behind ─► State.pace ◄── wakes the first ──────┘
//!                                      (backpressure.rs)
//! ```
//!
//! It holds encoded messages. Short ones are copied one after another; long ones are slices of the memory in
//! which they arrived. What the writer has taken and not yet written still counts, so the high-water mark is
//! a bound on memory.

// | file | answers |
// |---|---|
// | `writer.rs` | How is what is queued written to the connection? |
// | `sending.rs` | How does a sender wait, for room or for the writer? |
// | `backpressure.rs` | When does a sender wait although there is room? |
// | `backlog.rs` | Which queued messages make room for newer ones? |
// | `overflow.rs` | Which message is dropped if its sender does not wait? |
// | `discard.rs` | What becomes of queued messages that the peer does not accept? |
// | `retained.rs` | What is sent again unless it is known to have arrived? |
// | `unsent.rs` | Which messages were not sent when the peer was gone? |
// | `urgent.rs` | What is written ahead of messages? |
// | `amount.rs` | How much waits, and how much may wait? |

// Longer than 500 lines: one state under one lock. Its invariants hold for all methods here; what stands
// apart is in the modules beside it.

mod amount;
mod backlog;
mod backpressure;
mod discard;
mod overflow;
mod retained;
mod sending;
mod unsent;
mod urgent;
mod writer;

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

pub use amount::{Amount, HighWaterMark};
use backlog::Backlog;
pub use backlog::{APART, Keep, PushResult};
use backpressure::Pace;
pub use discard::Discarded;
use retained::Retained;
pub use retained::{Redeliver, RedeliveredFrames};
use sending::WaitingFrames;
pub(crate) use sending::{Begun, Sending, begin};
pub(crate) use unsent::Unsent;
use urgent::Urgent;
pub use writer::Writer;

use crate::EncodedFrames;
use crate::link::wait_queue::{Place, WaitQueue, Wakers};
use crate::lock::lock;
use xmsg_zmtp::{MessageLimits, encode_frame, encode_frame_header, encoded_len};

/// Frames of at least this length are queued without a copy.
pub(crate) const UNCOPIED_MIN: usize = 8 << 10;
/// The approximate length of a chunk of copied messages.
const TAIL_LEN: usize = 64 << 10;
/// Extra room in a chunk for the message that exceeds [`TAIL_LEN`].
const TAIL_SLACK: usize = 2 * UNCOPIED_MIN;
/// The number of written chunks whose memory is kept for reuse, while it is still in the processor's caches.
const SPARE: usize = 4;
/// The memory in bytes that a queue keeps for copies, and a writer for boxes, while there is nothing to
/// write. It counts as a part of the connection only.
const KEPT: usize = 8 << 10;
/// After this many bytes in a row, a sender yields to the writer. With a much larger value, a loop of
/// `push(…).await` would keep the writer of a single-threaded runtime from writing until the queue is full.
/// What the writer then writes would have left the processor's caches.
const TURN: usize = 64 << 10;
/// The maximum size in bytes of protocol answers (PONG) that wait to be written. A peer that causes more does
/// not read them.
pub const URGENT_MAX: usize = 64 << 10;

/// Counts the bytes of memory that all queues of a process hold together.
#[derive(Debug, Default)]
pub struct MemoryCounter(AtomicUsize);

impl MemoryCounter {
    /// Returns the number of bytes held now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The entry of a slab in the memory counter. Every queued slice of the slab holds it; dropping the last one
/// removes the entry.
#[derive(Debug)]
pub struct SlabCharge {
    bytes: usize,
    memory_counter: Arc<MemoryCounter>,
}

impl SlabCharge {
    /// Adds a slab of `bytes` bytes to the memory counter.
    #[must_use]
    pub fn new(memory_counter: &Arc<MemoryCounter>, bytes: usize) -> Arc<Self> {
        memory_counter.0.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Self { bytes, memory_counter: memory_counter.clone() })
    }
}

impl Drop for SlabCharge {
    fn drop(&mut self) {
        self.memory_counter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A frame of a message, owned or borrowed.
pub trait Frame: Borrow<Bytes> + AsRef<[u8]> {}

impl<T: Borrow<Bytes> + AsRef<[u8]>> Frame for T {}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has no frames, or exceeds the [limits](SendQueue::limits) of the queue. It would never be accepted.
    ExceedsLimits,
    /// The queue is at its high-water mark.
    Full,
    /// The queue was closed.
    Closed,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    messages: usize,
    /// The number of bytes that this chunk adds to the memory of the queue.
    charge: usize,
    /// Whether a message ends where this chunk ends.
    ends_message: bool,
    slab_charge: Option<Arc<SlabCharge>>,
    keep: Keep,
    /// Increases from chunk to chunk, with gaps.
    number: u64,
}

impl Chunk {
    /// A chunk of copied bytes, which stays until it is written.
    fn copied(bytes: Bytes, messages: usize) -> Self {
        let charge = bytes.len();
        Self { bytes, messages, charge, ends_message: true, slab_charge: None, keep: Keep::Always, number: 0 }
    }
}

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct State {
    chunks: VecDeque<Chunk>,
    /// Whole messages that were copied and are not in a chunk yet.
    tail: BytesMut,
    tail_messages: usize,
    /// The memory of written chunks for reuse, or `None` if it is freed.
    spare: Option<Vec<BytesMut>>,
    backlog: Backlog,
    urgent: Urgent,
    /// Whether a caller waits until what is queued has been written.
    is_progress_awaited: bool,
    /// What is queued, including what the writer has taken and not yet written. `bytes` is memory.
    queued: Amount,
    written: Amount,
    /// What was written and is kept until it has arrived, if unconfirmed messages are to be sent again.
    retained: Option<Box<Retained>>,
    /// How many messages had left the queue when a connection broke last. It is not set where written
    /// messages are retained, since their delivery is not in doubt.
    broken_at: u64,
    /// The encrypted bytes that were written and completed no frame. They are no part of `written`, and show
    /// only that the stream accepts something.
    written_of_boxes: u64,
    /// What was accepted and then [discarded](SendQueue::limit). `bytes` is the size of the messages.
    discarded: Amount,
    /// No message that is queued exceeds these limits.
    limits: MessageLimits,
    connection_ends: discard::ConnectionEnds,
    writer: Option<Waker>,
    /// The number of bytes that were pushed since the sender last yielded to the writer, or the writer
    /// fetched messages.
    in_a_row: usize,
    /// The messages that wait for room, in the order in which they will be queued. While there are any, no
    /// other message finds room.
    line: WaitQueue<WaitingFrames>,
    /// Waiters that were removed from the line because a smaller limit became known, and that have not been
    /// polled since.
    exceeds_limits: Vec<Place>,
    /// Whether a task waits for room with [`SendQueue::wait_for_room`].
    is_room_awaited: bool,
    pace: Pace,
    /// Whether the writer has to leave the messages in the queue.
    held: bool,
    closed: bool,
}

impl State {
    fn push_chunk(&mut self, chunk: Chunk) {
        self.flush_tail();
        self.append(chunk);
    }

    fn append(&mut self, chunk: Chunk) {
        let number = self.backlog.next_number();
        self.chunks.push_back(Chunk { number, ..chunk });
    }

    fn flush_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let bytes = match &mut self.spare {
            Some(spare) if self.tail.len() >= TAIL_LEN / 2 => {
                let next = spare.pop().unwrap_or_else(|| BytesMut::with_capacity(TAIL_LEN + TAIL_SLACK));
                std::mem::replace(&mut self.tail, next)
            }
            _ => self.take_tail(),
        };
        let bytes = bytes.freeze();
        let messages = std::mem::take(&mut self.tail_messages);
        self.append(Chunk { keep: self.backlog.keep, ..Chunk::copied(bytes, messages) });
    }

    /// Releases the memory of copies that were written, if it is much: the next message may not come for
    /// long.
    fn release_tail(&mut self) {
        if self.tail.is_empty() && self.spare.is_none() && self.tail.try_reclaim(KEPT + 1) {
            self.tail = BytesMut::new();
        }
    }

    /// Takes what was copied, and leaves the rest of its memory for the next messages. The memory of a long
    /// message of short frames is not kept.
    fn take_tail(&mut self) -> BytesMut {
        if self.tail.len() > 2 * TAIL_LEN { std::mem::take(&mut self.tail) } else { self.tail.split() }
    }

    /// Encodes a message of `len` bytes at the end of the queue.
    #[inline]
    fn push_frames(&mut self, frames: &[impl Frame], len: usize) {
        let count = frames.len();
        for (index, frame) in frames.iter().map(Borrow::borrow).enumerate() {
            let more = index + 1 < count;
            if frame.len() < UNCOPIED_MIN {
                encode_frame(&mut self.tail, frame, more);
                continue;
            }
            // The header goes with what was copied before it, and that chunk ends inside the message.
            let before = self.tail_messages;
            encode_frame_header(&mut self.tail, frame.len(), more);
            let bytes = self.take_tail().freeze();
            self.tail_messages = 0;
            self.append(Chunk { ends_message: false, ..Chunk::copied(bytes, before) });
            let messages = usize::from(!more);
            self.append(Chunk { ends_message: !more, ..Chunk::copied(frame.clone(), messages) });
        }
        let last_is_copied = frames.last().is_none_or(|frame| frame.borrow().len() < UNCOPIED_MIN);
        self.tail_messages += usize::from(last_is_copied);
        self.queued += Amount::new(1, len);
        self.pace.queued(len);
        self.in_a_row += len;
        if self.tail.len() > TAIL_LEN {
            self.flush_tail();
        }
    }

    /// Adds a message of `len` bytes to the end of the queue. The frames of `body` are encoded already.
    fn push_encoded(&mut self, head: &[Bytes], body: EncodedFrames, len: usize) {
        let before = std::mem::take(&mut self.tail_messages);
        for frame in head {
            encode_frame(&mut self.tail, frame, true);
        }
        let bytes = self.take_tail().freeze();
        self.append(Chunk { ends_message: false, ..Chunk::copied(bytes, before) });
        let mut chunks = body.into_chunks().into_iter().peekable();
        while let Some(bytes) = chunks.next() {
            let is_last = chunks.peek().is_none();
            self.append(Chunk { ends_message: is_last, ..Chunk::copied(bytes, usize::from(is_last)) });
        }
        self.queued += Amount::new(1, len);
        self.pace.queued(len);
        self.in_a_row += len;
    }

    /// Whether a message of `len` bytes fits. A message larger than the mark is accepted when the queue is
    /// empty.
    fn has_room(&self, len: usize, mark: HighWaterMark) -> bool {
        let Amount { messages, bytes } = self.queued;
        let bytes = bytes + self.retained_bytes();
        (bytes == 0 || bytes + len as u64 <= mark.bytes as u64) && messages < mark.messages as u64
    }

    fn has_messages(&self) -> bool {
        let is_empty = self.chunks.is_empty() && self.tail.is_empty();
        !self.held && !is_empty
    }
}

/// Those who are to be woken because there is room.
#[derive(Debug, Default)]
struct WaitersForRoom {
    /// Senders whose messages were taken into the queue.
    served: Wakers,
    /// Whether other tasks wait for room and have to check again.
    has_others: bool,
}

/// The send queue of a connection. Senders push from any task; one writer at a time drains it.
#[derive(Debug)]
pub struct SendQueue {
    state: Mutex<State>,
    mark: HighWaterMark,
    /// Tasks that wait for room are woken at or below this level.
    low_water: Amount,
    memory_counter: Option<Arc<MemoryCounter>>,
    /// Notified when there may be room.
    room_made: Notify,
    /// Notified when something was written or discarded.
    progress: Notify,
}

impl SendQueue {
    /// Creates an empty queue with this high-water mark.
    #[must_use]
    pub fn new(mark: HighWaterMark) -> Self {
        Self {
            state: Mutex::default(),
            mark,
            low_water: Amount::new(mark.messages - mark.messages.div_ceil(4), mark.bytes - mark.bytes / 4),
            memory_counter: None,
            room_made: Notify::new(),
            progress: Notify::new(),
        }
    }

    /// Creates an empty queue whose copies and [urgent](Self::push_urgent) bytes count in this memory
    /// counter.
    #[must_use]
    pub fn with_memory_counter(mark: HighWaterMark, memory_counter: Arc<MemoryCounter>) -> Self {
        Self { memory_counter: Some(memory_counter.clone()), ..Self::new(mark) }
            .counting_urgent_in(memory_counter)
    }

    /// Counts [urgent](Self::push_urgent) bytes in this memory counter.
    #[must_use]
    pub fn counting_urgent_in(self, memory_counter: Arc<MemoryCounter>) -> Self {
        self.state().urgent.count_in(memory_counter);
        self
    }

    /// Creates an empty queue for a busy connection, of which there are few. It keeps the memory of four
    /// chunks, 80 KiB each, for reuse.
    #[must_use]
    pub fn recycling(mark: HighWaterMark) -> Self {
        let send_queue = Self::new(mark);
        send_queue.state().spare = Some(Vec::new());
        send_queue
    }

    /// Returns the high-water mark.
    #[must_use]
    pub fn mark(&self) -> HighWaterMark {
        self.mark
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Locks the queue for several pushes. The writer is woken once, when the guard is dropped.
    #[must_use]
    pub fn lock(&self) -> SendQueueGuard<'_> {
        SendQueueGuard { send_queue: self, state: Some(self.state()), pushed: false }
    }

    /// Queues a message if there is room. While others [wait](Self::push) for room, there is none for this
    /// message, even if it would fit. Frames of 8 KiB or more are queued without a copy.
    ///
    /// # Errors
    ///
    /// Why the message was refused.
    pub fn try_push(&self, frames: &[impl Frame]) -> Result<(), Refused> {
        self.lock().try_push_frames(frames)
    }

    /// Queues a message of which all frames but those of `head` are encoded already. It takes no longer than
    /// counting the chunks of `body`.
    pub(crate) fn try_push_encoded(&self, head: &[Bytes], body: EncodedFrames) -> Result<(), Refused> {
        self.lock().try_push_encoded(head, body)
    }

    /// Waits until there may be room, or the queue was closed. `still_full` is called after registering for
    /// the notification, so that none is missed.
    pub async fn wait_for_room(&self, still_full: impl Fn(&SendQueueGuard<'_>) -> bool) {
        let mut room_made = std::pin::pin!(self.room_made.notified());
        room_made.as_mut().enable();
        {
            let mut guard = self.lock();
            if guard.is_closed() || !still_full(&guard) {
                return;
            }
            guard.wait_for_room();
        }
        room_made.await;
    }

    /// Queues bytes that several queues share, which are whole commands or messages, without a copy. Returns
    /// `false`, and queues nothing, if more than `limit` bytes would then be queued, or if the queue was
    /// closed.
    pub fn push_shared(&self, bytes: &Bytes, limit: usize) -> bool {
        let mut guard = self.lock();
        if guard.is_closed() || guard.queued().bytes + bytes.len() as u64 > limit as u64 {
            return false;
        }
        // The bytes may be few, but the entry in the queue belongs to this queue alone.
        let charge = bytes.len() + size_of::<Chunk>();
        let state = guard.state_mut();
        state.queued += Amount::new(1, charge);
        state.push_chunk(Chunk { charge, ..Chunk::copied(bytes.clone(), 1) });
        self.count_copied(charge);
        guard.pushed = true;
        true
    }

    /// Waits until everything that was queued so far has been written, or the queue was closed. It works only
    /// for queues whose messages all [stay](Keep::Always).
    pub async fn flushed(&self) {
        let target = {
            let state = self.state();
            state.passed() + state.queued.messages
        };
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            {
                let mut state = self.state();
                if state.passed() >= target || state.closed {
                    return;
                }
                state.is_progress_awaited = true;
                progress.as_mut().enable();
            }
            progress.await;
        }
    }

    /// Makes the writer leave the messages in the queue (`true`), or continue (`false`).
    pub fn hold(&self, held: bool) {
        self.change(|state| state.held = held);
    }

    /// Closes the queue for new messages. The writer ends once it has written what is queued.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
        let (refused, behind) = {
            let mut state = self.state();
            (state.line.call_all(), state.pace.take_waiting())
        };
        refused.wake();
        behind.wake();
        self.room_made.notify_waiters();
        self.progress.notify_waiters();
    }

    /// Changes the state and wakes the writer.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state();
            change(&mut state);
            state.writer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns whether the queue was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Returns what is queued, including what the writer has taken and not yet written. `bytes` is the memory
    /// that it holds.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.state().queued
    }

    /// Returns what was written since the beginning.
    #[must_use]
    pub fn written(&self) -> Amount {
        self.state().written
    }

    /// Returns how many messages were accepted since the beginning.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        let state = self.state();
        state.passed() + state.queued.messages
    }

    /// Returns how many messages were written or discarded since the beginning.
    #[must_use]
    pub fn gone(&self) -> u64 {
        self.state().passed()
    }

    /// Returns how many messages had been written or discarded when a connection broke last.
    #[must_use]
    pub fn broken_at(&self) -> u64 {
        self.state().broken_at
    }

    /// Empties the queue and returns how much was queued.
    pub fn clear(&self) -> Amount {
        let (queued, waiters) = {
            let mut guard = self.lock();
            let queued = self.remove_all(guard.state_mut());
            let waiters = self.take_waiters_for_room(guard.state_mut());
            guard.pushed = true;
            (queued, waiters)
        };
        self.wake(waiters);
        queued
    }

    /// Removes everything, and returns how much it was.
    fn remove_all(&self, state: &mut State) -> Amount {
        let copied = state.chunks.iter().filter(|c| c.slab_charge.is_none()).map(|c| c.charge).sum::<usize>()
            + state.tail.len();
        self.uncount_copied(copied);
        state.chunks.clear();
        state.tail.clear();
        state.tail_messages = 0;
        state.backlog = Backlog::default();
        state.urgent.clear();
        std::mem::take(&mut state.queued)
    }

    /// Gives the present room to those who wait for it, if the queue is below its low-water level. The caller
    /// has to [wake](Self::wake) those who are returned.
    fn take_waiters_for_room(&self, state: &mut State) -> WaitersForRoom {
        let Amount { messages, bytes } = state.queued;
        if bytes + state.retained_bytes() > self.low_water.bytes || messages > self.low_water.messages {
            return WaitersForRoom::default();
        }
        let has_others = std::mem::take(&mut state.is_room_awaited);
        WaitersForRoom { served: self.serve(state), has_others }
    }

    /// Wakes those who waited for room. The lock must be free.
    fn wake(&self, waiters: WaitersForRoom) {
        waiters.served.wake();
        if waiters.has_others {
            self.room_made.notify_waiters();
        }
    }

    /// Adds copied bytes to the memory counter. Slices are counted by their [`SlabCharge`].
    fn count_copied(&self, copied: usize) {
        if let Some(memory_counter) = &self.memory_counter {
            memory_counter.0.fetch_add(copied, Ordering::Relaxed);
        }
    }

    /// Removes copied bytes from the memory counter.
    fn uncount_copied(&self, copied: usize) {
        if let Some(memory_counter) = &self.memory_counter {
            memory_counter.0.fetch_sub(copied, Ordering::Relaxed);
        }
    }
}

/// A guard that holds the lock of the queue.
#[derive(Debug)]
pub struct SendQueueGuard<'a> {
    send_queue: &'a SendQueue,
    /// `None` only while the guard is dropped.
    state: Option<MutexGuard<'a, State>>,
    pushed: bool,
}

impl SendQueueGuard<'_> {
    fn state_mut(&mut self) -> &mut State {
        // The option is emptied in `drop` and nowhere else.
        self.state.as_mut().expect("the guard holds the lock until it is dropped")
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("the guard holds the lock until it is dropped")
    }

    /// Returns whether the queue was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Returns what is queued.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.state().queued
    }

    /// Whether a message of `len` bytes would be refused for lack of room.
    #[must_use]
    pub(crate) fn is_full(&self, len: usize) -> bool {
        let state = self.state();
        !state.closed && (!state.line.is_empty() || !state.has_room(len, self.send_queue.mark))
    }

    /// Returns how much more a queue with this mark accepts.
    #[must_use]
    pub fn room(&self, mark: HighWaterMark) -> Amount {
        Amount::new(mark.messages, mark.bytes) - self.state().queued
    }

    /// Returns whether so much is queued that a sender should let the writer [catch up](SendQueue::catch_up).
    #[must_use]
    pub fn is_far_ahead(&self) -> bool {
        self.state().is_far_ahead()
    }

    /// Notes that the caller will wait for room, and does not wait: [`SendQueue::wait_for_room`] does.
    pub fn wait_for_room(&mut self) {
        self.state_mut().is_room_awaited = true;
    }

    /// Copies whole messages to the end of the queue.
    pub fn push_copy(&mut self, bytes: &[u8], messages: usize) {
        self.send_queue.count_copied(bytes.len());
        let state = self.state_mut();
        if state.tail.len() + bytes.len() > TAIL_LEN {
            state.flush_tail();
        }
        state.tail.extend_from_slice(bytes);
        state.tail_messages += messages;
        state.queued += Amount::new(messages, bytes.len());
        state.pace.queued(bytes.len());
        self.pushed = true;
    }

    /// Adds whole messages to the end of the queue without a copy. They lie in a slab. The queue is charged
    /// for the whole slab, once for as long as its slices follow one another.
    pub fn push_slice(&mut self, bytes: Bytes, messages: usize, slab_charge: &Arc<SlabCharge>) {
        let state = self.state_mut();
        let carried = match state.chunks.back_mut() {
            // Slices that may be dropped separately are charged separately.
            Some(last)
                if state.tail.is_empty()
                    && last.keep == state.backlog.keep
                    && last.slab_charge.as_ref().is_some_and(|l| Arc::ptr_eq(l, slab_charge)) =>
            {
                std::mem::take(&mut last.charge)
            }
            _ => 0,
        };
        let charge = carried.max(slab_charge.bytes);
        state.queued += Amount::new(messages, charge - carried);
        state.pace.queued(charge);
        let (keep, slab_charge) = (state.backlog.keep, Some(slab_charge.clone()));
        state.push_chunk(Chunk { charge, slab_charge, keep, ..Chunk::copied(bytes, messages) });
        self.pushed = true;
    }

    fn try_push_frames(&mut self, frames: &[impl Frame]) -> Result<(), Refused> {
        let len = encoded_len(frames);
        self.takes(len, frames.len())?;
        self.state_mut().push_frames(frames, len);
        self.send_queue.count_copied(len);
        self.pushed = true;
        Ok(())
    }

    fn try_push_encoded(&mut self, head: &[Bytes], body: EncodedFrames) -> Result<(), Refused> {
        let len = encoded_len(head) + body.encoded_len();
        self.takes(len, head.len() + body.frames())?;
        self.state_mut().push_encoded(head, body, len);
        self.send_queue.count_copied(len);
        self.pushed = true;
        Ok(())
    }

    /// Whether there is room for such a message now.
    #[inline]
    fn takes(&self, len: usize, frames: usize) -> Result<(), Refused> {
        let state = self.state();
        if !state.limits.allow(len, frames) {
            return Err(Refused::ExceedsLimits);
        }
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.line.is_empty() || !state.has_room(len, self.send_queue.mark) {
            return Err(Refused::Full);
        }
        Ok(())
    }
}

impl Drop for SendQueueGuard<'_> {
    fn drop(&mut self) {
        let waker = self.state.take().and_then(|mut state| {
            let wanted = self.pushed && state.has_messages();
            if wanted { state.writer.take() } else { None }
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
#[path = "send_queue_tests.rs"]
mod tests;
