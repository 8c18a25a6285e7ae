//! Plans, and the limits that keys read from them.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use super::{found, inserted, is_stored, update};
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, KeyStatus, Scope},
    store::{
        KeyQuery, ManageKeys, StoreErrorKind,
        port::{KeyFilter, KeyTransaction as _},
    },
    test_util::contract::{
        Violation,
        sample::{MINUTE, full_record, limits, now, record, unread},
        violation::{equal, expect, fails},
    },
};

/// A plan has one set of limits, the latest.
pub async fn a_plan_is_set_changed_and_removed<S: ManageKeys>(store: S) -> Result<(), Violation> {
    equal(&store.plans().await?, &Vec::new(), "a new store must have no plans")?;
    for limits in [limits()?, RateLimits::unlimited(), limits()?, limits()?] {
        store.set_plan("pro", &limits).await?;
        let why = "`set_plan` must create the plan or replace its limits";
        equal(&store.plans().await?, &vec![("pro".to_owned(), limits)], why)?;
    }
    let why = "`remove_plan` must say whether the plan existed; names are compared exactly";
    expect(!store.remove_plan("Pro").await?, why)?;
    expect(store.remove_plan("pro").await?, why)?;
    expect(!store.remove_plan("pro").await?, why)?;
    equal(&store.plans().await?, &Vec::new(), "a removed plan must be gone")
}

/// The order does not depend on a locale.
pub async fn plans_are_in_byte_order<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let ordered = ["-", ".", "10", "2", "B", "_", "a", "ab", "b"];
    for name in ["b", "_", "a", "2", "B", ".", "-", "10", "ab"] {
        store.set_plan(name, &limits()?).await?;
    }
    let plans = store.plans().await?;
    let names: Vec<_> = plans.iter().map(|(name, _)| &**name).collect();
    equal(&names, &ordered.to_vec(), "`plans` must be in byte order of their names")
}

/// Names of plans stand in headers, policies and URLs.
pub async fn an_invalid_plan_name_is_refused<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let (long, longer) = ("x".repeat(64), "x".repeat(65));
    for name in ["", " ", "a b", "a/b", "pro\n", "a\0", "é", "'", &longer] {
        let why = format!(
            "`set_plan` must refuse {name:?}: a name is 1 to 64 letters, digits, `-`, `_` or `.`"
        );
        fails(&store.set_plan(name, &limits()?).await, StoreErrorKind::Other, &why)?;
    }
    store.set_plan(&long, &limits()?).await?;
    equal(&store.plans().await?.len(), &1, "`set_plan` must accept a name of 64 characters")
}

/// All operations of a store that return a record, except writes.
async fn reads<S: ManageKeys>(store: &S, record: &KeyRecord) -> Result<Vec<KeyRecord>, Violation> {
    let mut transaction = store.begin().await?;
    let mut reads = transaction.lock(&[record.id]).await?;
    let consumer = KeyFilter::Consumer(record.consumer_id.clone());
    let prefix = KeyFilter::Prefix(record.key_prefix.clone());
    for selection in [consumer, prefix, KeyFilter::EndedBefore(now() + 60 * MINUTE)] {
        reads.extend(transaction.lock_some(&selection, &[], 10).await?);
    }
    drop(transaction);
    for query in [
        KeyQuery::new(),
        KeyQuery::new().consumer_id(record.consumer_id.clone()),
        KeyQuery::new().key_prefix(record.key_prefix.clone()),
        KeyQuery::new().scope(Scope::new("reports:read")?),
        KeyQuery::new().tag("mobile"),
        KeyQuery::new().status(KeyStatus::Active),
    ] {
        let page = store.list(&query).await?;
        reads.extend(page.keys.into_iter().map(|key| key.record));
    }
    reads.extend(store.find(&record.key_hash).await?);
    reads.extend(store.get(record.id).await?);
    equal(&reads.len(), &12, "each of 12 ways to read the one key must find it")?;
    Ok(reads)
}

/// A change of a plan applies to all its keys at once.
pub async fn every_read_has_the_limits_of_the_plan<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let mut record = full_record()?;
    (record.is_active, record.not_before, record.revoked_at) = (true, None, None);
    (record.revoked_reason, record.plan) = (None, Some("pro".into()));
    let mut record = inserted(&store, record).await?;
    store.set_plan("other", &limits()?).await?;
    let why = "every read must have the plan's present limits in `plan_limits`";
    for limits in [RateLimits::unlimited(), limits()?] {
        store.set_plan("pro", &limits).await?;
        for read in reads(&store, &record).await? {
            equal(&read.plan.as_deref(), &Some("pro"), "a key must keep the name of its plan")?;
            equal(&read.plan_limits.as_ref(), &Some(&limits), why)?;
        }
    }
    for (plan, expected) in
        [("undefined", None), ("other", Some(limits()?)), ("pro", Some(limits()?))]
    {
        record.plan = Some(plan.into());
        let updated = update(&store, &record).await?;
        let why = "`update` must return the limits of the plan that the key has after it";
        equal(&updated.plan.as_deref(), &Some(plan), why)?;
        equal(&updated.plan_limits, &expected, why)?;
        let why = "a read after the update must have the same record";
        equal(&unread(&found(&store, &record).await?), &unread(&updated), why)?;
        record.version = updated.version;
    }
    let mut transaction = store.begin().await?;
    let revoked = transaction.revoke(&[record.id], None).await?;
    let revoked: Vec<_> = revoked.into_iter().map(|record| record.plan_limits).collect();
    let why = "`revoke` must return the limits of the plan, too";
    equal(&revoked, &vec![Some(limits()?)], why)
}

/// A plan may be defined elsewhere, or later.
pub async fn an_undefined_plan_has_no_limits<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut record = record()?;
    record.plan = Some("elsewhere".into());
    let record = inserted(&store, record).await?;
    is_stored(&store, &record, "a key may name a plan that is not defined").await?;
    store.set_plan("elsewhere", &limits()?).await?;
    let why = "a plan that is defined later applies to the keys that name it";
    equal(&found(&store, &record).await?.plan_limits, &Some(limits()?), why)?;
    store.remove_plan("elsewhere").await?;
    let found = found(&store, &record).await?;
    let why = "a key must keep the name of a removed plan, without limits";
    equal(&found.plan.as_deref(), &Some("elsewhere"), why)?;
    equal(&found.plan_limits, &None, why)
}

/// Limits read from the plan are not written back to the key.
pub async fn limits_of_a_plan_are_not_stored_with_the_key<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let mut record = record()?;
    record.plan = Some("pro".into());
    record.plan_limits = Some(RateLimits::unlimited());
    let stored = inserted(&store, record).await?;
    let why = "`plan_limits` must come from the plan alone, and never be stored with the key";
    equal(&found(&store, &stored).await?.plan_limits, &None, why)?;
    update(&store, &stored).await?;
    equal(&found(&store, &stored).await?.plan_limits, &None, why)?;
    equal(&store.plans().await?, &Vec::new(), "storing a key must not define a plan")
}
