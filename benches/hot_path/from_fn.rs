//! The layer beside middleware of axum's `from_fn` in the same place.

use axum::middleware::from_fn_with_state;
use http::StatusCode;
use tokio::runtime::Runtime;

use crate::{
    by_hand::{self, Gate},
    cached::{self, Cached},
    run,
    service::{self, Service, ask, key_of},
    support::Cases,
};

/// Of what each adds, the layer is to add no more than this share.
const BY_HAND: (&str, f64) = ("from_fn by hand: moka, governor, to_string", 1.0 / 3.0);
const SAME_WORK: (&str, f64) = ("from_fn, the layer's own work", 0.75);

pub(crate) fn measure(runtime: &Runtime) {
    let service = Service::new(runtime, 1, service::roomy());
    let hot = service.hot();
    let cached = Cached::new(key_of(hot), service::roomy().burst_size());
    let gate = Gate::new(service.auth.clone(), &service::roomy());
    let bare = service::bare();
    let layer = service::bare().layer(service.layer());
    let by_hand_router = service::bare().layer(from_fn_with_state(cached, cached::check));
    let same_work = service::bare().layer(from_fn_with_state(gate, by_hand::attempt));

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
            "{name}: adds {:.0} ns (paired {:.0}), of which the layer {:.2} (paired {:.2}), to be at most {most:.2}",
            added(name),
            paired(name),
            added("layer") / added(name),
            paired("layer") / paired(name),
        );
    }
}
