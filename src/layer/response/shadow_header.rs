use http::{HeaderMap, HeaderName, HeaderValue};

use super::status_codes::{Spec, spec};
use crate::auth::RejectionKind;

const X_API_KEY_SHADOW: HeaderName = HeaderName::from_static("x-api-key-shadow");

/// Says what would have been answered. Of a rejection, it tells the status and the code, which the
/// response would have had, too.
pub(in crate::layer) fn write_shadow(headers: &mut HeaderMap, would_reject: Option<RejectionKind>) {
    let value = match would_reject {
        None => HeaderValue::from_static("admit"),
        Some(kind) => {
            let Spec { status, code, .. } = spec(kind);
            let value = format!("reject;status={};code={code}", status.as_u16());
            HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("reject"))
        }
    };
    headers.insert(X_API_KEY_SHADOW, value);
}
