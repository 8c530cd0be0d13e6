//! The calls that must be refused: what, how, with which code, and what the message must say.

use super::{
    base,
    scene::{Case, HELD_PORT, Input, Scene},
    tiny, with,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;
use weft_tests::Cni;

/// A netconf of a network that does not exist yet, with these fields.
fn fresh(fields: &Value) -> Value {
    with(&json!({"cniVersion": "1.0.0", "name": "fresh", "type": "weft"}), fields)
}

impl Scene {
    /// What stands on standard input.
    pub(crate) fn frames(&self) -> Result<Vec<Case<'_>>> {
        let raw = |text: &str| Input::Raw(text.as_bytes().to_vec());
        let mut cases = vec![
            self.case("no JSON", raw("{\"cniVersion\": "), 6, &["not JSON"])?,
            self.case("nothing", raw(""), 6, &["standard input is empty"])?,
            self.case("a list", raw("[]"), 6, &["no object"])?,
            self.case("binary", Input::Raw(vec![0xff; 64]), 6, &["not JSON"])?,
            self.case("deep nesting", raw(&"[".repeat(100_000)), 6, &["not JSON"])?,
            self.case("no version", raw("{\"name\": \"fresh\"}"), 1, &["0.1.0", "1.1.0"])?,
        ];
        for version in ["0.1.0", "0.2.0", "2.0.0", "1.0", "latest"] {
            let input = Input::Netconf(fresh(&json!({"cniVersion": version})));
            cases.push(self.case(&format!("version {version}"), input, 1, &[version, "0.3.1", "1.1.0"])?);
        }
        Ok(cases)
    }

    /// What a netconf asks for.
    pub(crate) fn netconfs(&self) -> Result<Vec<Case<'_>>> {
        let table: Vec<(Value, u32, &[&str])> = vec![
            // Wrong types.
            (json!({"name": 5}), 6, &["\"name\" is 5", "text"]),
            (json!({"subnet": ["10.92.0.0/24"]}), 6, &["\"subnet\" is a list"]),
            (json!({"pools": {"subnet": "10.92.0.0/24"}}), 6, &["\"pools\" is an object", "a list"]),
            (json!({"mtu": "1500"}), 6, &["\"mtu\"", "whole number"]),
            (json!({"internal": "yes"}), 6, &["\"internal\"", "true or false"]),
            (json!({"runtimeConfig": []}), 6, &["\"runtimeConfig\" is a list"]),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": "80", "containerPort": 80}]}}),
                6,
                &["hostPort"],
            ),
            (json!({"runtimeConfig": {"ips": "10.92.0.5"}}), 6, &["ips"]),
            (json!({"routes": ["0.0.0.0/0"]}), 6, &["routes"]),
            (json!({"prevResult": "none"}), 6, &["prevResult"]),
            (json!({"dns": {"nameservers": "10.0.0.1"}}), 6, &["nameservers"]),
            // Names.
            (json!({"name": ""}), 7, &["\"name\" is missing"]),
            (json!({"name": "../etc"}), 7, &["../etc", "must start with a letter"]),
            (json!({"name": "a b"}), 7, &["a b"]),
            (json!({"name": "n".repeat(256)}), 7, &["255"]),
            // Pools.
            (json!({"subnet": "10.92.0.0/33"}), 7, &["subnet", "10.92.0.0/33"]),
            (json!({"subnet": "10.92.0.300/24"}), 7, &["10.92.0.300/24"]),
            (json!({"subnet": "ten"}), 7, &["\"ten\""]),
            (json!({"subnet": "10.92.0.5/24"}), 7, &["10.92.0.5/24", "10.92.0.0/24"]),
            (json!({"subnet": "10.92.0.0/32"}), 7, &["10.92.0.0/32", "too small"]),
            (json!({"subnet": "fd00:92::/128"}), 7, &["fd00:92::/128", "too small"]),
            (json!({"subnet": "127.0.0.0/8"}), 7, &["127.0.0.0/8", "loopback"]),
            (json!({"subnet": "224.1.0.0/16"}), 7, &["multicast"]),
            (json!({"subnet": "fe80::/64"}), 7, &["link-local"]),
            (json!({"subnet": "::ffff:10.0.0.0/120"}), 7, &["IPv4-mapped"]),
            (json!({"subnet": "10.90.0.0/16"}), 7, &["10.90.0.0/16", "base", "10.90.0.0/24"]),
            (json!({"subnet": "10.91.0.0/31"}), 7, &["10.91.0.0/31"]),
            (
                json!({"pools": [{"subnet": "10.92.0.0/24"}, {"subnet": "10.92.0.128/25"}]}),
                7,
                &["more than one IPv4 pool"],
            ),
            (
                json!({"pools": [{"subnet": "10.92.0.0/24"}], "subnet": "10.93.0.0/24"}),
                7,
                &["\"subnet\"", "\"pools\""],
            ),
            (json!({"pools": [{"subnets": "10.92.0.0/24"}]}), 2, &["pools[0].subnets"]),
            (json!({"gateway": "10.92.0.1"}), 7, &["gateway", "without \"subnet\""]),
            (
                json!({"subnet": "10.92.0.0/24", "gateway": "10.93.0.1"}),
                7,
                &["gateway 10.93.0.1", "10.92.0.0/24"],
            ),
            (json!({"subnet": "10.92.0.0/24", "gateway": "fd00::1"}), 7, &["gateway fd00::1"]),
            (json!({"subnet": "10.92.0.0/24", "gateway": "10.92.0.255"}), 7, &["10.92.0.255", "broadcast"]),
            (json!({"subnet": "10.92.0.0/24", "gateway": "gate"}), 7, &["\"gate\""]),
            (
                json!({"subnet": "10.92.0.0/24", "dynamicRange": "10.93.0.0/25"}),
                7,
                &["dynamicRange 10.93.0.0/25"],
            ),
            (
                json!({"subnet": "10.92.0.0/24", "dynamicRange": "10.92.0.1/32"}),
                7,
                &["10.92.0.1/32", "too small"],
            ),
            (json!({"subnet": "10.92.0.0/24", "reserved": ["10.93.0.5"]}), 7, &["reserved 10.93.0.5"]),
            // The rest of a network.
            (json!({"mtu": 67}), 7, &["MTU 67", "68"]),
            (json!({"mtu": 65536}), 7, &["MTU 65536", "65535"]),
            (json!({"mtu": -1}), 7, &["-1"]),
            (json!({"mtu": 1.5}), 7, &["1.5"]),
            (json!({"subnet": "fd00:92::/64", "mtu": 1279}), 7, &["MTU 1279", "1280"]),
            (json!({"driver": "overlay9"}), 2, &["overlay9", "bridge"]),
            (json!({"driver": "macvlan"}), 7, &["macvlan", "parent"]),
            (json!({"driver": "macvlan", "parent": "a/b"}), 7, &["a/b"]),
            (
                json!({"driver": "macvlan", "parent": "nothere0", "subnet": "10.92.0.0/24"}),
                118,
                &["nothere0"],
            ),
            (json!({"driver": "bridge", "parent": "lo"}), 7, &["parent lo", "macvlan"]),
            (json!({"driver": "none", "subnet": "10.92.0.0/24"}), 7, &["none", "subnet"]),
            (json!({"hooks": "xdp"}), 2, &["xdp", "clsact"]),
            (json!({"ipam": {"type": "host-local"}}), 2, &["ipam.type", "host-local"]),
            (json!({"runDir": "relative"}), 7, &["runDir", "absolute"]),
            // What the container is to have.
            (
                json!({"subnet": "10.92.0.0/24", "routes": [{"dst": "192.0.2.0/24", "gw": "10.99.0.1"}]}),
                7,
                &["192.0.2.0/24", "10.99.0.1"],
            ),
            (
                json!({"subnet": "10.92.0.0/24", "routes": [{"dst": "2001:db8::/32"}]}),
                7,
                &["2001:db8::/32", "IPv6"],
            ),
            (json!({"routes": [{"gw": "10.99.0.1"}]}), 7, &["dst"]),
            (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), 7, &["01:00:5e:00:00:01", "group"]),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), 7, &["00:00:00:00:00:00"]),
            (json!({"runtimeConfig": {"mac": "02:00:00"}}), 7, &["02:00:00"]),
            (json!({"runtimeConfig": {"ips": ["10.92.0.0.1"]}}), 7, &["10.92.0.0.1"]),
        ];
        let cases = table.iter().map(|(fields, code, words)| {
            self.case(&fields.to_string(), Input::Netconf(fresh(fields)), *code, words)
        });
        cases.collect()
    }

    /// Port mappings.
    pub(crate) fn ports(&self) -> Result<Vec<Case<'_>>> {
        let many: Vec<Value> =
            (0..100).map(|n| json!({"hostPort": 1000 + 2 * n, "containerPort": 80})).collect();
        let one = |host: u32, container: u32| json!({"hostPort": host, "containerPort": container});
        let with_ip = |ip: &str| json!([{"hostPort": 8000, "containerPort": 80, "hostIP": ip}]);
        let protocol = |name: &str| json!([{"hostPort": 8000, "containerPort": 80, "protocol": name}]);
        let table: Vec<(Value, u32, &[&str])> = vec![
            // Numbers.
            (json!([one(65536, 80)]), 7, &["hostPort", "65536", "65535"]),
            (json!([one(80, 65536)]), 7, &["containerPort", "65536"]),
            (json!([one(80, 0)]), 7, &["containerPort", "0", "start at 1"]),
            (json!([{"hostPort": -1, "containerPort": 80}]), 7, &["hostPort", "-1"]),
            (json!([{"hostPort": 80.5, "containerPort": 80}]), 7, &["hostPort", "80.5"]),
            (json!([{"containerPort": 80}]), 7, &["without", "hostPort"]),
            (json!([{"hostPort": 80}]), 7, &["without", "containerPort"]),
            // Protocols.
            (protocol("icmp"), 2, &["icmp", "tcp, udp and sctp"]),
            (protocol("tcp,udp"), 2, &["tcp,udp"]),
            (protocol("sctp"), 117, &["8000/sctp", "never translated", "80"]),
            // Addresses.
            (with_ip("here"), 7, &["hostIP", "here"]),
            (with_ip("10.0.0.0/8"), 7, &["hostIP", "10.0.0.0/8"]),
            (with_ip("203.0.113.9"), 117, &["203.0.113.9", "no address of this node"]),
            (with_ip("2001:db8::9"), 117, &["2001:db8::9", "no address of this node"]),
            (with_ip("224.0.0.1"), 117, &["224.0.0.1"]),
            (with_ip("fe80::1"), 117, &["fe80::1", "link-local"]),
            (json!([{"hostPort": 80, "containerPort": 80, "allowFrom": ["ten"]}]), 7, &["allowFrom", "ten"]),
            // Two in one.
            (json!([one(8000, 80), one(8000, 81)]), 117, &["8000/tcp", "overlap at port 8000"]),
            (
                json!([one(8000, 80), {"hostPort": 8000, "containerPort": 80, "hostIP": "127.0.0.1"}]),
                117,
                &["127.0.0.1:8000/tcp", "overlap"],
            ),
            (json!([one(8000, 80), one(8001, 81), one(8001, 90)]), 117, &["8000-8001/tcp", "8001/tcp"]),
            (json!(many), 117, &["100 port mappings", "ranges"]),
            // Held by others: a container, in a range and at one address too, and a program.
            (json!([one(u32::from(HELD_PORT), 80)]), 116, &["publisher/eth0", "18081"]),
            (
                json!([one(18080, 80), one(18081, 81), one(18082, 82)]),
                116,
                &["18080-18082/tcp", "publisher/eth0"],
            ),
            (
                json!([{"hostPort": 18081, "containerPort": 80, "hostIP": "127.0.0.1"}]),
                116,
                &["publisher/eth0"],
            ),
            (json!([{"hostPort": 18081, "containerPort": 80, "hostIP": "::1"}]), 116, &["publisher/eth0"]),
        ];
        let mut cases = Vec::new();
        for (mappings, code, words) in &table {
            let netconf = with(&base(), &json!({"runtimeConfig": {"portMappings": mappings}}));
            let what: String = mappings.to_string().chars().take(100).collect();
            cases.push(self.case(&what, Input::Netconf(netconf), *code, words)?);
        }
        let mapping = json!({"runtimeConfig": {"portMappings": [one(8000, 80)]}});
        for (fields, word) in [
            (json!({"driver": "host"}), "driver host"),
            (json!({"driver": "none"}), "driver none"),
            (json!({"internal": true, "subnet": "10.92.0.0/24"}), "network fresh is internal"),
        ] {
            let netconf = with(&fresh(&fields), &mapping);
            cases.push(self.case(&fields.to_string(), Input::Netconf(netconf), 117, &[word])?);
        }
        let bound = self.bound_port;
        let netconf = with(&base(), &json!({"runtimeConfig": {"portMappings": [one(bound.into(), 80)]}}));
        let pid = format!("pid {}", std::process::id());
        let words = [&format!("{bound}/tcp")[..], &pid];
        cases.push(self.case("a port that a program has", Input::Netconf(netconf), 116, &words)?);
        Ok(cases)
    }

    /// What contradicts what is there, or is held already.
    pub(crate) fn contradictions(&self) -> Result<Vec<Case<'_>>> {
        let ips = |ips: &[&str]| json!({"runtimeConfig": {"ips": ips}});
        let table: Vec<(Value, u32, &[&str])> = vec![
            (with(&base(), &ips(&["10.90.0.10"])), 102, &["10.90.0.10", "holder/eth0", "base"]),
            (with(&base(), &ips(&["10.90.0.20"])), 103, &["10.90.0.20", "reserved"]),
            (with(&base(), &ips(&["10.90.0.1"])), 103, &["10.90.0.1", "gateway"]),
            (with(&base(), &ips(&["10.90.0.0"])), 103, &["10.90.0.0", "network address"]),
            (with(&base(), &ips(&["10.90.0.255"])), 103, &["broadcast"]),
            (with(&base(), &ips(&["fd00:90::"])), 103, &["anycast"]),
            (with(&base(), &ips(&["192.0.2.1"])), 103, &["192.0.2.1", "base"]),
            (with(&base(), &ips(&["10.90.0.30", "10.90.0.31"])), 103, &["one address of a family"]),
            (with(&tiny(), &ips(&["fd00::5"])), 103, &["fd00::5", "family"]),
            (with(&base(), &ips(&["10.90.0.10", "fd00:90::77"])), 102, &["10.90.0.10"]),
            (tiny(), 101, &["10.91.0.0/30", "tiny", "1 of 1", "namespace shop", ": 1"]),
            (with(&base(), &json!({"mtu": 9000})), 100, &["mtu", "1500", "9000"]),
            (with(&base(), &json!({"driver": "macvlan"})), 100, &["driver", "bridge", "macvlan"]),
            (with(&base(), &json!({"internal": true})), 100, &["internal", "false", "true"]),
            (with(&base(), &json!({"hooks": "tcx"})), 100, &["clsact", "tcx"]),
            (
                with(&tiny(), &json!({"subnet": "10.91.4.0/30"})),
                100,
                &["10.91.0.0/30", "10.91.4.0/30", "netctl network rm tiny"],
            ),
            (with(&tiny(), &json!({"gateway": "10.91.0.2"})), 100, &["gateway", "10.91.0.1", "10.91.0.2"]),
        ];
        let cases = table.iter().map(|(netconf, code, words)| {
            self.case(&netconf.to_string(), Input::Netconf(netconf.clone()), *code, words)
        });
        cases.collect()
    }

    /// What the variables say.
    pub(crate) fn variables<'a>(&'a self) -> Result<Vec<Case<'a>>> {
        let long_id = "i".repeat(256);
        let mut cases = Vec::new();
        let mut add = |what: String, cni: Cni<'a>, code: u32, words: &[&str]| -> Result<()> {
            cases.push(Case { cni, ..self.case(&what, Input::Netconf(base()), code, words)? });
            Ok(())
        };
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            add(format!("no {name}"), self.cni()?.variable(name, None), 4, &[name])?;
            add(format!("empty {name}"), self.cni()?.variable(name, Some("".into())), 4, &[name])?;
        }
        for id in ["../x", "a/b", "a b", "-a", "ä", &long_id] {
            add(format!("container ID {id}"), self.cni()?.container(id), 4, &["CNI_CONTAINERID"])?;
        }
        for name in ["sixteen-letters-", "a/b", "../x", ".", "..", "a b", "a:b", "a\tb"] {
            add(format!("interface {name}"), self.cni()?.ifname(name), 4, &["CNI_IFNAME"])?;
        }
        for (args, word) in
            [("IP=10.90.0.300", "IP"), ("FOO=1", "FOO"), ("IP", "KEY=VALUE"), ("MAC=1", "MAC")]
        {
            add(format!("CNI_ARGS {args}"), self.cni()?.args(args), 4, &["CNI_ARGS", word])?;
        }
        let file = self.node.run_dir().join("../ipamd.toml");
        let host = self.node.netns().path();
        let holder = self.holder.path();
        for (path, code, word) in [
            (Path::new("netns"), 4, "absolute"),
            (Path::new("/no/such/netns"), 105, "/no/such/netns does not exist"),
            (&file, 105, "no network namespace"),
            (Path::new("/tmp"), 105, "no network namespace"),
            (Path::new("/dev/null"), 105, "no network namespace"),
            (Path::new("/proc/self/ns/mnt"), 105, "no network namespace"),
            (host, 105, "host's own network namespace"),
        ] {
            add(format!("netns {}", path.display()), self.cni()?.netns(path), code, &[word])?;
        }
        add(
            "an interface that exists".into(),
            self.cni()?.netns(holder),
            104,
            &["eth0", &holder.display().to_string()],
        )?;
        add("lo".into(), self.cni()?.ifname("lo"), 104, &["lo"])?;
        Ok(cases)
    }
}
