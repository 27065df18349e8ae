//! From one stream of stored bytes to every destination, each with its own bounded queue and stall timeout.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Leg, QUEUE_CHUNKS};
use crate::destination::{Location, Upload};
use crate::error::{Error, ErrorKind, Result};

/// An upload that runs in a task of its own.
pub(super) struct Running {
    leg: Arc<Leg>,
    queue: mpsc::Sender<Bytes>,
    verdict: oneshot::Sender<bool>,
    task: JoinHandle<Result<Option<Location>>>,
}

/// Uploads that have all their bytes, or are out.
pub(super) struct Delivered(Vec<Running>);

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Unavailable, format!("{what} made no progress for {} s", limit.as_secs()))
            .hint("look at the destination and the network; `stall_timeout` sets the limit."))
    })
}

/// Begins an upload of, perhaps, `expected` bytes at each leg; one that fails is out.
pub(super) async fn begin(legs: &[Arc<Leg>], name: &str, expected: Option<u64>, stall: Duration) -> Vec<Running> {
    let begun = join_all(legs.iter().map(|leg| async move {
        let key = format!("{}/{name}", leg.folder);
        let upload = within(stall, "the destination", leg.destination.begin(&key, leg.mode, expected)).await;
        (Arc::clone(leg), upload)
    }))
    .await;
    let mut running = Vec::new();
    for (leg, upload) in begun {
        match upload {
            Ok(upload) => {
                let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
                let (verdict, decided) = oneshot::channel();
                let task = tokio::spawn(upload_all(upload, chunks, decided, stall));
                running.push(Running { leg, queue, verdict, task });
            }
            Err(err) => leg.fail(err.within(format!("could not begin to store {name:?}"))),
        }
    }
    running
}

async fn upload_all(
    mut upload: Box<dyn Upload>,
    mut chunks: mpsc::Receiver<Bytes>,
    decided: oneshot::Receiver<bool>,
    stall: Duration,
) -> Result<Option<Location>> {
    while let Some(chunk) = chunks.recv().await {
        if let Err(err) = within(stall, "the upload", upload.write(chunk)).await {
            chunks.close();
            let _ = tokio::time::timeout(stall, upload.abort()).await;
            return Err(err);
        }
    }
    // The end of the stream is not success: only an explicit verdict is.
    if decided.await == Ok(true) {
        return upload.complete().await.map(Some);
    }
    upload.abort().await.map(|()| None)
}

/// Sends every chunk to every upload that still lives. Ends early, which stops the encoder, when none does.
pub(super) async fn deliver(
    mut uploads: Vec<Running>,
    mut stored: mpsc::Receiver<Bytes>,
    stall: Duration,
) -> Delivered {
    while !uploads.is_empty() {
        let Some(chunk) = stored.recv().await else { break };
        let sent = join_all(uploads.iter().map(|u| tokio::time::timeout(stall, u.queue.send(chunk.clone())))).await;
        let mut alive = Vec::with_capacity(uploads.len());
        for (upload, sent) in uploads.into_iter().zip(sent) {
            match sent {
                Ok(Ok(())) => alive.push(upload),
                Ok(Err(_)) => upload.gone().await,
                Err(_) => upload.stalled(stall),
            }
        }
        uploads = alive;
    }
    Delivered(uploads)
}

impl Running {
    async fn gone(self) {
        let err = match self.task.await {
            Ok(Err(err)) => err,
            Ok(Ok(_)) => Error::new(ErrorKind::Internal, "an upload ended early"),
            Err(e) => Error::new(ErrorKind::Internal, "an upload panicked").caused_by(e),
        };
        self.leg.fail(err);
    }
    fn stalled(self, stall: Duration) {
        self.task.abort();
        let text = format!("the upload took no byte for {} s", stall.as_secs());
        let hint = "look at the destination and the network; `stall_timeout` sets the limit.";
        self.leg.fail(Error::new(ErrorKind::Unavailable, text).hint(hint));
    }
}

impl Delivered {
    /// Completes all; those that fail are out. How many are whole.
    pub(super) async fn complete(self, name: &str, stall: Duration) -> usize {
        // Completing a large upload can take minutes at the store.
        let limit = stall.max(Duration::from_secs(600)).min(stall * 4);
        let ended = join_all(self.0.into_iter().map(|u| async move {
            let _ = u.verdict.send(true);
            drop(u.queue);
            let abort = u.task.abort_handle();
            match tokio::time::timeout(limit, u.task).await {
                Ok(Ok(Ok(Some(at)))) => {
                    u.leg.state().stored.push((name.to_owned(), at));
                    return true;
                }
                Ok(Ok(Ok(None))) => u.leg.fail(Error::new(ErrorKind::Internal, "an upload was aborted by mistake")),
                Ok(Ok(Err(err))) => u.leg.fail(err.within(format!("could not store {name:?}"))),
                Ok(Err(e)) => u.leg.fail(Error::new(ErrorKind::Internal, "an upload panicked").caused_by(e)),
                Err(_) => {
                    abort.abort();
                    let text = format!("{name:?} was sent, but not confirmed within {} s", limit.as_secs());
                    u.leg.fail(Error::new(ErrorKind::Unavailable, text));
                }
            }
            false
        }))
        .await;
        ended.into_iter().filter(|whole| *whole).count()
    }

    /// Aborts all; whether any was still alive.
    pub(super) async fn abort(self, stall: Duration) -> bool {
        let alive = !self.0.is_empty();
        join_all(self.0.into_iter().map(|u| async move {
            let _ = u.verdict.send(false);
            drop(u.queue);
            let abort = u.task.abort_handle();
            if tokio::time::timeout(stall, u.task).await.is_err() {
                abort.abort();
            }
        }))
        .await;
        alive
    }
}
