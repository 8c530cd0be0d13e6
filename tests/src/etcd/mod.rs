//! A real etcd: one member or several, plain or with mutual TLS and users, each in a namespace or on loopback.
//!
//! Owns the processes and their folders, which lie in memory; both go when the value is dropped, also when a test fails. A
//! member can be killed, paused and started again where it was; links are cut by [`Island`], which has three members on a switch.
//! Nothing listens outside of loopback and the namespaces of the test. Used by one thread.

mod island;
mod member;
pub mod pki;

pub use island::{Cut, Island};
pub use member::Place;

use crate::poll_for;
use anyhow::{Context, Result, bail};
use member::Member;
use nix::sys::signal::Signal;
use pki::{Authority, Certificate, Validity};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// How long members may take to elect a leader, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The user who may do everything, with its password; only where [`EtcdBuilder::users`] was asked for.
pub const ROOT: (&str, &str) = ("root", "root of the tests");
/// The user of Weft, who may use its prefix only, with its password.
pub const USER: (&str, &str) = ("weft", "a word that passes");
/// The prefix that [`USER`] may use.
pub const PREFIX: &str = "/weft/";
/// How long a token of a user is good, for tests that outlive one.
pub const TOKEN_TTL: Duration = Duration::from_secs(3);

/// What an etcd is to be made of.
#[derive(Debug, Default)]
pub struct EtcdBuilder {
    places: Vec<Place>,
    tls: bool,
    users: bool,
    timing: Timing,
    arguments: Vec<String>,
}

/// How soon members miss their leader.
#[derive(Debug, Clone, Copy, Default)]
enum Timing {
    /// Twice as soon as by default, so that tests of faults need not wait.
    #[default]
    Hasty,
    /// Five times as late.
    Calm,
}

impl Timing {
    fn arguments(self) -> [String; 2] {
        let (heartbeat, election) = match self {
            Self::Hasty => (50, 500),
            Self::Calm => (500, 5000),
        };
        [format!("--heartbeat-interval={heartbeat}"), format!("--election-timeout={election}")]
    }
}

impl EtcdBuilder {
    /// A further member there.
    #[must_use]
    pub fn member(mut self, place: Place) -> Self {
        self.places.push(place);
        self
    }

    /// Mutual TLS, among members and with clients.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// [`ROOT`] and [`USER`], and nobody else.
    #[must_use]
    pub fn users(mut self) -> Self {
        self.users = true;
        self
    }

    /// Members that are patient with their leader, for a machine that is too busy for the others' haste.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self.timing = Timing::Calm;
        self
    }

    /// A further argument of each member.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the members, on loopback if no place was named, and waits until they serve.
    ///
    /// # Errors
    /// etcd is not installed (`cargo xtask setup`), or a member does not serve in time; the message has the end of its log.
    pub fn start(self) -> Result<Etcd> {
        let dir = folder()?;
        let places = if self.places.is_empty() { vec![Place::loopback()?] } else { self.places };
        let security = if self.tls { Some(Security::new(dir.path(), &places)?) } else { None };
        let names: Vec<String> = (0..places.len()).map(|n| format!("member{n}")).collect();
        let scheme = if self.tls { "https" } else { "http" };
        let urls = names.iter().zip(&places).map(|(name, place)| format!("{name}={scheme}://{}", place.peer));
        let cluster = urls.collect::<Vec<_>>().join(",");
        let mut members = Vec::new();
        for (name, place) in names.into_iter().zip(places) {
            let mut arguments: Vec<String> = self.timing.arguments().into();
            arguments.extend(self.arguments.iter().cloned());
            if let Some(security) = &security {
                arguments.extend(security.arguments());
            }
            members.push(Member::new(name, place, dir.path(), scheme, &cluster, arguments)?);
        }
        let mut etcd = Etcd { members, users: false, security, cluster, dir };
        for member in &mut etcd.members {
            member.start()?;
        }
        etcd.wait_ready()?;
        if self.users {
            etcd.enable_users()?;
        }
        Ok(etcd)
    }
}

/// A folder in memory: what etcd would wait for is on no disk.
fn folder() -> Result<TempDir> {
    let root = Path::new("/dev/shm");
    let root = if root.is_dir() { root.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("weft-etcd-").tempdir_in(root).context("making a folder for etcd")
}

/// What mutual TLS needs.
#[derive(Debug)]
struct Security {
    authority: Authority,
    server: Certificate,
    client: Certificate,
}

impl Security {
    fn new(dir: &Path, places: &[Place]) -> Result<Self> {
        let authority = Authority::new(dir, "authority")?;
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        addresses.extend(places.iter().flat_map(|p| [p.client.ip(), p.peer.ip()]));
        addresses.sort_unstable();
        addresses.dedup();
        let server = authority.issue("server", &addresses, Validity::Now)?;
        let client = authority.issue("client", &[], Validity::Now)?;
        Ok(Self { authority, server, client })
    }

    fn arguments(&self) -> Vec<String> {
        let ca = self.authority.cert().display();
        let (cert, key) = (self.server.cert.display(), self.server.key.display());
        vec![
            format!("--cert-file={cert}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth".to_owned(),
            format!("--peer-cert-file={cert}"),
            format!("--peer-key-file={key}"),
            format!("--peer-trusted-ca-file={ca}"),
            "--peer-client-cert-auth".to_owned(),
        ]
    }
}

/// A running etcd. Members are counted from 0.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    users: bool,
    security: Option<Security>,
    cluster: String,
    // Goes last: the members' data lies in it.
    dir: TempDir,
}

impl Etcd {
    /// An etcd to be made.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// One plain member on loopback.
    ///
    /// # Errors
    /// See [`EtcdBuilder::start`].
    pub fn start_new() -> Result<Self> {
        Self::builder().start()
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never: it has at least one member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The folder with its data, certificates and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// URL of a member, for clients.
    pub fn endpoint(&self, member: usize) -> String {
        self.members[member].endpoint()
    }

    /// URLs of all members, for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// The authority that clients have to trust, and whose certificates members trust. `None` without TLS.
    pub fn authority(&self) -> Option<&Authority> {
        self.security.as_ref().map(|s| &s.authority)
    }

    /// The certificate of clients. `None` without TLS.
    pub fn client_certificate(&self) -> Option<&Certificate> {
        self.security.as_ref().map(|s| &s.client)
    }

    /// File with the password of [`USER`], mode 0600. `None` without users.
    pub fn password_file(&self) -> Option<PathBuf> {
        self.users.then(|| self.dir.path().join("password"))
    }

    /// Lines for `ipamd.toml`, so that a node keeps its state here.
    pub fn settings(&self) -> String {
        let endpoints: Vec<String> = self.endpoints().iter().map(|e| format!("\"{e}\"")).collect();
        let mut lines = format!("store = \"etcd\"\netcd_endpoints = [{}]\n", endpoints.join(", "));
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            lines.push_str(&format!("{name} = \"{value}\"\n"));
        };
        if let Some(security) = &self.security {
            line("etcd_ca_file", &security.authority.cert().display());
            line("etcd_cert_file", &security.client.cert.display());
            line("etcd_key_file", &security.client.key.display());
        }
        if let Some(password) = self.password_file() {
            line("etcd_user", &USER.0);
            line("etcd_password_file", &password.display());
        }
        lines
    }

    /// Waits until every member that runs serves, and one leads.
    ///
    /// # Errors
    /// They do not within half a minute; the message has the end of their logs.
    pub fn wait_ready(&mut self) -> Result<()> {
        for n in 0..self.members.len() {
            if !self.runs(n)? {
                continue;
            }
            let serves = || self.ctl(n, &["endpoint", "health"]).ok();
            if let Err(error) = poll_for(PATIENCE, "a member to serve", serves) {
                bail!("{error:#}\n{}", self.members[n].log_end());
            }
        }
        Ok(())
    }

    /// `etcdctl` on a member, in its namespace and by its own endpoint, as [`ROOT`] where there are users. Returns what it printed.
    ///
    /// # Errors
    /// It does not succeed within five seconds; the message has what it said.
    pub fn ctl(&self, member: usize, arguments: &[&str]) -> Result<String> {
        let place = &self.members[member];
        let mut command = place.command("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", place.endpoint()));
        command.arg("--command-timeout=5s");
        if let Some(security) = &self.security {
            command.arg(format!("--cacert={}", security.authority.cert().display()));
            command.arg(format!("--cert={}", security.client.cert.display()));
            command.arg(format!("--key={}", security.client.key.display()));
        }
        // Who asks for the status need not be known, and a token takes a leader.
        if self.users && !arguments.starts_with(&["endpoint", "status"]) {
            command.arg(format!("--user={}:{}", ROOT.0, ROOT.1));
        }
        run(command.args(arguments))
    }

    /// `etcdctl` on the first member that runs.
    ///
    /// # Errors
    /// As [`Self::ctl`], or none runs.
    pub fn ctl_any(&mut self, arguments: &[&str]) -> Result<String> {
        for n in 0..self.members.len() {
            if self.runs(n)? {
                return self.ctl(n, arguments);
            }
        }
        bail!("no member of etcd runs");
    }

    /// The member that leads, as those who run see it, once one does.
    ///
    /// # Errors
    /// None does within half a minute.
    pub fn leader(&mut self) -> Result<usize> {
        poll_for(PATIENCE, "a leader of etcd", || {
            (0..self.members.len()).find(|n| {
                self.runs(*n).unwrap_or(false)
                    && self.status(*n).is_ok_and(|s| s.leader == s.member && s.leader != 0)
            })
        })
    }

    /// Whom a member is and takes for the leader (0: nobody), and its revision.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, member: usize) -> Result<MemberStatus> {
        let said = self.ctl(member, &["endpoint", "status", "--write-out=json"])?;
        let parsed: serde_json::Value = serde_json::from_str(&said).context("reading etcdctl's status")?;
        let status = &parsed[0]["Status"];
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        Ok(MemberStatus {
            member: number(&status["header"]["member_id"]),
            leader: number(&status["leader"]),
            revision: number(&status["header"]["revision"]),
        })
    }

    /// Whether a member runs.
    ///
    /// # Errors
    /// Waiting for its process fails.
    pub fn runs(&mut self, member: usize) -> Result<bool> {
        self.members[member].runs()
    }

    /// Process id of a member, while it runs.
    pub fn pid(&self, member: usize) -> Option<u32> {
        self.members[member].pid()
    }

    /// Kills a member (SIGKILL). Its data stays.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.members[member].kill()
    }

    /// Kills all members.
    ///
    /// # Errors
    /// One cannot be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::kill)
    }

    /// Starts a member that was killed, with the data it had. See [`Self::wait_ready`].
    ///
    /// # Errors
    /// It cannot be run.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.members[member].start()
    }

    /// Starts all members that do not run and waits until they serve.
    ///
    /// # Errors
    /// One does not serve in time.
    pub fn restart_all(&mut self) -> Result<()> {
        for member in &mut self.members {
            if !member.runs()? {
                member.start()?;
            }
        }
        self.wait_ready()
    }

    /// Stops a member where it is (SIGSTOP): it answers nothing and its connections stay.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self, member: usize) -> Result<()> {
        self.members[member].signal(Signal::SIGSTOP)
    }

    /// Lets a member go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self, member: usize) -> Result<()> {
        self.members[member].signal(Signal::SIGCONT)
    }

    /// Forgets every revision before the present one.
    ///
    /// # Errors
    /// No member answers.
    pub fn compact(&mut self) -> Result<u64> {
        let said = self.ctl_any(&["get", "nothing", "--write-out=json"])?;
        let parsed: serde_json::Value = serde_json::from_str(&said).context("reading etcdctl's answer")?;
        let revision = parsed["header"]["revision"].as_u64().context("an answer with a revision")?;
        self.ctl_any(&["compact", &revision.to_string()])?;
        Ok(revision)
    }

    /// Saves a snapshot of the data to a file, for [`Self::restore`].
    ///
    /// # Errors
    /// No member answers.
    pub fn save(&mut self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        self.ctl_any(&["snapshot", "save", &path.display().to_string()])?;
        Ok(path)
    }

    /// Kills all members and starts them with what the snapshot has, as an operator does after a loss.
    ///
    /// # Errors
    /// The snapshot cannot be used, or the members do not serve.
    pub fn restore(&mut self, snapshot: &Path) -> Result<()> {
        self.kill_all()?;
        for member in &mut self.members {
            member.restore(snapshot, &self.cluster)?;
        }
        self.restart_all()
    }

    fn enable_users(&mut self) -> Result<()> {
        let password = self.dir.path().join("password");
        fs::write(&password, format!("{}\n", USER.1)).context("writing a password")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&password, mode).context("hiding a password")?;
        for arguments in [
            &["user", "add", &format!("{}:{}", ROOT.0, ROOT.1)][..],
            &["user", "grant-role", ROOT.0, "root"],
            &["user", "add", &format!("{}:{}", USER.0, USER.1)],
            &["role", "add", "weft"],
            &["role", "grant-permission", "weft", "readwrite", "--prefix=true", PREFIX],
            &["user", "grant-role", USER.0, "weft"],
            &["auth", "enable"],
        ] {
            self.ctl(0, arguments)?;
        }
        self.users = true;
        Ok(())
    }
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub member: u64,
    /// Id of the leader it follows; 0: it knows none.
    pub leader: u64,
    /// Its revision.
    pub revision: u64,
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("is etcd-client installed? `cargo xtask setup` does")?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
