use std::{error::Error, fmt, sync::Arc};

use http::HeaderName;
use tower_layer::Layer;

use super::{
    ApiKeyService, ClientAddress, ProblemJson, RateLimitHeaders,
    credentials::Credentials,
    gate::{Gate, Settings},
    response::Challenges,
};
use crate::auth::Authenticator;

/// Lets requests with a valid key through, and turns others away.
///
/// See the [module](crate::layer) for rules and examples.
#[derive(Debug)]
#[must_use]
pub struct ApiKeyLayer<R = ProblemJson> {
    gate: Arc<Gate<R>>,
}

impl ApiKeyLayer {
    /// Keys that `auth` accepts, with everything else at its default.
    pub fn new(auth: Authenticator) -> Self {
        Self {
            gate: Arc::new(Gate {
                settings: Settings {
                    auth,
                    challenges: Challenges::default(),
                    credentials: Credentials::BEARER,
                    optional: false,
                    keep_credential: false,
                    pass_preflight: false,
                    charge: true,
                    rate_limit_headers: RateLimitHeaders::default(),
                    client_address: None,
                },
                renderer: ProblemJson::default(),
            }),
        }
    }
}

impl<R: Clone> ApiKeyLayer<R> {
    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut Arc::make_mut(&mut self.gate).settings);
        self
    }

    /// The `realm` of challenges: what the keys are for. Default: `api`, since there must be one
    /// ([RFC 6750 §3](https://www.rfc-editor.org/rfc/rfc6750#section-3)) and clients only show it.
    ///
    /// # Errors
    ///
    /// When it has other than printable ASCII characters, or quotes or backslashes.
    pub fn realm(self, realm: &str) -> Result<Self, InvalidRealm> {
        let challenges = Challenges::new(realm).ok_or(InvalidRealm)?;
        Ok(self.with(|settings| settings.challenges = challenges))
    }

    /// Also finds the key in `header`, such as `X-Api-Key`, by itself and without a scheme. A
    /// request with a key in two places gets 400.
    pub fn also_header(self, header: HeaderName) -> Self {
        self.with(|settings| settings.credentials.add(header))
    }

    /// Finds the key in `header`, and nowhere else but where
    /// [`also_header`](Self::also_header) adds; `Authorization` is left to the application.
    pub fn only_header(self, header: HeaderName) -> Self {
        self.with(|settings| settings.credentials = Credentials::only(header))
    }

    /// Lets requests without credentials through, without a [`Consumer`](crate::Consumer). Wrong
    /// credentials are still turned away: a client that sends a key wants it to count. Default:
    /// false.
    pub fn optional(self, optional: bool) -> Self {
        self.with(|settings| settings.optional = optional)
    }

    /// Leaves the key in the request. Default: false, as what lies behind the layer has no use for
    /// it and may log it. It is marked sensitive, which `Debug` and HTTP/2 heed.
    pub fn keep_credential(self, keep: bool) -> Self {
        self.with(|settings| settings.keep_credential = keep)
    }

    /// Lets CORS preflights through: `OPTIONS` with `Origin` and
    /// `Access-Control-Request-Method`, to which browsers never add a key. Default: false.
    ///
    /// Only needed where the CORS layer is inside this one; better put it outside. The handler
    /// behind sees a preflight without a key, so it must not do more than answer it.
    pub fn pass_preflight(self, pass: bool) -> Self {
        self.with(|settings| settings.pass_preflight = pass)
    }

    /// Whether requests count against the quotas of their key. Default: true.
    ///
    /// Where they do not, a key that has used up its quota is let in as well, and the handler finds
    /// its [`Standing`](crate::auth::Standing) in the request's extensions. This is for a route on
    /// which clients ask how much they have left, and no other: nothing limits it.
    pub fn charge(self, charge: bool) -> Self {
        self.with(|settings| settings.charge = charge)
    }

    /// Which headers tell clients where they stand. Default: [`RateLimitHeaders::Standard`].
    pub fn rate_limit_headers(self, headers: RateLimitHeaders) -> Self {
        self.with(|settings| settings.rate_limit_headers = headers)
    }

    /// Limits [how many unknown keys](crate::auth::Builder::failure_limit) come from each
    /// [network](crate::auth::ClientNetwork); `address` says where requests come from. Beyond it,
    /// a key that is not in the cache gets 429. Default: off, since only you know what the other end
    /// of a connection is: behind a proxy, all clients would be one.
    ///
    /// A request whose address is not known is not limited by this.
    pub fn throttle_failures(self, address: ClientAddress) -> Self {
        self.with(|settings| settings.client_address = Some(address))
    }

    /// Renders rejections in another way. Default: [`ProblemJson`].
    pub fn render_rejections<R2>(self, renderer: R2) -> ApiKeyLayer<R2> {
        let settings = Arc::unwrap_or_clone(self.gate).settings;
        ApiKeyLayer { gate: Arc::new(Gate { settings, renderer }) }
    }
}

impl<R> Clone for ApiKeyLayer<R> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate) }
    }
}

impl<S, R> Layer<S> for ApiKeyLayer<R> {
    type Service = ApiKeyService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiKeyService::new(inner, Arc::clone(&self.gate))
    }
}

/// The realm cannot be put between quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidRealm;

impl fmt::Display for InvalidRealm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a realm is printable ASCII without quotes and backslashes")
    }
}

impl Error for InvalidRealm {}
