//! The admin API matches its document, as tested by schemathesis with all checks.

use std::{env, fs, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    record::Scopes,
    store::PgKeyStore,
};

use crate::servers::postgres::Server;

/// The service of `examples/admin.rs`, and its address.
async fn start(database: &str) -> (Child, String) {
    let test = env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("examples/admin");
    assert!(binary.is_file(), "`cargo test` without `--test` builds {}", binary.display());
    let mut service = Command::new(binary)
        .env_clear()
        .env("BIND", "127.0.0.1:0")
        .env("DATABASE_URL", database)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(service.stdout.take().unwrap()).lines();
    let line = timeout(Duration::from_secs(30), stdout.next_line()).await.unwrap().unwrap();
    let address = line.unwrap().strip_prefix("listening on ").unwrap().to_owned();
    (service, address)
}

#[tokio::test]
async fn the_admin_api_does_what_its_document_says() {
    let program = env::var("SCHEMATHESIS").expect("tests/run installs schemathesis and names it");
    let server = Server::start();
    let database = server.database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    let issuer = KeyIssuer::new(store, KeyFormat::new("sk_live_").unwrap());
    let scopes = ["api-keys:read", "api-keys:write", "api-keys:all-consumers", "orders:read"];
    let admin = NewKey::new("ops", Expiry::Never).scopes(Scopes::parse(scopes).unwrap());
    let admin = issuer.issue(admin).await.unwrap();
    let (_service, address) = start(database.url()).await;

    let folder = tempfile::tempdir().unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for file in ["schemathesis.toml", "schemathesis_hooks.py"] {
        fs::copy(tests.join(file), folder.path().join(file)).unwrap();
    }
    let trying = Command::new(program)
        .args(["run", "--checks", "all", "--seed", "1"])
        .arg(format!("{address}/admin/openapi.json"))
        .current_dir(&folder)
        .env("ADMIN_KEY", admin.key.expose_secret())
        .env("OWN_KEY_ID", admin.record.id.to_string())
        .env("OWN_CONSUMER_ID", "ops")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(600), trying).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");

    // Schemathesis did not lock itself out: its key is still valid.
    let admin = issuer.get(admin.record.id).await.unwrap().record;
    assert_eq!((admin.revoked_at, admin.rotated_at, admin.is_active), (None, None, true));
    let made = issuer.list(&tower_api_key::store::KeyQuery::new()).await.unwrap().keys.len();
    assert!(made > 10, "it has made {made} keys only");
}
