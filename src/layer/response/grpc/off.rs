use http::{Extensions, HeaderMap, HeaderValue, Response};

use crate::auth::Rejection;

pub(in crate::layer) const fn content_type(_: &HeaderMap) -> Option<&HeaderValue> {
    None
}

pub(in crate::layer) const fn ends_with_trailers(_: &HeaderMap) -> bool {
    false
}

pub(in crate::layer) fn response<B>(
    _: &Rejection,
    _: Option<&'static str>,
    _: HeaderValue,
    body: B,
) -> Response<B> {
    Response::new(body)
}

pub(in crate::layer) struct RequestType;

impl RequestType {
    pub(in crate::layer) const fn of(_: &HeaderMap) -> Self {
        Self
    }

    pub(in crate::layer) fn translate<B>(&self, _: &mut Response<B>, _: impl FnOnce() -> B) {}
}

pub(in crate::layer) const fn rejection(_: &Extensions) -> Option<&Rejection> {
    None
}

pub(in crate::layer) fn key_ended() -> HeaderMap {
    HeaderMap::new()
}
