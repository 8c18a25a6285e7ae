//! A service behind the layer, which keys of another system are sent to.

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tower::ServiceExt as _;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    key::{ImportedFormat, KeyFormat},
    store::PgKeyStore,
};

use crate::wait::within;

/// It answers with the consumer of the key.
pub(crate) struct Service(Router);

impl Service {
    pub(crate) fn start(
        store: PgKeyStore,
        formats: Vec<ImportedFormat>,
        read: impl FnOnce(ApiKeyLayer) -> ApiKeyLayer,
    ) -> Self {
        let builder = Authenticator::builder(store.clone(), KeyFormat::new("sk_live_").unwrap());
        let builder = formats.into_iter().fold(builder, |builder, format| builder.accept(format));
        let (auth, _) = builder.legacy_hashes(store).build();
        let consumer = |consumer: Consumer| async move { consumer.id().to_owned() };
        Self(Router::new().route("/", get(consumer)).layer(read(ApiKeyLayer::new(auth))))
    }

    /// The consumer of a request with this header, or the status of its rejection.
    pub(crate) async fn consumer(&self, header: &str, value: &str) -> Result<String, StatusCode> {
        let request = Request::get("/").header(header, value).body(Body::empty()).unwrap();
        let response = within(self.0.clone().oneshot(request)).await.unwrap();
        if response.status() != StatusCode::OK {
            return Err(response.status());
        }
        let body = within(axum::body::to_bytes(response.into_body(), 1024)).await.unwrap();
        Ok(String::from_utf8(body.to_vec()).unwrap())
    }
}
