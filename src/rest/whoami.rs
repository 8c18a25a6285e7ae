use axum::response::Response;
use serde::Serialize;

use super::{
    error::ApiError,
    handlers::read::json,
    params::NoParams,
    state::{Caller, OwnAccess},
    times,
};
use crate::{
    manage::{Grant, Member},
    rate_limit::RateLimits,
    record::{Consumer, KeyRecord, Scopes},
};

/// What a calling key is. Neither the key nor its hash.
#[derive(Serialize)]
struct KeyItself<'k> {
    key_id: String,
    consumer_id: &'k str,
    name: Option<&'k str>,
    scopes: &'k Scopes,
    expires_at: Option<String>,
    plan: Option<&'k str>,
    /// Those in force: its own, its plan's, or the default.
    quotas: &'k RateLimits,
}

impl<'k> KeyItself<'k> {
    fn new(consumer: &'k Consumer, record: &'k KeyRecord) -> Self {
        Self {
            key_id: record.id.to_string(),
            consumer_id: &record.consumer_id,
            name: record.name.as_deref(),
            scopes: &record.scopes,
            expires_at: record.expires_at.map(times::write),
            plan: record.plan.as_deref(),
            quotas: consumer.limits(),
        }
    }
}

/// What a member is.
#[derive(Serialize)]
struct MemberItself<'m> {
    member: &'m str,
    /// `None` for all.
    consumers: Option<Vec<&'m str>>,
    grant: Option<&'m Grant>,
}

impl<'m> MemberItself<'m> {
    fn new(member: &'m Member) -> Self {
        let ids = member.consumers().ids();
        Self {
            member: member.name(),
            consumers: ids.map(|ids| ids.iter().map(String::as_str).collect()),
            grant: member.granted(),
        }
    }
}

pub(super) async fn whoami(own: OwnAccess, _: NoParams) -> Result<Response, ApiError> {
    match own.caller() {
        Caller::Key(consumer) => {
            let key = own.issuer().get(consumer.key_id()).await;
            let key = key.map_err(|error| own.error_of(&error))?;
            Ok(json(&KeyItself::new(consumer, &key.record)))
        }
        Caller::Member(member) => Ok(json(&MemberItself::new(member))),
    }
}
