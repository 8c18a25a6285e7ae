//! What the layer writes to a response: problem documents, challenges and rate limit headers.

mod challenges;
pub(super) mod grpc;
pub(super) mod headers;
mod problem;
mod rate_limit_report;
mod shadow_header;
mod status_codes;

#[cfg(feature = "axum")]
pub(crate) use self::problem::complete;
pub(super) use self::{
    challenges::Challenges,
    problem::respond,
    rate_limit_report::{OtherPolicies, Policy, RateLimitReport},
    shadow_header::write_shadow,
};
pub use self::{
    headers::RateLimitHeaders,
    problem::{ProblemJson, RejectionResponse, StatusOnly},
};
#[cfg(feature = "admin")]
pub(crate) use self::{headers::retry_after, problem::Problem};
