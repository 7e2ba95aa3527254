//! The buffer between a guest's COM1 and a sink, and its rules.
//!
//! A serial line throttles its sender, so a vCPU waits while the buffer is more than half full. A
//! line without a reader must not hold the guest for ever: when the sink has taken no byte for
//! [`STALL`], vCPUs wait no longer, and bytes beyond [`CAPACITY`] are lost and counted. So no byte
//! is lost while the reader reads, however slowly.
//!
//! Times are passed in, as durations since any fixed moment.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::iter::Sum;
use std::time::Duration;

/// Capacity of the buffer (bytes), with what the sink is writing.
pub const CAPACITY: usize = 64 << 10;

/// Length above which vCPUs wait (bytes). The room above it is for the other vCPUs: each may have
/// left the guest with a string of bytes.
const HIGH: usize = CAPACITY / 2;

/// Length below which vCPUs go on (bytes).
const LOW: usize = CAPACITY / 4;

/// How long the sink may take no byte until its reader counts as absent.
pub const STALL: Duration = Duration::from_secs(1);

/// Bytes that a guest sent and that did not reach the sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleLoss {
    /// Their number.
    pub bytes: u64,
    /// The first error of the sink; `None` if it took no bytes.
    pub error: Option<(io::ErrorKind, String)>,
}

impl ConsoleLoss {
    /// Returns whether the user should be informed: bytes are lost, and not because the reader has
    /// closed the pipe, as head(1) does.
    pub fn is_unexpected(&self) -> bool {
        let is_closed = self.error.as_ref().is_some_and(|(kind, _)| *kind == io::ErrorKind::BrokenPipe);
        self.bytes > 0 && !is_closed
    }
}

impl<'a> Sum<&'a Self> for ConsoleLoss {
    /// Adds the bytes. The error is the first of which the user should be informed, if any.
    fn sum<I: Iterator<Item = &'a Self>>(losses: I) -> Self {
        losses.fold(Self::default(), |sum, loss| {
            let is_first = sum.bytes == 0 || (loss.is_unexpected() && !sum.is_unexpected());
            let error = if is_first { loss.error.clone() } else { sum.error };
            Self { bytes: sum.bytes + loss.bytes, error }
        })
    }
}

impl fmt::Display for ConsoleLoss {
    /// Formats the loss, one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.error.as_ref().map_or("it was not read", |(_, error)| error);
        write!(f, "{} bytes of the guest's console are lost: {why}", self.bytes)
    }
}

/// The buffer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: VecDeque<u8>,
    /// Bytes that the sink is writing.
    in_flight: usize,
    /// When the sink last took a byte, or the buffer was empty.
    progress: Duration,
    loss: ConsoleLoss,
}

impl Queue {
    /// Appends `bytes`, as far as they fit. The rest is lost.
    pub(super) fn push(&mut self, bytes: &[u8], now: Duration) {
        if self.is_empty() {
            self.progress = now;
        }
        let room = CAPACITY - self.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.bytes.extend(taken);
        self.loss.bytes += (bytes.len() - taken.len()) as u64;
    }

    /// Removes up to `count` bytes for the sink, which then reports their fate.
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        let taken: Vec<u8> = self.bytes.drain(..count.min(self.bytes.len())).collect();
        self.in_flight += taken.len();
        taken
    }

    /// The sink wrote `count` of the taken bytes. 0 means that its reader read others.
    pub(super) fn wrote(&mut self, count: usize, now: Duration) {
        self.in_flight = self.in_flight.saturating_sub(count);
        self.progress = now;
    }

    /// The sink failed to write `count` of the taken bytes: they are lost.
    pub(super) fn failed(&mut self, count: usize, error: &io::Error, now: Duration) {
        self.wrote(count, now);
        self.loss.bytes += count as u64;
        self.loss.error.get_or_insert_with(|| (error.kind(), error.to_string()));
    }

    /// Gives up all bytes that the sink has not written.
    pub(super) fn give_up(&mut self) {
        self.loss.bytes += self.len() as u64;
        self.bytes.clear();
        self.in_flight = 0;
    }

    /// Returns how long a vCPU that writes should wait for room; `None` if it should not.
    pub(super) fn must_wait(&self, now: Duration) -> Option<Duration> {
        let left = self.until_stall(now);
        (self.is_high() && !left.is_zero()).then_some(left)
    }

    /// Returns how long the sink may still take no byte; 0 once its reader counts as absent.
    pub(super) fn until_stall(&self, now: Duration) -> Duration {
        STALL.saturating_sub(now.saturating_sub(self.progress))
    }

    pub(super) fn is_high(&self) -> bool {
        self.len() > HIGH
    }

    pub(super) fn is_low(&self) -> bool {
        self.len() < LOW
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn loss(&self) -> &ConsoleLoss {
        &self.loss
    }

    fn len(&self) -> usize {
        self.bytes.len() + self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn full() -> Queue {
        let mut queue = Queue::default();
        queue.push(&[b'x'; CAPACITY], ZERO);
        queue
    }

    #[test]
    fn full_queue_loses_what_does_not_fit_and_counts_it() {
        let mut queue = full();
        queue.push(b"abc", ZERO);
        assert_eq!(queue.loss(), &ConsoleLoss { bytes: 3, error: None });
        // Bytes in flight keep their room
        let taken = queue.take(10).len();
        queue.push(b"abc", ZERO);
        assert_eq!(queue.loss().bytes, 6);
        queue.wrote(taken, ZERO);
        queue.push(b"0123456789abc", ZERO);
        assert_eq!(queue.loss().bytes, 9);
        assert!(queue.loss().is_unexpected());
    }

    #[test]
    fn vcpu_waits_while_the_reader_reads_and_no_longer_once_it_stalls() {
        let mut queue = full();
        assert_eq!(queue.must_wait(ZERO), Some(STALL));
        // The reader took bytes that were written before, which is progress too
        queue.wrote(0, STALL / 2);
        assert_eq!(queue.must_wait(STALL), Some(STALL / 2));
        assert_eq!(queue.must_wait(STALL * 3 / 2), None);
        let taken = queue.take(1).len();
        queue.wrote(taken, 2 * STALL);
        assert_eq!(queue.must_wait(2 * STALL), Some(STALL), "it reads again");
    }

    #[test]
    fn vcpu_does_not_wait_below_the_mark_and_idle_time_is_no_stall() {
        let mut queue = Queue::default();
        queue.push(b"x", 10 * STALL);
        assert_eq!((queue.must_wait(10 * STALL), queue.until_stall(10 * STALL)), (None, STALL));
    }

    #[test]
    fn sum_of_losses_is_unexpected_if_one_of_them_is() {
        let closed =
            |bytes| ConsoleLoss { bytes, error: Some((io::ErrorKind::BrokenPipe, "closed".to_owned())) };
        let unread = |bytes| ConsoleLoss { bytes, error: None };
        let sum = |losses: &[ConsoleLoss]| losses.iter().sum::<ConsoleLoss>();
        assert_eq!(sum(&[unread(0), closed(2), unread(0)]), closed(2));
        assert_eq!(sum(&[closed(2), unread(3), closed(4)]), unread(9));
        assert_eq!(sum(&[]), ConsoleLoss::default());
    }

    #[test]
    fn bytes_that_the_sink_refuses_are_lost_and_a_closed_pipe_is_expected() {
        let mut queue = full();
        let taken = queue.take(4).len();
        queue.failed(taken, &io::ErrorKind::BrokenPipe.into(), ZERO);
        assert_eq!(queue.loss().bytes, 4);
        assert!(!queue.loss().is_unexpected());
        queue.give_up();
        assert_eq!(queue.loss().bytes, CAPACITY as u64);
        assert!(queue.is_empty());
    }
}
