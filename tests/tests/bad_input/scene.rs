//! The node that bad calls run into, and what is compared before and after each.

use super::{base, tiny, with};
use anyhow::{Result, ensure};
use ipamd_api::{EndpointView, NetworkView, path};
use serde_json::{Value, json};
use std::net::TcpListener;
use weft_tests::{Cni, Inventory, Node, Pod, Sandbox, TestNetns};

/// What a call must leave as it is.
#[derive(Debug, PartialEq)]
pub(crate) struct State {
    inventory: Inventory,
    networks: Vec<NetworkView>,
    endpoints: Vec<EndpointView>,
    host: String,
    sandbox: String,
}

impl State {
    pub(crate) fn of(node: &Node, sandbox: &Sandbox) -> Result<Self> {
        // Link-local addresses of the bridges are tentative for a second, by themselves.
        let addresses =
            |netns: &TestNetns| Ok::<_, anyhow::Error>(netns.ip("-o addr show")?.replace(" tentative", ""));
        Ok(Self {
            inventory: Inventory::of(node)?,
            networks: node.client().get(path::NETWORKS)?,
            endpoints: node.client().get(path::ENDPOINTS)?,
            host: addresses(node.netns())? + &node.netns().ip("-o neigh show nud permanent")?,
            sandbox: addresses(sandbox)?,
        })
    }
}

/// Standard input of a call.
pub(crate) enum Input {
    Netconf(Value),
    Raw(Vec<u8>),
}

/// The lines in which two states differ.
fn difference(before: &State, after: &State) -> String {
    let [before, after] = [before, after].map(|state| format!("{state:#?}").replace("\\n", "\n"));
    let only = |a: &str, b: &str| -> String {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n")
    };
    format!("before:\n{}\nafter:\n{}", only(&before, &after), only(&after, &before))
}

/// A call that must be refused: what it is, how, and what the error must be and say.
pub(crate) struct Case<'a> {
    pub(crate) what: String,
    pub(crate) cni: Cni<'a>,
    pub(crate) verb: &'static str,
    pub(crate) input: Input,
    pub(crate) code: u32,
    pub(crate) words: Vec<String>,
}

/// Host port that a container publishes.
pub(crate) const HELD_PORT: u16 = 18_081;

/// The node of the table, with what the calls run into.
pub(crate) struct Scene {
    // In the order in which they have to go.
    pub(crate) holder: Pod,
    pub(crate) tiny: Sandbox,
    pub(crate) victim: Sandbox,
    _publisher: Pod,
    /// A socket of the node, and its port.
    _bound: TcpListener,
    pub(crate) bound_port: u16,
    pub(crate) node: Node,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let node = Node::builder("bad").settings("request_timeout = 1").start()?;
        let holding = with(&base(), &json!({"runtimeConfig": {"ips": ["10.90.0.10"]}}));
        let holder = Pod::add(&node, "holder", &holding)?;
        let held = Sandbox::new()?;
        let cni = node.cni()?.container("tiny-holder").netns(held.path());
        cni.args("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=greedy").add(&tiny())?;
        let mapping = json!({"hostPort": HELD_PORT, "containerPort": 80});
        let publishing = with(&base(), &json!({"runtimeConfig": {"portMappings": [mapping]}}));
        let publisher = Pod::add(&node, "publisher", &publishing)?;
        let bound = node.netns().run(|| TcpListener::bind("0.0.0.0:0"))??;
        let bound_port = bound.local_addr()?.port();
        let victim = Sandbox::new()?;
        Ok(Self { holder, tiny: held, victim, _publisher: publisher, _bound: bound, bound_port, node })
    }

    /// A call in which everything is right but for what the case changes.
    pub(crate) fn cni(&self) -> Result<Cni<'_>> {
        Ok(self.node.cni()?.container("victim").netns(self.victim.path()))
    }

    pub(crate) fn case(&self, what: &str, input: Input, code: u32, words: &[&str]) -> Result<Case<'_>> {
        let words = words.iter().map(|w| (*w).to_owned()).collect();
        Ok(Case { what: what.to_owned(), cni: self.cni()?, verb: "ADD", input, code, words })
    }

    pub(crate) fn refuse(&self, case: &Case<'_>) -> Result<()> {
        let before = State::of(&self.node, &self.victim)?;
        let answer = match &case.input {
            Input::Netconf(netconf) => case.cni.call(case.verb, netconf)?,
            Input::Raw(bytes) => case.cni.call_raw(case.verb, bytes)?,
        };
        let error = match answer {
            Ok(answer) => anyhow::bail!("was not refused, but answered {answer}"),
            Err(error) => error,
        };
        ensure!(error.code == case.code, "code {} instead of {}: {error}", error.code, case.code);
        let said = error.to_string();
        for word in &case.words {
            ensure!(said.contains(word), "no {word:?} in: {said}");
        }
        ensure!(said.len() < 1000, "nobody reads {} characters: {said}", said.len());
        let after = State::of(&self.node, &self.victim)?;
        ensure!(after == before, "changed: {}", difference(&before, &after));
        Ok(())
    }
}
