//! Keys over HTTP: the common part of the routers of [`admin`](crate::admin) and
//! [`account`](crate::account).
//!
//! Handlers get a [`KeyIssuer`](crate::manage::KeyIssuer) only from the extractors of [`state`],
//! which fail unless an [`ApiKeyLayer`](crate::ApiKeyLayer) has authenticated the request.

mod body;
mod concurrency;
pub(crate) mod default_scopes;
mod document;
mod error;
mod fields;
mod handlers;
mod merge_patch;
mod operation;
mod params;
mod places;
mod quotas;
mod routes;
mod state;
mod times;
mod validators;
mod view;

#[cfg(feature = "openapi")]
mod openapi;

pub use self::routes::GuardedRoutes;
pub(crate) use self::{
    document::Settings as DocumentSettings, operation::Operation, routes::guard, state::AdminState,
};
