//! A folder and a database in which the program runs.

use std::{
    fs,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, raw_sql};
use tempfile::TempDir;

use crate::servers::postgres::{Database, Server};

/// A database, and the folder that the program runs in.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) url: String,
    _database: Option<Database>,
}

/// The program's output.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        Self { folder, url, _database: None }
    }

    pub(crate) async fn postgres() -> Self {
        let database = Server::shared().database().await;
        let url = database.url().to_owned();
        Self { folder: tempfile::tempdir().unwrap(), url, _database: Some(database) }
    }

    /// One database of each kind, with its tables.
    pub(crate) async fn all() -> Vec<Self> {
        let all = vec![Self::sqlite(), Self::postgres().await];
        for place in &all {
            place.done("migrate");
        }
        all
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_api-key"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_clear().env("USER", "ann").env("DATABASE_URL", &self.url);
        command
    }

    pub(crate) fn run(&self, line: &str) -> Said {
        self.fed(line, "")
    }

    /// Runs the program with `input` on standard input.
    pub(crate) fn fed(&self, line: &str, input: &str) -> Said {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let mut command = self.command(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().unwrap();
        // The program may end without reading its input.
        let _ = running.stdin.take().unwrap().write_all(input.as_bytes());
        said(running.wait_with_output().unwrap())
    }

    /// The output of a command that succeeds.
    pub(crate) fn done(&self, line: &str) -> Said {
        let said = self.run(line);
        assert_eq!(said.code, 0, "{line}: {said:?}");
        said
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        let said = self.done(&format!("{line} --json"));
        assert_eq!(said.out.lines().count(), 1, "one object in one line: {said:?}");
        serde_json::from_str(&said.out).unwrap()
    }

    /// Issues a key, and returns it with its id.
    pub(crate) fn issue(&self, options: &str) -> (String, String) {
        let answer = self.json(&format!("issue --consumer acme {options}"));
        (text(&answer, "key"), text(&answer, "id"))
    }

    pub(crate) fn verify(&self, key: &str) -> (i32, Value) {
        let said = self.fed("verify --json", &format!("{key}\n"));
        assert!(!said.out.contains(key) && !said.err.contains(key), "{said:?}");
        (said.code, serde_json::from_str(&said.out).unwrap_or_default())
    }

    pub(crate) async fn sql(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            raw_sql(sql).execute(&mut connection).await.unwrap();
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

pub(crate) fn said(output: Output) -> Said {
    let code = output.status.code().unwrap_or(-1);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(!err.contains('\u{1b}') && !out.contains('\u{1b}'), "colours in a pipe: {err}{out}");
    Said { code, out, err }
}

pub(crate) fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}")).to_owned()
}

/// The hash of a key issued elsewhere.
pub(crate) fn hash(number: usize) -> String {
    format!("{number:064x}")
}

pub(crate) fn import_line(number: usize) -> String {
    format!("{{\"hash\":\"{}\",\"consumer_id\":\"acme\",\"expires\":\"30d\"}}\n", hash(number))
}

/// The number of keys.
pub(crate) fn count(place: &Place) -> usize {
    place.json("list --limit 1000")["keys"].as_array().unwrap().len()
}
