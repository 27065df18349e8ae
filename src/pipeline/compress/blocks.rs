//! Blocks of the plain bytes, compressed side by side and written in order. Each becomes a frame or member of its own;
//! whatever reads the format reads them one after the other.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Compresses one block. Each thread has its own.
pub(super) trait Codec: Send + 'static {
    /// Puts the compressed block into `packed`, which is empty.
    fn compress(&mut self, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()>;
}

/// A block on its way; the buffers are used again.
#[derive(Default)]
struct Block {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

struct Job {
    block: Block,
    done: SyncSender<io::Result<Block>>,
}

/// A writer that compresses on threads of its own. Besides the block that is being filled it holds one per thread and
/// one more, plain and compressed.
pub struct Blocks<W> {
    out: W,
    bytes: usize,
    threads: usize,
    jobs: Sender<Job>,
    /// In the order in which they were filled.
    pending: VecDeque<Receiver<io::Result<Block>>>,
    filling: Block,
    free: Vec<Block>,
    wrote: bool,
}

impl<W> std::fmt::Debug for Blocks<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("bytes", &self.bytes).field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl<W: Write> Blocks<W> {
    /// Starts a thread for each codec; blocks are `bytes` long.
    pub(super) fn new(out: W, bytes: usize, codecs: Vec<impl Codec>) -> io::Result<Self> {
        let threads = codecs.len();
        let (jobs, given) = channel();
        let given = Arc::new(Mutex::new(given));
        for codec in codecs {
            let given = Arc::clone(&given);
            std::thread::Builder::new().name("compress".into()).spawn(move || work(codec, &given))?;
        }
        let (pending, filling, free) = (VecDeque::new(), Block::default(), Vec::new());
        Ok(Self { out, bytes, threads, jobs, pending, filling, free, wrote: false })
    }

    fn give(&mut self) -> io::Result<()> {
        if self.pending.len() > self.threads {
            self.take()?;
        }
        let block = std::mem::replace(&mut self.filling, self.free.pop().unwrap_or_default());
        let (done, outcome) = sync_channel(1);
        self.jobs.send(Job { block, done }).map_err(|_| broke())?;
        self.pending.push_back(outcome);
        Ok(())
    }

    /// Writes the oldest block.
    fn take(&mut self) -> io::Result<()> {
        let Some(outcome) = self.pending.pop_front() else { return Ok(()) };
        let mut block = outcome.recv().map_err(|_| broke())??;
        self.out.write_all(&block.packed)?;
        self.wrote = true;
        block.plain.clear();
        block.packed.clear();
        self.free.push(block);
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        // No input is a block too: a file of no bytes is in no format.
        if !self.filling.plain.is_empty() || (self.pending.is_empty() && !self.wrote) {
            self.give()?;
        }
        while !self.pending.is_empty() {
            self.take()?;
        }
        Ok(self.out)
    }
}

/// Until the writer is gone.
fn work(mut codec: impl Codec, given: &Mutex<Receiver<Job>>) {
    loop {
        let next = given.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { mut block, done }) = next else { return };
        let outcome = codec.compress(&block.plain, &mut block.packed);
        // Nobody waits for it when the writer was dropped.
        let _ = done.send(outcome.map(|()| block));
    }
}

fn broke() -> io::Error {
    io::Error::other("a compression thread broke")
}

impl<W: Write> Write for Blocks<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.filling.plain.len() == self.bytes {
            self.give()?;
        }
        let n = data.len().min(self.bytes - self.filling.plain.len());
        self.filling.plain.extend_from_slice(&data[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
