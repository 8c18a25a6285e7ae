//! Keys over HTTP: what the routers of [`admin`](crate::admin) and [`account`](crate::account) have
//! in common.
//!
//! Nothing here hands out a [`KeyIssuer`](crate::manage::KeyIssuer) but the extractors of
//! [`desk`], and these only behind an [`ApiKeyLayer`](crate::ApiKeyLayer).

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
