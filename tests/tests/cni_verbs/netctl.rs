//! `netctl` end to end: what it shows, in which form, how it ends, and whether its remedies mend.

use super::{PATIENCE, dual};
use anyhow::{Context, Result, ensure};
use ipamd_api::Inspection;
use serde_json::{Value, json};
use weft_tests::{Node, Pod, TestNetns, binaries, poll_until};

/// Exit code, standard output and standard error of a `netctl` call.
pub(crate) fn netctl(node: &Node, arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = node.netctl(arguments)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn netctl_shows_what_there_is() -> Result<()> {
    let node = Node::start_new("netctl-node")?;
    let created = netctl(
        &node,
        &[
            "network",
            "create",
            "shown",
            "--subnet",
            "10.72.0.0/24",
            "--subnet",
            "fd00:72::/64",
            "--mtu",
            "1400",
        ],
    )?;
    ensure!(created.0 == 0, "{created:?}");
    let netconf = json!({"cniVersion": "1.0.0", "name": "shown", "type": "weft"});
    let pod = Pod::add(&node, "container-1", &netconf)?;
    ensure!(
        pod.addresses()[0].to_string().starts_with("10.72.0."),
        "the network that netctl made: {}",
        pod.result
    );
    let address = pod.ipv4()?.to_string();
    let endpoint = pod.endpoint()?.to_string();
    // What is asked, and what the table and both machine formats have to show.
    let table: [(&[&str], &[&str]); 10] = [
        (&["status"], &["netctl-node", "store", "datapath"]),
        (&["network", "ls"], &["shown", "10.72.0.0/24", "fd00:72::/64"]),
        (&["network", "inspect", "shown"], &["10.72.0.0/24", "1400"]),
        (&["endpoint", "ls"], &["container-1", &address, "shown"]),
        (&["endpoint", "ls", "--network", "shown"], &["container-1"]),
        (&["inspect", "container-1"], &["container-1", &address, &endpoint, "1400"]),
        (&["inspect", "cont"], &["container-1"]),
        (&["inspect", &address], &["container-1"]),
        (&["inspect", "shown"], &["10.72.0.0/24"]),
        (&["inspect", "netctl-node"], &["netctl-node", "shown"]),
    ];
    for (arguments, words) in table {
        let (code, said, error) = netctl(&node, arguments)?;
        ensure!(code == 0 && !said.contains('\u{1b}'), "{arguments:?}: {code} {said}{error}");
        let json: Value = serde_json::from_str(&netctl(&node, &[arguments, &["-o", "json"]].concat())?.1)?;
        let yaml = netctl(&node, &[arguments, &["-o", "yaml"]].concat())?;
        ensure!(yaml.0 == 0 && !yaml.1.trim_start().starts_with('{'), "{arguments:?}: {yaml:?}");
        for word in words {
            for text in [&said, &json.to_string(), &yaml.1] {
                ensure!(text.contains(word), "{arguments:?}: no {word} in\n{text}");
            }
        }
    }
    let typed: Inspection = serde_json::from_str(&netctl(&node, &["inspect", &address, "-o", "json"])?.1)?;
    ensure!(matches!(typed, Inspection::Container { .. }), "{typed:?}");
    for (free, state) in [
        ("10.72.0.1", "gateway"),
        ("10.72.0.255", "broadcast"),
        ("192.0.2.1", "outside"),
        ("10.72.0.200", ""),
    ] {
        let (code, said, _) = netctl(&node, &["inspect", free])?;
        ensure!(code == 0 && said.contains(state), "{free}: {said}");
    }
    // Refused and not found: 1; not understood: 2. Each says what to do next.
    for (arguments, code, word) in [
        (&["network", "rm", "shown"][..], 1, "container-1"),
        (&["network", "rm", "nothing"], 1, "nothing"),
        (&["network", "create", "shown", "--mtu", "1500"], 1, "1400"),
        (&["inspect", "nothing"], 1, "nothing"),
        (&["inspect", "a/b"], 2, "a/b"),
        (&["endpoint", "ls", "--network", "nothing"], 1, "nothing"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["network", "create", "x", "--subnet", "10.0.0.300/8"], 2, "10.0.0.300"),
        (&["endpoint", "ls", "--network"], 2, "--network"),
    ] {
        let (got, said, error) = netctl(&node, arguments)?;
        ensure!(got == code && said.is_empty() && error.contains(word), "{arguments:?}: {got} {said}{error}");
    }
    let away =
        node.netns().command(binaries::find("netctl")?).args(["--run-dir", "/no/such", "status"]).output()?;
    let said = String::from_utf8_lossy(&away.stderr);
    ensure!(
        away.status.code() == Some(1) && said.contains("/no/such/ipamd.sock") && said.contains("start ipamd"),
        "{said}"
    );
    pod.del(&node, &netconf)?;
    let removed = || netctl(&node, &["network", "rm", "shown"]).is_ok_and(|(code, ..)| code == 0);
    poll_until(PATIENCE, "the network to be removable", removed)?;
    ensure!(node.netns().ip("-o link show type bridge")?.is_empty(), "the bridge went with it");
    Ok(())
}

#[test]
fn inspect_shows_differences_with_remedies_that_work() -> Result<()> {
    let node = Node::start_new("remedies")?;
    let netconf = dual("mended", 73);
    let pod = Pod::add(&node, "patient", &netconf)?;
    let host_link = pod.endpoint()?.host_ifname();
    let mac = pod.mac()?;
    let (four, six) = (&pod.addresses()[0], &pod.addresses()[1]);
    let table: [(String, bool, &str); 10] = [
        (format!("ip addr del {four} dev eth0"), true, "address"),
        (format!("ip -6 addr del {six} dev eth0"), true, "address"),
        ("ip route del default".into(), true, "default via 10.73.0.1"),
        ("ip -6 route del default".into(), true, "default via fd00:73::1"),
        ("ip link set eth0 mtu 1400".into(), true, "MTU of eth0"),
        ("ip link set eth0 address 02:00:00:00:00:77".into(), true, "MAC of eth0"),
        (format!("ip link set {host_link} nomaster"), false, "bridge of"),
        (format!("ip link set {host_link} down"), false, "state of"),
        (format!("bridge fdb del {mac} dev {host_link} master"), false, "forwarding entry"),
        (format!("tc qdisc del dev {host_link} clsact"), false, "program"),
    ];
    for (damage, inside, word) in &table {
        let netns: &TestNetns = if *inside { &pod } else { node.netns() };
        netns.sh(damage)?;
        // A remedy may take back what another is for, as an address takes its routes: to be followed until all is well.
        let mut rounds = 0;
        loop {
            let (code, said, error) = netctl(&node, &["inspect", "patient", "-o", "json"])?;
            let shown: Value = serde_json::from_str(&said).with_context(|| error)?;
            let differences = shown["endpoints"][0]["differences"].as_array().cloned().unwrap_or_default();
            ensure!(
                (code == 0) == differences.is_empty(),
                "after {damage}: exit code {code} with {differences:?}"
            );
            if rounds == 0 {
                let named =
                    differences.iter().any(|d| d["subject"].as_str().is_some_and(|s| s.contains(word)));
                ensure!(named, "after {damage}: no {word:?} in {differences:?}");
                let people = netctl(&node, &["inspect", "patient", "--color", "always"])?;
                ensure!(
                    people.0 == 1 && people.1.contains("\u{1b}[31m"),
                    "after {damage}, not red: {}",
                    people.1
                );
            }
            if differences.is_empty() {
                break;
            }
            rounds += 1;
            ensure!(rounds < 4, "after {damage}: still {differences:?}");
            for difference in &differences {
                follow(&node, difference["remedy"].as_str().unwrap_or_default())?;
            }
        }
        ensure!(pod.ping("10.73.0.1")? && pod.ping("fd00:73::1")?, "after {damage} and its remedy");
        node.cni()?.container("patient").netns(pod.path()).check(&netconf, &pod.result)?;
    }
    // What is dead is collected, and said.
    drop(pod);
    // The kernel takes the namespace down in its own time.
    let collected =
        || netctl(&node, &["gc"]).is_ok_and(|(code, said, _)| code == 0 && said.contains("patient"));
    poll_until(PATIENCE, "netctl gc to collect what is dead", collected)
}

/// Does what a remedy says, as an operator pastes it.
fn follow(node: &Node, remedy: &str) -> Result<()> {
    if let Some(arguments) = remedy.strip_prefix("netctl ") {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let (code, said, error) = netctl(node, &arguments)?;
        ensure!(code == 0, "{remedy}: {said}{error}");
        return Ok(());
    }
    let output = node.netns().command("sh").args(["-c", remedy]).output()?;
    // It may have come back by itself with what was mended before it.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || said.contains("File exists"), "{remedy}: {said}");
    Ok(())
}
