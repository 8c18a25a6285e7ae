use http::{
    HeaderValue,
    header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
};

use super::status_codes::{Challenge, spec};
use crate::{auth::Rejection, layer::request::credentials::Credentials, record::Scope};

/// The `WWW-Authenticate` values of one realm.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Challenges {
    realm: String,
    /// The challenge that tells of errors, without one: that of `Bearer`, if the layer reads it.
    first: String,
    /// The challenges of all ways to send a key.
    missing: HeaderValue,
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Challenges {
    /// `None` for a realm that cannot be written as a quoted string.
    pub(in crate::layer) fn new(realm: &str, credentials: &Credentials) -> Option<Self> {
        let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if !realm.bytes().all(printable) {
            return None;
        }
        let schemes = credentials.schemes().map(|scheme| match scheme.name() {
            "Basic" => format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
            name => format!("{name} realm=\"{realm}\""),
        });
        // Headers have no scheme of HTTP; this one is of our own. A protocol of a WebSocket is `bearer`
        // and the key, which `Bearer` asks for.
        let others = [AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL];
        let headers = credentials.headers().filter(|header| !others.contains(header));
        let headers =
            headers.map(|header| format!("ApiKey realm=\"{realm}\", header=\"{header}\""));
        let mut all = schemes.chain(headers);
        let first = all.next().unwrap_or_else(|| format!("Bearer realm=\"{realm}\""));
        let others: String = all.flat_map(|challenge| [", ".to_owned(), challenge]).collect();
        let value = |rest: &str| HeaderValue::try_from(format!("{first}{rest}")).ok();
        Some(Self {
            missing: value(&others)?,
            invalid_request: value(
                ", error=\"invalid_request\", error_description=\"Send exactly one API key\"",
            )?,
            invalid_token: value(&format!(
                ", error=\"invalid_token\", error_description=\"The API key is not valid\"{others}"
            ))?,
            first,
            realm: realm.to_owned(),
        })
    }

    /// The same realm for other ways to send a key.
    pub(in crate::layer) fn for_credentials(&self, credentials: &Credentials) -> Self {
        // A realm that was valid stays so.
        Self::new(&self.realm, credentials).unwrap_or_default()
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
        let parts =
            [&self.first, ", error=\"invalid_request\", error_description=\"", advice, "\""];
        HeaderValue::try_from(parts.concat()).ok()
    }

    fn insufficient_scope(&self, rejection: &Rejection) -> Option<HeaderValue> {
        let (first, scope) = (&self.first, scope_list(rejection.required_scopes()));
        let challenge = format!("{first}, error=\"insufficient_scope\", scope=\"{scope}\"");
        HeaderValue::try_from(challenge).ok()
    }
}

impl Default for Challenges {
    /// `Bearer` and the realm `api`.
    fn default() -> Self {
        Self {
            realm: "api".to_owned(),
            first: r#"Bearer realm="api""#.to_owned(),
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
