//! Keys over HTTP: the common part of the routers of [`admin`](crate::admin),
//! [`account`](crate::account) and `leaks`.
//!
//! Handlers get a [`KeyIssuer`](crate::manage::KeyIssuer) only from the extractors of [`state`],
//! which fail unless an [`ApiKeyLayer`](crate::ApiKeyLayer) has authenticated the request, or the
//! application's own login, in [`sign_in`], has let its member in.

mod accept;
mod body;
mod concurrency;
mod csrf;
pub(crate) mod default_scopes;
mod document;
mod document_settings;
mod error;
mod fields;
mod handlers;
mod manage_error;
mod merge_patch;
mod operation;
mod params;
mod places;
mod quotas;
mod routes;
mod sign_in;
mod state;
mod times;
mod validators;
mod view;
mod whoami;

#[cfg(feature = "openapi")]
mod openapi;

#[cfg(feature = "leaks")]
pub(crate) use self::{
    body::{Body, bytes_up_to},
    error::ApiError,
    routes::{guard_routes, open_routes},
    state::{Origin, peer, printable},
};
pub use self::{
    csrf::InvalidOrigin,
    routes::GuardedRoutes,
    sign_in::{SignIn, SignedIn},
    view::KeyView,
};
pub(crate) use self::{
    document_settings::Settings as DocumentSettings,
    operation::Operation,
    routes::{guard, guard_signed_in},
    state::AdminState,
};
