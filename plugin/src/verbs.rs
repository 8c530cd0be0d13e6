//! The verbs, one function each: environment and netconf in, a call to ipamd, the result out.
//!
//! The walk of an ADD: [`run`] → [`Session::add`] → ipamd's API → [`result::render`].

use crate::{
    Call, Outcome, Program, absent,
    arguments::Arguments,
    environment::{Environment, Parameters, Verb},
    error, ipam,
    netconf::Netconf,
    prev_result::PrevResult,
    result,
    stop::stop_point,
    version::SpecVersion,
};
use ipamd_api::{
    AddRequest, AddResponse, ApiError, CheckRequest, Client, ClientError, DEFAULT_RUN_DIR, DelRequest,
    DelResponse, ErrorCode, Evidence, GcRequest, GcResponse, Health, Status, netns::Netns, path,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a STATUS, which runtimes poll, waits for ipamd.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// What a verb ends with: standard output and notes.
pub(crate) type Answer = Result<(Vec<u8>, String), ApiError>;

/// Serves one call.
pub(crate) fn run(call: Call) -> Outcome {
    let environment = Environment(&call.variables);
    let verb = match environment.verb() {
        Ok(None) => return Outcome { stdout: Vec::new(), stderr: about(call.program), code: 0 },
        Ok(Some(verb)) => Ok(verb),
        Err(error) => Err(error),
    };
    // Runtimes may leave it open for a VERSION; an error wants it for the version to answer in.
    let stdin = if verb == Ok(Verb::Version) { Ok(Vec::new()) } else { (call.stdin)() };
    let version = stdin.as_ref().map_or(SpecVersion::NEWEST, |text| Netconf::version_of(text));
    let answer = verb.and_then(|verb| {
        let stdin = stdin.map_err(|cause| {
            ApiError::new(ErrorCode::Io, format!("the netconf cannot be read from standard input: {cause}"))
        })?;
        let session = Session { environment, caller: &call.caller, del_limit: call.del_limit };
        match call.program {
            Program::Weft => session.serve(verb, &stdin),
            Program::WeftIpam => ipam::serve(&session, verb, &stdin),
        }
    });
    match answer {
        Ok((stdout, stderr)) => Outcome { stdout, stderr, code: 0 },
        Err(error) => Outcome { stdout: error::render(version, &error), stderr: String::new(), code: 1 },
    }
}

/// What someone reads who runs the command by hand.
fn about(program: Program) -> String {
    let callers = match program {
        Program::Weft => "container runtimes",
        Program::WeftIpam => "main plugins",
    };
    format!(
        "CNI plugin {} v{}, for {callers} to call\nCNI protocol versions supported: {}\n",
        program.name(),
        env!("CARGO_PKG_VERSION"),
        SpecVersion::list()
    )
}

/// VERSION (specification, section "VERSION Success").
pub(crate) fn version() -> (Vec<u8>, String) {
    let versions = serde_json::json!({
        "cniVersion": SpecVersion::NEWEST.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    });
    (error::to_json(&versions), String::new())
}

/// What every verb but VERSION works with.
pub(crate) struct Session<'a> {
    pub(crate) environment: Environment<'a>,
    pub(crate) caller: &'a dyn Fn(usize) -> Option<String>,
    del_limit: Duration,
}

impl Session<'_> {
    fn serve(&self, verb: Verb, stdin: &[u8]) -> Answer {
        let parameters = || self.environment.parameters(verb);
        match verb {
            Verb::Add => self.add(parameters()?, &Netconf::parse(stdin)?),
            Verb::Del => self.del(parameters()?, &Netconf::parse(stdin)?),
            Verb::Check => {
                self.check(parameters()?, &since(SpecVersion::V0_4_0, verb, Netconf::parse(stdin)?)?)
            }
            Verb::Status => {
                let netconf = since(SpecVersion::V1_1_0, verb, Netconf::parse(stdin)?)?;
                Self::status(&self.run_dir(&netconf)?)
            }
            Verb::Gc => self.gc(&since(SpecVersion::V1_1_0, verb, Netconf::parse(stdin)?)?),
            Verb::Version => Ok(version()),
        }
    }

    fn add(&self, parameters: Parameters, netconf: &Netconf) -> Answer {
        let prev = netconf.prev_result()?.unwrap_or_default();
        let request = AddRequest {
            attachment: parameters.attachment,
            netns: parameters.netns.unwrap_or_default(),
            runtime: self.runtime(netconf)?,
            network: netconf.network()?,
            options: netconf.options(Arguments::parse(&parameters.arguments)?)?,
        };
        let client = Client::new(&self.run_dir(netconf)?);
        stop_point!("plugin.add.parsed");
        let added: AddResponse = client.post(path::ADD, &request).map_err(error::of_client)?;
        stop_point!("plugin.add.answered");
        Ok((result::render(netconf.version, prev, &request.options.dns, &added), String::new()))
    }

    fn del(&self, parameters: Parameters, netconf: &Netconf) -> Answer {
        // A result that cannot be read is no evidence, and no reason to keep a container from going.
        let prev = netconf.prev_result().unwrap_or_default();
        let netns = parameters.netns.and_then(|path| Netns::open(&path).ok());
        let request = DelRequest {
            attachment: parameters.attachment,
            network: netconf.name.clone(),
            evidence: Evidence {
                endpoint: prev.as_ref().and_then(PrevResult::generation),
                cookie: netns.as_ref().map(|netns| netns.identity().cookie),
            },
        };
        self.release(&self.run_dir(netconf)?, request, |run_dir, request| {
            absent::release(run_dir, request, netns.as_ref(), prev.as_ref())
        })
    }

    /// Sends a DEL; `absent` does what is to be done while ipamd is away.
    pub(crate) fn release(
        &self,
        run_dir: &Path,
        request: DelRequest,
        absent: impl FnOnce(&Path, DelRequest) -> Result<String, ApiError>,
    ) -> Answer {
        stop_point!("plugin.del.parsed");
        let answer = Client::new(run_dir).with_timeout(self.del_limit).post(path::DEL, &request);
        let note = match answer.map(|_: DelResponse| ()) {
            Ok(()) => String::new(),
            Err(ClientError::Refused(refusal)) if !is_for_later(&refusal) => return Err(refusal),
            Err(away) => format!("{away}\n{}", absent(run_dir, request)?),
        };
        stop_point!("plugin.del.answered");
        Ok((Vec::new(), note))
    }

    fn check(&self, parameters: Parameters, netconf: &Netconf) -> Answer {
        let prev = netconf.prev_result()?.ok_or_else(|| {
            error::invalid("netconf: \"prevResult\" is missing; CHECK needs the result of the ADD")
        })?;
        let request = CheckRequest {
            expected_ips: prev.addresses_of(&parameters.attachment.ifname),
            attachment: parameters.attachment,
            network: netconf.name.clone(),
            netns: parameters.netns.unwrap_or_default(),
        };
        let client = Client::new(&self.run_dir(netconf)?);
        let _: serde_json::Value = client.post(path::CHECK, &request).map_err(error::of_client)?;
        Ok((Vec::new(), String::new()))
    }

    /// Success means that an ADD would work, and nothing else (specification, section "STATUS"); what is wrong beside
    /// that goes to standard error.
    pub(crate) fn status(run_dir: &Path) -> Answer {
        let client = Client::new(run_dir).with_timeout(STATUS_LIMIT);
        let status: Status = client.get(path::STATUS).map_err(error::of_client_for_status)?;
        let parts = || status.parts.iter().filter(|part| part.health != Health::Ok);
        let list =
            parts().map(|part| format!("{}: {}", part.part, part.message)).collect::<Vec<_>>().join("; ");
        if status.ready {
            return Ok((Vec::new(), if list.is_empty() { list } else { format!("ipamd: {list}\n") }));
        }
        let code = if parts().any(|part| part.health == Health::Degraded) {
            ErrorCode::LimitedConnectivity
        } else {
            ErrorCode::NotAvailable
        };
        let msg = format!("ipamd on node {} cannot serve an ADD; see `netctl status`", status.node);
        Err(ApiError::new(code, msg).with_details(list))
    }

    fn gc(&self, netconf: &Netconf) -> Answer {
        let request = GcRequest {
            network: Some(netconf.name.clone()),
            configuration: None,
            runtime: Some(self.runtime(netconf)?),
            valid: netconf.valid_attachments()?,
        };
        Self::collect(&self.run_dir(netconf)?, &request)
    }

    /// Sends a GC.
    pub(crate) fn collect(run_dir: &Path, request: &GcRequest) -> Answer {
        let answer: GcResponse = Client::new(run_dir).post(path::GC, request).map_err(error::of_client)?;
        let kept: Vec<_> = answer.kept.iter().map(ToString::to_string).collect();
        let note = if kept.is_empty() {
            String::new()
        } else {
            format!("not in the list of valid attachments, but alive, and so kept: {}\n", kept.join(", "))
        };
        Ok((Vec::new(), note))
    }

    /// The netconf's `runDir`, else `WEFT_RUN_DIR`, else the default.
    fn run_dir(&self, netconf: &Netconf) -> Result<PathBuf, ApiError> {
        Ok(netconf.run_dir()?.unwrap_or_else(|| self.default_run_dir()))
    }

    /// `WEFT_RUN_DIR`, else the default.
    pub(crate) fn default_run_dir(&self) -> PathBuf {
        self.environment.run_dir().unwrap_or_else(|| DEFAULT_RUN_DIR.into())
    }

    /// The netconf's `runtime`, else the name of the calling process.
    fn runtime(&self, netconf: &Netconf) -> Result<String, ApiError> {
        Ok(netconf.runtime()?.or_else(|| (self.caller)(0)).unwrap_or_else(|| "unknown".into()))
    }
}

/// Refuses a verb that the netconf's version does not have yet.
pub(crate) fn since(first: SpecVersion, verb: Verb, netconf: Netconf) -> Result<Netconf, ApiError> {
    if netconf.version >= first {
        return Ok(netconf);
    }
    let msg = format!(
        "netconf: \"cniVersion\" is \"{}\", but {} exists since {first}; raise it to one of {}",
        netconf.version,
        verb.name(),
        SpecVersion::list()
    );
    Err(ApiError::new(ErrorCode::IncompatibleVersion, msg))
}

/// Whether ipamd is there but not ready, as while it starts: for a DEL that is as good as away.
fn is_for_later(refusal: &ApiError) -> bool {
    matches!(
        refusal.code(),
        Some(ErrorCode::TryAgainLater | ErrorCode::NotAvailable | ErrorCode::LimitedConnectivity)
    )
}
