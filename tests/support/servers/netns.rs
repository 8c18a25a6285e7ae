//! A network namespace for a process, with links that can be cut like a cable: silently.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader},
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
};

use super::unique;

/// A network namespace. It is removed with its links when the value is dropped or the test ends.
pub struct Namespace {
    /// Holds the namespace for as long as its stdin is open.
    holder: Child,
    /// The process inside the namespace. `holder` may be `sudo`, which is outside.
    pid: u32,
}

impl Namespace {
    /// Needs root, or `sudo` without a password, and the programs `unshare`, `nsenter` and `ip`.
    /// The error says what failed.
    pub fn new() -> io::Result<Self> {
        let mut holder = as_root("unshare")
            .args(["--net", "sh", "-c", "echo $$; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        // The holder prints its pid once it is in the namespace, and nothing if that fails.
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(pid) => Ok(Self { holder, pid }),
            Err(_) => {
                drop(holder.stdin.take());
                let _ = holder.wait();
                Err(io::Error::other("unshare failed"))
            }
        }
    }

    /// Runs `program` in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = as_root("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg("--").arg(program);
        command
    }

    /// A link between this machine and the namespace.
    pub fn link(&self) -> io::Result<Link> {
        let number = unique();
        let [a, b, c, d, ..] = number.to_be_bytes();
        let name = format!("t{a:02x}{b:02x}{c:02x}{d:02x}");
        // From the network reserved for benchmarks of networks, RFC 2544.
        let first = Ipv4Addr::new(198, 18 | (b & 1), c, d & !3);
        let [outside, inside] = [1, 2].map(|it| Ipv4Addr::from_bits(first.to_bits() + it));

        let holder = self.pid.to_string();
        let there = "inside".to_owned() + &name[1..];
        ip(
            as_root("ip"),
            &["link", "add", &name, "type", "veth", "peer", "name", &there, "netns", &holder],
        )?;
        for (command, name, address) in
            [(as_root("ip"), &name, outside), (self.command("ip"), &there, inside)]
        {
            ip(command, &["address", "add", &format!("{address}/30"), "dev", name])?;
        }
        ip(as_root("ip"), &["link", "set", &name, "up"])?;
        ip(self.command("ip"), &["link", "set", &there, "up"])?;
        Ok(Link { name, outside, inside })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A link, with an address at each end.
pub struct Link {
    name: String,
    pub outside: Ipv4Addr,
    pub inside: Ipv4Addr,
}

impl Link {
    /// From now on packets are lost, and neither end is notified.
    pub fn cut(&self) {
        ip(as_root("ip"), &["link", "set", &self.name, "down"]).expect("cutting the link");
    }

    pub fn mend(&self) {
        ip(as_root("ip"), &["link", "set", &self.name, "up"]).expect("mending the link");
    }
}

/// `program`, run as root. CI runners may `sudo`, which keeps the environment.
fn as_root(program: &str) -> Command {
    let id = Command::new("id").arg("-u").output();
    if id.is_ok_and(|id| id.stdout.trim_ascii() == b"0") {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "--preserve-env", program]);
    command
}

fn ip(mut command: Command, arguments: &[&str]) -> io::Result<()> {
    let output = command.args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("ip {}: {problem}", arguments.join(" "))))
}
