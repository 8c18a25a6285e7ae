use axum::routing::{MethodFilter, MethodRouter, on};
use http::Method;

use super::{
    AdminState,
    handlers::{read, usage, write},
    quotas, whoami,
};

/// The operations of the API. Both the routes and the OpenAPI document are built from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    IssueKey,
    ListKeys,
    RevokeKeys,
    GetKey,
    UpdateKey,
    RotateKey,
    RevokeKey,
    ListEvents,
    GetUsage,
    /// The use of a consumer, or of all keys.
    GetTotalUsage,
    /// Who the caller is, and what it may do.
    WhoAmI,
    /// Reads the remaining quota without a charge.
    GetRateLimit,
}

impl Operation {
    #[cfg(test)]
    pub(super) const ALL: [Self; 12] = [
        Self::IssueKey,
        Self::ListKeys,
        Self::RevokeKeys,
        Self::GetKey,
        Self::UpdateKey,
        Self::RotateKey,
        Self::RevokeKey,
        Self::ListEvents,
        Self::GetUsage,
        Self::GetTotalUsage,
        Self::WhoAmI,
        Self::GetRateLimit,
    ];

    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::IssueKey | Self::ListKeys => "/api-keys",
            Self::RevokeKeys => "/api-keys/revoke",
            Self::GetKey | Self::UpdateKey => "/api-keys/{id}",
            Self::RotateKey => "/api-keys/{id}/rotate",
            Self::RevokeKey => "/api-keys/{id}/revoke",
            Self::ListEvents => "/api-keys/{id}/events",
            Self::GetUsage => "/api-keys/{id}/usage",
            Self::GetTotalUsage => "/usage",
            Self::WhoAmI => "/whoami",
            Self::GetRateLimit => "/rate-limit",
        }
    }

    pub(super) const fn method(self) -> Method {
        match self {
            Self::IssueKey | Self::RevokeKeys | Self::RotateKey | Self::RevokeKey => Method::POST,
            Self::UpdateKey => Method::PATCH,
            Self::ListKeys
            | Self::GetKey
            | Self::ListEvents
            | Self::GetUsage
            | Self::GetTotalUsage
            | Self::WhoAmI
            | Self::GetRateLimit => Method::GET,
        }
    }

    pub(super) fn route(self) -> MethodRouter<AdminState> {
        let method = match self.method() {
            Method::POST => MethodFilter::POST,
            Method::PATCH => MethodFilter::PATCH,
            _ => MethodFilter::GET,
        };
        match self {
            Self::IssueKey => on(method, write::issue_key),
            Self::ListKeys => on(method, read::list_keys),
            Self::RevokeKeys => on(method, write::revoke_keys),
            Self::GetKey => on(method, read::get_key),
            Self::UpdateKey => on(method, write::update_key),
            Self::RotateKey => on(method, write::rotate_key),
            Self::RevokeKey => on(method, write::revoke_key),
            Self::ListEvents => on(method, read::list_events),
            Self::GetUsage => on(method, usage::get_usage),
            Self::GetTotalUsage => on(method, usage::get_total_usage),
            Self::WhoAmI => on(method, whoami::whoami),
            Self::GetRateLimit => on(method, quotas::get_rate_limit),
        }
    }

    /// Whether a request is charged to the caller's quotas.
    pub(super) const fn is_charged(self) -> bool {
        !matches!(self, Self::GetRateLimit)
    }
}
