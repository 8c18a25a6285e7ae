//! What both clients see of each way to be rejected.

use crate::{cases, grpcio, orders::HOSTS, tonic_client};

/// A test for each case of that name: the unary method and those that stream see the same.
macro_rules! both_see {
    ($($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                for host in HOSTS {
                    tonic_client::is_seen(&cases::$case(host).await).await;
                    grpcio::is_seen(&cases::$case(host).await).await;
                }
            }
        )*
    };
}

both_see! {
    missing two_keys malformed unknown revoked expired insufficient_scope other_network
    rate_limited concurrent too_many_failures outage overloaded internal
}
