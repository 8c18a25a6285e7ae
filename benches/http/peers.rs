//! What users of other languages would choose. The apps are in `peers/`; their packages are
//! installed from npm and PyPI into a folder below `target`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::{Result, machine::said, process::command};

/// An app in `peers/`.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) label: &'static str,
    pub(crate) description: &'static str,
    folder: &'static str,
    language: Language,
    pub(crate) slowness: u32,
}

#[derive(Clone, Copy)]
enum Language {
    /// The script.
    Node(&'static str),
    /// gunicorn's settings.
    Python(&'static str),
}

pub(crate) const ALL: [Peer; 5] = [
    Peer {
        name: "express-sha256",
        label: "Express, SHA-256, pg",
        description: "Express: SHA-256, a query by pg, no limits",
        folder: "express",
        language: Language::Node("sha256.mjs"),
        slowness: 1,
    },
    Peer {
        name: "express-bcrypt",
        label: "Express, bcrypt, pg",
        description: "Express: a query by pg, bcrypt of cost 10, no limits",
        folder: "express",
        language: Language::Node("bcrypt.mjs"),
        slowness: 6,
    },
    Peer {
        name: "better-auth",
        label: "better-auth, pg",
        description: "better-auth: verifyApiKey of its API-key plugin on PostgreSQL",
        folder: "better-auth",
        language: Language::Node("server.mjs"),
        slowness: 1,
    },
    Peer {
        name: "fastify-bearer-auth",
        label: "Fastify, one static key",
        description: "Fastify: @fastify/bearer-auth with a static key, @fastify/rate-limit",
        folder: "fastify",
        language: Language::Node("server.mjs"),
        slowness: 1,
    },
    Peer {
        name: "django-api-key",
        label: "Django REST API key, pg",
        description: "djangorestframework-api-key on PostgreSQL, gunicorn, no limits",
        folder: "django",
        language: Language::Python("gunicorn.conf.py"),
        slowness: 1,
    },
];

/// The part of `package.json` that is read.
#[derive(Deserialize)]
struct Package {
    dependencies: BTreeMap<String, String>,
}

impl Peer {
    /// Where it is installed.
    fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers").join(self.folder)
    }

    pub(crate) fn command(&self, core: Option<&str>) -> Command {
        let mut command = match self.language {
            Language::Node(script) => {
                let mut command = command("node", core);
                command.arg(script);
                command
            }
            Language::Python(settings) => {
                let mut command = command("venv/bin/gunicorn", core);
                command.args(["--config", settings, "app:application"]);
                command
            }
        };
        command.current_dir(self.folder()).env("NODE_ENV", "production");
        command
    }

    /// Versions of the language and of each package the app names.
    pub(crate) fn versions(&self) -> Result<Vec<(String, String)>> {
        let read = |file| fs::read_to_string(self.folder().join(file));
        Ok(match self.language {
            Language::Node(_) => {
                let package: Package = serde_json::from_str(&read("package.json")?)?;
                let node = ("node".into(), said("node", &["--version"])?);
                package.dependencies.into_iter().chain([node]).collect()
            }
            Language::Python(_) => {
                let pins = read("requirements.txt")?;
                let pins = pins.lines().filter_map(|line| line.split_once("=="));
                let python = ("python".into(), said("python3", &["--version"])?);
                pins.map(|(name, version)| (name.into(), version.into())).chain([python]).collect()
            }
        })
    }

    /// Copies the app and installs its packages, unless that was done before.
    pub(crate) fn install(&self) -> Result<()> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/http/peers");
        let folder = self.folder();
        fs::create_dir_all(&folder)?;
        for file in fs::read_dir(sources.join(self.folder))? {
            let file = file?;
            fs::copy(file.path(), folder.join(file.file_name()))?;
        }
        let pins = match self.language {
            Language::Node(_) => "package.json",
            Language::Python(_) => "requirements.txt",
        };
        let pins = fs::read_to_string(folder.join(pins))?;
        let installed = folder.join("installed");
        if fs::read_to_string(&installed).is_ok_and(|installed| installed == pins) {
            return Ok(());
        }
        let run = |program: &str, arguments: &[&str]| -> Result<()> {
            let mut command = Command::new(program);
            let output = command.args(arguments).current_dir(&folder).output();
            let output = output.map_err(|error| format!("{}: {program}: {error}", self.name))?;
            if output.status.success() {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("{}: {command:?} has failed: {text}", self.name).into())
        };
        eprintln!("installing {}", self.name);
        match self.language {
            Language::Node(_) => {
                run("npm", &["install", "--no-package-lock", "--no-audit", "--no-fund"])?;
            }
            Language::Python(_) => {
                run("python3", &["-m", "venv", "venv"])?;
                run("venv/bin/pip", &["install", "--quiet", "--requirement", "requirements.txt"])?;
            }
        }
        fs::write(installed, pins)?;
        Ok(())
    }
}
