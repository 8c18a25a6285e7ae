//! What a node has counted in the present hour.

use std::{future::pending, time::Duration};

use tower_api_key::{
    clock::Clock as _,
    rate_limit::Quota,
    store::{BucketWidth, UsageBucket, port::UseCounts},
};

use crate::{
    app::{Keys, unknown_key},
    wait::eventually,
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn totals_are_those_of_all_keys_since_the_hour_began() {
    let keys = Keys::new();
    let builder = keys.builder().default_rate_limits(Quota::per(2, 24 * HOUR).unwrap());
    let (auth, worker) = builder.usage_interval(Duration::ZERO).build();
    let nothing = UsageBucket::new(keys.clock.now(), UseCounts::default());
    assert_eq!(auth.usage_totals(), nothing);

    let worker = tokio::spawn(worker.run(pending()));
    for key in [keys.key().await, keys.key().await] {
        for is_admitted in [true, true, false] {
            assert_eq!(auth.check(key.as_bytes()).await.is_ok(), is_admitted);
        }
    }
    assert!(auth.check(unknown_key().as_bytes()).await.is_err());
    let expected = UsageBucket::new(keys.clock.now(), UseCounts::new(4, 2, 0, 0, 4));
    eventually("totals", async || auth.usage_totals() == expected).await;

    keys.clock.advance(HOUR + HOUR / 2);
    let next_hour = BucketWidth::Hour.start(keys.clock.now());
    let nothing = UsageBucket::new(next_hour, UseCounts::default());
    assert_eq!(auth.usage_totals(), nothing);
    let key = keys.key().await;
    // The worker notices the hour within a second.
    eventually("the next hour", async || {
        let _ = auth.check(key.as_bytes()).await;
        auth.usage_totals() != nothing
    })
    .await;
    assert_eq!(auth.usage_totals().from, next_hour);
    worker.abort();
}
