//! The rules of a [`ChangeFeed`], one function for each, which fails if the rule is broken.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::{pin::pin, slice, time::Duration};

use tokio::time::timeout;

use super::{
    Violation,
    sample::{limits, record},
    suite::suite,
};
use crate::{
    record::KeyId,
    store::{
        ManageKeys,
        port::{Change, ChangeFeed, KeyTransaction as _},
    },
};

suite! {
    $
    /// Checks the rules of a [`ChangeFeed`] over a store that manages keys. `new` makes the store and
    /// a feed of its changes.
    fn change_feed<S: ManageKeys, F: ChangeFeed>(made: (S, F)) from change_feed;
    /// Makes a `#[tokio::test]` of each rule of a [`ChangeFeed`](crate::store::port::ChangeFeed), in a
    /// module.
    ///
    /// Its arguments are the name of the module, and an async closure that makes a new, empty store
    /// and a feed of its changes, and a guard that lives as long:
    /// `change_feed_contract!(my_feed, async || ((MyStore::new().await, MyFeed::new()), ()));`
    macro change_feed_contract;
    every_kind_of_change_is_announced
    each_of_many_changes_is_announced
    a_change_of_a_plan_is_announced
    changes_are_announced_after_next_was_dropped
    changes_are_announced_after_connect_was_dropped
    changes_are_announced_after_connecting_again
}

/// Longer than any feed takes: a polling feed may pause for a minute.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for an announcement of a change of `id`.
async fn announced(
    feed: &mut impl ChangeFeed,
    id: KeyId,
    what: &str,
    is_announcement: impl Fn(Change) -> bool,
) -> Result<(), Violation> {
    let waiting = async {
        loop {
            let change = feed.next().await.map_err(|error| {
                Violation::new(format!("{what} must be announced, but `next` failed: {error:?}"))
            })?;
            if change == Change::Everything || is_announcement(change) {
                return Ok(());
            }
        }
    };
    let Ok(announced) = timeout(PATIENCE, waiting).await else {
        return Err(Violation::new(format!(
            "{what} ({id}) must be announced, by its id or as `Everything`, or nodes go on admitting \
             what they have cached; nothing came within {PATIENCE:?}"
        )));
    };
    announced
}

async fn creation_is_announced<S: ManageKeys>(
    store: &S,
    feed: &mut impl ChangeFeed,
    what: &str,
) -> Result<KeyId, Violation> {
    let record = super::key_store::seeded(store, record()?).await?;
    let id = record.id;
    announced(
        feed,
        id,
        what,
        |change| matches!(change, Change::Created(it) | Change::Changed(it) if it == id),
    )
    .await?;
    Ok(id)
}

/// A node hears of everything that makes its cached record wrong.
pub async fn every_kind_of_change_is_announced<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    feed.connect().await?;
    let id = creation_is_announced(&store, &mut feed, "a new key").await?;
    let is_it = |change| change == Change::Changed(id);

    let mut transaction = store.begin().await?;
    for mut record in transaction.lock(&[id]).await? {
        record.is_active = false;
        transaction.update(&record).await?;
    }
    transaction.commit().await?;
    announced(&mut feed, id, "an updated key", is_it).await?;

    let mut transaction = store.begin().await?;
    transaction.revoke(&[id], None).await?;
    transaction.commit().await?;
    announced(&mut feed, id, "a revoked key", is_it).await?;

    let mut transaction = store.begin().await?;
    transaction.delete(&[id]).await?;
    transaction.commit().await?;
    announced(&mut feed, id, "a deleted key", is_it).await
}

/// A revocation among many is not lost.
pub async fn each_of_many_changes_is_announced<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    let mut keys = Vec::new();
    for _ in 0..50 {
        keys.push(super::key_store::seeded(&store, record()?).await?.id);
    }
    feed.connect().await?;
    // In transactions of one and of many.
    for batch in
        [keys.get(..5).map(|keys| keys.chunks(1)), keys.get(5..).map(|keys| keys.chunks(45))]
    {
        for ids in batch.into_iter().flatten() {
            let mut transaction = store.begin().await?;
            transaction.revoke(ids, None).await?;
            transaction.commit().await?;
        }
    }
    let mut missing = keys;
    let waiting = async {
        while !missing.is_empty() {
            match feed.next().await? {
                Change::Changed(id) => missing.retain(|key| *key != id),
                Change::Everything => missing.clear(),
                _ => {}
            }
        }
        Ok::<_, Violation>(())
    };
    let heard = timeout(PATIENCE, waiting).await;
    heard.unwrap_or_else(|_| {
        Err(Violation::new(format!(
            "each of 50 revoked keys must be announced; {} were not, within {PATIENCE:?}",
            missing.len()
        )))
    })
}

/// A plan's limits are part of its keys.
pub async fn a_change_of_a_plan_is_announced<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    let mut record = record()?;
    record.plan = Some("pro".into());
    let id = super::key_store::seeded(&store, record).await?.id;
    feed.connect().await?;
    store.set_plan("pro", &limits()?).await?;
    let is_it = |change| change == Change::Changed(id);
    announced(&mut feed, id, "a key whose plan got other limits", is_it).await?;
    store.remove_plan("pro").await?;
    announced(&mut feed, id, "a key whose plan was removed", is_it).await
}

/// The worker drops `next` when it has something else to do, and then calls `connect` first.
pub async fn changes_are_announced_after_next_was_dropped<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    feed.connect().await?;
    for _ in 0..5 {
        super::key_store::seeded(&store, record()?).await?;
        drop(timeout(Duration::from_millis(1), feed.next()).await);
    }
    feed.connect().await?;
    creation_is_announced(&store, &mut feed, "a key that is new after `next` was dropped").await?;
    Ok(())
}

/// A connection that takes too long is given up.
pub async fn changes_are_announced_after_connect_was_dropped<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    for polls in 1..6 {
        let mut connect = pin!(feed.connect());
        for _ in 0..polls {
            if timeout(Duration::ZERO, connect.as_mut()).await.is_ok() {
                break;
            }
        }
    }
    feed.connect().await?;
    creation_is_announced(&store, &mut feed, "a key that is new after `connect` was dropped")
        .await?;
    Ok(())
}

/// After an error of `next`, the worker connects again.
pub async fn changes_are_announced_after_connecting_again<S: ManageKeys, F: ChangeFeed>(
    (store, mut feed): (S, F),
) -> Result<(), Violation> {
    for _ in 0..3 {
        feed.connect().await?;
        creation_is_announced(&store, &mut feed, "a key that is new after `connect`").await?;
        // Not read before the next `connect`.
        let mut transaction = store.begin().await?;
        transaction.insert(slice::from_ref(&record()?)).await?;
        transaction.commit().await?;
    }
    Ok(())
}
