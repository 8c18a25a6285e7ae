use http::HeaderValue;

use super::status_codes::{Challenge, spec};
use crate::{auth::Rejection, record::Scope};

/// The `WWW-Authenticate` values of one realm.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Challenges {
    realm: String,
    missing: HeaderValue,
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Challenges {
    /// `None` for a realm that cannot be written as a quoted string.
    pub(in crate::layer) fn new(realm: &str) -> Option<Self> {
        let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if !realm.bytes().all(printable) {
            return None;
        }
        let value =
            |rest: &str| HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{rest}")).ok();
        Some(Self {
            missing: value("")?,
            invalid_request: value(
                ", error=\"invalid_request\", error_description=\"Send exactly one API key\"",
            )?,
            invalid_token: value(
                ", error=\"invalid_token\", error_description=\"The API key is not valid\"",
            )?,
            realm: realm.to_owned(),
        })
    }

    /// The challenge for `rejection`, if its status has one.
    pub(in crate::layer) fn of(&self, rejection: &Rejection) -> Option<HeaderValue> {
        match spec(rejection.kind()).challenge? {
            Challenge::Bare => Some(self.missing.clone()),
            Challenge::InvalidRequest => match rejection.advice() {
                Some(advice) => self.invalid_request_because(advice),
                None => Some(self.invalid_request.clone()),
            },
            Challenge::InvalidToken => Some(self.invalid_token.clone()),
            Challenge::InsufficientScope => self.insufficient_scope(rejection),
        }
    }

    /// `advice` has no quotes and no backslashes.
    fn invalid_request_because(&self, advice: &str) -> Option<HeaderValue> {
        let parts = [
            "Bearer realm=\"",
            &self.realm,
            "\", error=\"invalid_request\", error_description=\"",
            advice,
            "\"",
        ];
        HeaderValue::try_from(parts.concat()).ok()
    }

    fn insufficient_scope(&self, rejection: &Rejection) -> Option<HeaderValue> {
        let (realm, scope) = (&self.realm, scope_list(rejection.required_scopes()));
        let challenge =
            format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\", scope=\"{scope}\"");
        HeaderValue::try_from(challenge).ok()
    }
}

impl Default for Challenges {
    /// The realm `api`.
    fn default() -> Self {
        Self {
            realm: "api".to_owned(),
            missing: HeaderValue::from_static(r#"Bearer realm="api""#),
            invalid_request: HeaderValue::from_static(
                r#"Bearer realm="api", error="invalid_request", error_description="Send exactly one API key""#,
            ),
            invalid_token: HeaderValue::from_static(
                r#"Bearer realm="api", error="invalid_token", error_description="The API key is not valid""#,
            ),
        }
    }
}

/// Scopes separated by single spaces (RFC 6750 §3).
pub(super) fn scope_list(scopes: &[Scope]) -> String {
    scopes.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ")
}
