//! Labels of an endpoint that say what it is called: keys of `CNI_ARGS`, or of `args.cni.labels`.

use std::collections::BTreeMap;

/// The name of a pod, as containerd and CRI-O set it; podman's is that of the container.
pub const POD_NAME: &str = "K8S_POD_NAME";
/// The namespace of a pod; podman's is the container's name once more.
pub const POD_NAMESPACE: &str = "K8S_POD_NAMESPACE";
/// The host name, as nerdctl sets it.
pub const HOSTNAME_OF_NERDCTL: &str = "NERDCTL_CNI_DHCP_HOSTNAME";

/// Weft's own: the container's name, instead of the runtime's.
pub const NAME: &str = "WEFT_NAME";
/// Weft's own: its host name, instead of the runtime's.
pub const HOSTNAME: &str = "WEFT_HOSTNAME";
/// Weft's own: further names, with commas between.
pub const ALIASES: &str = "WEFT_ALIASES";
/// Weft's own: what it serves, as `_http._tcp:80`, with commas between.
pub const SRV: &str = "WEFT_SRV";
/// All of Weft's own.
pub const LABELS: [&str; 4] = [NAME, HOSTNAME, ALIASES, SRV];

/// What the runtime calls the container: `namespace/name`, or the name alone where the namespace says nothing more.
pub fn pod(labels: &BTreeMap<String, String>) -> Option<String> {
    let name = labels.get(POD_NAME)?;
    let namespace = labels.get(POD_NAMESPACE).filter(|n| !n.is_empty() && *n != name);
    Some(namespace.map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}")))
}
