//! What the layer writes to a response: problem documents, challenges and rate limit headers.

pub(super) mod headers;
mod problem;
mod rate_limit_report;
mod spec;

pub(crate) use self::problem::complete;
pub use self::{
    headers::RateLimitHeaders,
    problem::{ProblemJson, RejectionResponse, StatusOnly},
};
#[cfg(feature = "admin")]
pub(crate) use self::{headers::retry_after, problem::Problem};
pub(super) use self::{
    problem::Challenges,
    rate_limit_report::{Policy, RateLimitReport},
};
