//! The compared servers.

use std::{
    env,
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use tempfile::NamedTempFile;

use crate::{
    Result,
    options::Options,
    peers::{self, Peer},
    process::{self, SERVER_CORE, command},
    servers::Server,
    setting::Setting,
};

pub(crate) enum Contender {
    Axum(Server),
    Peer(Peer),
}

/// axum alone and the layer, which are always compared, and the requested servers. Installs peers.
pub(crate) fn chosen(options: &Options) -> Result<Vec<Contender>> {
    let mut contenders: Vec<_> = Server::ALL.into_iter().map(Contender::Axum).collect();
    if options.peers {
        contenders.extend(peers::ALL.map(Contender::Peer));
    }
    let names: Vec<_> = contenders.iter().map(Contender::name).collect();
    let unknown =
        options.only.iter().find(|only| !names.iter().any(|name| name.starts_with(*only)));
    if let Some(unknown) = unknown {
        return Err(format!("no server {unknown}; choose from {}", names.join(", ")).into());
    }
    let asked_for = |contender: &Contender| {
        let only = &options.only;
        only.is_empty() || only.iter().any(|only| contender.name().starts_with(only))
    };
    contenders.retain(|contender| {
        matches!(contender, Contender::Axum(Server::Bare | Server::Layer)) || asked_for(contender)
    });
    for contender in &contenders {
        if let Contender::Peer(peer) = contender {
            peer.install()?;
        }
    }
    Ok(contenders)
}

impl Contender {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Axum(server) => server.name(),
            Self::Peer(peer) => peer.name,
        }
    }

    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Axum(server) => server.label(),
            Self::Peer(peer) => peer.label,
        }
    }

    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Axum(server) => server.description(),
            Self::Peer(peer) => peer.description,
        }
    }

    pub(crate) fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }

    /// Whether it queries the database once per key rather than once per request.
    pub(crate) fn caches(&self) -> bool {
        matches!(self, Self::Axum(server) if server.caches())
    }

    /// How many times longer it is loaded, to get more than a handful of responses.
    pub(crate) fn slowness(&self) -> u32 {
        match self {
            Self::Axum(_) => 1,
            Self::Peer(peer) => peer.slowness,
        }
    }

    fn authenticates(&self) -> bool {
        match self {
            Self::Axum(server) => server.authenticates(),
            Self::Peer(_) => true,
        }
    }

    fn command(&self, core: Option<&str>) -> Result<Command> {
        match self {
            Self::Axum(server) => {
                let this = env::current_exe()?;
                let mut command = command(this.to_str().ok_or("a path that is not UTF-8")?, core);
                command.args(["serve", server.name()]);
                Ok(command)
            }
            Self::Peer(peer) => Ok(peer.command(core)),
        }
    }

    pub(crate) fn start(&self, setting: &Setting, pinned: bool) -> Result<Running<'_>> {
        let mut command = self.command(pinned.then_some(SERVER_CORE))?;
        command.env("DATABASE_URL", setting.url()).env("KEY", setting.key.expose_secret());
        let process = process::Server::start(command)?;
        let own_key = match &process.key {
            None => None,
            Some(key) => {
                let mut file = NamedTempFile::new()?;
                writeln!(file, "Bearer {key}")?;
                Some(file)
            }
        };
        Ok(Running { contender: self, process, own_key })
    }
}

pub(crate) struct Running<'a> {
    pub(crate) contender: &'a Contender,
    pub(crate) process: process::Server,
    own_key: Option<NamedTempFile>,
}

impl Running<'_> {
    pub(crate) fn authorizations(&self, setting: &Setting, keys: usize) -> Result<PathBuf> {
        let file = self.own_key.as_ref().map(NamedTempFile::path);
        Ok(file.unwrap_or_else(|| setting.authorizations(keys)).to_owned())
    }

    /// Waits until the requests of closed connections are done: a request sent now is answered
    /// after them.
    pub(crate) fn settle(&self, setting: &Setting) -> Result<()> {
        self.ask(Some(self.key(setting)))?;
        self.process.settle()
    }

    fn key<'a>(&'a self, setting: &'a Setting) -> &'a str {
        self.process.key.as_deref().unwrap_or_else(|| setting.key.expose_secret())
    }

    /// Fails unless the server lets the key in and refuses others.
    pub(crate) fn check(&self, setting: &Setting) -> Result<()> {
        let name = self.contender.name();
        let answer = self.ask(Some(self.key(setting)))?;
        if !answer.starts_with("HTTP/1.1 200") || !answer.contains("ok") {
            return Err(format!("{name} does not say ok to a good key, but {answer}").into());
        }
        for key in [None, Some(setting.unknown.expose_secret())] {
            let answer = self.ask(key)?;
            let status = answer.get("HTTP/1.1 ".len()..).and_then(|answer| answer.get(..3));
            let refused = matches!(status, Some("401" | "403"));
            if self.contender.authenticates() && !refused {
                return Err(format!("{name} lets in whom it should not: {answer}").into());
            }
        }
        Ok(())
    }

    fn ask(&self, key: Option<&str>) -> Result<String> {
        let mut stream = TcpStream::connect(&self.process.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut request =
            String::from("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if let Some(key) = key {
            write!(request, "Authorization: Bearer {key}\r\n")?;
        }
        stream.write_all((request + "\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}
