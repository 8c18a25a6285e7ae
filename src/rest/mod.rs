//! Keys over HTTP: the common part of the routers of [`admin`](crate::admin) and
//! [`account`](crate::account).
//!
//! Handlers get a [`KeyIssuer`](crate::manage::KeyIssuer) only from the extractors of [`desk`],
//! which fail unless an [`ApiKeyLayer`](crate::ApiKeyLayer) has authenticated the request.

mod body;
mod change;
mod desk;
mod document;
mod few_at_once;
mod look;
mod operation;
mod params;
mod quotas;
mod refusal;
mod routes;
mod times;
mod validators;
mod view;

#[cfg(feature = "openapi")]
mod openapi;

pub use self::routes::GuardedRoutes;
pub(crate) use self::{
    desk::Desk, document::Settings as DocumentSettings, operation::Operation, routes::guard,
};
