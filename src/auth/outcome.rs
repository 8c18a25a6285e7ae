use super::RejectionKind;
use crate::record::UseRejection;

/// The outcome of a request, for metrics and spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Let in, and not rejected further inside either.
    Admitted,
    /// Beyond a quota or a limit: 429.
    Limited,
    /// The key lacks a scope: 403.
    Forbidden,
    /// No valid key: 400 or 401.
    Rejected,
    /// The service could not decide: 500 or 503.
    Unavailable,
}

impl Outcome {
    /// All outcomes, in the order of their declaration.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) const ALL: [Self; Self::Unavailable as usize + 1] =
        [Self::Admitted, Self::Limited, Self::Forbidden, Self::Rejected, Self::Unavailable];

    /// The outcome of a rejected request.
    pub(crate) const fn of(kind: RejectionKind) -> Self {
        match kind {
            RejectionKind::RateLimited | RejectionKind::TooManyFailures => Self::Limited,
            RejectionKind::InsufficientScope
            | RejectionKind::NetworkNotAllowed
            | RejectionKind::OriginNotAllowed => Self::Forbidden,
            RejectionKind::Missing
            | RejectionKind::InvalidRequest
            | RejectionKind::Malformed
            | RejectionKind::Unknown
            | RejectionKind::Revoked
            | RejectionKind::Expired
            | RejectionKind::Inactive
            | RejectionKind::NotYetActive => Self::Rejected,
            RejectionKind::StoreUnavailable
            | RejectionKind::Overloaded
            | RejectionKind::LayerMissing
            | RejectionKind::ForeignLayer
            | RejectionKind::Internal => Self::Unavailable,
        }
    }

    /// How a request is counted, with the uses of its key, that an inner layer rejects. If the
    /// service could not decide, the key was let in all the same.
    pub(crate) const fn of_use(self) -> Option<UseRejection> {
        match self {
            Self::Limited => Some(UseRejection::Limited),
            Self::Forbidden => Some(UseRejection::Forbidden),
            Self::Admitted | Self::Rejected | Self::Unavailable => None,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Limited => "limited",
            Self::Forbidden => "forbidden",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_position() {
        assert!((0..).zip(Outcome::ALL).all(|(at, outcome)| outcome as usize == at));
        assert!((0..).zip(RejectionKind::ALL).all(|(at, kind)| kind as usize == at));
    }
}
