//! The layer compared with axum's `from_fn` in the same place.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use axum::middleware::from_fn_with_state;
use http::StatusCode;
use tokio::runtime::Runtime;
use tower_api_key::key::KeyHash;

use crate::{
    baseline::{self, Cache, Caller, Database, Gate},
    run,
    service::{self, Service, ask, key_of},
    support::Cases,
};

/// The layer should add at most this share of what each one adds.
const BY_HAND: (&str, f64) = ("from_fn by hand: moka, governor, to_string", 1.0 / 3.0);
const SAME_WORK: (&str, f64) = ("from_fn, the layer's own work", 0.75);

pub(crate) fn measure(runtime: &Runtime) {
    let service = Service::new(runtime, 1, service::roomy());
    let hot = service.hot();
    let records = Records::of(service.format.parse(key_of(hot)).unwrap().hash());
    let cache = Cache::new(records, service::roomy().burst_size().get());
    let gate = Gate::new(service.auth.clone(), &service::roomy());
    let bare = service::bare();
    let layer = service::bare().layer(service.layer());
    let by_hand_router =
        service::bare().layer(from_fn_with_state(cache, baseline::cached::<Records>));
    let same_work = service::bare().layer(from_fn_with_state(gate, baseline::attempt));

    let mut cases = Cases::default();
    let routers = [
        ("bare router", &bare),
        ("layer", &layer),
        (SAME_WORK.0, &same_work),
        (BY_HAND.0, &by_hand_router),
    ];
    for (name, router) in routers {
        cases.add(name, move || assert_eq!(ask(router, hot), StatusCode::OK));
    }
    run(&mut cases);

    let added = |name| cases.min(name) - cases.min("bare router");
    let paired = |name| cases.more_than("bare router", name);
    println!("layer: adds {:.0} ns (paired {:.0})", added("layer"), paired("layer"));
    for (name, most) in [SAME_WORK, BY_HAND] {
        println!(
            "{name}: adds {:.0} ns (paired {:.0}), of which the layer {:.2} (paired {:.2}), should be at most {most:.2}",
            added(name),
            paired(name),
            added("layer") / added(name),
            paired("layer") / paired(name),
        );
    }
}

/// A database that responds immediately.
#[derive(Clone)]
struct Records(Arc<HashMap<[u8; 32], Caller>>);

impl Records {
    fn of(key: KeyHash) -> Self {
        let scopes = vec!["orders:read".into(), "orders:write".into()];
        let caller = Caller { consumer: "acme".into(), name: None, scopes };
        Self(Arc::new(HashMap::from([(*key.as_bytes(), caller)])))
    }
}

impl Database for Records {
    type Error = Infallible;

    async fn find(&self, hash: [u8; 32]) -> Result<Option<Caller>, Infallible> {
        Ok(self.0.get(&hash).cloned())
    }
}
