use std::{fmt, marker::PhantomData, ops::Deref};

use axum_core::extract::FromRequestParts;
use http::request::Parts;

use super::ConsumerRejection;
use crate::record::{Consumer, ScopeType};

/// An axum extractor: the [`Consumer`], whose key has the scope `S`. Other keys get 403
/// `insufficient_scope`, as from [`RequireScope`](crate::RequireScope).
///
/// `S` is a type of the module that [`scopes!`](crate::scopes) makes:
///
/// ```
/// use axum::{Router, routing::delete};
/// use tower_api_key::layer::Granted;
///
/// tower_api_key::scopes! {
///     pub enum Scope {
///         /// Delete orders.
///         OrdersDelete = "orders:delete",
///     }
///     pub mod scope;
/// }
///
/// async fn delete_order(consumer: Granted<scope::OrdersDelete>) -> String {
///     format!("an order of {} is deleted", consumer.id())
/// }
///
/// let app: Router = Router::new().route("/orders/{id}", delete(delete_order));
/// # let _ = app;
/// ```
///
/// It is checked before the extractors behind it read the body. Responses to other requests are
/// those of the extractor [`Consumer`]: 500 on a route without an
/// [`ApiKeyLayer`](crate::ApiKeyLayer), and 401 behind an [optional](crate::ApiKeyLayer::optional)
/// one without a key. A handler that needs several scopes takes several `Granted`.
#[must_use]
pub struct Granted<S> {
    consumer: Consumer,
    scope: PhantomData<fn() -> S>,
}

impl<S> Granted<S> {
    /// The consumer.
    #[must_use]
    pub fn into_consumer(self) -> Consumer {
        self.consumer
    }
}

impl<S> Deref for Granted<S> {
    type Target = Consumer;

    fn deref(&self) -> &Consumer {
        &self.consumer
    }
}

impl<S: ScopeType, State: Sync> FromRequestParts<State> for Granted<S> {
    type Rejection = ConsumerRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &State,
    ) -> Result<Self, ConsumerRejection> {
        let consumer = <Consumer as FromRequestParts<State>>::from_request_parts(parts, state);
        let consumer = consumer.await?;
        consumer.require(S::NAME)?;
        Ok(Self { consumer, scope: PhantomData })
    }
}

impl<S> Clone for Granted<S> {
    fn clone(&self) -> Self {
        Self { consumer: self.consumer.clone(), scope: PhantomData }
    }
}

impl<S: ScopeType> fmt::Debug for Granted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted")
            .field("scope", &S::NAME)
            .field("consumer", &self.consumer)
            .finish()
    }
}
