//! Netconfs of tests: a network of both families, and what a runtime adds to publish ports.

use serde_json::{Value, json};

/// A network with the pools 10.`number`.0.0/24 and fd00:`number`::/64, whose gateways have the host number 1; `more` is laid
/// over it.
pub fn network(name: &str, number: u8, more: &Value) -> Value {
    let mut netconf = json!({
        "cniVersion": "1.0.0", "name": name, "type": "weft",
        "pools": [
            {"subnet": format!("10.{number}.0.0/24")}, {"subnet": format!("fd00:{number}::/64")},
        ],
    });
    if let (Some(fields), Some(more)) = (netconf.as_object_mut(), more.as_object()) {
        fields.extend(more.clone());
    }
    netconf
}

/// The netconf with these elements of the capability `portMappings`.
pub fn publishing(netconf: &Value, mappings: &Value) -> Value {
    let mut netconf = netconf.clone();
    netconf["runtimeConfig"]["portMappings"] = mappings.clone();
    netconf
}

/// A port on both TCP and UDP, as two elements.
pub fn both_protocols(host_port: u16, container_port: u16) -> Value {
    let mapping =
        |protocol| json!({"hostPort": host_port, "containerPort": container_port, "protocol": protocol});
    json!([mapping("tcp"), mapping("udp")])
}
