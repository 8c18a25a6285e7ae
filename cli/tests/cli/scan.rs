//! `api-key scan`: keys planted in files and in the history of a repository.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tower_api_key::key::KeyFormat;

use crate::place::{Place, Said, said, text};

fn key(prefix: &str) -> String {
    KeyFormat::new(prefix).unwrap().generate().unwrap().expose_secret().to_owned()
}

fn shown(key: &str, prefix: &str) -> String {
    format!("{prefix}…{}", &key[key.len() - 4..])
}

fn write(place: &Place, name: &str, contents: impl AsRef<[u8]>) {
    let path = place.folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

/// Runs `git` in a folder of the place.
fn git(place: &Place, folder: &str, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=ann", "-c", "user.email=ann@example.com"])
        .args(["-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false"])
        .args(arguments)
        .current_dir(place.folder.path().join(folder))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Commits everything in the folder `repository`, and returns the commit.
fn commit(place: &Place, message: &str) -> String {
    git(place, "repository", &["add", "--all"]);
    git(place, "repository", &["commit", "--quiet", "--allow-empty", "--message", message]);
    git(place, "repository", &["rev-parse", "HEAD"])
}

fn repository() -> Place {
    let place = Place::sqlite();
    fs::create_dir(place.folder.path().join("repository")).unwrap();
    git(&place, "repository", &["init", "--quiet"]);
    place
}

fn found(said: &Said, lines: &[String]) {
    assert_eq!(said.out.lines().collect::<Vec<_>>(), lines, "{said:?}");
    assert_eq!(said.code, i32::from(!lines.is_empty()), "{said:?}");
}

#[test]
fn scan_finds_keys_in_text_and_in_binary_files() {
    let place = Place::sqlite();
    let (live, test) = (key("sk_live_"), key("acme_test_"));
    write(&place, "in/a.json", format!("{{\n  \"log\": \"first\\n{live}\\n\",\n  \"n\": 1\n}}"));
    write(&place, "in/b.yaml", format!("# none\nkeys:\n  - {live}\n  - '{test}'\n"));
    write(&place, "in/c.txt", format!("one\r\ntwo\r\nkey = {test}\r\n"));
    let mut binary = b"\x7fELF\0\n\xff\xfe\0".to_vec();
    binary.extend(live.as_bytes());
    binary.extend(b"\0\n\0");
    binary.extend(test.as_bytes());
    write(&place, "in/d", binary);
    write(&place, "in/.env", format!("API_KEY={live}"));
    write(&place, "in/deep/er/url.log", format!("GET /?key%3D{live}&x HTTP/1.1\n"));
    write(&place, "in/none.txt", format!("sk_live_{}\n", "A".repeat(49)));
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    write(&place, "in/wide.txt", [&[0xff, 0xfe], &*wide(&format!("é\r\n{live}\r\n"))].concat());

    let said = place.run("scan in");
    let (live_shown, test_shown) = (shown(&live, "sk_live_"), shown(&test, "acme_test_"));
    let expected = [
        ("in/.env:1", &live_shown),
        ("in/a.json:2", &live_shown),
        ("in/b.yaml:3", &live_shown),
        ("in/b.yaml:4", &test_shown),
        ("in/c.txt:3", &test_shown),
        ("in/d:2", &live_shown),
        ("in/d:3", &test_shown),
        ("in/deep/er/url.log:1", &live_shown),
        ("in/wide.txt:2", &live_shown),
    ];
    found(&said, &expected.map(|(at, key)| format!("{at}: {key}")));
    assert!(said.err.contains("found 9 keys"), "{said:?}");
    assert!(!said.out.contains(&live[8..30]) && !said.err.contains(&live[8..30]), "{said:?}");

    let said = place.run("scan in --prefix acme_test");
    found(&said, &[3, 4, 6].map(|at| format!("{}: {}", expected[at].0, expected[at].1)));
    found(&place.run("scan in/none.txt"), &[]);
    let named =
        place.run("scan in/c.txt in/none.txt in/.env --prefix sk_live_ --prefix acme_test_");
    found(&named, &[format!("in/c.txt:3: {test_shown}"), format!("in/.env:1: {live_shown}")]);
}

#[test]
fn scan_finds_keys_over_the_borders_of_what_it_reads_at_once() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    let mut expected = Vec::new();
    for (number, before) in (131_072 - 700..131_072 + 8).step_by(7).enumerate() {
        let text = format!("{}{key}{}", "\n".repeat(before), ".".repeat(200_000));
        write(&place, &format!("in/{number:03}"), text);
        expected.push(format!("in/{number:03}:{}: {}", before + 1, shown(&key, "sk_live_")));
    }
    found(&place.run("scan in"), &expected);
}

/// The characters of the key are not in the text.
#[test]
fn a_key_in_base64_is_not_found() {
    let place = Place::sqlite();
    let encode = "printf %s \"$1\" | base64 --wrap 0";
    let key = key("sk_live_");
    let encoded = Command::new("sh").args(["-c", encode, "sh", &key]).output().unwrap().stdout;
    assert!(encoded.len() > key.len(), "{encoded:?}");
    write(&place, "secret.yaml", [b"key: ", &*encoded].concat());
    found(&place.run("scan ."), &[]);
}

#[test]
fn scan_reads_standard_input() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    let said = place.fed("scan -", &format!("diff\n+key = \"{key}\"\n"));
    found(&said, &[format!("<stdin>:2: {}", shown(&key, "sk_live_"))]);
    found(&place.fed("scan -", "nothing"), &[]);
    found(&place.fed("scan -", ""), &[]);
    assert_eq!(place.run("scan").code, 2, "a path is needed");
}

#[test]
fn scan_writes_json_lines() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    write(&place, "a b.txt", format!("{key}\n: {key}"));
    let said = place.run("scan --json .");
    assert_eq!(said.code, 1, "{said:?}");
    let lines: Vec<Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |line: u64, column: u64| {
        let key = shown(&key, "sk_live_");
        json!({ "file": "./a b.txt", "line": line, "column": column, "key": key })
    };
    assert_eq!(lines, [line(1, 1), line(2, 3)]);
}

#[test]
fn scan_accepts_formats_of_other_systems_that_are_distinctive() {
    let place = Place::sqlite();
    let hex = "0123456789abcdef".repeat(4);
    let issued = key("sk_live_");
    write(&place, "a", format!("old-{hex}\n{hex}\n{issued}\n"));
    let said = place.run("scan . --accept hex:64:old-");
    let issued = format!("./a:3: {}", shown(&issued, "sk_live_"));
    found(&said, &["./a:1: old-…".to_owned(), issued.clone()]);
    found(&place.run("scan ."), &[issued]);
    let refused = place.run("scan . --accept hex:64");
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("neither a prefix nor a checksum"), "{refused:?}");
}

#[test]
fn scan_leaves_out_what_git_ignores_and_what_is_no_file() {
    let place = repository();
    let key = key("sk_live_");
    for name in ["kept", "ignored", "sub/ignored", ".git/stray", "sub/kept.log"] {
        write(&place, &format!("repository/{name}"), &key);
    }
    write(&place, "repository/.gitignore", "ignored\n*.log\n!kept.log\n");
    write(&place, "outside/target", &key);
    symlink(
        place.folder.path().join("outside/target"),
        place.folder.path().join("repository/link"),
    )
    .unwrap();
    symlink(place.folder.path().join("outside"), place.folder.path().join("repository/folder"))
        .unwrap();
    let fifo = place.folder.path().join("repository/pipe");
    assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());

    let line = |name: &str| format!("repository/{name}:1: {}", shown(&key, "sk_live_"));
    found(&place.run("scan repository"), &["kept", "sub/kept.log"].map(line));
    let all = place.run("scan repository --no-ignore");
    found(&all, &["ignored", "kept", "sub/ignored", "sub/kept.log"].map(line));
    // What is named is searched.
    found(&place.run("scan repository/ignored"), &["ignored"].map(line));
    found(&place.run("scan repository/link"), &["link"].map(line));
}

#[test]
fn a_scan_that_did_not_see_everything_says_so() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    write(&place, "clean", "nothing");
    let said = place.run("scan clean missing");
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
    assert!(said.err.contains("not searched: missing: "), "{said:?}");
    // It can be opened, and not read.
    let said = place.run("scan /proc/self/mem clean");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("not searched: /proc/self/mem: "), "{said:?}");
    // A key matters more.
    write(&place, "dirty", &key);
    let said = place.run("scan missing dirty");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("not searched: missing: "), "{said:?}");
}

#[test]
fn scan_prints_no_control_characters_of_names() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    write(&place, "in/a\u{1b}[2J\nb", &key);
    let expected = format!("in/a\u{fffd}[2J\u{fffd}b:1: {}", shown(&key, "sk_live_"));
    found(&place.run("scan in"), &[expected]);
}

#[test]
fn scan_needs_no_database_and_no_valid_settings() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    write(&place, ".env", format!("this is no setting\n{key}\n"));
    let mut command = place.command(&["scan", "."]);
    let said = said(command.env_remove("DATABASE_URL").output().unwrap());
    found(&said, &[format!("./.env:2: {}", shown(&key, "sk_live_"))]);
    let checked = place.run("scan . --check");
    assert_eq!(checked.code, 2, "the settings matter there: {checked:?}");
}

#[test]
fn scan_ends_when_its_reader_does() {
    let place = Place::sqlite();
    write(&place, "many", format!("{}\n", key("sk_live_")).repeat(10_000));
    let mut command = place.command(&["scan", "many"]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let said = said(running.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (141, ""), "{said:?}");
}

#[test]
fn scan_searches_the_whole_history() {
    let place = repository();
    let [first, second, third, fourth] = [(); 4].map(|()| key("sk_live_"));
    write(&place, "repository/config.py", format!("import os\nKEY = '{first}'\n"));
    let added = commit(&place, "add");
    write(&place, "repository/config.py", "import os\n");
    write(&place, "repository/ärger\tx", format!("\n\n{second}"));
    let removed = commit(&place, "remove");
    // The same contents elsewhere are the same object.
    write(&place, "repository/copy.py", format!("import os\nKEY = '{first}'\n"));
    fs::remove_file(place.folder.path().join("repository/ärger\tx")).unwrap();
    let said_it = commit(&place, &format!("note\n\nthe key is {third}"));
    git(&place, "repository", &["checkout", "--quiet", "-b", "side", &added]);
    write(&place, "repository/side", &fourth);
    let aside = commit(&place, "side");
    git(&place, "repository", &["checkout", "--quiet", "main"]);
    git(&place, "repository", &["tag", "kept", &aside]);
    git(&place, "repository", &["branch", "--quiet", "-D", "side"]);
    // What is not committed is not history.
    write(&place, "repository/new", key("sk_live_"));

    let said = place.run("scan --git repository");
    let mut lines: Vec<_> = said.out.lines().map(str::to_owned).collect();
    lines.sort();
    let mut expected = [
        format!("{added}:config.py:2: {}", shown(&first, "sk_live_")),
        format!("{removed}:\"ärger\\tx\":3: {}", shown(&second, "sk_live_")),
        format!("{said_it}:<message>:3: {}", shown(&third, "sk_live_")),
        format!("{aside}:side:1: {}", shown(&fourth, "sk_live_")),
    ];
    // A commit's message begins after its head: tree, parent, author, committer and an empty line.
    expected[2] = expected[2].replace("<message>:3", "<message>:8");
    expected.sort();
    assert_eq!((said.code, lines.as_slice()), (1, expected.as_slice()), "{said:?}");

    let json = place.run("scan --git repository --json");
    let values: Vec<Value> =
        json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_file = values.iter().find(|value| value["file"] == "config.py").unwrap();
    assert_eq!((&of_file["commit"], &of_file["line"]), (&json!(added), &json!(2)));

    // In a hook, the environment names another repository.
    let mut hooked = place.command(&["scan", "--git", "repository"]);
    let hooked = self::said(hooked.env("GIT_DIR", "/nonexistent").output().unwrap());
    assert_eq!(hooked.out, said.out, "{hooked:?}");
}

#[test]
fn a_key_that_only_a_merge_has_is_found_there() {
    let place = repository();
    write(&place, "repository/a", "one\n");
    let base = commit(&place, "base");
    write(&place, "repository/a", "two\n");
    commit(&place, "main");
    git(&place, "repository", &["checkout", "--quiet", "-b", "side", &base]);
    write(&place, "repository/a", "three\n");
    commit(&place, "side");
    let ours = ["merge", "--quiet", "--no-commit", "--strategy", "ours", "main"];
    git(&place, "repository", &ours);
    let key = key("sk_live_");
    write(&place, "repository/a", &key);
    let merge = commit(&place, "merge");
    let expected = format!("{merge}:a:1: {}", shown(&key, "sk_live_"));
    found(&place.run("scan --git repository"), &[expected]);
}

#[test]
fn a_history_that_is_cut_off_or_missing_is_not_clean() {
    let place = repository();
    write(&place, "repository/a", "one");
    commit(&place, "one");
    commit(&place, "two");
    found(&place.run("scan --git repository"), &[]);
    let url = format!("file://{}", place.folder.path().join("repository").display());
    git(&place, ".", &["clone", "--quiet", "--depth", "1", &url, "shallow"]);
    let said = place.run("scan --git shallow");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("git fetch --unshallow"), "{said:?}");

    write(&place, "outside/a", "one");
    let said = place.run("scan --git outside");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("not a git repository"), "{said:?}");
    assert_eq!(place.run("scan --git repository shallow").code, 2, "one at a time");

    // An object that is lost.
    let blob = git(&place, "repository", &["rev-parse", "HEAD:a"]);
    let object = format!("repository/.git/objects/{}/{}", &blob[..2], &blob[2..]);
    fs::remove_file(place.folder.path().join(object)).unwrap();
    let said = place.run("scan --git repository");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("not searched: "), "{said:?}");
}

#[tokio::test]
async fn scan_tells_which_keys_are_live_and_revokes_them() {
    for place in Place::all().await {
        let (live, live_id) = place.issue("--expires 30d");
        let (off, off_id) = place.issue("--expires 30d --key-prefix sk_test_");
        let (revoked, revoked_id) = place.issue("--expires 30d");
        let (expired, expired_id) = place.issue("--expires 30d");
        place.done(&format!("update {off_id} --deactivate"));
        place.done(&format!("revoke {revoked_id}"));
        place.done(&format!("rotate {expired_id} --grace 0s"));
        let unknown = key("sk_live_");
        write(&place, "in/ended", format!("{revoked}\n{expired}\n"));
        write(&place, "in/live", format!("{live}\n{off}\n{live}\n"));
        write(&place, "in/unknown", &unknown);

        // Keys that have ended do not count.
        let said = place.run("scan in/ended --check");
        assert_eq!(said.code, 0, "{said:?}");
        let expected = [
            format!("in/ended:1: {} revoked {revoked_id}", shown(&revoked, "sk_live_")),
            format!("in/ended:2: {} expired {expired_id}", shown(&expired, "sk_live_")),
        ];
        assert_eq!(said.out.lines().collect::<Vec<_>>(), expected);
        let said = place.run("scan in/unknown --check");
        found(&said, &[format!("in/unknown:1: {} unknown", shown(&unknown, "sk_live_"))]);

        let said = place.run("scan in --check --json");
        assert_eq!(said.code, 1, "{said:?}");
        let values: Vec<Value> =
            said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let statuses: Vec<_> = values.iter().map(|value| text(value, "status")).collect();
        assert_eq!(statuses, ["revoked", "expired", "active", "inactive", "active", "unknown"]);
        assert_eq!((&values[2]["key_id"], &values[5]["key_id"]), (&json!(live_id), &Value::Null));

        // It does not revoke without a confirmation.
        let said = place.run("scan in --revoke");
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains("the 2 keys that were found"), "{said:?}");
        assert_eq!(text(&place.json(&format!("show {live_id}")), "status"), "active");

        let said = place.run("scan in --revoke --yes");
        assert_eq!(said.code, 1, "{said:?}");
        for (id, line) in [(&live_id, 1), (&off_id, 2)] {
            assert!(said.err.contains(&format!("{id} revoked")), "{said:?}");
            let shown = place.json(&format!("show {id}"));
            let reason = format!("found by api-key scan in in/live:{line}");
            assert_eq!(
                (&shown["status"], &shown["revoked_reason"]),
                (&json!("revoked"), &json!(reason))
            );
        }
        let again = place.run("scan in/live --revoke --yes");
        assert_eq!(again.code, 0, "{again:?}");
        assert!(again.err.contains("nothing to revoke"), "{again:?}");
    }
}

#[tokio::test]
async fn a_scan_checks_more_keys_than_one_query_holds() {
    for place in Place::all().await {
        let (live, _) = place.issue("--expires 30d");
        let mut lines: Vec<_> = (0..1_500).map(|_| key("sk_live_")).collect();
        lines.insert(700, live);
        write(&place, "many", lines.join("\n"));
        let said = place.run("scan many --check");
        assert_eq!((said.code, said.out.lines().count()), (1, 1_501), "{}", said.err);
        let active: Vec<_> = said.out.lines().filter(|line| line.contains(" active ")).collect();
        assert!(active.len() == 1 && active[0].starts_with("many:701: "), "{active:?}");
    }
}

#[test]
fn the_reason_of_a_revocation_fits_into_the_audit() {
    let place = Place::sqlite();
    place.done("migrate");
    let (key, id) = place.issue("--expires 30d");
    let folder = "long".repeat(50);
    let path = format!("{}/last.txt", [folder.as_str(); 8].join("/"));
    write(&place, &path, &key);
    let said = place.run(&format!("scan {} --revoke --yes", &folder));
    assert_eq!(said.code, 1, "{said:?}");
    let reason = text(&place.json(&format!("show {id}")), "revoked_reason");
    assert!(reason.starts_with("found by api-key scan in …"), "{reason}");
    assert!(reason.ends_with("/last.txt:1") && reason.len() <= 1024, "{reason}");
}

#[test]
fn a_scan_that_cannot_reach_the_database_has_another_exit_code_than_one_that_finds() {
    let place = Place::sqlite();
    write(&place, "a", key("sk_live_"));
    let mut command = place.command(&["scan", "a", "--check"]);
    let unreachable = "postgres://postgres@127.0.0.1:1/postgres";
    let said = said(command.env("DATABASE_URL", unreachable).output().unwrap());
    assert_eq!(said.code, 2, "{said:?}");
}

/// The hook of this repository, in a repository of another project.
#[test]
fn the_pre_commit_hook_refuses_a_commit_with_a_key() {
    let program = std::env::var("PRE_COMMIT").expect("tests/run installs pre-commit and names it");
    let place = repository();
    let hooks =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".pre-commit-hooks.yaml");
    write(&place, "hooks/.pre-commit-hooks.yaml", fs::read(hooks).unwrap());
    git(&place, "hooks", &["init", "--quiet"]);
    git(&place, "hooks", &["add", "--all"]);
    git(&place, "hooks", &["commit", "--quiet", "--message", "hooks"]);
    let hooks = place.folder.path().join("hooks").display().to_string();
    let revision = git(&place, "hooks", &["rev-parse", "HEAD"]);
    write(
        &place,
        "repository/.pre-commit-config.yaml",
        format!(
            "repos:\n  - repo: {hooks}\n    rev: {revision}\n    hooks:\n      - id: api-key-scan\n"
        ),
    );
    let check = || {
        git(&place, "repository", &["add", "--all"]);
        let api_key = Path::new(env!("CARGO_BIN_EXE_api-key")).parent().unwrap().display();
        let output = Command::new(&program)
            .args(["run", "--color", "never"])
            .current_dir(place.folder.path().join("repository"))
            .env("PRE_COMMIT_HOME", place.folder.path().join("cache"))
            .env("PATH", format!("{api_key}:{}", std::env::var("PATH").unwrap()))
            .output()
            .unwrap();
        said(output)
    };
    write(&place, "repository/clean.py", "import os\n");
    let passed = check();
    assert_eq!(passed.code, 0, "{passed:?}");
    let key = key("sk_live_");
    write(&place, "repository/with a space.py", format!("\nKEY = '{key}'\n"));
    let refused = check();
    assert_eq!(refused.code, 1, "{refused:?}");
    let line = format!("with a space.py:2: {}", shown(&key, "sk_live_"));
    assert!(refused.out.contains(&line), "{refused:?}");
}
