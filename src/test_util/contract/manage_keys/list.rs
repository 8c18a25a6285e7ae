//! Listing keys.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use super::inserted;
use crate::{
    record::{KeyId, KeyRecord, KeyStatus, Scope, Scopes, Tags},
    store::{
        KeyQuery, ManageKeys,
        port::{KeyFilter, KeyTransaction as _, Usage},
    },
    test_util::contract::{
        Violation,
        sample::{MINUTE, TICK, now, record},
        violation::{equal, expect},
    },
};

/// More keys than any rule stores.
const MANY: usize = 1_000;

/// All pages of a query.
async fn listed<S: ManageKeys>(store: &S, mut query: KeyQuery) -> Result<Vec<KeyId>, Violation> {
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await?;
        found.extend(page.keys.iter().map(|key| key.record.id));
        expect(found.len() <= MANY, "the pages of a listing must end")?;
        query.after = page.next;
        if page.next.is_none() {
            return Ok(found);
        }
    }
}

fn newest_first(mut ids: Vec<KeyId>) -> Vec<KeyId> {
    ids.sort_unstable_by(|one, other| other.cmp(one));
    ids
}

/// A key that a page leaves out is one that an operator does not revoke.
pub async fn pages_have_each_key_once<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(inserted(&store, record()?).await?.id);
    }
    let ids = newest_first(ids);
    // Pages that end with the last key, before it, and one page for all.
    for limit in [1, 3, 4, 5, 11, 12, 50] {
        let mut query = KeyQuery::new();
        query.limit = limit;
        let page = store.list(&query).await?;
        expect(page.keys.len() <= limit, "a page must have at most as many keys as asked for")?;
        let why = format!(
            "the pages must have each key exactly once, newest first, also where one page ends and \
             the next begins (pages of {limit})"
        );
        equal(&listed(&store, query).await?, &ids, &why)?;
    }
    Ok(())
}

/// A cursor is a position in the order, not a number of keys to skip.
pub async fn pages_have_each_key_once_while_keys_are_added<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let mut before = Vec::new();
    for _ in 0..11 {
        before.push(inserted(&store, record()?).await?.id);
    }
    let before = newest_first(before);
    let mut query = KeyQuery::new();
    query.limit = 3;
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await?;
        found.extend(page.keys.iter().map(|key| key.record.id));
        expect(found.len() <= MANY, "the pages of a listing must end")?;
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
        inserted(&store, record()?).await?;
    }
    found.retain(|id| before.contains(id));
    let why =
        "keys that are added between two pages must not move others from one page to the next";
    equal(&found, &before, why)
}

/// Each filter selects by itself.
pub async fn every_filter_finds_its_keys<S: ManageKeys>(store: S) -> Result<(), Violation> {
    for (filter, one, query) in filters()? {
        inserted(&store, record()?).await?;
        let one = inserted(&store, one).await?;
        inserted(&store, record()?).await?;
        let why = format!("a listing by {filter} must have the one key that matches");
        equal(&listed(&store, query).await?, &vec![one.id], &why)?;
    }
    Ok(())
}

/// Each filter, with the one key that it finds.
fn filters() -> Result<Vec<(&'static str, KeyRecord, KeyQuery)>, Violation> {
    let key = |change: fn(&mut KeyRecord)| -> Result<KeyRecord, Violation> {
        let mut key = record()?;
        change(&mut key);
        Ok(key)
    };
    let of_status = |status| KeyQuery::new().status(status);
    let mut tagged = record()?;
    tagged.tags = Tags::parse(["rare", "other"])?;
    let mut scoped = record()?;
    scoped.scopes = Scopes::parse(["rare", "other"])?;
    let expiring = of_status(KeyStatus::Active).expires_before(now() + 2 * MINUTE);
    let unused = KeyQuery::new().unused_since(now() - MINUTE / 2);
    Ok(vec![
        (
            "consumer_id",
            key(|key| key.consumer_id = "globex".into())?,
            KeyQuery::new().consumer_id("globex"),
        ),
        ("key_prefix", key(|key| key.key_prefix = "x_".into())?, KeyQuery::new().key_prefix("x_")),
        ("tag", tagged, KeyQuery::new().tag("rare")),
        ("scope", scoped, KeyQuery::new().scope(Scope::new("rare")?)),
        ("status `inactive`", key(|key| key.is_active = false)?, of_status(KeyStatus::Inactive)),
        (
            "status `not_yet_active`",
            key(|key| key.not_before = Some(now() + MINUTE))?,
            of_status(KeyStatus::NotYetActive),
        ),
        (
            "status `expired`",
            key(|key| key.expires_at = Some(now() - MINUTE))?,
            of_status(KeyStatus::Expired),
        ),
        (
            "status `revoked`",
            key(|key| key.revoked_at = Some(now()))?,
            of_status(KeyStatus::Revoked),
        ),
        ("expires_before", key(|key| key.expires_at = Some(now() + MINUTE))?, expiring),
        ("unused_since", key(|key| key.created_at = now() - MINUTE)?, unused),
    ])
}

/// "Before" does not include the instant itself. Times are kept in microseconds.
pub async fn an_end_in_time_is_exclusive<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let end = now() - MINUTE;
    let mut expired = record()?;
    (expired.created_at, expired.expires_at) = (end, Some(end));
    let mut used = record()?;
    used.created_at = end - MINUTE;
    let mut revoked = record()?;
    revoked.revoked_at = Some(end);
    let expired = inserted(&store, expired).await?.id;
    let used = inserted(&store, used).await?.id;
    let revoked = inserted(&store, revoked).await?.id;
    store.record_usage(&[Usage::new(used, end)].into()).await?;

    let why = "the end of a time is exclusive: a microsecond later, the key is before it";
    for (end, finds) in [(end, false), (end + TICK, true)] {
        let ids = |expected: Vec<KeyId>| if finds { expected } else { Vec::new() };
        let mut query = KeyQuery::new();
        query.expires_before = Some(end);
        equal(&listed(&store, query).await?, &ids(vec![expired]), why)?;
        let mut query = KeyQuery::new();
        query.unused_since = Some(end);
        let unused = newest_first(vec![expired, used]);
        equal(&listed(&store, query).await?, &ids(unused), why)?;

        let mut transaction = store.begin().await?;
        let ended = KeyFilter::EndedBefore(end);
        let sorted = |mut ids: Vec<KeyId>| {
            ids.sort_unstable();
            ids
        };
        let both = sorted(vec![expired, revoked]);
        let selected = transaction.select_some(&ended, &[], 9).await?;
        equal(&sorted(selected), &ids(both.clone()), why)?;
        let locked = transaction.lock_some(&ended, &[], 9).await?;
        let locked = locked.iter().map(|record| record.id).collect();
        equal(&sorted(locked), &ids(both), why)?;
        let one_more = transaction.select_some(&ended, &[expired], 1).await?;
        let why = "`select_some` must leave out the keys in `except`";
        equal(&one_more, &ids(vec![revoked]), why)?;
    }
    Ok(())
}
