//! `weft-ipam`: the verbs of an IPAM plugin (specification, section "Delegated Plugins"). A main plugin calls it with its own
//! netconf, of which only `ipam`, the frame and what the runtime added are read.
//!
//! Owns the answer to the main plugin: addresses, routes and DNS settings, never an interface. The addresses themselves are
//! ipamd's, held until a DEL or GC as those of Weft's own containers are. Touches no link, neither with ipamd nor without.

mod conf;
mod ranges;
mod resolv_conf;
#[cfg(test)]
mod tests;

use crate::{
    absent,
    arguments::Arguments,
    environment::{Parameters, Verb},
    error,
    netconf::Netconf,
    prev_result::PrevResult,
    result,
    stop::stop_point,
    verbs::{Answer, Session, since, version},
    version::SpecVersion,
};
pub(crate) use conf::Conf;
use ipamd_api::{
    AllocateRequest, AllocateResponse, CheckRequest, Client, DelRequest, Evidence, GcRequest, HeldAddress,
    netns::Netns, path,
};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Longest command name of a process that the kernel tells (`TASK_COMM_LEN` without its end).
const MAX_COMM: usize = 15;

/// Serves one verb.
pub(crate) fn serve(session: &Session<'_>, verb: Verb, stdin: &[u8]) -> Answer {
    let parameters = || session.environment.parameters(verb);
    let call = |netconf| Delegate { session, netconf };
    match verb {
        Verb::Add => call(&Netconf::parse(stdin)?).add(parameters()?),
        Verb::Del => call(&Netconf::parse(stdin)?).del(parameters()?),
        Verb::Check => call(&since(SpecVersion::V0_4_0, verb, Netconf::parse(stdin)?)?).check(parameters()?),
        Verb::Status => call(&since(SpecVersion::V1_1_0, verb, Netconf::parse(stdin)?)?).status(),
        Verb::Gc => call(&since(SpecVersion::V1_1_0, verb, Netconf::parse(stdin)?)?).gc(),
        Verb::Version => Ok(version()),
    }
}

/// One call of a main plugin.
struct Delegate<'a> {
    session: &'a Session<'a>,
    netconf: &'a Netconf,
}

impl Delegate<'_> {
    fn add(&self, parameters: Parameters) -> Answer {
        let conf = Conf::of(self.netconf)?;
        // Whatever can be wrong with the answer is found before an address is taken for it.
        let (routes, mut dns) = (conf.routes()?, conf.dns()?);
        let (ips, labels) = self.netconf.ips_and_labels(Arguments::parse(&parameters.arguments)?)?;
        let request = AllocateRequest {
            attachment: parameters.attachment,
            netns: parameters.netns.unwrap_or_default(),
            runtime: self.runtime(&conf)?,
            network: conf.network()?,
            configuration: conf.configuration()?,
            ips,
            labels,
        };
        let client = Client::new(&self.run_dir(&conf)?);
        stop_point!("plugin.ipam.add.parsed");
        let given: AllocateResponse = client.post(path::ALLOCATE, &request).map_err(error::of_client)?;
        stop_point!("plugin.ipam.add.answered");
        let ips = given.addresses.iter().map(address).collect();
        // Who names servers has those.
        if dns.nameservers.is_empty() {
            dns.nameservers = given.nameservers;
        }
        let result = PrevResult { interfaces: Vec::new(), ips, routes, dns };
        Ok((result::print(self.netconf.version, result), String::new()))
    }

    fn del(&self, parameters: Parameters) -> Answer {
        let conf = Conf::of(self.netconf)?;
        let netns = parameters.netns.and_then(|path| Netns::open(&path).ok());
        let request = DelRequest {
            attachment: parameters.attachment,
            network: conf.network_name()?.to_owned(),
            // A result of the main plugin names no generation of Weft's, whatever its links are called.
            evidence: Evidence { endpoint: None, cookie: netns.map(|netns| netns.identity().cookie) },
        };
        self.session.release(&self.run_dir(&conf)?, request, absent::record)
    }

    fn check(&self, parameters: Parameters) -> Answer {
        let conf = Conf::of(self.netconf)?;
        let prev = self.netconf.prev_result()?.unwrap_or_default();
        let request = CheckRequest {
            expected_ips: prev.addresses_of(&parameters.attachment.ifname),
            attachment: parameters.attachment,
            network: conf.network_name()?.to_owned(),
            netns: parameters.netns.unwrap_or_default(),
        };
        let client = Client::new(&self.run_dir(&conf)?);
        let _: Value = client.post(path::CHECK, &request).map_err(error::of_client)?;
        Ok((Vec::new(), String::new()))
    }

    fn status(&self) -> Answer {
        Session::status(&self.run_dir(&Conf::of(self.netconf)?)?)
    }

    fn gc(&self) -> Answer {
        let conf = Conf::of(self.netconf)?;
        let request = GcRequest {
            network: Some(conf.network_name()?.to_owned()),
            configuration: conf.configuration()?,
            runtime: Some(self.runtime(&conf)?),
            valid: self.netconf.valid_attachments()?,
        };
        Session::collect(&self.run_dir(&conf)?, &request)
    }

    fn run_dir(&self, conf: &Conf<'_>) -> Result<PathBuf, ipamd_api::ApiError> {
        Ok(conf.run_dir()?.unwrap_or_else(|| self.session.default_run_dir()))
    }

    /// The runtime that the netconf names, else the process that called the main plugin. Where nobody stands between, it is the caller
    /// itself.
    fn runtime(&self, conf: &Conf<'_>) -> Result<String, ipamd_api::ApiError> {
        if let Some(name) = conf.runtime()? {
            return Ok(name);
        }
        let plugin = self.netconf.kind()?.unwrap_or_default();
        let caller = (self.session.caller)(0);
        let is_main_plugin = caller.as_deref().is_some_and(|name| is_comm_of(name, plugin));
        let above = if is_main_plugin { (self.session.caller)(1) } else { None };
        Ok(above.or(caller).unwrap_or_else(|| "unknown".into()))
    }
}

/// Whether a process with this command name may run the file `program`.
fn is_comm_of(comm: &str, program: &str) -> bool {
    !program.is_empty() && comm.as_bytes() == &program.as_bytes()[..program.len().min(MAX_COMM)]
}

fn address(held: &HeldAddress) -> Map<String, Value> {
    let fields = [("address", json!(held.address)), ("gateway", json!(held.gateway))];
    fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}
