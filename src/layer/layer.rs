use std::{error::Error, fmt, sync::Arc};

use http::HeaderName;
use tower_layer::Layer;

use super::{
    ClientAddress, ProblemJson, RateLimitHeaders, Scheme,
    advised_rejections::AdvisedRejections,
    middleware::{Config, Middleware, Shadow},
    request::credentials::Credentials,
    response::Challenges,
    service::ApiKeyService,
};
use crate::{auth::Authenticator, trace};

/// Admits requests with a valid key and rejects all others.
///
/// See the [module](crate::layer) for rules and examples.
#[derive(Debug)]
#[must_use]
pub struct ApiKeyLayer<R = ProblemJson> {
    middleware: Arc<Middleware<R>>,
}

impl ApiKeyLayer {
    /// Admits the keys that `auth` accepts; all other settings are at their defaults.
    pub fn new(auth: Authenticator) -> Self {
        Self {
            middleware: Arc::new(Middleware {
                config: Config {
                    auth,
                    challenges: Challenges::default(),
                    credentials: Credentials::bearer(),
                    advised: AdvisedRejections::default(),
                    optional: false,
                    keep_credential: false,
                    pass_preflight: false,
                    charge: true,
                    rate_limit_headers: RateLimitHeaders::default(),
                    client_address: None,
                    throttle_failures: false,
                    expiry_header: true,
                    shadow: Shadow::default(),
                },
                renderer: ProblemJson::default(),
            }),
        }
    }
}

impl<R: Clone> ApiKeyLayer<R> {
    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        let config = &mut Arc::make_mut(&mut self.middleware).config;
        change(config);
        // They name the headers and the realm.
        config.advised = AdvisedRejections::default();
        self
    }

    /// The `realm` of challenges: what the keys are for. Default: `api`. A realm is mandatory
    /// ([RFC 6750 §3](https://www.rfc-editor.org/rfc/rfc6750#section-3)), but clients only show it.
    ///
    /// # Errors
    ///
    /// If `realm` contains anything but printable ASCII, or a quote or backslash.
    pub fn realm(self, realm: &str) -> Result<Self, InvalidRealm> {
        let credentials = &self.middleware.config.credentials;
        let challenges = Challenges::new(realm, credentials).ok_or(InvalidRealm)?;
        Ok(self.with(|config| config.challenges = challenges))
    }

    fn with_credentials(self, change: impl FnOnce(&mut Credentials)) -> Self {
        self.with(|config| {
            change(&mut config.credentials);
            config.challenges = config.challenges.for_credentials(&config.credentials);
        })
    }

    /// Also reads the key after `scheme` in `Authorization`, beside `Bearer`. A request with a key in
    /// two places gets 400. A 401 has a challenge for each scheme.
    pub fn also_scheme(self, scheme: Scheme) -> Self {
        self.with_credentials(|credentials| credentials.add_scheme(scheme))
    }

    /// Reads the key only after `scheme` in `Authorization`, and from schemes and headers added later
    /// by [`also_scheme`](Self::also_scheme) and [`also_header`](Self::also_header).
    pub fn only_scheme(self, scheme: Scheme) -> Self {
        self.with_credentials(|credentials| credentials.only_scheme(scheme))
    }

    /// Also reads the key from `header`, such as `X-Api-Key`. Its value is the bare key, without a
    /// scheme. A request with a key in two places gets 400.
    pub fn also_header(self, header: HeaderName) -> Self {
        self.with_credentials(|credentials| credentials.add(header))
    }

    /// Reads the key only from `header`, and from headers added later by
    /// [`also_header`](Self::also_header). `Authorization` is left to the application.
    pub fn only_header(self, header: HeaderName) -> Self {
        self.with_credentials(|credentials| credentials.only(header))
    }

    /// Leaves a key in `header` to an inner layer or to the application. Default: a key of this
    /// authenticator in a header that the layer does not read is a mistake of the client and gets
    /// 400, if the name of the header contains `auth`, `key` or `token` and the request has no key
    /// where the layer reads one.
    ///
    /// Needed only around a layer that reads keys with the same prefix from another header.
    pub fn leave_header(self, header: HeaderName) -> Self {
        self.with(|config| config.credentials.leave(header))
    }

    /// Admits requests without credentials, without a [`Consumer`](crate::Consumer). Invalid
    /// credentials are still rejected: a client that sends a key expects it to be used. Default:
    /// false.
    pub fn optional(self, optional: bool) -> Self {
        self.with(|config| config.optional = optional)
    }

    /// Leaves the key in the request. Default: false, as inner services do not need it and may log
    /// it. A key that is kept is marked sensitive, which `Debug` and HTTP/2 respect.
    pub fn keep_credential(self, keep: bool) -> Self {
        self.with(|config| config.keep_credential = keep)
    }

    /// Admits CORS preflights: `OPTIONS` with `Origin` and `Access-Control-Request-Method`, to
    /// which browsers never add a key. Default: false.
    ///
    /// Only needed if the CORS layer is inside this one; putting it outside is better. The inner
    /// handler receives the preflight without a key, so it must do no more than answer it.
    pub fn pass_preflight(self, pass: bool) -> Self {
        self.with(|config| config.pass_preflight = pass)
    }

    /// Admits requests without charging them to the quotas of their key. Default: each request is
    /// charged.
    ///
    /// A key that has used up its quota is admitted as well, and the handler finds its
    /// [`RateLimitStatus`](crate::auth::RateLimitStatus) in the request's extensions. The key's
    /// quotas do not limit such a route, so use this only where clients read their remaining quota.
    pub fn danger_without_charge(self) -> Self {
        self.with(|config| config.charge = false)
    }

    /// Which headers report the remaining quota. Default: [`RateLimitHeaders::Standard`].
    pub fn rate_limit_headers(self, headers: RateLimitHeaders) -> Self {
        self.with(|config| config.rate_limit_headers = headers)
    }

    /// Whether responses to a key in its last 7 days carry `X-Api-Key-Expires`, the HTTP date (RFC 9110
    /// §5.6.7) at which the key stops working, so that clients can renew it in time. Default: true.
    /// Keys that were rotated have `Sunset` with the same time, in any case.
    ///
    /// A day after which a key ends is no secret to its holder; switch the header off if keys live for
    /// hours and all responses would have it.
    pub fn expiry_header(self, write: bool) -> Self {
        self.with(|config| config.expiry_header = write)
    }

    /// Where requests come from, for keys that work [only from some
    /// networks](crate::manage::NewKey::networks). Such a key is compared with the address on every
    /// request, and refused with 403 `network_not_allowed` if the address is in none of its networks
    /// or is unknown. A warning in the log (`key refused`) says which. Default: addresses are not
    /// known, since only you know whether a connection's peer is a client or a proxy, and keys with
    /// networks are refused.
    pub fn client_address(self, address: ClientAddress) -> Self {
        self.with(|config| config.client_address = Some(address))
    }

    /// Limits [how many unknown keys](crate::auth::Builder::failure_limit) each
    /// [network](crate::auth::ClientNetwork) may send; `address` tells where a request comes from.
    /// Beyond the limit, a key that is not in the cache gets 429. Default: off, since only you know
    /// whether a connection's peer is a client or a proxy: behind a proxy, all clients would share
    /// one limit.
    ///
    /// A request whose address is unknown is not limited.
    ///
    /// Includes [`client_address`](Self::client_address).
    pub fn throttle_failures(self, address: ClientAddress) -> Self {
        self.client_address(address).with(|config| config.throttle_failures = true)
    }

    /// Shadow mode: decides and observes, and lets every request pass, for a service that moves in
    /// and wants to see first what would be rejected. **Nothing is protected.** Default: false.
    ///
    /// See [shadow mode](crate::manual::shadow) in the manual: what handlers and inner layers see,
    /// what is counted and logged, and how long a request waits. A warning, `shadow mode enabled`,
    /// is logged when this is called with `true`.
    pub fn shadow(self, shadow: bool) -> Self {
        if shadow {
            trace::warn!("shadow mode enabled: this API key layer rejects no request");
        }
        self.with(|config| config.shadow.is_on = shadow)
    }

    /// In [shadow mode](Self::shadow), charges requests to the quotas of their key, as without it:
    /// then it shows which requests would get 429, and the routes that share these quotas and are
    /// not in shadow mode have less of them. Default: false, nothing is taken.
    pub fn shadow_charge(self, charge: bool) -> Self {
        self.with(|config| config.shadow.charge = charge)
    }

    /// In [shadow mode](Self::shadow), says in the response header `X-Api-Key-Shadow` what the
    /// response would have been: `admit`, or `reject` with status and code, such as
    /// `reject;status=401;code=invalid_api_key` (an item of [RFC
    /// 9651](https://www.rfc-editor.org/rfc/rfc9651)). It tells no more than that response would.
    /// Default: false, since it tells every client which keys are valid, and that no
    /// key is needed.
    pub fn shadow_header(self, write: bool) -> Self {
        self.with(|config| config.shadow.header = write)
    }

    /// Renders rejections with `renderer`. Default: [`ProblemJson`].
    pub fn render_rejections<R2>(self, renderer: R2) -> ApiKeyLayer<R2> {
        let config = Arc::unwrap_or_clone(self.middleware).config;
        ApiKeyLayer { middleware: Arc::new(Middleware { config, renderer }) }
    }
}

impl<R> Clone for ApiKeyLayer<R> {
    fn clone(&self) -> Self {
        Self { middleware: Arc::clone(&self.middleware) }
    }
}

impl<S, R> Layer<S> for ApiKeyLayer<R> {
    type Service = ApiKeyService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiKeyService::new(inner, Arc::clone(&self.middleware))
    }
}

/// The realm cannot be written as a quoted string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidRealm;

impl fmt::Display for InvalidRealm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("realm must be printable ASCII without quotes or backslashes")
    }
}

impl Error for InvalidRealm {}
