//! What manifests/ says, put to use: settings are read, conflists are taken, certificates are made and let members and ipamd in, and the
//! pods ask for what is written down and no more. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ipamd::settings::{Settings, StoreKind};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use weft_tests::{Guarded, Node, Sandbox, TestNetns, binaries, poll_until};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
const RENDERED: [&str; 3] = ["weft.yaml", "weft-external-etcd.yaml", "weft-single-node.yaml"];

/// The documents of a rendering.
fn documents(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(MANIFESTS).join(name)).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |d: &&Value| d["kind"] == kind && d["metadata"]["name"] == name;
    documents.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn settings(file: &Path) -> Settings {
    let arguments = ["ipamd".into(), "--config".into(), OsString::from(file)];
    Settings::read(arguments, &BTreeMap::new()).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

#[test]
fn ipamd_reads_every_settings_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in RENDERED {
        let documents = documents(name);
        let toml = find(&documents, "ConfigMap", "weft")["data"]["ipamd.toml"].as_str().unwrap();
        let file = dir.path().join("ipamd.toml");
        fs::write(&file, toml).unwrap();
        let settings = settings(&file);
        assert_eq!(settings.store == StoreKind::Embedded, name == "weft-single-node.yaml", "{name}");
        assert_eq!(settings.stack_cidrs.0.len(), 1, "{name}");
        // What the files of certificates are called must be where the pod has them.
        if settings.store != StoreKind::Embedded {
            for file in [&settings.etcd_ca_file, &settings.etcd_cert_file, &settings.etcd_key_file] {
                assert!(file.starts_with("/etc/weft-etcd/"), "{file}");
            }
        }
    }
    settings(&Path::new(MANIFESTS).join("systemd/ipamd.toml"));
}

/// With no ipamd to ask, a call with a good netconf is told to come again.
#[test]
fn the_plugin_takes_every_conflist() {
    for name in RENDERED {
        let documents = documents(name);
        let text = find(&documents, "ConfigMap", "weft")["data"]["10-weft.conflist"].as_str().unwrap();
        let list: Value = serde_json::from_str(text).unwrap();
        let mut netconf = list["plugins"][0].clone();
        let run_dir = tempfile::tempdir().unwrap();
        netconf["name"] = list["name"].clone();
        netconf["cniVersion"] = list["cniVersion"].clone();
        netconf["runDir"] = run_dir.path().to_str().unwrap().into();
        let mut weft = Command::new(binaries::find("weft").unwrap());
        weft.env_clear().envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]);
        weft.env("CNI_NETNS", "/run/netns/none").env("CNI_PATH", "/none");
        let mut child = weft.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(netconf.to_string().as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap().stdout;
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(said["code"], 11, "{name}: {said}");
    }
}

/// The rendering has the files byte for byte, in the namespace of the others, and says how the patch is applied to what they have.
#[test]
fn the_rendered_monitoring_has_the_alerts_the_dashboard_and_the_patch() {
    const NAME: &str = "weft-monitoring.yaml";
    let monitoring = documents(NAME);
    let file = |name: &str| fs::read_to_string(Path::new(MANIFESTS).join("monitoring").join(name)).unwrap();
    for (map, key, name) in [
        ("weft-dashboard", "weft-dashboard.json", "dashboard.json"),
        ("weft-rules", "weft.rules.yaml", "weft.rules.yaml"),
    ] {
        let map = find(&monitoring, "ConfigMap", map);
        assert_eq!(map["data"], json!({ key: file(name) }));
        assert_eq!(map["apiVersion"], "v1");
    }
    assert_eq!(monitoring.len(), 2);
    let dashboard = find(&monitoring, "ConfigMap", "weft-dashboard");
    assert_eq!(dashboard["metadata"]["labels"], json!({"grafana_dashboard": "1"}));

    let patch: Value = serde_yaml_ng::from_str(&file("scrape.yaml")).unwrap();
    for rendered in RENDERED {
        let documents = documents(rendered);
        let namespace = &find(&documents, "Namespace", "weft-system")["metadata"]["name"];
        assert!(monitoring.iter().all(|map| map["metadata"]["namespace"] == *namespace), "{rendered}");
        // A container that the patch names and the DaemonSet lacks would be added by it.
        let patched = find(&documents, "DaemonSet", patch["metadata"]["name"].as_str().unwrap());
        let names = |of: &Value| {
            list(&of["spec"]["template"]["spec"]["containers"]).map(|c| c["name"].clone()).collect::<Vec<_>>()
        };
        assert!(names(&patch).iter().all(|name| names(patched).contains(name)), "{rendered}");
    }
    let said = fs::read_to_string(Path::new(MANIFESTS).join(NAME)).unwrap();
    let command = "kubectl -n weft-system patch daemonset weft --patch-file monitoring/scrape.yaml";
    assert!(said.contains(command), "{said}");
}

#[test]
fn pods_ask_for_no_more_than_is_written_down() {
    let capabilities = [
        "NET_ADMIN",
        "SYS_ADMIN",
        "BPF",
        "PERFMON",
        "SYS_PTRACE",
        "NET_RAW",
        "NET_BIND_SERVICE",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
    ];
    for name in RENDERED {
        let documents = documents(name);
        for document in &documents {
            let pod = &document["spec"]["template"]["spec"];
            for container in list(&pod["initContainers"]).chain(list(&pod["containers"])) {
                let context = &container["securityContext"];
                assert_ne!(context["privileged"], true, "{name}: {container}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}: {container}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}: {container}");
                assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}: {container}");
                let expected: &[&str] = match container["name"].as_str().unwrap() {
                    "ipamd" => &capabilities,
                    "install-cni" => &capabilities[7..8],
                    _ => &[],
                };
                let added: Vec<_> = list(&context["capabilities"]["add"]).filter_map(Value::as_str).collect();
                assert_eq!(added, expected, "{name}: {}", container["name"]);
            }
            // None of them may wait for the network that Weft makes.
            if !pod.is_null() {
                assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
            }
        }
        let node = &find(&documents, "DaemonSet", "weft")["spec"]["template"]["spec"];
        assert_eq!(node["automountServiceAccountToken"], false);
        // An etcd that is away for a week is waited for, not restarted against.
        let (ipamd, probe) = (&node["containers"][0], &node["containers"][0]["startupProbe"]);
        let patience = probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
        assert!(patience > 7 * 24 * 3600 && ipamd["livenessProbe"].is_null(), "{name}: {patience} s");
        let image = format!("localhost/weft:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (&node["containers"][0]["image"], &node["initContainers"][0]["image"]),
            (&image.as_str().into(), &image.as_str().into())
        );
        let roles = documents.iter().filter(|d| d["kind"].as_str().unwrap().contains("Role"));
        assert_eq!(roles.count(), if name == "weft.yaml" { 2 } else { 0 }, "{name}");
    }
}

/// As a runtime starts the pod: sysctls read-only and the host's beside them, and the capabilities of the manifest, no more.
#[test]
fn ipamd_serves_with_the_pods_rights_alone() {
    const CONFINE: &str = r#"mount --bind /proc/sys "$1" && mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys || exit 1
        rights="$2"; shift 2; exec setpriv --bounding-set "$rights" --inh-caps=-all "$@""#;
    let documents = documents("weft.yaml");
    let pod = &find(&documents, "DaemonSet", "weft")["spec"]["template"]["spec"];
    let added = list(&pod["containers"][0]["securityContext"]["capabilities"]["add"]);
    let rights = added
        .fold("-all".to_owned(), |all, name| format!("{all},+{}", name.as_str().unwrap().to_lowercase()));
    let place = tempfile::tempdir().unwrap();
    let place = place.path().to_str().unwrap();
    // Mounted before ipamd starts: what comes later reaches a container only where the host's root is shared.
    let (one, two) = (Sandbox::new().unwrap(), Sandbox::new().unwrap());
    let words = ["unshare", "--mount", "sh", "-c", CONFINE, "sh", place, &rights];

    let mut node = Node::builder("pod").build().unwrap();
    node.spawn_through(&words).unwrap();
    assert!(!node.wait_ended().unwrap().success());
    assert!(node.log_tail().contains("`sysctl_dir`"), "{}", node.log_tail());

    let settings = format!("sysctl_dir = \"{place}\"\nunderlay = [\"192.0.2.10\"]");
    let mut node = Node::builder("pod").settings(&settings).build().unwrap();
    for words in ["link add up0 type veth peer name up1", "addr add 192.0.2.10/24 dev up0", "link set up0 up"]
    {
        node.netns().ip(words).unwrap();
    }
    node.spawn_through(&words).unwrap();
    node.wait_ready().unwrap();
    let status = node.netctl(&["status"]).unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    let effective = fs::read_to_string(format!("/proc/{}/status", node.ipamd_pid().unwrap())).unwrap();
    let effective = effective.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let count = u64::from_str_radix(effective, 16).unwrap().count_ones();
    assert_eq!(count as usize, rights.matches('+').count(), "{effective}");

    for (driver, subnet) in [("bridge", "10.9.1.0/24"), ("overlay", "10.9.2.0/24")] {
        let netconf = json!({
            "cniVersion": "1.0.0", "name": driver, "type": "weft", "driver": driver, "subnet": subnet,
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        });
        let mut bare = netconf.clone();
        bare["runtimeConfig"] = json!({});
        let ifname = format!("{driver}0");
        let first = node.cni().unwrap().container("c1").netns(one.path()).ifname(&ifname);
        let second = node.cni().unwrap().container("c2").netns(two.path()).ifname(&ifname);
        first.add(&netconf).unwrap();
        let result = second.add(&bare).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        assert!(one.ping(&address).unwrap(), "{driver}: {}", node.log_tail());
        // The node reaches it by its own stack: the sysctls of the device are set.
        assert!(node.netns().ping(&address).unwrap(), "{driver}: {}", node.log_tail());
        first.del(&netconf).unwrap();
        second.del(&bare).unwrap();
    }
    let uninstalled = node.netctl(&["uninstall", "--force"]).unwrap();
    assert!(uninstalled.status.success(), "{}", String::from_utf8_lossy(&uninstalled.stdout));
}

/// The capabilities of the unit and of the pod are one list.
#[test]
fn the_unit_is_hardened_and_has_the_pods_capabilities() {
    let unit = Path::new(MANIFESTS).join("systemd/ipamd.service");
    let text = fs::read_to_string(&unit).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let mut of_unit: Vec<_> =
        line.split(' ').map(|name| name.trim_start_matches("CAP_").to_owned()).collect();
    let documents = documents("weft.yaml");
    let pod = &find(&documents, "DaemonSet", "weft")["spec"]["template"]["spec"];
    let added = list(&pod["containers"][0]["securityContext"]["capabilities"]["add"]);
    let mut of_pod: Vec<_> = added.map(|name| name.as_str().unwrap().to_owned()).collect();
    of_unit.sort();
    of_pod.sort();
    assert_eq!(of_unit, of_pod);
    assert!(text.contains("\nRuntimeDirectoryPreserve=yes\n"));

    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=39"])
        .arg(&unit)
        .output()
        .expect("systemd-analyze comes with systemd");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "the exposure must be below 4.0: {}",
        said.lines().last().unwrap_or_default()
    );
}

/// Certificates by the Job's own script, and three members by the StatefulSet's own arguments, in one namespace.
#[test]
fn the_bundled_etcd_runs_with_the_certificates_of_its_job() {
    const HOSTS: [&str; 3] = ["127.77.0.1", "127.77.0.2", "127.77.0.3"];
    let documents = documents("weft.yaml");
    let dir = tempfile::tempdir().unwrap();
    let secrets = certificates(&documents, dir.path(), &HOSTS.join(" "));

    let placeholders = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let cluster = find(&documents, "ConfigMap", "weft-etcd")["data"]["initial-cluster"].as_str().unwrap();
    let cluster =
        placeholders.iter().zip(HOSTS).fold(cluster.to_owned(), |c, (from, to)| c.replace(from, to));
    let container =
        &find(&documents, "StatefulSet", "weft-etcd")["spec"]["template"]["spec"]["containers"][0];
    let netns = TestNetns::named("etcd").unwrap();
    let mut members = Vec::new();
    for (number, host) in HOSTS.into_iter().enumerate() {
        let data = dir.path().join(host);
        let arguments = list(&container["args"]).map(|argument| {
            let argument = argument.as_str().unwrap().replace("$(HOST_IP)", host);
            let argument = argument.replace("$(INITIAL_CLUSTER)", &cluster);
            let argument =
                argument.replace("/etc/etcd/", &format!("{}/", secrets["weft-etcd-server"].display()));
            // All are on one host here.
            let argument = argument.replace("127.0.0.1:2381", &format!("127.0.0.1:{}", 12381 + number));
            argument.replace("/var/lib/etcd/data", &data.to_string_lossy())
        });
        let log = fs::File::create(dir.path().join(format!("{host}.log"))).unwrap();
        let mut etcd = netns.command(container["command"][0].as_str().unwrap());
        members
            .push(Guarded::spawn(etcd.args(arguments).stdout(log.try_clone().unwrap()).stderr(log)).unwrap());
    }
    let client = &secrets["weft-etcd-client"];
    let etcdctl = |with_certificate: bool, words: &[&str]| {
        let mut command = netns.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--command-timeout=5s", "--dial-timeout=5s"]);
        command.arg(format!("--endpoints=https://{}:2379", HOSTS[1]));
        command.arg("--cacert").arg(client.join("ca.crt"));
        if with_certificate {
            command.arg("--cert").arg(client.join("tls.crt")).arg("--key").arg(client.join("tls.key"));
        }
        command.args(words).output().unwrap()
    };
    let logs =
        || HOSTS.map(|host| fs::read_to_string(dir.path().join(format!("{host}.log"))).unwrap()).join("\n");
    let healthy = || etcdctl(true, &["put", "/weft/v1/test", "value"]).status.success();
    poll_until(Duration::from_secs(60), "three members to agree", healthy)
        .unwrap_or_else(|e| panic!("{e:#}: {}", logs()));
    let list = etcdctl(true, &["member", "list"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout).matches("started").count(), 3);
    assert!(
        !etcdctl(false, &["get", "/weft/v1/test"]).status.success(),
        "it let somebody in without a certificate"
    );
}

/// Runs the Job's script, and writes what it makes as the pods see it: a folder for each secret.
fn certificates(documents: &[Value], dir: &Path, addresses: &str) -> BTreeMap<String, PathBuf> {
    let job = &find(documents, "Job", "weft-etcd-certificates")["spec"]["template"]["spec"];
    let container = &job["initContainers"][0];
    let words: Vec<_> = list(&container["command"]).map(|word| word.as_str().unwrap()).collect();
    let out = dir.join("certificates");
    fs::create_dir(&out).unwrap();
    // busybox' shell, as in the image, not a richer one.
    let output = Command::new("busybox")
        .arg("sh")
        .args(&words[1..])
        .env("OUT", &out)
        .env("ADDRESSES", addresses)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!out.join("ca.key").exists(), "the authority's key is kept");
    let text = fs::read_to_string(out.join("secrets.yaml")).unwrap();
    let mut folders = BTreeMap::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let secret = Value::deserialize(document).unwrap();
        if secret.is_null() {
            continue;
        }
        let name = secret["metadata"]["name"].as_str().unwrap();
        let folder = dir.join(name);
        fs::create_dir(&folder).unwrap();
        for (key, value) in secret["data"].as_object().unwrap() {
            let path = folder.join(key);
            let decoded = Command::new("openssl")
                .args(["base64", "-d", "-A", "-out"])
                .arg(&path)
                .stdin(Stdio::piped())
                .spawn();
            let mut decoded = decoded.unwrap();
            decoded.stdin.take().unwrap().write_all(value.as_str().unwrap().as_bytes()).unwrap();
            assert!(decoded.wait().unwrap().success());
        }
        folders.insert(name.to_owned(), folder);
    }
    assert_eq!(folders.len(), 2);
    folders
}
