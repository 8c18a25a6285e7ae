//! The guard of an application's own login.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{Method, request::Parts};

use super::{
    body,
    csrf::{Csrf, InvalidOrigin},
};
use crate::manage::Member;

/// Finds out who sends a request, from the application's own session.
///
/// A closure works, which reads what it needs and returns a future:
///
/// ```
/// use std::time::Duration;
/// use axum::response::IntoResponse;
/// use http::{StatusCode, request::Parts};
/// use tower_api_key::{account::SignIn, manage::{Grant, Member}};
///
/// /// The user's name, as a session layer of the application left it.
/// #[derive(Clone)]
/// struct User(String);
///
/// fn sign_in() -> impl SignIn {
///     |parts: &mut Parts| {
///         let user = parts.extensions.get::<User>().cloned();
///         async move {
///             let User(name) = user.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())?;
///             let grant = Grant::new(Duration::from_secs(90 * 86_400));
///             Ok(Member::new(name.clone(), name).grant(grant))
///         }
///     }
/// }
/// # let _ = sign_in();
/// ```
///
/// It is asked for each request, and never cached. For a request that changes something it is asked
/// again once the body has arrived: a visitor who signed out meanwhile changes nothing.
pub trait SignIn: Send + Sync + 'static {
    /// The member who sends the request, or what the visitor gets instead: 401, or a redirect to
    /// the page that signs in.
    fn member(&self, parts: &mut Parts) -> impl Future<Output = Result<Member, Response>> + Send;
}

impl<F, Fut> SignIn for F
where
    F: Fn(&mut Parts) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Member, Response>> + Send + 'static,
{
    fn member(&self, parts: &mut Parts) -> impl Future<Output = Result<Member, Response>> + Send {
        self(parts)
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Member, Response>> + Send + 'a>>;

/// [`SignIn`] as a trait object, so that the routes have no type parameter for it.
trait ErasedSignIn: Send + Sync {
    fn member<'a>(&'a self, parts: &'a mut Parts) -> Answer<'a>;
}

impl<S: SignIn> ErasedSignIn for S {
    fn member<'a>(&'a self, parts: &'a mut Parts) -> Answer<'a> {
        Box::pin(SignIn::member(self, parts))
    }
}

/// The guard of an application's own login: a [`SignIn`], and protection against requests that
/// other sites make in a visitor's name.
#[derive(Clone)]
pub struct SignedIn {
    sign_in: Arc<dyn ErasedSignIn>,
    pub(super) csrf: Csrf,
}

impl SignedIn {
    pub(crate) fn by(sign_in: impl SignIn) -> Self {
        Self { sign_in: Arc::new(sign_in), csrf: Csrf::new() }
    }

    pub(crate) fn trust(self, origin: &str) -> Result<Self, InvalidOrigin> {
        Ok(Self { csrf: self.csrf.trust(origin)?, ..self })
    }

    /// Passes the request on with its member, or returns what the visitor gets instead.
    async fn admit(&self, request: Request, next: Next) -> Response {
        let (mut parts, body) = request.into_parts();
        match self.sign_in.member(&mut parts).await {
            Ok(member) => {
                parts.extensions.insert(Admitted(member));
                next.run(Request::from_parts(parts, body)).await
            }
            Err(response) => response,
        }
    }
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn").field("csrf", &self.csrf).finish_non_exhaustive()
    }
}

/// The member who sends a request, in its extensions. Only this file makes one.
#[derive(Clone)]
pub(super) struct Admitted(Member);

impl Admitted {
    pub(super) const fn member(&self) -> &Member {
        &self.0
    }
}

/// The outer part of the guard: lets in only requests of a member.
pub(super) async fn require_member(
    State(guard): State<SignedIn>,
    request: Request,
    next: Next,
) -> Response {
    guard.admit(request, next).await
}

/// The inner part: reads the body of a change, which may take long, then asks again.
pub(super) async fn confirm_member(
    State(guard): State<SignedIn>,
    request: Request,
    next: Next,
) -> Response {
    if [Method::GET, Method::HEAD].contains(request.method()) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match body::bytes(body).await {
        Ok(bytes) => guard.admit(Request::from_parts(parts, Body::from(bytes)), next).await,
        Err(error) => error.into_response(),
    }
}
