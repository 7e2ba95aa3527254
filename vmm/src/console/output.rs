//! Output of a guest's console: a thread writes what COM1 transmits to a sink.
//!
//! The vCPU that transmits only appends to the buffer, so a sink that blocks never holds the UART's
//! lock. When the buffer is half full, the vCPU waits outside the guest, where a kick reaches it
//! ([`OutputBuffer::wait_for_room`]). The sink may block for ever: the process ends without its
//! thread.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host::kick::{self, KickHandle};
use host::{clock, helper, sync, termination};

use super::queue::{ConsoleLoss, Queue};

/// Bytes that the sink gets at a time.
const CHUNK: usize = 4096;

/// Pause after a sink reports that it would block.
const RETRY: Duration = Duration::from_millis(10);

/// Time for the buffered bytes to be written once termination of the process is requested.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// How often [`ConsoleOutput::finish`] checks whether the reader still reads.
const FLUSH_CHECK: Duration = Duration::from_millis(20);

/// Stack size of the thread (bytes).
const STACK_BYTES: usize = 128 << 10;

/// The buffer between COM1 and the sink.
#[derive(Debug, Default)]
pub struct OutputBuffer {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a vCPU that writes may have to wait. Read without the lock, before each entry.
    is_high: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// Threads of vCPUs that wait for room.
    waiting: Vec<KickHandle>,
    /// Nothing is appended any more.
    is_closed: bool,
    /// The rest is not to be written.
    is_abandoned: bool,
}

impl OutputBuffer {
    /// Returns whether a vCPU that has written to COM1 must wait before it enters the guest.
    pub fn must_wait(&self) -> bool {
        self.is_high.load(Ordering::Relaxed) && self.lock().queue.must_wait(clock::monotonic()).is_some()
    }

    /// Waits until there is room, the reader counts as absent, or the calling vCPU thread is
    /// kicked. Returns whether it was kicked; room is announced by a kick too.
    ///
    /// The kick signal is blocked in the calling thread.
    pub fn wait_for_room(&self) -> bool {
        let thread = KickHandle::of_this_thread();
        let mut state = self.lock();
        let Some(limit) = state.queue.must_wait(clock::monotonic()) else { return false };
        state.waiting.push(thread);
        drop(state);
        let was_kicked = kick::wait(limit);
        self.lock().waiting.retain(|waiting| *waiting != thread);
        was_kicked
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let was_empty = state.queue.is_empty();
        state.queue.push(bytes, clock::monotonic());
        self.is_high.store(state.queue.is_high(), Ordering::Relaxed);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Changes the queue as the sink's progress requires, and kicks vCPUs that may go on.
    fn report(&self, change: impl FnOnce(&mut Queue, Duration)) {
        let mut state = self.lock();
        change(&mut state.queue, clock::monotonic());
        self.is_high.store(state.queue.is_high(), Ordering::Relaxed);
        if state.queue.is_low() {
            state.waiting.drain(..).for_each(KickHandle::kick);
        }
        if state.queue.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Waits for bytes. Returns `None` once the buffer is closed and empty.
    fn next_chunk(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            let chunk = state.queue.take(CHUNK);
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if state.is_closed {
                return None;
            }
            state = sync::wait(&self.changed, state);
        }
    }

    fn close(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.is_closed = true;
        self.changed.notify_all();
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

/// The UART's end: what it transmits is appended. It never fails and never blocks.
#[derive(Debug)]
pub struct Transmitter(pub Arc<OutputBuffer>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes to the sink.
#[derive(Debug)]
pub struct ConsoleOutput {
    buffer: Arc<OutputBuffer>,
    thread: Option<JoinHandle<()>>,
}

impl ConsoleOutput {
    /// Starts to write what `buffer` receives to `sink`.
    ///
    /// # Errors
    /// The host cannot create a thread.
    pub fn start(buffer: Arc<OutputBuffer>, mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::clone(&buffer);
        let thread = thread::Builder::new().name("console".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            let _helper = helper::register();
            while let Some(chunk) = shared.next_chunk() {
                write_chunk(&shared, &mut sink, &chunk);
            }
        })?;
        Ok(Self { buffer, thread: Some(thread) })
    }

    /// Waits until the sink has taken what is buffered, as long as its reader reads. Returns what
    /// is lost. Nothing is transmitted any more.
    pub fn finish(mut self) -> ConsoleLoss {
        let mut state = self.buffer.close();
        let began = clock::monotonic();
        while !state.queue.is_empty() {
            let now = clock::monotonic();
            let is_late = termination::requested().is_some() && now.saturating_sub(began) > FLUSH_LIMIT;
            if is_late || state.queue.until_stall(now).is_zero() {
                state.queue.give_up();
                state.is_abandoned = true;
                // The thread may block in the sink for ever.
                self.thread = None;
                break;
            }
            state = sync::wait_timeout(&self.buffer.changed, state, FLUSH_CHECK);
        }
        state.queue.loss().clone()
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        let is_empty = self.buffer.close().queue.is_empty();
        if let Some(thread) = self.thread.take().filter(|_| is_empty) {
            // A panic of the sink is the sink's.
            let _ = thread.join();
        }
    }
}

fn write_chunk(buffer: &OutputBuffer, sink: &mut impl Write, chunk: &[u8]) {
    let mut rest = chunk;
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(count @ 1..) => {
                rest = rest.get(count..).unwrap_or_default();
                buffer.report(|queue, now| queue.wrote(count, now));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                buffer.report(|queue, now| queue.wrote(0, now));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if buffer.lock().is_abandoned {
                    return;
                }
                thread::sleep(RETRY);
            }
            failed => {
                let error = failed.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                return buffer.report(|queue, now| queue.failed(rest.len(), &error, now));
            }
        }
    }
    // A sink that fails to flush fails to write, too.
    let _ = sink.flush();
}
