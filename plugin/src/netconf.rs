//! The network configuration on standard input (specification, section 1 and "Deriving runtime configuration").
//!
//! Invariants: reading happens in steps, and a verb takes only those it needs, so that a DEL works with a netconf whose
//! pools nobody could use. Syntax is judged here, with the key in the message; what the content means is judged by
//! ipamd. Unknown keys are ignored at the top, as other plugins of the chain and runtimes add some.

mod fields;
mod runtime_config;
#[cfg(test)]
mod tests;

use crate::{
    arguments::Arguments, environment::shorten, error, prev_result::PrevResult, version::SpecVersion,
};
use fields::{Fields, Writer};
use ipamd_api::{
    ApiError, AttachmentKey, Dns, DnsMode, DnsUpstream, EndpointOptions, ErrorCode, Hooks, NetworkSpec,
    OverlaySpec, PoolSpec, Route, check_name,
};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::PathBuf};

/// Keys of a pool, at the top level for one pool or in the elements of `pools`.
const POOL_KEYS: [&str; 4] = ["subnet", "gateway", "dynamicRange", "reserved"];

/// A netconf whose frame is sound: JSON, a version Weft speaks, a name.
#[derive(Debug, Clone)]
pub(crate) struct Netconf {
    document: Map<String, Value>,
    pub(crate) version: SpecVersion,
    pub(crate) name: String,
}

impl Netconf {
    /// Reads the frame.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ApiError> {
        let document = match serde_json::from_slice(text) {
            Ok(Value::Object(document)) => document,
            Ok(_) => {
                return Err(error::decode(
                    "the netconf is JSON, but no object; pass the plugin's configuration",
                ));
            }
            Err(_) if text.trim_ascii().is_empty() => {
                return Err(error::decode("standard input is empty; pass the netconf there"));
            }
            Err(cause) => return Err(error::decode(format!("the netconf is not JSON: {cause}"))),
        };
        let fields = Fields::new(&document);
        // Absent means 0.1.0 (specification 0.2.0, section "Network Configuration").
        let wanted = fields.text("cniVersion")?.unwrap_or("0.1.0");
        let version = wanted.parse().map_err(|_| {
            ApiError::new(
                ErrorCode::IncompatibleVersion,
                format!(
                    "netconf: \"cniVersion\" is {}, but Weft speaks {}",
                    shorten(wanted),
                    SpecVersion::list()
                ),
            )
            .with_details(if fields.has("cniVersion") {
                ""
            } else {
                "\"cniVersion\" is absent, which means 0.1.0"
            })
        })?;
        let name = fields.text("name")?.unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(error::invalid("netconf: \"name\" is missing; name the network"));
        }
        check_name("netconf: \"name\"", &name).map_err(|e| error::invalid(e.to_string()))?;
        Ok(Self { document, version, name })
    }

    /// The version to answer an unsound netconf in.
    pub(crate) fn version_of(text: &[u8]) -> SpecVersion {
        let document: Option<Value> = serde_json::from_slice(text).ok();
        let version = document.as_ref().and_then(|d| d.get("cniVersion")?.as_str()?.parse().ok());
        version.unwrap_or(SpecVersion::NEWEST)
    }

    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.document)
    }

    /// `type`: the plugin that the netconf is for.
    pub(crate) fn kind(&self) -> Result<Option<&str>, ApiError> {
        self.fields().text("type")
    }

    /// `runDir`.
    pub(crate) fn run_dir(&self) -> Result<Option<PathBuf>, ApiError> {
        run_dir(&self.fields())
    }

    /// `runtime`.
    pub(crate) fn runtime(&self) -> Result<Option<String>, ApiError> {
        runtime(&self.fields())
    }

    /// `prevResult`.
    pub(crate) fn prev_result(&self) -> Result<Option<PrevResult>, ApiError> {
        self.fields().object("prevResult")?.map(|fields| PrevResult::read(&fields)).transpose()
    }

    /// `cni.dev/valid-attachments`, or by the name that libcni also sends. `None`: the runtime sent no list.
    pub(crate) fn valid_attachments(&self) -> Result<Option<Vec<AttachmentKey>>, ApiError> {
        let fields = self.fields();
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some(key) = keys.into_iter().find(|key| fields.has(key)) else { return Ok(None) };
        let read = |fields: &Fields<'_>| {
            let [container_id, ifname] = [fields.text("containerID")?, fields.text("ifname")?];
            match (container_id, ifname) {
                (Some(container_id), Some(ifname)) => {
                    Ok(AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
                }
                _ => Err(error::invalid(format!(
                    "netconf: {key:?} has an element without containerID or ifname"
                ))),
            }
        };
        // `null` is an empty list here: so Go writes one.
        let list = fields.written_by(Writer::Runtime).objects(key)?;
        list.iter().map(read).collect::<Result<_, _>>().map(Some)
    }

    /// The network as asked for.
    pub(crate) fn network(&self) -> Result<NetworkSpec, ApiError> {
        let fields = self.fields();
        if let Some(ipam) = fields.object("ipam")?.and_then(|ipam| ipam.text("type").transpose()) {
            let why = "Weft gives the addresses itself; remove \"ipam\" and set \"subnet\" or \"pools\"";
            return Err(error::unsupported("ipam.type", shorten(ipam?), why));
        }
        Ok(NetworkSpec {
            name: self.name.clone(),
            driver: match fields.text("driver")? {
                None => None,
                Some(driver) => Some(driver.parse().map_err(|_| {
                    error::unsupported(
                        "driver",
                        shorten(driver),
                        "use bridge, overlay, macvlan, host or none",
                    )
                })?),
            },
            pools: pools(&fields)?,
            mtu: fields.number("mtu")?,
            internal: fields.flag("internal")?,
            parent: parent(&fields)?,
            hooks: match fields.text("hooks")? {
                None => None,
                Some("clsact") => Some(Hooks::Clsact),
                Some("tcx") => Some(Hooks::Tcx),
                Some(other) => return Err(error::unsupported("hooks", shorten(other), "use clsact or tcx")),
            },
            masquerade: fields.flag("masquerade")?,
            masquerade_except: match fields.get("masqueradeExcept") {
                None => None,
                Some(_) => Some(fields.parsed_list("masqueradeExcept")?),
            },
            routed: fields.flag("routed")?,
            dns_mode: dns_mode(&fields)?,
            dns_upstreams: dns_upstreams(&fields)?,
            overlay: match fields.object("overlay")? {
                None => None,
                Some(overlay) => Some(OverlaySpec {
                    vni: overlay.number("vni")?,
                    encapsulation: match overlay.text("encapsulation")? {
                        None => None,
                        Some(text) => Some(text.parse().map_err(|_| {
                            error::unsupported(
                                "overlay.encapsulation",
                                shorten(text),
                                "use always or cross-subnet",
                            )
                        })?),
                    },
                    flood: overlay.flag("flood")?,
                }),
            },
        })
    }

    /// What is asked for the endpoint. For addresses and MAC the more special source wins: `runtimeConfig`, then
    /// `args.cni`, then `CNI_ARGS` (CONVENTIONS.md of CNI).
    pub(crate) fn options(&self, arguments: Arguments) -> Result<EndpointOptions, ApiError> {
        let fields = self.fields();
        let mac = arguments.mac;
        let (ips, labels) = self.ips_and_labels(arguments)?;
        let mut options = EndpointOptions {
            ips,
            mac: self.args()?.map(|args| args.parsed("mac")).transpose()?.flatten().or(mac),
            routes: routes(&fields)?,
            default_route: fields.flag("defaultRoute")?,
            dns: dns(&fields)?,
            labels,
            ..EndpointOptions::default()
        };
        if let Some(config) = self.runtime_config()? {
            runtime_config::apply(&config, &self.name, &mut options)?;
        }
        Ok(options)
    }

    /// The addresses that are asked for, and the labels of the endpoint.
    pub(crate) fn ips_and_labels(
        &self,
        arguments: Arguments,
    ) -> Result<(Vec<IpNetwork>, BTreeMap<String, String>), ApiError> {
        let Arguments { mut ips, labels: mut all, .. } = arguments;
        let mut ask_instead = |fields: &Fields<'_>| {
            let more_special = fields.parsed_list("ips")?;
            if !more_special.is_empty() {
                ips = more_special;
            }
            Ok::<_, ApiError>(())
        };
        if let Some(args) = self.args()? {
            ask_instead(&args)?;
            for (key, value) in labels(&args)? {
                all.entry(key).or_insert(value);
            }
        }
        if let Some(config) = self.runtime_config()? {
            ask_instead(&config)?;
        }
        Ok((ips, all))
    }

    /// `args.cni`.
    fn args(&self) -> Result<Option<Fields<'_>>, ApiError> {
        let args = self.fields().object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
        Ok(args.map(|args| args.written_by(Writer::Runtime)))
    }

    /// `runtimeConfig`.
    pub(crate) fn runtime_config(&self) -> Result<Option<Fields<'_>>, ApiError> {
        Ok(self.fields().object("runtimeConfig")?.map(|config| config.written_by(Writer::Runtime)))
    }
}

/// `runDir`.
pub(crate) fn run_dir(fields: &Fields<'_>) -> Result<Option<PathBuf>, ApiError> {
    let Some(dir) = fields.text("runDir")? else { return Ok(None) };
    if !dir.starts_with('/') {
        let msg = format!("netconf: \"runDir\" is {}: use an absolute path", shorten(dir));
        return Err(error::invalid(msg));
    }
    Ok(Some(PathBuf::from(dir)))
}

/// `runtime`.
pub(crate) fn runtime(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    Ok(fields.text("runtime")?.filter(|name| !name.is_empty()).map(str::to_owned))
}

/// One pool at the top level, or those in `pools`.
pub(crate) fn pools(fields: &Fields<'_>) -> Result<Vec<PoolSpec>, ApiError> {
    let listed = fields.objects("pools")?;
    let at_top = POOL_KEYS.into_iter().find(|key| fields.get(key).is_some());
    match at_top {
        None => listed
            .iter()
            .map(|pool| {
                pool.only(&POOL_KEYS)?;
                read_pool(pool)?
                    .ok_or_else(|| error::invalid("netconf: \"pools\" has an element without \"subnet\""))
            })
            .collect(),
        Some(key) if fields.get("pools").is_some() => Err(error::invalid(format!(
            "netconf: {key:?} and \"pools\" are both set; move {key:?} into \"pools\""
        ))),
        Some(key) => match read_pool(fields)? {
            Some(pool) => Ok(vec![pool]),
            None => {
                Err(error::invalid(format!("netconf: {key:?} is set without \"subnet\"; add the subnet")))
            }
        },
    }
}

pub(crate) fn read_pool(fields: &Fields<'_>) -> Result<Option<PoolSpec>, ApiError> {
    let Some(subnet) = fields.parsed("subnet")? else { return Ok(None) };
    Ok(Some(PoolSpec {
        subnet,
        gateway: fields.parsed("gateway")?,
        dynamic_range: fields.parsed("dynamicRange")?,
        reserved: fields.parsed_list("reserved")?,
    }))
}

/// `parent`, or `master` as the reference plugins call it.
fn parent(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    match (fields.text("parent")?, fields.text("master")?) {
        (Some(parent), Some(master)) if parent != master => Err(error::invalid(format!(
            "netconf: \"parent\" is {} and \"master\", its other name, is {}; remove one",
            shorten(parent),
            shorten(master)
        ))),
        (parent, master) => Ok(parent.or(master).map(str::to_owned)),
    }
}

fn routes(fields: &Fields<'_>) -> Result<Vec<Route>, ApiError> {
    let read = |route: &Fields<'_>| {
        route.only(&["dst", "gw"])?;
        let dst = route.parsed("dst")?;
        let dst = dst.ok_or_else(|| error::invalid("netconf: \"routes\" has an element without \"dst\""))?;
        Ok(Route { dst, gw: route.parsed("gw")? })
    };
    fields.objects("routes")?.iter().map(read).collect()
}

/// `dnsMode`.
pub(crate) fn dns_mode(fields: &Fields<'_>) -> Result<Option<DnsMode>, ApiError> {
    let Some(text) = fields.text("dnsMode")? else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| error::unsupported("dnsMode", shorten(text), "use gateway, intercept, sandbox or off"))
}

/// `dnsUpstreams`.
pub(crate) fn dns_upstreams(fields: &Fields<'_>) -> Result<Option<Vec<DnsUpstream>>, ApiError> {
    fields.get("dnsUpstreams").map(|_| fields.parsed_list("dnsUpstreams")).transpose()
}

/// `dns` of a netconf or a result.
pub(crate) fn dns(fields: &Fields<'_>) -> Result<Dns, ApiError> {
    let Some(dns) = fields.object("dns")? else { return Ok(Dns::default()) };
    Ok(Dns {
        nameservers: dns.texts("nameservers")?,
        domain: dns.text("domain")?.filter(|domain| !domain.is_empty()).map(str::to_owned),
        search: dns.texts("search")?,
        options: dns.texts("options")?,
    })
}

/// `labels` of `args.cni`: a list of `{"key", "value"}` (CONVENTIONS.md), or an object.
fn labels(args: &Fields<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(labels) = args.get("labels") else { return Ok(BTreeMap::new()) };
    if !labels.is_list() {
        let pairs = labels.object()?;
        return pairs.entries().map(|(key, value)| Ok((key.clone(), value.text()?.to_owned()))).collect();
    }
    let read = |label: Fields<'_>| match label.text("key")? {
        Some(key) => Ok((key.to_owned(), label.text("value")?.unwrap_or_default().to_owned())),
        None => Err(error::invalid("netconf: \"args.cni.labels\" has an element without \"key\"")),
    };
    labels.list()?.iter().map(|label| read(label.object()?)).collect()
}

pub(crate) use fields::{Fields as JsonFields, Item as JsonItem};
