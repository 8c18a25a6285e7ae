//! What grpcio, the client of Python and of the C core, sees. `tests/run` installs it.

use std::{env, net::SocketAddr, path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tower_api_key::auth::RejectionKind;

use crate::{
    cases::{Case, Seen, valid},
    doubles::{Answers, DOWN, Said},
    orders::HOSTS,
    wait::within,
};

/// A running `grpcio_client.py`.
pub(crate) struct Client {
    program: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// `metadata` is that of each call, or the same for all.
    pub(crate) fn start(
        address: SocketAddr,
        metadata: &[Vec<(&'static str, String)>],
        what: &str,
    ) -> Self {
        let python = env::var("GRPCIO_PYTHON").expect("tests/run installs grpcio and names it");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc/grpcio_client.py");
        let mut program = Command::new(python)
            .arg(script)
            .args([&address.to_string(), &serde_json::to_string(metadata).unwrap(), what])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        Self { program, lines }
    }

    fn of(case: &Case, what: &str) -> Self {
        let metadata = [(); 4].map(|()| case.metadata());
        Self::start(case.address, &metadata, what)
    }

    /// The next call, and what it ended with.
    pub(crate) async fn next(&mut self) -> (String, serde_json::Value) {
        let line = within(self.lines.next_line()).await.unwrap();
        serde_json::from_str(&line.expect("a line, or the script failed")).unwrap()
    }

    async fn next_is(&mut self, method: &str, expected: Option<&Seen>) {
        let (called, seen) = self.next().await;
        let seen: Option<Seen> = serde_json::from_value(seen).unwrap();
        assert_eq!((&*called, seen.as_ref()), (method, expected));
    }

    pub(crate) async fn ends(mut self) {
        assert!(within(self.program.wait()).await.unwrap().success());
    }
}

/// Each kind of method ends as expected.
pub(crate) async fn is_seen(case: &Case) {
    let mut client = Client::of(case, "calls");
    for method in ["Get", "Watch", "Total", "Lookup"] {
        client.next_is(method, Some(&case.expected)).await;
    }
    client.ends().await;
}

#[tokio::test]
async fn a_valid_key_is_admitted_to_all_kinds_of_methods() {
    for host in HOSTS {
        let (case, _) = valid(host).await;
        let mut client = Client::of(&case, "calls");
        for method in ["Get", "Watch", "Total", "Lookup"] {
            client.next_is(method, None).await;
        }
        client.ends().await;
    }
}

#[tokio::test]
async fn streams_end_with_their_key_as_unauthenticated() {
    for host in HOSTS {
        let (case, key) = valid(host).await;
        let mut client = Client::of(&case, "streams");
        client.next_is("begun", None).await;
        case.total_begins().await;

        case.service.revoke(&key).await;

        client.next_is("Watch", Some(&Seen::key_ended())).await;
        client.next_is("Lookup", Some(&Seen::key_ended())).await;
        client.next_is("Total", Some(&Seen::key_ended_before_response())).await;
        client.ends().await;
    }
}

/// Without the delay that the layer asks for, the client would try three times within 30 ms.
#[tokio::test]
async fn an_outage_is_retried_after_the_delay() {
    for host in HOSTS {
        let (case, _) = valid(host).await;
        case.service.store.answer(DOWN);
        let mut client = Client::of(&case, "retry");
        let refused = Said::Rejected(RejectionKind::StoreUnavailable, None);
        case.service.heard.until(|heard| heard.contains(&refused)).await;

        case.service.store.answer(Answers::Truthfully);

        client.next_is("Get", None).await;
        client.ends().await;
        assert_eq!(case.service.heard.count(refused), 1, "{host:?}");
    }
}
