use http::StatusCode;

use crate::auth::RejectionKind;

/// The response to a kind of rejection.
pub(super) struct Spec {
    pub(super) status: StatusCode,
    /// The stable `code` of the problem document.
    pub(super) code: &'static str,
    pub(super) title: Title,
    pub(super) detail: &'static str,
    pub(super) challenge: Option<Challenge>,
    /// Why the key is invalid, for services that disclose it.
    pub(super) reason: Option<&'static str>,
}

/// The `type` and `title` of a problem document.
pub(super) enum Title {
    /// `about:blank` and the reason phrase of the status.
    Status,
    /// A type of <https://www.iana.org/assignments/http-problem-types>.
    Registered { uri: &'static str, title: &'static str },
}

/// A `WWW-Authenticate` value (RFC 6750 §3).
pub(super) enum Challenge {
    /// Without an error: the request has no key.
    Bare,
    InvalidRequest,
    InvalidToken,
    InsufficientScope,
}

/// The table of kinds. A new kind does not compile without an entry.
pub(super) const fn spec(kind: RejectionKind) -> Spec {
    match kind {
        RejectionKind::Missing => Spec {
            status: StatusCode::UNAUTHORIZED,
            code: "missing_api_key",
            title: Title::Status,
            detail: "Send an API key.",
            challenge: Some(Challenge::Bare),
            reason: None,
        },
        RejectionKind::InvalidRequest => Spec {
            status: StatusCode::BAD_REQUEST,
            code: "invalid_request",
            title: Title::Status,
            detail: "Send exactly one API key.",
            challenge: Some(Challenge::InvalidRequest),
            reason: None,
        },
        RejectionKind::Malformed => invalid_key("malformed"),
        RejectionKind::Unknown => invalid_key("unknown"),
        RejectionKind::Revoked => invalid_key("revoked"),
        RejectionKind::Expired => invalid_key("expired"),
        RejectionKind::Inactive => invalid_key("inactive"),
        RejectionKind::NotYetActive => invalid_key("not_yet_active"),
        RejectionKind::InsufficientScope => Spec {
            status: StatusCode::FORBIDDEN,
            code: "insufficient_scope",
            title: Title::Status,
            detail: "The API key lacks a scope that this route requires.",
            challenge: Some(Challenge::InsufficientScope),
            reason: None,
        },
        RejectionKind::NetworkNotAllowed => {
            forbidden("network_not_allowed", "The API key does not work from this address.")
        }
        RejectionKind::OriginNotAllowed => {
            forbidden("origin_not_allowed", "The API key does not work for this `Origin`.")
        }
        RejectionKind::RateLimited => Spec {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "rate_limit_exceeded",
            title: Title::Registered {
                uri: "https://iana.org/assignments/http-problem-types#quota-exceeded",
                title: "Request cannot be satisfied as assigned quota has been exceeded",
            },
            detail: "Retry after the number of seconds in `Retry-After`.",
            challenge: None,
            reason: None,
        },
        RejectionKind::TooManyFailures => Spec {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "too_many_failures",
            title: Title::Registered {
                uri: "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
                title: "Request not satisfied due to detection of abnormal request pattern",
            },
            detail: "Too many unknown API keys came from your network. If yours is valid, keep it \
                     and retry after the number of seconds in `Retry-After`.",
            challenge: None,
            reason: None,
        },
        RejectionKind::StoreUnavailable | RejectionKind::Overloaded => Spec {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "service_unavailable",
            title: Title::Registered {
                uri: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
                title: "Request cannot be satisfied due to temporary server capacity constraints",
            },
            detail: "The API key cannot be checked right now. Keep it and try again.",
            challenge: None,
            reason: None,
        },
        RejectionKind::LayerMissing => {
            internal("The request has no consumer. Is `ApiKeyLayer` applied to this route?")
        }
        RejectionKind::ForeignLayer => internal(
            "Another authenticator's `ApiKeyLayer` around this one has taken the key. Apply one of \
             them to each route, or read the keys from different headers.",
        ),
        RejectionKind::Internal => {
            internal("The API key could not be checked because of an error in the service.")
        }
    }
}

/// The same for every `reason`, so that clients cannot tell them apart.
const fn invalid_key(reason: &'static str) -> Spec {
    Spec {
        status: StatusCode::UNAUTHORIZED,
        code: "invalid_api_key",
        title: Title::Status,
        detail: "The API key is not valid.",
        challenge: Some(Challenge::InvalidToken),
        reason: Some(reason),
    }
}

/// A valid key in the wrong place. No challenge: other credentials are not asked for.
const fn forbidden(code: &'static str, detail: &'static str) -> Spec {
    Spec {
        status: StatusCode::FORBIDDEN,
        code,
        title: Title::Status,
        detail,
        challenge: None,
        reason: None,
    }
}

const fn internal(detail: &'static str) -> Spec {
    Spec {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        code: "internal_error",
        title: Title::Status,
        detail,
        challenge: None,
        reason: None,
    }
}
