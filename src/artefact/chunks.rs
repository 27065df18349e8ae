//! Bytes collected into chunks, in buffers that are used again once nobody holds their bytes: filling memory that the
//! kernel has to find and clear first costs several times the copy itself.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::CHUNK_BYTES;

/// Chunks that are watched at most: what the queues on their way hold, and some.
const WATCHED: usize = 12;

/// Buffers whose bytes were sent, to be used again.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// Oldest first.
    sent: VecDeque<Bytes>,
}

impl Spare {
    /// Bytes that are sent now; the buffer is free when all others have dropped them.
    pub(crate) fn watch(&mut self, sent: Bytes) {
        self.sent.push_back(sent);
        if self.sent.len() > WATCHED {
            self.sent.pop_front();
        }
    }

    /// A buffer with room for `bytes`, with what was in it.
    pub(crate) fn buffer(&mut self, bytes: usize) -> BytesMut {
        if let Some(oldest) = self.sent.pop_front() {
            match oldest.try_into_mut() {
                Ok(free) if free.capacity() >= bytes => return free,
                Ok(_) => {}
                Err(busy) => self.sent.push_front(busy),
            }
        }
        BytesMut::with_capacity(bytes)
    }
}

/// The chunk of a stream that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    buffer: BytesMut,
    spare: Spare,
}

impl Chunks {
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() >= CHUNK_BYTES
    }

    /// Takes as much of `data` as there is room for; how much.
    pub(crate) fn fill(&mut self, data: &[u8]) -> usize {
        if self.buffer.capacity() < CHUNK_BYTES {
            self.buffer = self.spare.buffer(CHUNK_BYTES);
            self.buffer.clear();
        }
        let n = data.len().min(CHUNK_BYTES.saturating_sub(self.buffer.len()));
        self.buffer.extend_from_slice(&data[..n]);
        n
    }

    /// What was collected.
    pub(crate) fn take(&mut self) -> Bytes {
        let chunk = std::mem::take(&mut self.buffer).freeze();
        self.spare.watch(chunk.clone());
        chunk
    }

    /// A whole chunk to read into; it holds what it held before, because clearing it would cost as much as filling it.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.buffer = self.spare.buffer(CHUNK_BYTES);
        self.buffer.resize(CHUNK_BYTES, 0);
        &mut self.buffer
    }

    /// The first `n` bytes of the [`space`](Self::space).
    pub(crate) fn take_first(&mut self, n: usize) -> Bytes {
        self.buffer.truncate(n);
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_only_when_nobody_holds_its_bytes() {
        let mut chunks = Chunks::default();
        let full = vec![1; CHUNK_BYTES + 9];
        assert_eq!(chunks.fill(&full), CHUNK_BYTES);
        assert!(chunks.is_full() && chunks.fill(&full) == 0);
        let first = chunks.take();
        let (at, other) = (first.as_ptr(), first.clone());
        drop(first);
        assert_eq!(chunks.fill(b"two"), 3);
        let second = chunks.take();
        assert!(second.as_ptr() != at && other[..] == full[..CHUNK_BYTES], "it is still held");
        drop((other, second));
        chunks.fill(b"three");
        let third = chunks.take();
        assert_eq!((third.as_ptr(), &third[..]), (at, &b"three"[..]));
    }
}
