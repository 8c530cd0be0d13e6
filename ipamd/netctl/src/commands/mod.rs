//! What each command asks of ipamd and what it makes of the answer. One function a command.
//!
//! Machine formats print the API's answer as it came, unknown fields of a newer ipamd included; tables are made from
//! the typed views.

mod bundle;
mod dns;
mod documents;
mod flows;
mod follow;
mod history;
mod node;
mod pool;
mod publish;
mod rhythm;
mod talk;
mod top;
mod trace;

pub(crate) use top::Rate;

use crate::{
    Exit, Surroundings,
    cli::{
        Cli, Command, ConntrackCommand, CreateNetwork, DnsCommand, Drops, EndpointCommand, History, Log,
        NetworkCommand, NodeCommand, PoolCommand, PublishCommand, Shell, Talk,
    },
    exit::Failure,
    output::{Answer, Output, printable},
    render::{self, Names},
};
use clap::CommandFactory;
use ipamd_api::{
    Client, ClientError, EndpointView, GcRequest, GcResponse, Inspection, NetworkView, Status,
    UninstallRequest, Uninstalled, path,
};
use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{io::Write, time::Duration};

/// How long an uninstall may take: the kernel needs tens of milliseconds for each link.
const UNINSTALL_PATIENCE: Duration = Duration::from_secs(600);

/// Runs a command whose answer goes on until it is interrupted; `None` for those that answer once.
pub(crate) fn follow(
    cli: &Cli,
    output: &Output,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
) -> Option<Result<Exit, Failure>> {
    match &cli.command {
        Command::Drops(asked @ Drops { follow: true, .. }) => {
            let asker = Asker { client: Client::new(&cli.run_dir), output };
            let followed = follow::drops(&asker, asked);
            Some(followed.and_then(|followed| follow::run(&asker, &followed, around, out)))
        }
        Command::Flows(asked @ Talk { follow: true, .. }) => {
            let asker = Asker { client: Client::new(&cli.run_dir), output };
            Some(talk::follow(&asker, asked, around, out))
        }
        Command::Top(asked) => {
            let asker = Asker { client: Client::new(&cli.run_dir), output };
            Some(top::run(&asker, asked, around, out))
        }
        Command::Dns(DnsCommand::Log(asked @ Log { follow: true, .. })) => {
            let asker = Asker { client: Client::new(&cli.run_dir), output };
            Some(follow::run(
                &asker,
                &follow::Questions { container: asked.container.as_deref() },
                around,
                out,
            ))
        }
        Command::History(asked @ History { follow: true, .. }) => {
            let asker = Asker { client: Client::new(&cli.run_dir), output };
            Some(follow::run(&asker, &asked, around, out))
        }
        _ => None,
    }
}

/// Runs a command that answers once.
pub(crate) fn execute(cli: &Cli, output: &Output, around: &Surroundings<'_>) -> Result<Answer, Failure> {
    let asker = Asker { client: Client::new(&cli.run_dir), output };
    match &cli.command {
        Command::Status => asker.status(),
        Command::Network(NetworkCommand::Create(create)) => asker.create_network(create),
        Command::Network(NetworkCommand::Ls) => asker.list_networks(),
        Command::Network(NetworkCommand::Inspect { name }) => asker.show_network(name),
        Command::Network(NetworkCommand::Rm { name }) => asker.remove_network(name),
        Command::Pool(PoolCommand::Ls { network }) => asker.list_pools(network.as_deref()),
        Command::Endpoint(EndpointCommand::Ls { network, no_trunc }) => {
            asker.list_endpoints(network.as_deref(), *no_trunc)
        }
        Command::Node(NodeCommand::Ls) => asker.list_nodes(),
        Command::Node(NodeCommand::Inspect { name }) => asker.inspect(&["node".to_owned(), name.clone()]),
        Command::Node(NodeCommand::Drain { name }) => asker.drain_node(name, true),
        Command::Node(NodeCommand::Undrain { name }) => asker.drain_node(name, false),
        Command::Node(NodeCommand::Rm { name, force }) => asker.remove_node(name, *force),
        Command::Doctor { fix } => asker.doctor(*fix, around),
        Command::Apply(apply) => asker.apply(&apply.documents, around, false, apply.dry_run),
        Command::Diff(file) => asker.diff(file, around),
        Command::Delete(delete) => asker.apply(&delete.documents, around, true, delete.dry_run),
        Command::Schema { kind } => asker.schema(*kind),
        Command::Publish(PublishCommand::Ls) => asker.list_ports(),
        Command::Publish(PublishCommand::Add(add)) => asker.add_ports(add),
        Command::Publish(PublishCommand::Rm(remove)) => asker.remove_port(remove),
        Command::Dns(DnsCommand::Ls { network }) => asker.list_names(network.as_deref()),
        Command::Dns(DnsCommand::Add(add)) => asker.add_name(add),
        Command::Dns(DnsCommand::Rm(remove)) => asker.remove_name(remove),
        Command::Dns(DnsCommand::Query(query)) => asker.query_name(query),
        Command::Dns(DnsCommand::Stats) => asker.dns_stats(),
        Command::Dns(DnsCommand::Log(_)) => Err(Failure::Local(
            "questions are not kept: `netctl dns log --follow` prints those that come".to_owned(),
        )),
        Command::Dns(DnsCommand::Flush) => asker.flush_dns(),
        Command::Conntrack(ConntrackCommand::Ls(flows)) => asker.list_flows(flows),
        Command::Conntrack(ConntrackCommand::Flush { flows, all }) => asker.flush_flows(flows, *all),
        Command::Drops(asked) => asker.list_drops(asked.all),
        Command::History(asked) => asker.history(asked),
        Command::Flows(asked) => asker.list_talk(asked),
        Command::Top(_) => Err(Failure::Local("top goes on until it is interrupted".to_owned())),
        Command::Trace(asked) => asker.trace(asked),
        Command::Uninstall { force } => asker.uninstall(*force),
        Command::Inspect { what } => asker.inspect(what),
        Command::SupportBundle(asked) => asker.bundle(cli, asked),
        Command::Gc => asker.collect(),
        Command::Completion { shell } => Ok(completion(*shell)),
        Command::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), dir).map_err(|e| {
                Failure::Local(format!("man pages cannot be written to {}: {e}", dir.display()))
            })?;
            Ok(Answer::done(String::new()))
        }
    }
}

struct Asker<'a> {
    client: Client,
    output: &'a Output,
}

impl Asker<'_> {
    fn status(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::STATUS)?;
        let status: Status = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::status::status(page, &status))?;
        Ok(Answer { text, exit: ok_if(status.ready) })
    }

    fn create_network(&self, create: &CreateNetwork) -> Result<Answer, Failure> {
        let spec = create.spec()?;
        let raw: Value = self.client.post(path::NETWORKS, &spec)?;
        let view: NetworkView = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::network::one_line(page, &view)).map(Answer::done)
    }

    fn list_networks(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::NETWORKS)?;
        let views: Vec<NetworkView> = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::network::list(page, &views)).map(Answer::done)
    }

    fn show_network(&self, name: &str) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(&below(path::NETWORK, "network", name)?)?;
        let view: NetworkView = self.typed(&raw)?;
        let endpoints = if self.output.for_people() { self.endpoints_of(name)? } else { Vec::new() };
        self.output
            .answer(&raw, |page| render::network::inspection(page, &view, &endpoints, &[]))
            .map(Answer::done)
    }

    fn remove_network(&self, name: &str) -> Result<Answer, Failure> {
        let raw: Value = self.client.delete(&below(path::NETWORK, "network", name)?)?;
        let done = |page: &mut render::Page<'_>| page.line(&format!("network {} removed", printable(name)));
        self.output.answer(&raw, done).map(Answer::done)
    }

    fn list_endpoints(&self, network: Option<&str>, whole_ids: bool) -> Result<Answer, Failure> {
        let mut raw: Value = self.client.get(path::ENDPOINTS)?;
        if let Some(name) = network {
            // A network that is not there is an error, not an empty list.
            self.client.get::<Value>(&below(path::NETWORK, "network", name)?)?;
            if let Value::Array(endpoints) = &mut raw {
                endpoints.retain(|e| e.get("network").and_then(Value::as_str) == Some(name));
            }
        }
        let views: Vec<EndpointView> = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::endpoint::list(page, &views, whole_ids)).map(Answer::done)
    }

    fn inspect(&self, what: &[String]) -> Result<Answer, Failure> {
        let path = match what {
            [kind, name] if kind == "node" => below(&format!("{}/node", path::INSPECT), "node", name)?,
            [kind, _] => {
                return Err(Failure::Usage(format!(
                    "{kind:?} is no kind of thing; write `inspect node NAME`"
                )));
            }
            _ => {
                let what = what.first().map_or("", String::as_str);
                // People paste addresses with their prefix length.
                let address = what.contains('/').then(|| what.parse::<IpNetwork>().ok()).flatten();
                let what = address.map_or_else(|| what.to_owned(), |a| a.ip().to_string());
                below(path::INSPECT, "container, network, address or node", &what)?
            }
        };
        let raw: Value = self.client.get(&path)?;
        let inspection: Inspection = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::inspection(page, &inspection))?;
        let healthy = match &inspection {
            Inspection::Container { endpoints } => endpoints.iter().all(|e| e.differences.is_empty()),
            Inspection::Network { differences, .. } => differences.is_empty(),
            Inspection::Address { .. } => true,
            Inspection::Node { status, .. } => status.ready,
            Inspection::Peer { findings, .. } => node::is_well(findings),
        };
        Ok(Answer { text, exit: ok_if(healthy) })
    }

    fn collect(&self) -> Result<Answer, Failure> {
        let raw: Value = self
            .client
            .post(path::GC, &GcRequest { network: None, configuration: None, runtime: None, valid: None })?;
        let collected: GcResponse = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::endpoint::collected(page, &collected)).map(Answer::done)
    }

    fn uninstall(&self, force: bool) -> Result<Answer, Failure> {
        let client = self.client.clone().with_timeout(UNINSTALL_PATIENCE);
        let raw: Value = client.post(path::UNINSTALL, &UninstallRequest { force })?;
        let done: Uninstalled = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::uninstalled(page, &done))?;
        Ok(Answer { text, exit: ok_if(done.left.is_empty()) })
    }

    /// Names of containers, if people are going to read them.
    fn names(&self, needed: bool) -> Result<Names, Failure> {
        if !needed || !self.output.for_people() {
            return Ok(Names::default());
        }
        let endpoints: Vec<EndpointView> = self.client.get(path::ENDPOINTS)?;
        Ok(Names::new(&endpoints))
    }

    fn endpoints_of(&self, network: &str) -> Result<Vec<EndpointView>, Failure> {
        let mut all: Vec<EndpointView> = self.client.get(path::ENDPOINTS)?;
        all.retain(|e| e.network == network);
        Ok(all)
    }

    fn typed<T: DeserializeOwned>(&self, raw: &Value) -> Result<T, Failure> {
        T::deserialize(raw).map_err(|cause| self.misunderstood(&cause))
    }

    fn misunderstood(&self, cause: &serde_json::Error) -> Failure {
        let socket = self.client.socket().to_owned();
        ClientError::Misunderstood { socket, cause: cause.to_string() }.into()
    }
}

fn ok_if(healthy: bool) -> Exit {
    if healthy { Exit::Done } else { Exit::Refused }
}

/// The path of one object. A name with a slash would ask for another path than the one that is meant.
fn below(folder: &str, kind: &str, name: &str) -> Result<String, Failure> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Failure::Usage(format!("{name:?} cannot be the name of a {kind}")));
    }
    Ok(format!("{folder}/{name}"))
}

fn completion(shell: Shell) -> Answer {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "netctl", &mut script);
    Answer::done(String::from_utf8_lossy(&script).into_owned())
}
