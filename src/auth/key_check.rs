use std::{
    fmt,
    future::{Future, IntoFuture},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use super::{
    Address, Admission, Attempt, Authenticator, Client, ClientNetwork, PendingAttempt, Rejection,
    attempt::Charge,
};

impl Authenticator {
    /// Checks `key`, the bare key without a scheme: [`.await`](IntoFuture) the check, or
    /// [try](KeyCheck::try_now) it without waiting. Nothing happens before.
    ///
    /// A key that is let in has been charged, unless [told otherwise](KeyCheck::without_charge),
    /// and counts as used.
    pub fn check<'a>(&'a self, key: &'a [u8]) -> KeyCheck<'a> {
        let facts = Facts { network: None, address: Address::NotTold, origin: None };
        KeyCheck { auth: self, key, facts, charge: Charge::One }
    }
}

/// A check of a key, made by [`Authenticator::check`].
///
/// ```no_run
/// # async fn example(
/// #     auth: tower_api_key::Authenticator,
/// #     address: std::net::IpAddr,
/// # ) -> Result<(), tower_api_key::auth::Rejection> {
/// let admission = auth.check(b"sk_live_...").from(address).await?;
/// println!("{}", admission.consumer().id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
#[must_use = "a check does nothing unless it is awaited or tried"]
pub struct KeyCheck<'a> {
    auth: &'a Authenticator,
    key: &'a [u8],
    facts: Facts<'a>,
    charge: Charge,
}

/// What the caller told of the client.
#[derive(Clone, Copy)]
struct Facts<'a> {
    network: Option<ClientNetwork>,
    address: Address,
    origin: Option<&'a [u8]>,
}

impl Client for Facts<'_> {
    fn network(&self) -> Option<ClientNetwork> {
        self.network
    }

    fn address(&self) -> Address {
        self.address
    }

    fn origin(&self) -> Option<&[u8]> {
        self.origin
    }
}

impl<'a> KeyCheck<'a> {
    /// The client is in `network`, whose [failures are limited](super::Builder::failure_limit).
    /// Default: failures of this check are not counted.
    ///
    /// This is not enough for a key with [networks](crate::record::KeyRecord::networks): see
    /// [`address`](Self::address).
    pub fn from(self, network: impl Into<ClientNetwork>) -> Self {
        let facts = Facts { network: Some(network.into()), ..self.facts };
        Self { facts, ..self }
    }

    /// The client has this address, and is in its network as for [`from`](Self::from). Default:
    /// unknown, so that a key with [networks](crate::record::KeyRecord::networks) is refused.
    pub fn address(self, address: IpAddr) -> Self {
        let network = Some(address.into());
        Self { facts: Facts { network, address: Address::Known(address), ..self.facts }, ..self }
    }

    /// The value of the request's `Origin` header, for
    /// [publishable](crate::record::KeyKind::Publishable) keys. Default: none, so that these are
    /// refused.
    pub fn origin(self, origin: &'a [u8]) -> Self {
        Self { facts: Facts { origin: Some(origin), ..self.facts }, ..self }
    }

    /// Takes nothing from the key's quotas, and lets the key in when they are exhausted: for
    /// clients that ask for their remaining quota.
    pub fn without_charge(self) -> Self {
        Self { charge: Charge::Nothing, ..self }
    }

    /// Decides without waiting as far as the cache allows.
    ///
    /// Unlike awaiting the check, this does not report the outcome to the
    /// [`Observer`](super::Observer).
    pub fn try_now(self) -> Attempt {
        self.auth.evaluate(self.key, self.charge, &self.facts)
    }
}

impl<'a> IntoFuture for KeyCheck<'a> {
    type Output = Result<Admission, Rejection>;
    type IntoFuture = CheckFuture<'a>;

    fn into_future(self) -> CheckFuture<'a> {
        CheckFuture { check: self, pending: None }
    }
}

/// Never prints the key.
impl fmt::Debug for KeyCheck<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCheck").field("network", &self.facts.network).finish_non_exhaustive()
    }
}

/// The future of a [`KeyCheck`]; waits for the store if necessary. It may be dropped at any time.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct CheckFuture<'a> {
    check: KeyCheck<'a>,
    pending: Option<PendingAttempt>,
}

impl Future for CheckFuture<'_> {
    type Output = Result<Admission, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let check = self.check;
        let pending = match &mut self.pending {
            Some(pending) => pending,
            pending => match check.try_now() {
                Attempt::Admit(admission) => {
                    check.auth.admitted(admission.rate_limit_status());
                    return Poll::Ready(Ok(admission));
                }
                Attempt::Reject(rejection) => {
                    check.auth.rejected(&rejection);
                    return Poll::Ready(Err(rejection));
                }
                Attempt::Pending(attempt) => pending.insert(attempt),
            },
        };
        Pin::new(pending).poll(cx).map(|outcome| {
            match &outcome {
                Ok(admission) => check.auth.admitted(admission.rate_limit_status()),
                Err(rejection) => check.auth.rejected(rejection),
            }
            outcome
        })
    }
}
