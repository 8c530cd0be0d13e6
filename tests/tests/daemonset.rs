//! The DaemonSet's pod, run by containerd with the mounts and rights that the manifest gives it and no more: it serves pods of that
//! containerd, is replaced under traffic without a lost packet, and goes without a trace. Needs root.
//!
//! Folders of the host stand for those of this node. The executables under test bring their libraries, for they are not static; with
//! `WEFT_IMAGE`, the archive of an image that `cargo xtask dist` made, the pod runs from that image instead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use nix::sys::signal::Signal;
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::{
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};
use weft_tests::{
    Guarded, Node, binaries,
    containerd::{Containerd, pod_config},
    inventory::assert_clean,
    plugins, poll_until,
};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/weft-single-node.yaml");
const PATIENCE: Duration = Duration::from_secs(120);
/// Where its containers are in containerd: not among a kubelet's, for there is none.
const NAMESPACE: &str = "weft";
/// What ctr gives a container that asks for nothing.
const DEFAULT_RIGHTS: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The pod of the DaemonSet, and what its ConfigMap has.
fn manifest() -> (Value, Value) {
    let text = fs::read_to_string(MANIFEST).unwrap();
    let documents: Vec<_> =
        serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect();
    let find = |kind: &str| documents.iter().find(|d| d["kind"] == kind).unwrap();
    (find("DaemonSet")["spec"]["template"]["spec"].clone(), find("ConfigMap")["data"].clone())
}

struct World {
    containerd: Containerd,
    node: Node,
    dir: tempfile::TempDir,
    pod: Value,
    /// Whether the pod's image is there; its files are in a folder otherwise.
    from_image: bool,
}

impl World {
    fn new() -> Self {
        let (pod, config) = manifest();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "net.d", "config", "root/usr/local/bin"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        symlink(plugins::reference("loopback").unwrap(), dir.path().join("bin/loopback")).unwrap();
        let node = Node::builder("node").build().unwrap();
        // containerd wants one to begin with; Weft's comes before it.
        let other = json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "loopback"}]});
        fs::write(dir.path().join("net.d/99-other.conflist"), other.to_string()).unwrap();
        let mut list: Value = serde_json::from_str(text(&config["10-weft.conflist"])).unwrap();
        list["plugins"][0]["runDir"] = node.run_dir().to_str().unwrap().into();
        fs::write(dir.path().join("config/10-weft.conflist"), list.to_string()).unwrap();
        let settings = format!("{}cgroup = \"/host/cgroup\"\n", text(&config["ipamd.toml"]));
        fs::write(dir.path().join("config/ipamd.toml"), settings).unwrap();
        let containerd =
            Containerd::start_new(node.netns(), &dir.path().join("bin"), &dir.path().join("net.d")).unwrap();
        let archive = std::env::var_os("WEFT_IMAGE");
        match &archive {
            Some(archive) => containerd.import(NAMESPACE, Path::new(archive)).unwrap(),
            None => image(&dir.path().join("root")),
        }
        Self { containerd, node, dir, pod, from_image: archive.is_some() }
    }

    /// What stands here for a path of the host.
    fn host_path(&self, path: &str) -> PathBuf {
        match path {
            "/opt/cni/bin" => self.dir.path().join("bin"),
            "/etc/cni/net.d" => self.dir.path().join("net.d"),
            "/run/weft" => self.node.run_dir(),
            "/var/lib/weft" => self.node.state_dir(),
            "/run/netns" => self.containerd.state_dir(),
            "/sys/fs/bpf" => self.node.bpf_dir().parent().unwrap().to_owned(),
            "/sys/fs/cgroup" => self.node.cgroup().to_owned(),
            "/proc/sys" => path.into(),
            other => panic!("the manifest has a path of the host that this test does not know: {other}"),
        }
    }

    /// `ctr run` as a kubelet would have a container of the pod run.
    fn run(&self, container: &Value, name: &str, detached: bool) -> Output {
        let context = &container["securityContext"];
        let mut ctr = self.containerd.ctr(NAMESPACE);
        ctr.args(["run", "--seccomp"]);
        // Its own place for them is in this containerd's mount namespace only.
        ctr.arg("--fifo-dir").arg(self.dir.path().join("fifo"));
        ctr.args(if detached { &["--detach", "--null-io"][..] } else { &["--rm"][..] });
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["privileged"]),
            (&true.into(), &false.into())
        );
        ctr.arg("--read-only");
        let rights: Vec<_> = list(&context["capabilities"]["add"]).map(text).collect();
        for right in DEFAULT_RIGHTS.iter().filter(|right| !rights.contains(right)) {
            ctr.arg("--cap-drop").arg(format!("CAP_{right}"));
        }
        for right in rights.iter().filter(|right| !DEFAULT_RIGHTS.contains(right)) {
            ctr.arg("--cap-add").arg(format!("CAP_{right}"));
        }
        assert_eq!((&self.pod["hostNetwork"], &self.pod["hostPID"]), (&true.into(), &true.into()));
        ctr.arg("--with-ns").arg(format!("network:{}", self.node.netns().path().display()));
        ctr.args(["--with-ns", "pid:/proc/self/ns/pid", "--env", "NODE_NAME=node"]);
        for mount in list(&container["volumeMounts"]) {
            let volume = list(&self.pod["volumes"]).find(|v| v["name"] == mount["name"]).unwrap();
            let (from, mut to) = match volume["name"].as_str() {
                Some("config") => (self.dir.path().join("config"), PathBuf::from(text(&mount["mountPath"]))),
                // Optional, and not there.
                Some("etcd-client") => continue,
                _ => (self.host_path(text(&volume["hostPath"]["path"])), text(&mount["mountPath"]).into()),
            };
            if volume["name"] == "netns" {
                // Where this containerd has its sandboxes.
                to.clone_from(&from);
            }
            let slave = if mount["mountPropagation"] == "HostToContainer" { "rslave" } else { "rprivate" };
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            let (from, to) = (from.display(), to.display());
            ctr.arg("--mount").arg(format!("type=bind,src={from},dst={to},options=rbind:{slave}:{mode}"));
        }
        if self.from_image {
            ctr.args(["--snapshotter", self.containerd.snapshotter(), text(&container["image"]), name]);
        } else {
            ctr.arg("--rootfs").arg(self.dir.path().join("root")).arg(name);
        }
        let words = list(&container["command"]).chain(list(&container["args"])).map(text);
        ctr.args(words.map(|word| word.replace("$(NODE_NAME)", "node"))).output().unwrap()
    }

    /// Starts the pod: installs, then runs ipamd until its probe says that it is ready.
    fn start(&self, name: &str) {
        let installed = self.run(&self.pod["initContainers"][0], &format!("{name}-install"), false);
        assert!(installed.status.success(), "{}", said(&installed));
        let ipamd = &self.pod["containers"][0];
        let started = self.run(ipamd, name, true);
        assert!(started.status.success(), "{}", said(&started));
        let probe: Vec<_> = list(&ipamd["startupProbe"]["exec"]["command"]).map(text).collect();
        let ready = || self.exec(name, &probe).status.success();
        poll_until(PATIENCE, "the pod to be ready", ready)
            .unwrap_or_else(|e| panic!("{e:#}: {}", said(&self.exec(name, &probe))));
    }

    fn exec(&self, name: &str, words: &[&str]) -> Output {
        let mut ctr = self.containerd.ctr(NAMESPACE);
        ctr.args(["task", "exec", "--fifo-dir"]).arg(self.dir.path().join("fifo"));
        ctr.args(["--exec-id", "probe", name]).args(words).output().unwrap()
    }

    /// Ends a container as a kubelet does.
    fn stop(&self, name: &str) {
        let ctr = |words: &[&str]| self.containerd.ctr(NAMESPACE).args(words).output().unwrap();
        ctr(&["task", "kill", "--signal", "SIGTERM", name]);
        let removed = || ctr(&["task", "rm", name]).status.success();
        poll_until(PATIENCE, "the container to end", removed).unwrap();
        assert!(ctr(&["container", "rm", name]).status.success());
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The image's files, and the libraries of executables that are not static.
fn image(root: &Path) {
    for name in ["weft", "ipamd", "netctl"] {
        let path = binaries::find(name).unwrap();
        fs::copy(&path, root.join("usr/local/bin").join(name)).unwrap();
        let libraries = Command::new("ldd").arg(&path).output().unwrap();
        for library in said(&libraries).split_whitespace().filter(|word| word.starts_with("/lib")) {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
}

#[test]
fn the_daemonsets_pod_serves_is_replaced_under_traffic_and_leaves_nothing() {
    let mut world = World::new();
    world.start("first");
    let one = world.containerd.start_pod(&pod_config("one")).unwrap();
    let two = world.containerd.start_pod(&pod_config("two")).unwrap();
    assert!(world.containerd.ping(&one, &two.ips[0]).unwrap());

    let mut ping = world.node.netns().command("ping");
    ping.args(["-i", "0.02", &two.ips[0]]).stdout(Stdio::piped());
    let mut ping = Guarded::spawn(&mut ping).unwrap();
    world.stop("first");
    assert!(world.containerd.ping(&one, &two.ips[0]).unwrap(), "with ipamd away");
    world.start("second");
    let three = world.containerd.start_pod(&pod_config("three")).unwrap();
    assert!(world.containerd.ping(&three, &one.ips[0]).unwrap());
    ping.signal(Signal::SIGINT).unwrap();
    ping.wait(PATIENCE).unwrap();
    let mut printed = String::new();
    ping.child().stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let (sent, received) = counted(&printed);
    assert!(sent > 20 && sent == received, "{printed}");

    for pod in [one, two, three] {
        world.containerd.remove_pod(&pod.id).unwrap();
    }
    let uninstalled = world.exec("second", &["/usr/local/bin/netctl", "uninstall"]);
    assert!(uninstalled.status.success(), "{}", said(&uninstalled));
    world.stop("second");
    let mut uninstall = world.pod["initContainers"][0].clone();
    uninstall["args"] = list(&uninstall["args"]).take(2).chain([&json!("--uninstall")]).cloned().collect();
    let uninstalled = world.run(&uninstall, "uninstall", false);
    assert!(uninstalled.status.success(), "{}", said(&uninstalled));
    assert_clean(&world.node).unwrap();
    for (folder, left) in [("bin", "loopback"), ("net.d", "99-other.conflist")] {
        let names = fs::read_dir(world.dir.path().join(folder)).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [left]);
    }
}

/// `N packets transmitted, N received` of ping's last words.
fn counted(printed: &str) -> (u64, u64) {
    let line = printed.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0))
}
