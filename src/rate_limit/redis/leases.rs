use std::time::Duration;

/// How nodes take units in advance, so that most requests are decided without asking Redis.
///
/// A node takes a slice of the quotas of a key at a time: about as many units as the key used there
/// lately, and an eighth of the burst or limit at most, so that quotas below 8 are asked for one by one
/// all the same. What is not used when the slice's lifetime is over is put back. That a key has nothing
/// left is remembered until it may have, for a lifetime at most, so that it does not keep Redis busy.
///
/// The price: a unit is used up to a [lifetime](Self::lifetime) after it was taken. In the long run no
/// more pass than without leases; in any window, no more than would in one that is longer by the
/// lifetime. And a client may be turned away for what another node holds and does not need, for a
/// lifetime at most; the wait that it is told does not know of that.
#[derive(Clone, Debug)]
pub struct Leases {
    pub(super) lifetime: Duration,
    pub(super) most: u32,
}

pub(super) const SHORTEST: Duration = Duration::from_millis(10);
pub(super) const LONGEST: Duration = Duration::from_secs(10);

impl Leases {
    /// How long units are held at most. Default 1 s, at least 10 ms and at most 10 s.
    ///
    /// A second spares nearly all round trips of a busy key, and is too short for a client to notice
    /// what another node holds.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// How many units a slice has at most. Default 1,000.
    ///
    /// Beyond a thousand a round trip costs next to nothing per request already.
    #[must_use]
    pub fn most(self, units: u32) -> Self {
        Self { most: units, ..self }
    }
}

impl Default for Leases {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(1), most: 1000 }
    }
}
