//! Refused requests, and the decision to refuse alone.

use http::StatusCode;
use tokio::runtime::Runtime;
use tower_api_key::auth::{Attempt, RejectionKind};

use crate::{
    run,
    service::{self, Service, ask, key_of},
    support::Cases,
};

/// Nanoseconds.
const MOST_FOR_MALFORMED: f64 = 50.0;

pub(crate) fn measure(runtime: &Runtime) {
    let service = Service::new(runtime, 1, service::tight());
    let layer = service::bare().layer(service.layer());
    let bare = service::bare();
    let (hot, malformed, unknown) = (service.hot(), service.malformed(), &service.unknown);
    // `Service::new` has used up the quota.
    let whole = [
        ("malformed key, 401", &malformed, StatusCode::UNAUTHORIZED),
        ("unknown key, 401", unknown, StatusCode::UNAUTHORIZED),
        ("429", hot, StatusCode::TOO_MANY_REQUESTS),
    ];
    let decisions = [
        ("decision: malformed", key_of(&malformed), RejectionKind::Malformed),
        ("decision: wrong length", b"sk_live_x".as_slice(), RejectionKind::Malformed),
        ("decision: unknown", key_of(unknown), RejectionKind::Unknown),
        ("decision: 429", key_of(hot), RejectionKind::RateLimited),
    ];

    let mut cases = Cases::default();
    cases.add("bare router, 200", || ask(&bare, hot));
    for (name, key, status) in whole {
        let layer = &layer;
        cases.add(name, move || assert_eq!(ask(layer, key), status));
    }
    for (name, key, kind) in decisions {
        let auth = &service.auth;
        cases.add(name, move || match auth.check(key).try_now() {
            Attempt::Reject(rejection) => {
                assert_eq!(rejection.kind(), kind);
                rejection
            }
            other => panic!("{name}: {other:?}"),
        });
    }
    run(&mut cases);

    for (name, ..) in whole {
        println!(
            "{name}: {:+.0} ns beside a bare 200 (paired {:+.0})",
            cases.min(name) - cases.min("bare router, 200"),
            cases.more_than("bare router, 200", name),
        );
    }
    let malformed = cases.min("decision: malformed");
    println!("decision: malformed: {malformed:.1} ns, should be below {MOST_FOR_MALFORMED:.0}");
}
