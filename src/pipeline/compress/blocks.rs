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

/// A writer that compresses on threads of its own. It holds two blocks per thread and one more, plain and
/// compressed: some take much longer than others, and they are written in their order.
pub struct Blocks<W> {
    out: W,
    bytes: usize,
    threads: usize,
    jobs: Sender<Job>,
    /// In the order in which they were filled.
    pending: VecDeque<Receiver<io::Result<Block>>>,
    filling: Block,
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
        let (pending, filling) = (VecDeque::new(), Block::default());
        Ok(Self { out, bytes, threads, jobs, pending, filling, wrote: false })
    }

    /// Hands the block that was filled to the threads. Where each has one to do and one that waits, the oldest is waited
    /// for, and written only then: no thread waits for that.
    fn give(&mut self) -> io::Result<()> {
        let oldest = if self.pending.len() < 2 * self.threads { None } else { self.pending.pop_front() };
        let oldest = oldest.as_ref().map(take).transpose()?;
        let (done, outcome) = sync_channel(1);
        self.jobs.send(Job { block: std::mem::take(&mut self.filling), done }).map_err(|_| broke())?;
        self.pending.push_back(outcome);
        if let Some(block) = oldest {
            self.filling = self.put(block)?;
        }
        Ok(())
    }

    /// Writes a block; its buffers.
    fn put(&mut self, mut block: Block) -> io::Result<Block> {
        self.out.write_all(&block.packed)?;
        self.wrote = true;
        block.plain.clear();
        block.packed.clear();
        Ok(block)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        // No input is a block too: a file of no bytes is in no format.
        if !self.filling.plain.is_empty() || (self.pending.is_empty() && !self.wrote) {
            self.give()?;
        }
        while let Some(oldest) = self.pending.pop_front() {
            self.put(take(&oldest)?)?;
        }
        Ok(self.out)
    }
}

fn take(outcome: &Receiver<io::Result<Block>>) -> io::Result<Block> {
    outcome.recv().map_err(|_| broke())?
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
