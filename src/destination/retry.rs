//! The one retry policy: exponential back-off with full jitter, for what another try may help, and nothing else.
//!
//! A retry stops when its future is dropped, so a deadline or a signal needs no extra wiring.

use std::future::Future;
use std::time::Duration;

use crate::error::Result;

/// How often, and how long between two tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first one.
    pub retries: u32,
    /// Upper limit of the first pause; each next limit is four times as long.
    pub base: Duration,
    /// Upper limit of all pauses.
    pub cap: Duration,
}

impl RetryPolicy {
    /// The usual pauses: up to 100 ms, 400 ms, 1.6 s, 6.4 s, then up to 20 s each. Six retries outlast the restart of a gateway.
    pub const fn new(retries: u32) -> Self {
        Self { retries, base: Duration::from_millis(100), cap: Duration::from_secs(20) }
    }

    /// With another first pause.
    #[must_use]
    pub const fn with_base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// The longest pause before retry `n`, counted from 0.
    pub fn limit(&self, n: u32) -> Duration {
        self.base.saturating_mul(4u32.saturating_pow(n)).min(self.cap)
    }

    /// A pause before retry `n`: evenly between nothing and its limit, so that many clients do not come back at once.
    pub fn pause(&self, n: u32) -> Duration {
        let mut random = [0u8; 4];
        // Without random numbers the pause is the longest one.
        let share =
            getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX));
        self.limit(n).mul_f64(share)
    }
}

/// Calls `op` until it succeeds, fails for good, or `policy` is used up; `what` names it in the log and in the last error.
pub async fn retry<T, F, Fut>(policy: &RetryPolicy, what: &str, mut op: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut n = 0;
    loop {
        match op().await {
            Err(err) if err.kind.is_transient() && n < policy.retries => {
                let pause = policy.pause(n);
                tracing::debug!(what, error = %err.chain(), tries = n + 1, ?pause, "failed, will be tried again");
                tokio::time::sleep(pause).await;
                n += 1;
            }
            Err(err) if err.kind.is_transient() && n > 0 => {
                return Err(err.within(format!("{what}: gave up after {} tries", n + 1)));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::{Error, ErrorKind};

    async fn tries(retries: u32, fails: u32, kind: ErrorKind) -> (u32, Result<u32>) {
        let policy = RetryPolicy::new(retries).with_base(Duration::from_micros(10));
        let calls = Cell::new(0);
        let result = retry(&policy, "a call", || async {
            calls.set(calls.get() + 1);
            if calls.get() <= fails { Err(Error::new(kind, "down").hint("wait.")) } else { Ok(calls.get()) }
        })
        .await;
        (calls.get(), result)
    }

    #[tokio::test]
    async fn a_failure_that_passes_is_outlasted() {
        assert_eq!(tries(3, 3, ErrorKind::Unavailable).await.1.expect("the last try"), 4);
    }

    #[tokio::test]
    async fn a_failure_that_stays_is_told_with_its_tries() {
        let (calls, result) = tries(3, 9, ErrorKind::Unavailable).await;
        let err = result.expect_err("never up");
        assert_eq!((calls, err.kind, err.hint.as_deref()), (4, ErrorKind::Unavailable, Some("wait.")));
        assert_eq!(err.chain(), "a call: gave up after 4 tries: down");
    }

    #[tokio::test]
    async fn what_another_try_cannot_help_is_tried_once() {
        for kind in [ErrorKind::Denied, ErrorKind::NoSpace, ErrorKind::Config, ErrorKind::Failed, ErrorKind::NotFound] {
            assert_eq!(tries(3, 9, kind).await.0, 1, "{kind:?}");
        }
    }

    #[test]
    fn pauses_grow_and_are_capped() {
        let policy = RetryPolicy::new(6);
        let limits: Vec<_> = (0..7).map(|n| policy.limit(n).as_millis()).collect();
        assert_eq!(limits, [100, 400, 1600, 6400, 20_000, 20_000, 20_000]);
        assert!((0..99).all(|n| policy.pause(n) <= policy.limit(n)));
    }
}
