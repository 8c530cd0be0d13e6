//! A conflist whose plugins are called one after another, as libcni does.

use serde_json::{Value, json};
use weft_tests::{Cni, binaries, plugins};

/// A conflist and a caller that goes through it.
pub(crate) struct Chain {
    pub(crate) list: Value,
}

impl Chain {
    /// The plugins after weft, and weft's own keys.
    pub(crate) fn new(version: &str, weft: &Value, further: &[Value]) -> Self {
        let mut first = json!({ "type": "weft" });
        for (key, value) in weft.as_object().unwrap() {
            first[key] = value.clone();
        }
        let plugins: Vec<_> = std::iter::once(&first).chain(further).collect();
        Self { list: json!({ "cniVersion": version, "name": "chained", "plugins": plugins }) }
    }

    /// Each plugin's netconf as libcni builds it, and its caller.
    pub(crate) fn links<'a>(
        &'a self,
        cni: &'a Cni<'a>,
    ) -> impl DoubleEndedIterator<Item = (Cni<'a>, Value)> + 'a {
        self.list["plugins"].as_array().unwrap().iter().map(move |plugin| {
            let mut netconf = plugin.clone();
            netconf["name"] = self.list["name"].clone();
            netconf["cniVersion"] = self.list["cniVersion"].clone();
            let kind = plugin["type"].as_str().unwrap();
            let program = if kind == "weft" { binaries::find(kind) } else { plugins::reference(kind) };
            (cni.clone().program(program.unwrap()), netconf)
        })
    }

    /// ADD through the chain: each plugin gets the result of the one before.
    pub(crate) fn add(&self, cni: &Cni<'_>) -> Value {
        let mut result = Value::Null;
        for (call, mut netconf) in self.links(cni) {
            if !result.is_null() {
                netconf["prevResult"] = result;
            }
            result = call.add(&netconf).unwrap_or_else(|e| panic!("ADD of {}: {e:#}", netconf["type"]));
        }
        result
    }

    /// CHECK in the same order, each with the result of the whole chain.
    pub(crate) fn check(&self, cni: &Cni<'_>, result: &Value) -> anyhow::Result<()> {
        self.links(cni).try_for_each(|(call, netconf)| call.check(&netconf, result))
    }

    /// DEL in the opposite order.
    pub(crate) fn del(&self, cni: &Cni<'_>, result: &Value) {
        for (call, mut netconf) in self.links(cni).rev() {
            netconf["prevResult"] = result.clone();
            call.del(&netconf).unwrap_or_else(|e| panic!("DEL of {}: {e:#}", netconf["type"]));
        }
    }
}
