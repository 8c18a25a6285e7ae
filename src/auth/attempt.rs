use std::{
    fmt,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    task::{Context, Poll},
};

use super::{
    RateLimitStatus, Rejection, RejectionKind,
    catch_panic::{Panicked, catch_pending_panic},
};
use crate::record::Consumer;

/// The outcome of a check: decided, or pending.
#[derive(Debug)]
#[must_use]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Attempt {
    /// Let in.
    Admit(Admission),
    /// Rejected.
    Reject(Rejection),
    /// Not decided yet: await this future.
    Pending(PendingAttempt),
}

/// How many units a request takes of each quota.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Charge {
    One,
    /// The key is let in even if nothing is left.
    Nothing,
}

impl Charge {
    pub(super) fn units(self) -> Option<NonZeroU32> {
        match self {
            Self::One => Some(NonZeroU32::MIN),
            Self::Nothing => None,
        }
    }
}

/// A key that was let in.
#[derive(Clone, Debug)]
pub struct Admission(pub(super) RateLimitStatus);

impl Admission {
    /// The consumer that the key belongs to.
    #[must_use]
    pub fn consumer(&self) -> &Consumer {
        self.0.consumer()
    }

    /// The state of the key against its quotas.
    #[must_use]
    pub fn rate_limit_status(&self) -> &RateLimitStatus {
        &self.0
    }
}

/// A pending [`Attempt`]. It may be dropped at any time.
pub struct PendingAttempt(Pin<Box<dyn Future<Output = Result<Admission, Rejection>> + Send>>);

impl PendingAttempt {
    pub(super) fn of(
        work: impl Future<Output = Result<Admission, Rejection>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(async {
            let panicked = |Panicked| Err(Rejection::new(RejectionKind::Internal));
            catch_pending_panic(work).await.unwrap_or_else(panicked)
        }))
    }
}

impl Future for PendingAttempt {
    type Output = Result<Admission, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for PendingAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingAttempt")
    }
}
