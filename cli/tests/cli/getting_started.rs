//! The README's section "From nothing to a working key", command by command, with the real binary,
//! a real service and curl; and a check that no output or log contains a key by accident.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use sqlx::query_scalar;
use tokio::{process::Command, time::timeout};

use crate::servers::{Port, postgres::Server};

const HEADING: &str = "## From nothing to a working key";

/// Replaces `cargo`, whose work is already done, and makes `curl` record its responses.
const PRELUDE: &str = r#"
set -euo pipefail
cargo() {
    case $1 in
        install) ;;
        run)
            exec 3< <(BIND=$BIND RUST_LOG=trace exec "$SERVICE" 2>service.log)
            service=$!
            trap 'kill $service' EXIT
            # It listens now.
            read -r -u 3
            ;;
        *) return 1 ;;
    esac
}
curl() {
    command curl --silent --show-error --dump-header headers "$@"
    sed -n '1s/[^ ]* \([0-9]*\).*/\1/p' headers >> statuses
    cat headers >> all-headers
}
"#;

/// The commands of the README's section.
fn commands() -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split(HEADING).nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let blocks: Vec<_> = section.split("```").skip(1).step_by(2).collect();
    assert!(blocks.iter().all(|block| block.starts_with("sh\n")), "{blocks:?}");
    blocks.iter().map(|block| &block[3..]).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The statuses that the comments promise.
fn promised(commands: &str) -> Vec<&str> {
    (commands.lines())
        .filter_map(|line| line.rsplit_once(" # "))
        .map(|(_, status)| status)
        .filter(|status| status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

fn example(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(binary.is_file(), "`cargo test` without `--test` builds {}", binary.display());
    binary
}

/// Collects the command lines of all processes continuously, because every user can see them.
fn watch_processes(end: &Arc<AtomicBool>) -> thread::JoinHandle<BTreeSet<String>> {
    let end = Arc::clone(end);
    thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !end.load(Ordering::Relaxed) {
            for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
                for file in ["cmdline", "comm"] {
                    if let Ok(line) = fs::read(process.path().join(file)) {
                        seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                    }
                }
            }
        }
        seen
    })
}

#[tokio::test]
async fn the_readme_does_what_it_says() {
    let server = Server::start();
    let database = server.database().await;
    let port = Port::reserve();
    let folder = tempfile::tempdir().unwrap();
    let commands = commands();
    let promised = promised(&commands);
    assert!(promised.len() >= 10, "{promised:?}");
    let script = commands
        .replace("postgres://localhost/app", database.url())
        .replace("127.0.0.1:3000", &port.addr.to_string())
        // The prelude starts it in the background, and waits until it listens.
        .replace("--features admin &", "--features admin");
    assert_ne!(script, commands);

    let end = Arc::new(AtomicBool::new(false));
    let watching = watch_processes(&end);
    let api_key = Path::new(env!("CARGO_BIN_EXE_api-key")).parent().unwrap();
    let path = format!("{}:{}", api_key.display(), env::var("PATH").unwrap());
    let running = Command::new("bash")
        .arg("-c")
        .arg(format!("{PRELUDE}\n{script}"))
        .current_dir(&folder)
        .env_clear()
        .env("PATH", path)
        .env("BIND", port.addr.to_string())
        .env("SERVICE", example("admin"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), running).await.unwrap().unwrap();
    end.store(true, Ordering::Relaxed);
    let processes = watching.join().unwrap();

    let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}\n{complained}\n{}", read("service.log"));
    assert_eq!(read("statuses").split_whitespace().collect::<Vec<_>>(), promised, "{said}");

    // The responses are as documented.
    let created: serde_json::Value = serde_json::from_str(&read("created.json")).unwrap();
    let id = created["id"].as_str().unwrap();
    let headers = read("all-headers").to_lowercase();
    assert!(headers.contains(&format!("\r\nlocation: /admin/api-keys/{id}\r\n")), "{headers}");
    assert!(
        headers.contains("\r\ndeprecation: @") && headers.contains("\r\nsunset: "),
        "{headers}"
    );
    for action in ["issued", "rotated", "revoked"] {
        assert!(said.matches(action).count() >= 2, "{action} by curl and by api-key: {said}");
    }

    // A key is in its file, and nowhere else.
    let bearer = |file: &str| {
        let header = read(file);
        let key = header.trim().strip_prefix("Authorization: Bearer ").unwrap().to_owned();
        assert_eq!(key.len(), "sk_live_".len() + 49, "{file}");
        key
    };
    let keys = ["admin.header", "old.header", "new.header"].map(bearer);
    let tables = "select string_agg(query_to_xml(format('select * from %s', oid::regclass), true,
        false, '')::text, '') from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace";
    let tables: String = query_scalar(tables).fetch_one(&database.pool().await).await.unwrap();
    assert!(tables.contains(id) && tables.contains("revoked"), "{tables}");
    let log = read("service.log");
    // No part of the service logs at a lower level.
    assert!(log.contains("DEBUG") && log.contains("/v1/orders"), "{log}");
    let processes = Vec::from_iter(processes).join("\n");
    assert!(processes.contains("api-key") && processes.contains("curl"), "{processes}");
    for (what, text) in [
        ("the log", &log),
        ("standard output", &said),
        ("standard error", &complained),
        ("the database", &tables),
        ("the list of processes", &processes),
        ("a header", &headers),
    ] {
        for key in &keys {
            let secret = &key["sk_live_".len()..key.len() - 4];
            let mut pieces = (0..=secret.len() - 8).map(|at| &secret[at..at + 8]);
            let found = pieces.find(|piece| text.contains(piece));
            assert_eq!(found, None, "in {what}");
        }
    }
}
